"""Checkpoints: when they are made, where they are kept, and what a start makes of a record that does not fit them."""

from __future__ import annotations

import asyncio
import base64
import os
import random
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import RecordsUnavailable
from appliance.records.checkpoint_file import CheckpointFile
from appliance.records.checkpoints import Checkpointer
from appliance.records.database import Database
from appliance.records.ledger_key import LedgerError, key_path, load_signer
from appliance.records.ledger_store import verify_database
from appliance.records.notes import Checkpoint, NoteError, PublicKey, Signer, claimed_seq, split
from appliance.records.recorder import Recorder
from tests.records.test_recorder import row

SIGNER = Signer(bytes(range(32)))
SEQ = st.integers(0, 2**63 - 1)
HASH = st.binary(min_size=32, max_size=32)


# --- notes ---


def test_a_note_of_another_program_is_verified() -> None:
    """The example of the Go package golang.org/x/mod/sumdb/note."""
    key = PublicKey.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    signature = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    assert key.verify(f"{text}\n— PeterNeumann {signature}\n") == text
    with pytest.raises(NoteError, match="wrong"):
        key.verify(f"{text.replace('think', 'drink')}\n— PeterNeumann {signature}\n")


@given(SEQ, HASH)
def test_what_was_signed_is_read_back(seq: int, digest: bytes) -> None:
    note = SIGNER.sign(Checkpoint(seq, digest))
    lines = note.split("\n")
    assert lines[:4] == [SIGNER.public.name, str(seq), base64.b64encode(digest).decode(), ""]
    assert PublicKey.parse(SIGNER.public.text).checkpoint(note) == Checkpoint(seq, digest)
    assert claimed_seq(note) == seq


def test_a_note_with_any_bit_flipped_is_refused() -> None:
    note = SIGNER.sign(Checkpoint(12345, bytes(32))).encode()
    for place in range(len(note) * 8):
        changed = bytearray(note)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(NoteError):
            SIGNER.public.checkpoint(changed.decode("utf-8", "replace"))


def test_another_key_is_refused() -> None:
    with pytest.raises(NoteError, match="has not signed"):
        SIGNER.public.checkpoint(Signer(bytes(32)).sign(Checkpoint(1, bytes(32))))
    other = SIGNER.public.text.replace("+AX", "+AY") if "+AX" in SIGNER.public.text else SIGNER.public.text[:-1] + "A"
    with pytest.raises(NoteError):
        PublicKey.parse(other)


@given(st.lists(SEQ, max_size=4), st.data())
@settings(max_examples=50)
def test_a_file_cut_anywhere_gives_whole_notes_and_is_repaired(
    tmp_path_factory: pytest.TempPathFactory, seqs: list[int], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    file = CheckpointFile(folder)
    notes = [SIGNER.sign(Checkpoint(seq, bytes(32))) for seq in seqs]
    file.append(notes)
    whole = file.path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    file.path.write_bytes(whole[:cut])
    complete = notes[: sum(1 for end in _ends(notes) if end <= cut)]
    dropped = file.repair()
    assert cut - dropped == (_ends(notes)[len(complete) - 1] if complete else 0)
    assert [note for _, note in file.notes(file.size)] == complete
    assert file.last() == (complete[-1] if complete else None)


def _ends(notes: list[str]) -> list[int]:
    ends, size = [], 0
    for note in notes:
        size += len(f"{note}\n".encode())
        ends.append(size)
    return ends


def test_the_end_of_a_long_file_is_found(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path)
    notes = [SIGNER.sign(Checkpoint(seq, bytes(32))) for seq in range(1500)]
    file.append(notes)
    assert file.size > 1 << 17
    assert file.last() == notes[-1]
    with file.path.open("ab") as raw:
        raw.write(notes[0].encode()[:-5])
    assert file.repair() == len(notes[0].encode()) - 5
    assert file.last() == notes[-1]
    assert [seq for seq, _ in file.notes(file.size)] == list(range(1500))
    assert list(split(iter(notes[0].splitlines(keepends=True)))) == [notes[0]]


# --- the key ---


def test_the_key_is_made_once_and_kept_private(tmp_path: Path) -> None:
    made = load_signer(tmp_path)
    assert made is not None
    assert key_path(tmp_path).stat().st_mode & 0o777 == 0o600
    again = load_signer(tmp_path)
    assert again is not None
    assert again.public.text == made.public.text
    key_path(tmp_path).chmod(0o640)
    with pytest.raises(LedgerError, match="chmod 600"):
        load_signer(tmp_path)
    key_path(tmp_path).chmod(0o600)
    key_path(tmp_path).write_text("short")
    with pytest.raises(LedgerError, match="64 hexadecimal"):
        load_signer(tmp_path)
    assert load_signer(tmp_path / "nowhere", make=False) is None


# --- over a database ---


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path / "outpost.db")
    yield opened
    await opened.close()


