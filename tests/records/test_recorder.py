"""The recorder over a real file: acknowledged means durable, and trouble passes without a restart."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from appliance.errors import RecordsUnavailable
from appliance.records.database import Database
from appliance.records.recorder import Recorder
from appliance.records.rows import Attempt, ExchangeRow
from appliance.records.store import ExchangeStore
from appliance.records.writer import RowWriter


def row(number: int) -> ExchangeRow:
    return ExchangeRow(
        id=f"req_{number}",
        kind="chat.completions",
        started_at=1.0,
        finish_reasons=["stop"],
        attempts=[Attempt("deployment:m", 0.0, 0.1, "completed")],
    )


def stored(path: Path) -> dict[int, str]:
    with sqlite3.connect(path) as connection:
        found = dict(connection.execute("SELECT seq, id FROM exchanges").fetchall())
    connection.close()
    return found


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path / "outpost.db")
    yield opened
    await opened.close()


class Adjusted(Database):
    """A database whose writer's connections are handed to `adjust` first."""

    adjust: Callable[[sqlite3.Connection], None]

    def writer_engine(self) -> Engine:
        engine = super().writer_engine()
        event.listen(engine, "connect", lambda connection, _: self.adjust(connection))
        return engine


async def test_an_acknowledged_row_is_in_the_file(database: Database) -> None:
    recorder = Recorder(database)
    await recorder.start()
    assert recorder.available
    for number in range(1, 6):
        assert await recorder.submit(row(number)) == number
        assert stored(database.path)[number] == f"req_{number}"
    await recorder.close()
    assert not recorder.available


@pytest.mark.parametrize("count", [1, 2, 3, 64, 65, 127, 500])
async def test_batches_of_every_size_keep_order_and_content(database: Database, count: int) -> None:
    recorder = Recorder(database, max_batch=200)
    await recorder.start()
    numbers = await asyncio.gather(*[recorder.submit(row(n)) for n in range(count)])
    await recorder.close()
    assert numbers == list(range(1, count + 1))
    assert stored(database.path) == {n + 1: f"req_{n}" for n in range(count)}
    rows = await ExchangeStore(database).tail(1000)
    assert [r.attempts for r in rows] == [row(0).attempts] * count


async def test_rows_that_wait_share_one_commit(tmp_path: Path) -> None:
    commits: list[int] = []
    gate = threading.Event()
    gate.set()

    def adjust(connection: sqlite3.Connection) -> None:
        driver = getattr(connection, "driver_connection", connection)
        driver.set_trace_callback(lambda sql: note(sql))

    def note(sql: str) -> None:
        if sql.startswith(("INSERT INTO exchanges", "BEGIN")):
            gate.wait(10)
            if sql.startswith("INSERT"):
                commits.append(1)

    await (await Database.open(tmp_path / "outpost.db")).close()
    database = Adjusted(tmp_path / "outpost.db")
    database.adjust = adjust
    recorder = Recorder(database)
    await recorder.start()
    gate.clear()
    futures = [recorder.submit(row(n)) for n in range(65)]
    gate.set()
    await asyncio.gather(*futures)
    await recorder.close()
    await database.close()
    # The first may go alone, or with those that were quick enough; the rest go together: 64 is one INSERT.
    assert len(commits) <= 9


async def test_sequence_numbers_go_on_after_a_restart_and_after_erasure(database: Database) -> None:
    for start in (1, 3):
        recorder = Recorder(database)
        await recorder.start()
        assert await asyncio.gather(*[recorder.submit(row(n)) for n in range(2)]) == [start, start + 1]
        await recorder.close()
    with sqlite3.connect(database.path) as connection:
        connection.execute("DELETE FROM exchanges")
    connection.close()
    recorder = Recorder(database)
    await recorder.start()
    assert await recorder.submit(row(9)) == 5
    await recorder.close()


