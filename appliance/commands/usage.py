"""`outpost usage report`: the chargeback, by team, key, model, tag, day …"""

from __future__ import annotations

import asyncio
import json
import time
from enum import StrEnum
from typing import Annotated, Any

import typer

from appliance.commands.control import Control, NotRunning
from appliance.commands.place import ConfigOption, DataDirOption, Place, find_place, told
from appliance.commands.terminal import table
from appliance.records.usage_rows import (
    COUNTS,
    NAMES,
    Dimension,
    parse_dimensions,
    parse_span,
    to_csv,
    to_plain,
)

app = typer.Typer(no_args_is_help=True)

PATH = "/admin/v1/usage"
PATIENCE_S = 300.0
"""Sums over years of records take longer than other answers."""


class Format(StrEnum):
    table = "table"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"


@app.callback()
def usage() -> None:
    """Who used how much."""


@app.command()
def report(
    by: Annotated[
        str,
        typer.Option(help="One or several of organization, team, user, service_account, key, model, target, tag, day."),
    ] = "team,model",
    since: Annotated[
        str | None,
        typer.Option(
            help="From this moment on: 2026-11-01 (UTC), 2026-11-01T12:00:00Z, or a time ago (7d); default: the first "
            "of this month."
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(help="Up to, not with, this moment, in the same forms; default: the first of next month."),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.table,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Sum requests, tokens and cost."""
    with told():
        dimensions = parse_dimensions(by)
        rows = fetch(find_place(config, data_dir), dimensions, since, until)
    if form is Format.csv:
        typer.echo(to_csv(rows, dimensions), nl=False)
    elif form is Format.json:
        typer.echo(json.dumps({"data": rows}))
    elif form is Format.jsonl:
        for row in rows:
            typer.echo(json.dumps(row))
    elif rows:
        names = [name for each in dimensions for name in (each, NAMES.get(each)) if name is not None] + [*COUNTS]
        shown = [tuple(str(row[name]) or "-" for name in names) for row in rows]
        for line in table(tuple(name.upper() for name in names), shown):
            typer.echo(line)
    else:
        typer.echo("There are no requests in this time.", err=True)


def fetch(place: Place, by: tuple[Dimension, ...], since: str | None, until: str | None) -> list[dict[str, Any]]:
    """Rows as plain data, from the gateway if one runs, else from the database. Raises OutpostError."""
    first, last = parse_span(since, until, time.time())
    query = {"by": ",".join(by), "since": since, "until": until}
    try:
        rows = Control(place.control_socket, timeout_s=PATIENCE_S).call("GET", PATH, query=query)
        # A gateway that was started before an update may give no names yet.
        return [{**{NAMES[each]: row[each] for each in by if each in NAMES}, **row} for row in rows]
    except NotRunning:
        return to_plain(asyncio.run(_from_database(place, by, first, last)), by)


async def _from_database(place: Place, by: tuple[Dimension, ...], since: float, until: float) -> Any:
    # Only where no gateway can be asked.
    from appliance.commands.database import reading
    from appliance.records.usage import UsageStore

    async with reading(place) as database:
        return await UsageStore(database).report(by, since, until)