class Box:
    """A recorder and its checkpointer, opened and closed together."""

    def __init__(self, database: Database, folder: Path, **options: Any) -> None:
        self.database, self.folder, self.options = database, folder, options

    async def __aenter__(self) -> Box:
        self.recorder = Recorder(self.database)
        await self.recorder.start()
        self.checkpointer = await Checkpointer.open(self.recorder, self.database, self.folder, **self.options)
        await self.checkpointer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.checkpointer.close()
        await self.recorder.close()

    async def rows(self, count: int) -> None:
        await asyncio.gather(*[self.recorder.submit(row(number)) for number in range(count)])


def query(folder: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(folder / "outpost.db")
    with connection:
        found = connection.execute(sql, values).fetchall()
    connection.close()
    return found


def in_file(folder: Path) -> list[int | None]:
    file = CheckpointFile(folder)
    return [seq for seq, _ in file.notes(file.size)]


def events_of(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    own = {"seq", "kind", "at_us", "type"}
    found = query(folder, "SELECT kind, body FROM events ORDER BY seq")
    return [(kind, {k: v for k, v in msgspec.json.decode(body).items() if k not in own}) for kind, body in found]


async def test_made_on_demand_and_at_the_end_and_kept_twice(database: Database, tmp_path: Path) -> None:
    async with Box(database, tmp_path) as box:
        with pytest.raises(LedgerError, match="no records"):
            await box.checkpointer.make()
        await box.rows(3)
        made = await box.checkpointer.make()
        assert (made.new, made.checkpoint.seq) == (True, 3)
        assert made.checkpoint.hash == query(tmp_path, "SELECT hash FROM exchanges WHERE seq = 3")[0][0]
        assert not (await box.checkpointer.make()).new
        assert box.checkpointer.public.checkpoint(made.note) == made.checkpoint
        await box.rows(2)
    assert in_file(tmp_path) == [3, 5]
    assert query(tmp_path, "SELECT seq FROM checkpoints ORDER BY seq") == [(3,), (5,)]
    assert CheckpointFile(tmp_path).path.stat().st_mode & 0o777 == 0o600
    async with Box(database, tmp_path):
        pass
    assert in_file(tmp_path) == [3, 5]
    assert events_of(tmp_path) == []


async def test_made_after_so_many_records_and_after_so_much_time(database: Database, tmp_path: Path) -> None:
    async with Box(database, tmp_path, every=10, interval_s=3600.0) as box:
        await box.rows(25)
        await until(lambda: in_file(tmp_path) != [])
        await box.rows(9)
    assert len(in_file(tmp_path)) in (2, 3)
    async with Box(database, tmp_path, interval_s=0.02) as box:
        await box.rows(1)
        await until(lambda: in_file(tmp_path)[-1] == 35)
        await asyncio.sleep(0.1)
        assert in_file(tmp_path)[-1] == 35


async def test_a_start_signs_what_an_earlier_run_left_unsigned(database: Database, tmp_path: Path) -> None:
    recorder = Recorder(database)
    await recorder.start()
    await recorder.submit(row(1))
    await recorder.close()
    async with Box(database, tmp_path, interval_s=3600.0):
        await until(lambda: in_file(tmp_path) == [1])


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_torn_line_is_repaired_and_noted(database: Database, tmp_path: Path) -> None:
    async with Box(database, tmp_path) as box:
        await box.rows(2)
        await box.checkpointer.make()
        await box.rows(2)
    path = CheckpointFile(tmp_path).path
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 7)
    async with Box(database, tmp_path):
        assert in_file(tmp_path) == [2, 4]
    [(kind, body)] = events_of(tmp_path)
    assert kind == "ledger.repaired"
    assert body["file"] == "checkpoints.txt"
    assert 0 < body["dropped_bytes"] < size
    assert in_file(tmp_path) == [2, 4, 5]


async def test_a_missing_file_is_written_again_and_noted(database: Database, tmp_path: Path) -> None:
    async with Box(database, tmp_path) as box:
        await box.rows(2)
    CheckpointFile(tmp_path).path.unlink()
    async with Box(database, tmp_path):
        pass
    assert events_of(tmp_path) == [("ledger.repaired", {"file": "checkpoints.txt", "missing": True})]
    assert in_file(tmp_path) == [2, 3]


@pytest.mark.parametrize("also_the_count", [False, True])
async def test_a_cut_tail_is_said_loudly_and_its_numbers_are_not_given_again(
    database: Database, tmp_path: Path, also_the_count: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with Box(database, tmp_path) as box:
        await box.rows(6)
    query(tmp_path, "DELETE FROM exchanges WHERE seq > 4")
    if also_the_count:
        query(tmp_path, "DELETE FROM checkpoints")
        query(tmp_path, "UPDATE sqlite_sequence SET seq = 4")
    async with Box(database, tmp_path) as box:
        assert await box.recorder.submit(row(9)) == 8
    wanted = {"last_on_record": 4, "missing_through": 6, "named_by": "checkpoints.txt"}
    assert events_of(tmp_path) == [("ledger.tail_missing", wanted)]
    assert [record.message for record in caplog.records if record.levelname == "CRITICAL"] == ["ledger_tail_missing"]
    async with Box(database, tmp_path):
        pass
    assert len(events_of(tmp_path)) == 1


async def test_an_altered_tail_is_said(database: Database, tmp_path: Path) -> None:
    async with Box(database, tmp_path) as box:
        await box.rows(3)
    query(tmp_path, "UPDATE exchanges SET hash = ? WHERE seq = 3", bytes(32))
    async with Box(database, tmp_path):
        pass
    assert {kind for kind, _ in events_of(tmp_path)} == {"ledger.altered"}
    assert events_of(tmp_path)[0][1]["where"] == "record 3"


async def test_a_file_of_another_key_is_said(database: Database, tmp_path: Path) -> None:
    async with Box(database, tmp_path) as box:
        await box.rows(3)
    CheckpointFile(tmp_path).path.write_text(SIGNER.sign(Checkpoint(99, bytes(32))) + "\n")
    async with Box(database, tmp_path) as box:
        assert await box.recorder.submit(row(1)) == 5
    [(kind, body)] = events_of(tmp_path)
    assert (kind, body["where"]) == ("ledger.altered", "checkpoints.txt")


async def test_a_note_of_somebody_else_keeps_no_later_one_out_of_the_file(database: Database, tmp_path: Path) -> None:
    async with Box(database, tmp_path) as box:
        await box.rows(3)
    CheckpointFile(tmp_path).path.write_text(SIGNER.sign(Checkpoint(10**9, bytes(32))) + "\n")
    async with Box(database, tmp_path) as box:
        await box.rows(1)
        made = await box.checkpointer.make()
        assert in_file(tmp_path)[-1] == made.checkpoint.seq == 5
    assert in_file(tmp_path)[0] == 10**9


def test_a_write_that_stops_half_way_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = CheckpointFile(tmp_path)
    notes = [SIGNER.sign(Checkpoint(seq, bytes(32))) for seq in (1, 2)]
    file.append(notes[:1])
    before = file.path.read_bytes()
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda descriptor, data: write(descriptor, data[: len(data) // 2]))
        with pytest.raises(OSError, match="bytes were taken"):
            file.append(notes[1:])
    assert file.path.read_bytes() == before
    file.append(notes[1:])
    assert [note for _, note in file.notes(file.size)] == notes


async def test_whoever_asks_and_leaves_does_no_harm(database: Database, tmp_path: Path) -> None:
    async with Box(database, tmp_path) as box:
        for _ in range(20):
            await box.rows(1)
            asking = asyncio.ensure_future(box.checkpointer.make())
            for _ in range(random.randrange(6)):
                await asyncio.sleep(0)
            asking.cancel()
        signer = load_signer(tmp_path)
        assert signer is not None
        await box.checkpointer.make()
        assert (await verify_database(database, tmp_path, signer.public)).problems == []
    assert in_file(tmp_path) == [seq for (seq,) in query(tmp_path, "SELECT seq FROM checkpoints ORDER BY seq")]


async def test_a_checkpoint_whose_commit_was_not_waited_for_gets_into_the_file(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Box(database, tmp_path) as box:
        await box.rows(1)
        written = box.recorder.write

        def impatient(work: Any, **options: Any) -> Any:
            future = written(work, **options)
            late: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            future.add_done_callback(lambda _: late.set_exception(RecordsUnavailable("too late")))
            return late

        monkeypatch.setattr(box.recorder, "write", impatient)
        with pytest.raises(RecordsUnavailable):
            await box.checkpointer.make()
        monkeypatch.undo()
        assert in_file(tmp_path) == []
        await box.rows(1)
        await box.checkpointer.make()
    assert in_file(tmp_path) == [1, 2]


async def test_a_file_that_cannot_be_written_is_caught_up_later(database: Database, tmp_path: Path) -> None:
    async with Box(database, tmp_path) as box:
        await box.rows(1)
        await box.checkpointer.make()
        path = CheckpointFile(tmp_path).path
        path.rename(path.with_name("away"))
        path.mkdir()
        await box.rows(1)
        with pytest.raises(LedgerError, match=r"checkpoints\.txt cannot be"):
            await box.checkpointer.make()
        path.rmdir()
        path.with_name("away").rename(path)
        await box.rows(1)
    assert in_file(tmp_path) == [1, 2, 3]
