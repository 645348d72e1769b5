"""The verifier names whatever somebody has done to the ledger."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, update

from appliance.records.chain import GENESIS, event_body, link
from appliance.records.checkpoint_file import CheckpointFile
from appliance.records.checkpoints import Checkpointer
from appliance.records.database import Database
from appliance.records.ledger_key import load_signer
from appliance.records.ledger_store import LedgerStore, event_record, verify_database
from appliance.records.notes import Checkpoint, PublicKey, Signer
from appliance.records.recorder import Recorder
from appliance.records.rows import COLUMNS, Attempt, Charge, ExchangeRow
from appliance.records.tables import events, exchanges
from appliance.records.verify import DATABASE, ELSEWHERE, EVERY, FILE, Record, Report
from tests.records.ledgers import ANCHOR, SIGNER, check, ledger, notes, verify

RECORDS = 30
"""Records in the database that the tests alter; checkpoints of 10, 20 and 30."""


# --- pure ---


@given(st.integers(0, 30))
def test_a_whole_ledger_is_sound(count: int) -> None:
    records = ledger(count)
    report = check(records, notes(records))
    assert report.ok
    assert report.problems == []
    assert (report.records, report.last, report.signed_through) == (count, count, count - count % 5)
    assert report.checkpoints == count // 5


@given(st.integers(1, 30), st.data())
@settings(max_examples=300)
def test_any_flipped_bit_is_named(count: int, data: st.DataObject) -> None:
    records = ledger(count)
    place = data.draw(st.integers(0, count - 1))
    field = data.draw(st.sampled_from(["body", "hash"]))
    value = bytearray(getattr(records[place], field))
    bit = data.draw(st.integers(0, len(value) * 8 - 1))
    value[bit // 8] ^= 1 << bit % 8
    signed = notes(records)
    records[place] = msgspec.structs.replace(records[place], **{field: bytes(value)})
    report = check(records, signed)
    assert report.problems[0].seq == place + 1
    assert {problem.seq for problem in report.problems} == {place + 1}


@given(st.integers(2, 30), st.data())
def test_deleted_records_are_named(count: int, data: st.DataObject) -> None:
    records = ledger(count)
    first = data.draw(st.integers(0, count - 2))
    last = data.draw(st.integers(first, count - 2))
    report = check(records[:first] + records[last + 1 :], notes(records))
    wanted = f"record {first + 1} is" if first == last else f"records {first + 1} to {last + 1} are"
    assert report.problems[0].seq == first + 1
    assert report.problems[0].what == f"{wanted} missing"
    assert report.problem_count == 1


@given(st.integers(5, 30), st.data())
def test_a_cut_tail_is_named(count: int, data: st.DataObject) -> None:
    records = ledger(count)
    signed_through = count - count % 5
    kept = data.draw(st.integers(0, signed_through - 1))
    report = check(records[:kept], notes(records))
    assert not report.ok
    assert report.problems[0].seq == kept + 1
    assert "missing" in report.problems[0].what
    assert f"checkpoint of record {signed_through}" in report.problems[0].what


@given(st.integers(6, 30), st.data())
def test_a_ledger_that_was_written_anew_does_not_fit_its_checkpoints(count: int, data: st.DataObject) -> None:
    """Who can write to the database can make a chain that is sound in itself – but not sign it."""
    signed_at = data.draw(st.integers(1, count // 5)) * 5
    changed = data.draw(st.integers(1, signed_at))
    signed = [note for note in notes(ledger(count)) if (note[0] or 0) >= signed_at]
    records = []
    digest = GENESIS
    for record in ledger(count):
        body = record.body.replace(b'"n":', b'"m":') if record.seq == changed else record.body
        digest = link(digest, body)
        records.append(msgspec.structs.replace(record, body=body, hash=digest))
    report = check(records, signed)
    assert report.problems[0].seq == signed_at
    assert "was changed" in report.problems[0].what


@pytest.mark.parametrize("again", [5, 10])
def test_a_source_has_each_checkpoint_once_and_in_order(again: int) -> None:
    records = ledger(20)
    signed = notes(records)
    odd = [signed[0], signed[1], next(note for note in signed if note[0] == again), *signed[2:]]
    report = verify(records, {DATABASE: odd, FILE: signed}, ANCHOR, SIGNER.public)
    assert [(problem.seq, problem.what) for problem in report.problems] == [
        (again, f"{DATABASE} has the checkpoint of record {again} out of order")
    ]


def test_the_sources_of_checkpoints_must_agree() -> None:
    records = ledger(20)
    signed = notes(records)

    def problems(database: list[Any], file: list[Any]) -> list[str]:
        return [p.what for p in verify(records, {DATABASE: database, FILE: file}, ANCHOR, SIGNER.public).problems]

    assert problems(signed, signed[:-1]) == []
    assert problems(signed, []) == ["checkpoints.txt is missing or empty"]
    assert problems(signed, [signed[0], *signed[2:]]) == [
        "checkpoints.txt lacks the checkpoint of record 10, which the database has"
    ]
    assert problems(signed[:-1], signed) == [
        "the database lacks the checkpoint of record 20, which checkpoints.txt has"
    ]
    forged = Signer(bytes(32)).sign(Checkpoint(10, records[9].hash or b""))
    assert any(
        "10 in checkpoints.txt is not genuine" in what
        for what in problems(signed, [signed[0], (10, forged), *signed[2:]])
    )
    assert any("has a checkpoint that is not one" in what for what in problems(signed, [*signed, (None, "junk")]))
    assert any("out of order" in what for what in problems(signed, [signed[1], signed[0]]))
    far = Signer(bytes(32)).sign(Checkpoint(10**9, bytes(32)))
    assert problems(signed, [*signed, (10**9, far)])[0].startswith("the checkpoint of record 1000000000 in")


def test_a_checkpoint_kept_elsewhere_finds_out_a_box_that_was_set_back() -> None:
    records = ledger(20)
    signed = notes(records)
    kept = [signed[-1]]
    set_back = {DATABASE: signed[:2], FILE: signed[:2], ELSEWHERE: kept}
    report = verify(records[:12], set_back, ANCHOR, SIGNER.public)
    assert [problem.seq for problem in report.problems] == [13]
    assert "given" in report.problems[0].what
    assert verify(records, {DATABASE: signed, FILE: signed, ELSEWHERE: kept}, ANCHOR, SIGNER.public).ok


def test_numbers_given_twice_and_to_nobody() -> None:
    records = ledger(5)
    twice = [*records[:3], records[2], *records[3:]]
    assert [problem.what for problem in verify(twice, {}, ANCHOR, SIGNER.public).problems] == [
        "the number 3 was given twice"
    ]
    report = verify(records, {}, ANCHOR, SIGNER.public, given=7)
    assert [problem.seq for problem in report.problems] == [6]
    assert "records 6 to 7 are missing" in report.problems[0].what


# --- over a database ---


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ledger of every kind of record, and nobody running; made once."""
    folder = tmp_path_factory.mktemp("whole") / "box"
    asyncio.run(write(folder))
    return folder


