"""`outpost export`: the ledger for other systems, read straight from the database.

Where no gateway runs, that it was exported is put on the ledger first.
"""

from __future__ import annotations

import asyncio
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance import __version__
from appliance.commands.output import Write, to_file, to_stdout
from appliance.commands.place import ConfigOption, DataDirOption, Place, find_place, told
from appliance.commands.terminal import visible

if TYPE_CHECKING:
    from appliance.records.export.forms import Form
    from appliance.records.export.source import Window


class FormatName(StrEnum):
    jsonl = "jsonl"
    csv = "csv"
    ocsf = "ocsf"
    cef = "cef"


def export(
    form: Annotated[FormatName, typer.Option("--format", help="How a record is written.")] = FormatName.jsonl,
    after: Annotated[int, typer.Option(min=0, help="Begin after the record with this number.")] = 0,
    since: Annotated[
        str | None,
        typer.Option(help="Only records from this moment on: 2026-11-01, 2026-11-01T12:00:00Z, or a time ago (7d)."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Only records from before this moment, in the same forms.")] = None,
    to: Annotated[Path | None, typer.Option("--to", help="File to write; else the standard output.")] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Write the record of requests and changes, one record a line, the oldest first."""
    # The database is loaded by whoever needs it, not by whoever asks for help.
    from appliance.records.export.forms import forms
    from appliance.records.export.moments import parse_moment
    from appliance.records.export.source import Window

    with told():
        place = find_place(config, data_dir)
        now = time.time()
        window = Window(
            after,
            None if since is None else parse_moment(since, now, "--since"),
            None if until is None else parse_moment(until, now, "--until"),
        )
        chosen = (form.value, forms(__version__)[form.value])

        def fill(write: Write) -> int:
            return asyncio.run(_export(place, chosen, window, write))

        if to is None:
            to_stdout(fill)
            return
        last = to_file(to, fill)
    typer.echo(f"Written to {visible(to)}, up to record {last}. Go on later with --after {last}.", err=True)


async def _export(place: Place, named: tuple[str, Form], window: Window, write: Write) -> int:
    """Write the window; answer the number of the last record written (or that to begin after)."""
    from appliance.commands.database import reading
    from appliance.commands.leaving import note
    from appliance.records.export.source import Source

    name, form = named
    async with reading(place) as database:
        await note(place, database, name, window)
        write(form.head)
        last = window.after
        async for records in Source(database).read(window):
            write(b"".join(map(form.line, records)))
            last = records[-1].seq
        return last
