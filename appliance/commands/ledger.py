"""`outpost ledger`: verify, export and sign the record of everything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from appliance import data_dir as folder
from appliance.commands.control import Control, NotRunning
from appliance.commands.place import ConfigOption, DataDirOption, Place, find_place, told
from appliance.commands.terminal import command, visible
from appliance.errors import BadRequest, NotFound, OutpostError
from appliance.records.checkpoints import Checkpointer
from appliance.records.database import Database
from appliance.records.ledger_export import export_lines, verify_export
from appliance.records.ledger_key import key_path, load_signer
from appliance.records.ledger_store import LedgerStore, verify_database
from appliance.records.notes import NoteError, PublicKey, split
from appliance.records.recorder import Recorder
from appliance.records.verify import Report

app = typer.Typer(no_args_is_help=True, help="The ledger: verify, export, sign.")

PATH = "/admin/v1/ledger"
KeyOption = Annotated[
    Path | None,
    typer.Option("--public-key", help="File with the ledger's public key; else the data folder's.", dir_okay=False),
]


class LedgerFile(OutpostError):
    """A file that was named cannot be read or written."""

    code = "ledger_file"


@app.command()
def verify(
    source: Annotated[
        Path | None, typer.Option("--from", help="An export to verify, in place of the database.", dir_okay=False)
    ] = None,
    public_key: KeyOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Checkpoints that were kept elsewhere, which the ledger must fit.", dir_okay=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Check every record and every signature. Ends with status 1, and names the first bad record, if one is found."""
    with told():
        # Whoever has an export and its key needs no box.
        place = None if source is not None and public_key is not None else find_place(config, data_dir)
        key = _public_key(place, public_key)
        kept = [] if checkpoint is None else [*split(iter(_text(checkpoint).splitlines(keepends=True)))]
        if source is not None:
            with _opened(source) as lines:
                report = verify_export(lines, key, elsewhere=kept, named=visible(source))
        else:
            assert place is not None
            report = asyncio.run(_verify(place, key, kept))
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(report)))
    else:
        for line in told_of(report):
            typer.echo(line)
    if not report.ok:
        raise typer.Exit(1)


def told_of(report: Report) -> list[str]:
    """A report as lines of text."""
    first = report.begins_after + 1
    what = _count(report.records, "record") + (f" ({first} to {report.last})" if report.records else "")
    signed = _count(report.checkpoints, "signed checkpoint")
    if report.signed_through:
        signed += f", the last one of record {report.signed_through}"
    lines = []
    if report.ok:
        lines.append(f"The ledger is sound: {what}, {signed}.")
    else:
        lines.append(f"THE LEDGER IS NOT SOUND: {_count(report.problem_count, 'problem')} in {what}, {signed}.")
        lines += [f"record {problem.seq}: {visible(problem.what)}" for problem in report.problems]
        lines.append(f"The first bad record is {report.problems[0].seq}.")
    newer = report.last - max(report.signed_through, report.begins_after)
    if newer > 0:
        lines.append(f"{_count(newer, 'record')} behind the last checkpoint: no signature covers what is there yet.")
    if report.older:
        lines.append(f"{_count(report.older, 'record')} from before there was a ledger: no hash covers what is there.")
    if report.begins_after and not report.older:
        lines.append(f"It begins after record {report.begins_after}.")
    return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


@app.command()
def export(
    after: Annotated[int, typer.Option(min=0, help="Begin after the record with this number.")] = 0,
    to: Annotated[Path | None, typer.Option("--to", help="File to write; else the standard output.")] = None,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Write every record with its hash, and the checkpoints, one JSON object a line. `verify --from` reads it."""
    with told():
        place = find_place(config, data_dir)
        if to is not None:
            _to_file(place, after, to)
            typer.echo(f"Written to {visible(to)}. Verify it with: {command()} ledger verify --from FILE", err=True)
            return
        try:
            asyncio.run(_export(place, after, sys.stdout.buffer.write))
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            # Whoever read has seen enough, as `head` does; nothing may be written at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@app.command()
def checkpoint(
    as_json: Annotated[bool, typer.Option("--json", help='Print JSON: {"data": {...}}.')] = False,
    config: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Sign the newest record now and print the checkpoint, to be kept where nobody changes it along with this box."""
    with told():
        made = _checkpoint(find_place(config, data_dir))
    typer.echo(json.dumps({"data": made}) if as_json else made["note"], nl=as_json)


@app.command()
def key(config: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Print the public key that checkpoints are verified with."""
    with told():
        typer.echo(_public_key(find_place(config, data_dir), None).text)


# --- the database, the gateway, files ---


async def _verify(place: Place, key: PublicKey, kept: list[str]) -> Report:
    async with _database(place) as database:
        return await verify_database(database, place.data_dir, key, elsewhere=kept)


async def _export(place: Place, after: int, write: Callable[[bytes], object]) -> None:
    async with _database(place) as database:
        async for lines in export_lines(LedgerStore(database), after):
            write(lines)


def _to_file(place: Place, after: int, path: Path) -> None:
    """Write beside the file and put it in its place when it is whole."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            asyncio.run(_export(place, after, file.write))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise LedgerFile(f"{visible(path)} cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def _checkpoint(place: Place) -> dict[str, Any]:
    try:
        return Control(place.control_socket).call("GET", f"{PATH}/checkpoint")[0]
    except NotRunning:
        return asyncio.run(_make(place))


async def _make(place: Place) -> dict[str, Any]:
    async with _database(place) as database:
        # The ledger has one writer at a time.
        with folder.hold(place.data_dir):
            recorder = Recorder(database)
            await recorder.start()
            try:
                checkpointer = await Checkpointer.open(recorder, database, place.data_dir)
                await checkpointer.start()
                try:
                    made = await checkpointer.make()
                finally:
                    await checkpointer.close()
            finally:
                await recorder.close()
    said = made.checkpoint
    return {"seq": said.seq, "hash": said.hash.hex(), "note": made.note, "key": checkpointer.public.text}


@contextlib.asynccontextmanager
async def _database(place: Place) -> AsyncIterator[Database]:
    if not place.has_database:
        raise NotFound(
            f"there is no gateway's data in {visible(place.data_dir.absolute())}: go to the folder in which the "
            "gateway is started, or name its data with --data-dir FOLDER or its settings with --config FILE"
        )
    database = await Database.open(place.database)
    try:
        yield database
    finally:
        await database.close()


def _public_key(place: Place | None, file: Path | None) -> PublicKey:
    if file is not None:
        try:
            return PublicKey.parse(_text(file))
        except NoteError as error:
            raise BadRequest(f"--public-key: {error}") from error
    assert place is not None
    signer = load_signer(place.data_dir, make=False)
    if signer is None:
        raise NotFound(
            f"there is no {visible(key_path(place.data_dir))}: a gateway makes it at its first start. "
            f"Elsewhere, print the public key with `{command()} ledger key` and name its file with --public-key"
        )
    return signer.public


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise LedgerFile(f"{visible(path)} cannot be read: {error.strerror}") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Iterator[bytes]]:
    try:
        with path.open("rb") as file:
            yield (line for line in file if line.strip())
    except OSError as error:
        raise LedgerFile(f"{visible(path)} cannot be read: {error.strerror}") from error