async def write(folder: Path) -> None:
    database = await Database.open(folder / "outpost.db")
    async with running(database, folder) as (recorder, checkpointer):
        for number in range(1, RECORDS + 1):
            if number % 4 == 0:
                await recorder.write(lambda tx: tx.append("admin.key.create", {"object": f"key_{tx.tail.seq}"}))
            else:
                await recorder.submit(full(number))
            if number % 10 == 0:
                await checkpointer.make()
    await database.close()


@contextlib.asynccontextmanager
async def running(database: Database, folder: Path) -> AsyncIterator[tuple[Recorder, Checkpointer]]:
    recorder = Recorder(database)
    await recorder.start()
    checkpointer = await Checkpointer.open(recorder, database, folder)
    await checkpointer.start()
    yield recorder, checkpointer
    await checkpointer.close()
    await recorder.close()


@pytest.fixture
def box(whole: Path, tmp_path: Path) -> Path:
    """A copy of it to be altered."""
    return shutil.copytree(whole, tmp_path / "box")


def full(number: int) -> ExchangeRow:
    """A row with something in every column."""
    return ExchangeRow(
        id=f"req_{number}",
        kind="chat.completions",
        started_at=1_790_000_000.123456 + number,
        key_id="key_1",
        key_name="näme",
        route="chat",
        target="deployment:m",
        stream=bool(number % 2),
        status=200,
        error_code="none",
        finish_reasons=["stop"],
        attempts=[Attempt("deployment:m", 0.25, 0.5, "completed", None, 10, 20, 30)],
        prompt_tokens=10,
        cached_tokens=5,
        completion_tokens=20,
        usage_source="reported",
        queue_s=0.125,
        ttft_s=0.25,
        duration_s=0.75,
        client="127.0.0.1",
        organization_id="org_default",
        team_id="team_1",
        user_id="user_1",
        service_account_id="sa_1",
        tags=["a"],
        priority="normal",
        reasoning_tokens=3,
        cost_nanousd=12345,
        charges=[Charge("limit", 30, 1_790_000_000.5)],
        content_digest="00ff",
    )


