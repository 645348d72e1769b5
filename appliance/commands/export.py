"""`outpost export`: the ledger for other systems, read straight from the database.

Where no gateway runs, that it was exported is put on the ledger first.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appliance import __version__
from appliance.commands.place import ConfigOption, DataDirOption, Place, find_place, told
from appliance.commands.terminal import visible
from appliance.errors import OutpostError

if TYPE_CHECKING:
    from appliance.records.export.forms import Form
    from appliance.records.export.source import Window


class FormatName(StrEnum):
    jsonl = "jsonl"
    csv = "csv"
    ocsf = "ocsf"
    cef = "cef"


class ExportFailed(OutpostError):
    """The file cannot be written."""

    code = "export_failed"


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
        if to is None:
            try:
                last = asyncio.run(_export(place, chosen, window, sys.stdout.buffer.write))
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                # Whoever read has seen enough, as `head` does; nothing may be written at exit either.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return
        else:
            last = _to_file(place, chosen, window, to)
    if to is not None:
        typer.echo(f"Written to {visible(to)}, up to record {last}. Go on later with --after {last}.", err=True)


def _to_file(place: Place, form: tuple[str, Form], window: Window, path: Path) -> int:
    """Write beside the file and put it in its place when it is whole."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            last = asyncio.run(_export(place, form, window, file.write))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise ExportFailed(f"{visible(path)} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            draft.unlink()
    return last


async def _export(place: Place, named: tuple[str, Form], window: Window, write: Callable[[bytes], object]) -> int:
    """Write the window; answer the number of the last record written (or that to begin after)."""
    place.must_have_database()
    from appliance.commands.leaving import note
    from appliance.records.database import Database
    from appliance.records.export.source import Source

    name, form = named
    database = await Database.open(place.database)
    try:
        await note(place, database, name, window)
        write(form.head)
        last = window.after
        async for records in Source(database).read(window):
            write(b"".join(map(form.line, records)))
            last = records[-1].seq
        return last
    finally:
        await database.close()
