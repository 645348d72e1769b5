"""Works in the recorder: one order and one commit with the rows, each kept whole or not at all."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import IntegrityError, OperationalError

from appliance.errors import OutpostError, RecordsUnavailable
from appliance.records.chain import GENESIS, exchange_body, link
from appliance.records.database import Database
from appliance.records.recorder import Recorder
from appliance.records.rows import COLUMNS
from appliance.records.tables import counters
from appliance.records.transaction import Transaction
from tests.records.test_recorder import Adjusted, row, stored


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path / "outpost.db")
    yield opened
    await opened.close()


def count_in(path: Path) -> list[int]:
    return [value for (value,) in query(path, "SELECT value FROM counters WHERE name LIKE 'test%' ORDER BY name")]


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    found = connection.execute(sql).fetchall()
    connection.close()
    return found


def put(name: str, value: int = 1) -> Callable[[Transaction], str]:
    def work(tx: Transaction) -> str:
        tx.connection.execute(insert(counters), {"name": f"test.{name}", "value": value})
        return name

    return work


async def test_works_and_rows_keep_their_order_in_one_ledger(database: Database) -> None:
    recorder = Recorder(database, wall=lambda: 12.5)
    await recorder.start()
    first = recorder.submit(row(1))
    second = recorder.write(lambda tx: tx.append("test.made", {"what": "it", "none": None}))
    third = recorder.submit(row(2))
    seen = recorder.write(lambda tx: tx.tail.seq)
    assert await asyncio.gather(first, second, third, seen) == [1, 2, 3, 3]
    await recorder.close()
    assert query(database.path, "SELECT seq, kind, at_us, body FROM events") == [
        (2, "test.made", 12_500_000, '{"at_us":12500000,"kind":"test.made","seq":2,"type":"event","what":"it"}')
    ]
    assert sorted(stored(database.path)) == [1, 3]


async def test_a_work_that_raises_leaves_nothing_and_costs_the_others_nothing(database: Database) -> None:
    class Mine(OutpostError):
        code = "mine"

    def half(tx: Transaction) -> None:
        put("half")(tx)
        tx.append("test.half", {})
        raise Mine("no")

    def broken(tx: Transaction) -> None:
        put("broken")(tx)
        tx.append("test.broken", {})
        tx.connection.execute(text("INSERT INTO nowhere VALUES (1)"))

    recorder = Recorder(database)
    await recorder.start()
    futures: list[asyncio.Future[Any]] = [
        recorder.submit(row(1)),
        recorder.write(half),
        recorder.write(put("a", 1)),
        recorder.write(put("a", 2)),
        recorder.write(broken),
        recorder.write(lambda tx: tx.append("test.good", {"n": 1})),
        recorder.write(lambda tx: tx.append("test.bad", {"n": 1.5})),
        recorder.submit(row(2)),
    ]
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert results[0] == 1
    assert isinstance(results[1], Mine)
    assert results[2] == "a"
    assert isinstance(results[3], IntegrityError)
    assert isinstance(results[4], OperationalError)
    assert results[5] == 2
    assert isinstance(results[6], TypeError)
    assert results[7] == 3
    assert recorder.available
    await recorder.close()
    assert count_in(database.path) == [1]
    assert [kind for (kind,) in query(database.path, "SELECT kind FROM events")] == ["test.good"]


async def test_a_bad_row_costs_works_nothing(database: Database) -> None:
    recorder = Recorder(database)
    await recorder.start()
    broken = row(2)
    broken.kind = None  # type: ignore[assignment]
    futures: list[asyncio.Future[Any]] = [
        recorder.write(put("a")),
        recorder.submit(broken),
        recorder.write(lambda tx: tx.append("test.good", {})),
    ]
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert results[0] == "a"
    assert isinstance(results[1], RecordsUnavailable)
    assert results[2] == 1
    await recorder.close()
    assert count_in(database.path) == [1]


async def test_a_work_that_ends_the_transaction_itself_is_found_out(database: Database) -> None:
    recorder = Recorder(database, probe_s=0.02)
    await recorder.start()

    def work(tx: Transaction) -> None:
        put("early")(tx)
        tx.connection.commit()

    with pytest.raises(RecordsUnavailable):
        await recorder.write(work)
    await asyncio.wait_for(recorder.wait_available(), 10)
    assert await recorder.submit(row(1)) == 1
    await recorder.close()


async def test_only_durable_commits_sync(tmp_path: Path) -> None:
    said: list[str] = []

    def adjust(connection: sqlite3.Connection) -> None:
        getattr(connection, "driver_connection", connection).set_trace_callback(said.append)

    await (await Database.open(tmp_path / "outpost.db")).close()
    database = Adjusted(tmp_path / "outpost.db")
    database.adjust = adjust
    recorder = Recorder(database)
    await recorder.start()
    said.clear()
    await recorder.write(put("quick"), durable=False)
    assert [line for line in said if "synchronous=" in line] == ["PRAGMA synchronous=NORMAL", "PRAGMA synchronous=FULL"]
    assert said.index("PRAGMA synchronous=NORMAL") < said.index("BEGIN IMMEDIATE")
    said.clear()
    await recorder.write(put("sure"))
    assert await recorder.submit(row(1)) == 1
    assert [line for line in said if "synchronous=" in line] == []
    assert query(database.path, "SELECT count(*) FROM counters WHERE name LIKE 'test.%'") == [(2,)]
    await recorder.close()
    await database.close()


async def test_two_writers_share_one_ledger(database: Database) -> None:
    """Events and exchanges have tables of their own, so no key keeps two writers from giving a number twice."""
    one, two = Recorder(database), Recorder(database)
    await one.start()
    await two.start()
    numbers = []
    for number in range(4):
        numbers.append(await one.write(lambda tx: tx.append("test.one", {})))
        numbers += await asyncio.gather(*[two.submit(row(n)) for n in range(number + 1)])
        numbers += await asyncio.gather(*[one.submit(row(n)) for n in range(number + 1)])
        numbers.append(await two.write(lambda tx: tx.append("test.two", {})))
    await one.close()
    await two.close()
    assert numbers == list(range(1, len(numbers) + 1))
    hashes = dict(query(database.path, "SELECT seq, hash FROM exchanges UNION SELECT seq, hash FROM events"))
    assert sorted(hashes) == numbers
    previous = GENESIS
    for seq in numbers:
        event_text = query(database.path, f"SELECT body FROM events WHERE seq = {seq}")
        values = query(database.path, f"SELECT {', '.join(COLUMNS)} FROM exchanges WHERE seq = {seq}")
        previous = link(previous, event_text[0][0].encode() if event_text else exchange_body(values[0]))
        assert hashes[seq] == previous


async def test_the_ledger_begins_behind_older_records(database: Database) -> None:
    with sqlite3.connect(database.path) as connection:
        connection.execute(
            "INSERT INTO exchanges (seq, id, kind, started_at, stream, status, outcome, finish_reasons, attempts,"
            " prompt_tokens, cached_tokens, completion_tokens, usage_source, duration_s, client)"
            " VALUES (41, 'old', 'chat', 1.0, 0, 200, 'completed', '[]', '[]', 0, 0, 0, 'none', 1.0, '')"
        )
    connection.close()
    recorder = Recorder(database, wall=lambda: 7.0)
    await recorder.start()
    assert await recorder.submit(row(1)) == 42
    await recorder.close()
    assert query(database.path, "SELECT seq, hash, at FROM anchors") == [(41, GENESIS, 7.0)]