def change(folder: Path, sql: str, *values: object) -> None:
    connection = sqlite3.connect(folder / "outpost.db")
    connection.execute(sql, values)
    connection.commit()
    connection.close()


async def verified(folder: Path, **options: Any) -> Report:
    signer = load_signer(folder, make=False)
    assert signer is not None
    database = await Database.open(folder / "outpost.db")
    try:
        return await verify_database(database, folder, signer.public, **options)
    finally:
        await database.close()


async def test_an_untouched_database_is_sound(box: Path) -> None:
    report = await verified(box)
    assert report.problems == []
    assert report.ok
    assert (report.records, report.last, report.signed_through, report.checkpoints) == (RECORDS, RECORDS, RECORDS, 3)


async def test_both_kinds_of_database_give_back_what_was_hashed(database: Database, tmp_path: Path) -> None:
    bare = ExchangeRow(id="req_bare", kind="embeddings", started_at=1.0)
    async with running(database, tmp_path) as (recorder, checkpointer):
        for number in range(1, 8):
            await recorder.submit(full(number))
            await recorder.submit(bare)
            await recorder.write(lambda tx: tx.append("test", {"text": "“…” 😀\x01", "n": 2**60}))
        await checkpointer.make()
        report = await verify_database(database, tmp_path, checkpointer.public)
        assert report.problems == []
        assert (report.records, report.signed_through) == (21, 21)
        await recorder.write(
            lambda tx: tx.connection.execute(update(exchanges).where(exchanges.c.seq == 4).values(ttft_s=0.0))
        )
        await recorder.write(lambda tx: tx.connection.execute(delete(events).where(events.c.seq == 9)))
        report = await verify_database(database, tmp_path, checkpointer.public)
        assert [problem.seq for problem in report.problems] == [4, 9]


@pytest.mark.parametrize("column", [name for name in (*COLUMNS, "hash") if name != "seq"])
async def test_one_bit_of_any_column_of_an_exchange_is_named(box: Path, column: str) -> None:
    connection = sqlite3.connect(box / "outpost.db")
    value = connection.execute(f"SELECT {column} FROM exchanges WHERE seq = 7").fetchone()[0]
    connection.close()
    for altered in flipped(value, random.Random(column)):
        change(box, f"UPDATE exchanges SET {column} = ? WHERE seq = 7", altered)
        report = await verified(box)
        assert {problem.seq for problem in report.problems} == {7}, (column, value, altered)
    change(box, f"UPDATE exchanges SET {column} = ? WHERE seq = 7", value)
    assert (await verified(box)).ok