async def test_close_writes_what_waits_and_refuses_more(database: Database) -> None:
    recorder = Recorder(database)
    await recorder.start()
    futures = [recorder.submit(row(n)) for n in range(300)]
    await asyncio.gather(recorder.close(), recorder.close())
    assert [f.result() for f in futures] == list(range(1, 301))
    assert len(stored(database.path)) == 300
    with pytest.raises(RecordsUnavailable, match="closing"):
        await recorder.submit(row(1))


async def test_a_cancelled_waiter_does_not_lose_the_row(database: Database) -> None:
    recorder = Recorder(database)
    await recorder.start()
    recorder.submit(row(1)).cancel()
    assert await recorder.submit(row(2)) == 2
    await recorder.close()
    assert stored(database.path) == {1: "req_1", 2: "req_2"}


async def test_one_bad_row_costs_the_others_nothing(database: Database) -> None:
    recorder = Recorder(database)
    await recorder.start()
    bad = row(1)
    bad.route = "\ud800"
    broken = row(2)
    broken.kind = None  # type: ignore[assignment]
    futures = [recorder.submit(r) for r in (row(0), bad, broken, row(3))]
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert isinstance(results[2], RecordsUnavailable)
    assert [r for r in results if isinstance(r, int)] == [1, 2, 3]
    assert recorder.available
    await recorder.close()
    assert stored(database.path) == {1: "req_0", 2: "req_1", 3: "req_3"}


async def test_another_writer_on_the_file_is_survived(database: Database) -> None:
    """Two gateways on one file are a mistake, but not one that may lose rows or reuse numbers."""
    one, two = Recorder(database), Recorder(database)
    await one.start()
    await two.start()
    assert await one.submit(row(1)) == 1
    assert await two.submit(row(2)) == 2
    assert await one.submit(row(3)) == 3
    await one.close()
    await two.close()
    assert stored(database.path) == {1: "req_1", 2: "req_2", 3: "req_3"}


async def test_a_lock_fails_within_two_seconds_and_passes(database: Database) -> None:
    recorder = Recorder(database, probe_s=0.05)
    await recorder.start()
    assert await recorder.submit(row(1)) == 1
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    first = recorder.submit(row(2))
    await asyncio.sleep(0.5)
    later_at = time.monotonic()
    later = recorder.submit(row(3))
    with pytest.raises(RecordsUnavailable):
        await first
    assert time.monotonic() - began < 2.6
    assert not recorder.available
    with pytest.raises(RecordsUnavailable):
        await later
    assert time.monotonic() - later_at < 2.6
    other.execute("ROLLBACK")
    other.close()
    await asyncio.wait_for(recorder.wait_available(), 10)
    seq = await recorder.submit(row(4))
    await recorder.close()
    found = stored(database.path)
    assert found[1] == "req_1"
    assert found[seq] == "req_4"
    assert list(found) == list(range(1, len(found) + 1))


async def test_a_disk_that_hangs_fails_the_rows_in_time(tmp_path: Path) -> None:
    gate = threading.Event()
    gate.set()

    def wait() -> int:
        gate.wait(20)
        return 0

    def adjust(connection: sqlite3.Connection) -> None:
        connection.set_progress_handler(wait, 1)

    await (await Database.open(tmp_path / "outpost.db")).close()
    database = Adjusted(tmp_path / "outpost.db")
    database.adjust = adjust
    recorder = Recorder(database, patience_s=0.3, probe_s=0.02)
    await recorder.start()
    assert await recorder.submit(row(1)) == 1
    gate.clear()
    futures = [recorder.submit(row(n)) for n in range(2, 5)]
    began = time.monotonic()
    for future in futures:
        with pytest.raises(RecordsUnavailable, match=r"within 0\.3 s"):
            await future
    assert time.monotonic() - began < 2
    assert not recorder.available
    gate.set()
    await asyncio.wait_for(recorder.wait_available(), 10)
    seq = await recorder.submit(row(5))
    assert recorder.depth == 0
    await recorder.close()
    await database.close()
    assert stored(database.path)[seq] == "req_5"


