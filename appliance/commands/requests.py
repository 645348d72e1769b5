"""`outpost requests`: what was asked, when, by whom and how it ended."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Annotated, Any

import msgspec
import typer

from appliance.commands.control import Control, NotRunning
from appliance.commands.place import ConfigOption, DataDirOption, Place, find_place, told
from appliance.commands.terminal import moment, seconds, visible

app = typer.Typer(no_args_is_help=True)

PATH = "/admin/v1/requests"
POLL_S = 0.5
MOST = 1000
"""Requests that are asked for at once; nobody gives more."""


@app.callback()
def requests() -> None:
    """The record of requests."""


@app.command()
def tail(
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=MOST, help="How many to show first.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones until interrupted.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show the newest requests, oldest of them first."""
    with told():
        place = find_place(config, data_dir)
        last = _show(fetch(place, None, number), as_json, 0)
        try:
            while follow:
                time.sleep(POLL_S)
                last = _show(fetch(place, last, MOST), as_json, last)
        except KeyboardInterrupt:
            raise typer.Exit(0) from None


def fetch(place: Place, after_seq: int | None, limit: int) -> list[dict[str, Any]]:
    """Rows as plain data, from the gateway if one runs, else from the database. Raises OutpostError."""
    try:
        return Control(place.control_socket).call("GET", PATH, query={"after_seq": after_seq, "limit": limit})
    except NotRunning:
        return asyncio.run(_fetch_from_database(place, after_seq, limit))


async def _fetch_from_database(place: Place, after_seq: int | None, limit: int) -> list[dict[str, Any]]:
    # Only where no gateway can be asked.
    from appliance.commands.database import reading
    from appliance.records.store import ExchangeStore

    async with reading(place) as database:
        rows = await ExchangeStore(database).list(after_seq, limit)
    return [msgspec.to_builtins(row) for row in rows]


def _show(rows: list[dict[str, Any]], as_json: bool, last: int) -> int:
    """Print rows; answer the last sequence number seen."""
    for row in rows:
        typer.echo(json.dumps(row) if as_json else line(row))
    return int(rows[-1]["seq"]) if rows else last


def line(row: dict[str, Any]) -> str:
    """One request as one line of text."""
    why = row["error_code"] or ",".join(row["finish_reasons"]) or "-"
    parts = (
        moment(row["started_at"]),
        row["status"],
        f"{row['outcome']}({why})",
        row["kind"] + ("+stream" if row["stream"] else ""),
        f"{row['route'] or '-'} -> {row['target'] or '-'}",
        f"key={row['key_name'] or '-'}",
        f"tokens={row['prompt_tokens']}+{row['completion_tokens']}",
        f"ttft={seconds(row['ttft_s'])}",
        f"took={seconds(row['duration_s'])}",
        row["id"],
    )
    return "  ".join(visible(part) for part in parts)