def flipped(value: Any, dice: random.Random) -> list[Any]:
    """The value with single bits flipped: the lowest, the highest, and some between."""
    if isinstance(value, int):
        return [value ^ 1, value ^ 2, value ^ 1 << dice.randrange(2, 62)]
    if isinstance(value, float):
        raw = msgspec.msgpack.encode(value)[1:]
        found = []
        for bit in (0, 1, 30, 51):
            number = int.from_bytes(raw, "big") ^ 1 << bit
            found.append(msgspec.msgpack.decode(b"\xcb" + number.to_bytes(8, "big")))
        return found
    raw = value if isinstance(value, bytes) else value.encode()
    found = []
    for bit in {0, 7, len(raw) * 8 - 1, dice.randrange(len(raw) * 8)}:
        altered = bytearray(raw)
        altered[bit // 8] ^= 1 << bit % 8
        # Bytes that are no text any more stay what they are: SQLite does not mind.
        try:
            found.append(bytes(altered) if isinstance(value, bytes) else bytes(altered).decode())
        except UnicodeDecodeError:
            found.append(bytes(altered))
    return found


@pytest.mark.parametrize("column", ["kind", "at_us", "body", "hash"])
async def test_one_bit_of_any_column_of_an_event_is_named(box: Path, column: str) -> None:
    connection = sqlite3.connect(box / "outpost.db")
    value = connection.execute(f"SELECT {column} FROM events WHERE seq = 8").fetchone()[0]
    connection.close()
    for altered in flipped(value, random.Random(column)):
        change(box, f"UPDATE events SET {column} = ? WHERE seq = 8", altered)
        assert {problem.seq for problem in (await verified(box)).problems} == {8}, (column, value, altered)


@pytest.mark.parametrize(
    ("done", "first", "says"),
    [
        ("DELETE FROM exchanges WHERE seq = 7", 7, "record 7 is missing"),
        ("DELETE FROM events WHERE seq = 8", 8, "record 8 is missing"),
        ("DELETE FROM exchanges WHERE seq = 1", 1, "record 1 is missing"),
        ("DELETE FROM exchanges WHERE seq > 26", 27, "record 27 is missing"),
        ("DELETE FROM exchanges WHERE seq > 28", 29, "records 29 to 30 are missing"),
        ("UPDATE exchanges SET hash = NULL WHERE seq = 9", 9, "has no hash"),
        ("DELETE FROM checkpoints WHERE seq = 20", 20, "the database lacks the checkpoint of record 20"),
        ("DELETE FROM checkpoints", 10, "the database lacks the checkpoint of record 10"),
        # The end of the signature, whatever it is.
        ("UPDATE checkpoints SET note = substr(note, 1, length(note) - 9) || 'AAAAAAA=\n'", 10, "not genuine"),
        ("UPDATE checkpoints SET seq = 19 WHERE seq = 20", 19, ""),
        ("INSERT INTO events SELECT -5, kind, at_us, body, hash FROM events WHERE seq = 8", -5, "numbers begin at 1"),
        ("UPDATE exchanges SET seq = -9223372036854775808 WHERE seq = 30", -(2**63), "numbers begin at 1"),
        ("UPDATE exchanges SET seq = 0, hash = NULL WHERE seq = 30", 0, "numbers begin at 1"),
        ("DELETE FROM anchors", 0, "anchor"),
        ("UPDATE anchors SET seq = 3, hash = (SELECT hash FROM exchanges WHERE seq = 3)", 1, "before the ledger"),
        ("UPDATE anchors SET hash = randomblob(32)", 0, "no signed checkpoint"),
        ("UPDATE exchanges SET attempts = attempts || ' ' WHERE seq = 5", 5, ""),
        ("UPDATE exchanges SET stream = 2 WHERE seq = 5", 5, "form"),
        ("UPDATE exchanges SET duration_s = 'long' WHERE seq = 5", 5, "no exchange has"),
        ('UPDATE exchanges SET tags = \'[],"target":"x"\', target = NULL WHERE seq = 5', 5, "no exchange has"),
    ],
)
async def test_whatever_is_done_is_named(box: Path, done: str, first: int, says: str) -> None:
    change(box, done)
    report = await verified(box)
    assert not report.ok
    assert report.problems[0].seq == first
    assert says in report.problems[0].what


@pytest.mark.parametrize("begin", [10, 20, 30])
@pytest.mark.parametrize("file_too", [False, True])
async def test_a_beginning_that_was_cut_off_at_a_checkpoint_is_named(box: Path, begin: int, file_too: bool) -> None:
    """What stood before is deleted, and nothing is left over that would not fit."""
    [first] = await records_of(box, begin)
    change(box, "UPDATE anchors SET seq = ?, hash = ?, reason = 'older records were dropped'", begin, first.hash)
    for table in ("exchanges", "events"):
        change(box, f"DELETE FROM {table} WHERE seq <= ?", begin)
    change(box, "DELETE FROM checkpoints WHERE seq < ?", begin)
    if file_too:
        file = CheckpointFile(box)
        left = [note for seq, note in file.notes(file.size) if (seq or 0) >= begin]
        file.path.unlink()
        file.append(left)
    report = await verified(box)
    assert [problem.seq for problem in report.problems] == [begin]
    assert f"the ledger begins after {begin}, and no record says that retention" in report.problems[0].what


async def test_all_checkpoints_taken_away_from_much_are_missed(box: Path) -> None:
    database = await Database.open(box / "outpost.db")
    recorder = Recorder(database)
    await recorder.start()
    rows = [ExchangeRow(id=f"r{n}", kind="chat", started_at=1.0) for n in range(EVERY)]
    await asyncio.gather(*map(recorder.submit, rows))
    await recorder.close()
    await database.close()
    assert (await verified(box)).ok
    change(box, "DELETE FROM checkpoints")
    CheckpointFile(box).path.unlink()
    report = await verified(box)
    assert [problem.seq for problem in report.problems] == [1]
    assert "no checkpoint, though there are 1030 records" in report.problems[0].what


async def test_two_records_that_change_places_are_named(box: Path) -> None:
    change(box, "UPDATE exchanges SET seq = 100 WHERE seq = 5")
    change(box, "UPDATE exchanges SET seq = 5 WHERE seq = 6")
    change(box, "UPDATE exchanges SET seq = 6 WHERE seq = 100")
    report = await verified(box)
    assert [problem.seq for problem in report.problems[:2]] == [5, 6]
    assert report.problems[-1].seq <= 7


async def test_an_exchange_that_became_an_event_is_named(box: Path) -> None:
    connection = sqlite3.connect(box / "outpost.db")
    [record] = await records_of(box, 7)
    connection.execute("DELETE FROM exchanges WHERE seq = 7")
    values = (7, "chat.completions", 0, record.body.decode(), record.hash)
    connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?)", values)
    connection.commit()
    connection.close()
    assert {problem.seq for problem in (await verified(box)).problems} == {7}