async def test_close_does_not_wait_for_a_hanging_disk(tmp_path: Path) -> None:
    gate = threading.Event()
    gate.set()
    await (await Database.open(tmp_path / "outpost.db")).close()
    database = Adjusted(tmp_path / "outpost.db")
    database.adjust = lambda connection: connection.set_progress_handler(lambda: 0 if gate.wait(20) else 1, 1)
    recorder = Recorder(database, patience_s=0.1)
    await recorder.start()
    gate.clear()
    future = recorder.submit(row(1))
    await asyncio.wait_for(recorder.close(), 5)
    with pytest.raises(RecordsUnavailable):
        await future
    gate.set()
    await database.close()


async def test_a_full_disk_fails_the_rows_and_passes(tmp_path: Path) -> None:
    pages = 0

    def adjust(connection: sqlite3.Connection) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA max_page_count = {pages or 1_000_000}")
        cursor.close()

    await (await Database.open(tmp_path / "outpost.db")).close()
    database = Adjusted(tmp_path / "outpost.db")
    database.adjust = adjust
    pages = 40
    recorder = Recorder(database, probe_s=0.02)
    await recorder.start()
    written = 0
    full = None
    while full is None and written < 10_000:
        results = await asyncio.gather(*[recorder.submit(row(written + n)) for n in range(20)], return_exceptions=True)
        full = next((r for r in results if isinstance(r, BaseException)), None)
        written += sum(isinstance(r, int) for r in results)
    assert isinstance(full, RecordsUnavailable)
    assert "full" in full.message
    assert written > 0
    pages = 0
    await asyncio.wait_for(recorder.wait_available(), 10)
    seq = None
    while seq is None:
        try:
            seq = await recorder.submit(row(-1))
        except RecordsUnavailable:
            await asyncio.wait_for(recorder.wait_available(), 10)
    await recorder.close()
    await database.close()
    found = stored(database.path)
    assert set(range(1, written + 1)) <= set(found)
    assert found[seq] == "req_-1"


async def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    gate = threading.Event()
    gate.set()
    await (await Database.open(tmp_path / "outpost.db")).close()
    database = Adjusted(tmp_path / "outpost.db")
    database.adjust = lambda connection: connection.set_progress_handler(lambda: 0 if gate.wait(20) else 1, 1)
    recorder = Recorder(database, capacity=3)
    await recorder.start()
    gate.clear()
    waiting = [recorder.submit(row(n)) for n in range(3)]
    refused = recorder.submit(row(3))
    assert refused.done()
    with pytest.raises(RecordsUnavailable, match="3 entries waiting"):
        await refused
    gate.set()
    assert await asyncio.gather(*waiting) == [1, 2, 3]
    assert await recorder.submit(row(4)) == 4
    await recorder.close()
    await database.close()


async def test_start_refuses_a_file_that_cannot_be_written(database: Database) -> None:
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    quick = Database(database.path, busy_timeout_s=0.05)
    with pytest.raises(RecordsUnavailable, match="locked"):
        await Recorder(quick).start()
    other.close()
    await quick.close()


def test_the_writer_opens_the_file_anew_after_an_error(tmp_path: Path) -> None:
    opened = []
    asyncio.run(prepare(tmp_path / "outpost.db"))
    engine = Database(tmp_path / "outpost.db", busy_timeout_s=0.01).writer_engine()
    event.listen(engine, "connect", lambda connection, _: opened.append(connection))
    writer = RowWriter(engine)
    assert writer.write([row(1)]) == 1
    other = sqlite3.connect(tmp_path / "outpost.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError):
        writer.write([row(2)])
    other.close()
    assert writer.write([row(3), row(4), row(5)]) == 2
    assert len(opened) == 2
    with pytest.raises(sqlite3.ProgrammingError):
        opened[0].execute("SELECT 1")
    writer.close()
    writer.close()


async def prepare(path: Path) -> None:
    await (await Database.open(path)).close()
