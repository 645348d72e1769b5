"""What `outpost ledger` does: with the database, the gateway and files. Every function may raise OutpostError."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from appliance.commands.control import Control, NotRunning
from appliance.commands.database import reading, writing
from appliance.commands.leaving import note
from appliance.commands.output import Write
from appliance.commands.place import Place
from appliance.commands.terminal import command, visible
from appliance.errors import BadRequest, NotFound, OutpostError
from appliance.records.checkpoints import Checkpointer
from appliance.records.export.source import Window
from appliance.records.ledger_export import export_lines, verify_export
from appliance.records.ledger_key import key_path, load_signer
from appliance.records.ledger_store import LedgerStore, verify_database
from appliance.records.notes import NoteError, PublicKey, claimed_seq, split
from appliance.records.verify import Report

PATH = "/admin/v1/ledger"


class LedgerFile(OutpostError):
    """A file that was named cannot be read."""

    code = "ledger_file"


def verify(place: Place, key: PublicKey, kept: list[str]) -> Report:
    """Verify the database. kept: checkpoints from elsewhere, which it must fit."""
    return asyncio.run(_verify(place, key, kept))


def verify_file(path: Path, key: PublicKey, kept: list[str]) -> Report:
    """Verify an export."""
    with _opened(path) as lines:
        return verify_export(lines, key, elsewhere=kept, named=visible(path))


def checkpoints_of(path: Path) -> list[str]:
    """The checkpoints in a file. Raises LedgerFile for a file of something else: it is no proof against a ledger."""
    text = re.sub(r"\n{3,}", "\n\n", _text(path).strip())
    lines = f"{text}\n".splitlines(keepends=True)
    notes = [*split(iter(lines))]
    claimed = [claimed_seq(note) for note in notes]
    if None in claimed:
        what = "no checkpoint" if {*claimed} == {None} else "something that is no checkpoint"
        raise LedgerFile(f"--checkpoint: {visible(path)} holds {what}; `{command()} ledger checkpoint` prints one")
    return notes


async def _verify(place: Place, key: PublicKey, kept: list[str]) -> Report:
    async with reading(place) as database:
        return await verify_database(database, place.data_dir, key, elsewhere=kept)


def export(place: Place, after: int, write: Write) -> None:
    """Hand every record after a number to `write`, some lines at a time."""
    asyncio.run(_export(place, after, write))


async def _export(place: Place, after: int, write: Write) -> None:
    async with reading(place) as database:
        await note(place, database, "ledger", Window(after))
        async for lines in export_lines(LedgerStore(database), after):
            write(lines)


def checkpoint(place: Place) -> dict[str, Any]:
    """Sign the newest record, by the gateway if one runs."""
    try:
        return Control(place.control_socket).call("GET", f"{PATH}/checkpoint")[0]
    except NotRunning:
        return asyncio.run(_make(place))


async def _make(place: Place) -> dict[str, Any]:
    place.must_have_database()
    async with writing(place) as (database, recorder):
        checkpointer = await Checkpointer.open(recorder, database, place.data_dir)
        await checkpointer.start()
        try:
            made = await checkpointer.make()
        finally:
            await checkpointer.close()
    said = made.checkpoint
    return {"seq": said.seq, "hash": said.hash.hex(), "note": made.note, "key": checkpointer.public.text}


def public_key(place: Place | None, file: Path | None) -> PublicKey:
    """The key in `file`, else the one of the box."""
    if file is not None:
        try:
            return PublicKey.parse(_text(file))
        except NoteError as error:
            raise BadRequest(f"--public-key: {error}") from error
    assert place is not None
    signer = load_signer(place.data_dir, make=False)
    if signer is None:
        raise NotFound(
            f"there is no {visible(key_path(place.data_dir))}: a gateway makes it at its first start; if this one has "
            "been started before, restore it from the backup. "
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