async def records_of(folder: Path, seq: int) -> list[Record]:
    database = await Database.open(folder / "outpost.db")
    try:
        return await LedgerStore(database).batch(seq - 1, seq)
    finally:
        await database.close()


async def test_a_forged_record_in_the_middle_is_named(box: Path) -> None:
    """Put in between with a hash that fits the one before; the later ones move up by one."""
    for seq in range(RECORDS, 14, -1):
        for table in ("exchanges", "events"):
            change(box, f"UPDATE {table} SET seq = seq + 1 WHERE seq = {seq}")
    [before] = await records_of(box, 14)
    body = event_body(15, "admin.key.create", 0, {"object": "key_forged"})
    values = (15, "admin.key.create", 0, body.decode(), link(before.hash or b"", body))
    change(box, "INSERT INTO events VALUES (?, ?, ?, ?, ?)", *values)
    report = await verified(box)
    assert report.problems[0].seq == 16


async def test_a_forged_record_in_place_of_the_last_is_named(box: Path) -> None:
    [before] = await records_of(box, RECORDS - 1)
    body = event_body(RECORDS, "test", 0, {})
    change(box, f"DELETE FROM exchanges WHERE seq = {RECORDS}")
    change(
        box, "INSERT INTO events VALUES (?, 'test', 0, ?, ?)", RECORDS, body.decode(), link(before.hash or b"", body)
    )
    report = await verified(box)
    assert [problem.seq for problem in report.problems] == [RECORDS]
    assert "was changed" in report.problems[0].what


@pytest.mark.parametrize(
    ("alter", "says"),
    [
        (lambda text: "", "missing or empty"),
        (lambda text: text[: len(text) // 3 + 20], "not one"),
        (lambda text: text.replace("\n10\n", "\n11\n"), "not genuine"),
        (
            lambda text: text[: text.index("\n\noutpost")] + text[text.rindex("\n\noutpost") :],
            "lacks the checkpoint of record 20",
        ),
    ],
)
async def test_an_altered_file_of_checkpoints_is_named(box: Path, alter: Callable[[str], str], says: str) -> None:
    path = CheckpointFile(box).path
    path.write_text(alter(path.read_text()))
    report = await verified(box)
    assert any(says in problem.what for problem in report.problems), report.problems


async def test_a_forged_checkpoint_does_not_cover_a_ledger_written_anew(box: Path) -> None:
    report = await verified(box, elsewhere=[Signer(bytes(32)).sign(Checkpoint(30, bytes(32)))])
    assert {problem.seq for problem in report.problems} == {30}
    assert "not genuine" in report.problems[0].what
    good = CheckpointFile(box).last()
    assert good is not None
    assert (await verified(box, elsewhere=[good])).ok
    database = await Database.open(box / "outpost.db")
    try:
        other = await verify_database(database, box, PublicKey.parse(Signer(bytes(32)).public.text))
    finally:
        await database.close()
    assert not other.ok


def test_an_event_that_is_none_has_a_fault() -> None:
    assert event_record((1, b"\xff", 0, b"{}", b"")).fault is not None
    assert event_record((1, b"x", 0, b"not json", b"")).fault is not None
