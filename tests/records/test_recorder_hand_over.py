"""What one turn of the loop submits goes to the writer together; nothing of it is lost, late or out of order."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import RecordsUnavailable
from appliance.records.database import Database
from appliance.records.recorder import Recorder
from appliance.records.rows import ExchangeRow
from appliance.records.transaction import Transaction


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path / "outpost.db")
    yield opened
    await opened.close()


def row(number: int) -> ExchangeRow:
    return ExchangeRow(id=f"req_{number}", kind="chat.completions", started_at=1.0)


def stored(path: Path) -> list[str]:
    with sqlite3.connect(path) as connection:
        found = [text for (text,) in connection.execute("SELECT id FROM exchanges ORDER BY seq")]
    connection.close()
    return found


async def test_one_turn_is_handed_over_once_and_cut_into_batches(database: Database) -> None:
    recorder = Recorder(database, max_batch=20)
    sizes: list[int] = []
    write = recorder._writer.write

    def counted(rows: list[ExchangeRow]) -> int:
        sizes.append(len(rows))
        return write(rows)

    recorder._writer.write = counted  # type: ignore[method-assign, assignment]
    await recorder.start()
    numbers = await asyncio.gather(*[recorder.submit(row(n)) for n in range(50)])
    assert numbers == list(range(1, 51))
    assert sizes == [20, 20, 10]
    assert recorder.depth == 0
    await recorder.close()


async def test_what_was_submitted_in_the_turn_of_the_close_is_written(database: Database) -> None:
    recorder = Recorder(database)
    await recorder.start()
    futures = [recorder.submit(row(n)) for n in range(3)]
    closing = asyncio.create_task(recorder.close())
    assert await asyncio.gather(*futures) == [1, 2, 3]
    await closing
    with pytest.raises(RecordsUnavailable):
        await recorder.submit(row(4))
    assert stored(database.path) == ["req_0", "req_1", "req_2"]
    assert recorder.depth == 0


@pytest.mark.parametrize("seed", range(6))
async def test_rows_and_works_are_done_in_the_order_in_which_they_came(database: Database, seed: int) -> None:
    chance = random.Random(seed)
    recorder = Recorder(database, max_batch=chance.choice([1, 3, 256]))
    await recorder.start()
    done: list[int] = []
    settled: list[int] = []
    futures: list[asyncio.Future[Any]] = []
    for number in range(60):
        if chance.random() < 0.4:
            futures.append(recorder.write(_note(done, number)))
        else:
            futures.append(recorder.submit(row(number)))
        futures[-1].add_done_callback(_settling(settled, number))
        if chance.random() < 0.2:
            await asyncio.sleep(0)
    await asyncio.gather(*futures)
    await recorder.close()
    assert done == sorted(done)
    assert settled == list(range(60))
    assert stored(database.path) == [f"req_{n}" for n in range(60) if n not in done]


def _settling(settled: list[int], number: int) -> Callable[[object], None]:
    return lambda _: settled.append(number)


def _note(done: list[int], number: int) -> Any:
    def work(transaction: Transaction) -> None:
        done.append(number)

    return work


async def test_what_was_gathered_fails_in_time_behind_a_disk_that_hangs(database: Database) -> None:
    recorder = Recorder(database, patience_s=0.1)
    await recorder.start()
    go, hangs = threading.Event(), threading.Event()

    def work(transaction: Transaction) -> None:
        hangs.set()
        go.wait(10)

    first = recorder.write(work)
    await asyncio.to_thread(hangs.wait, 10)
    futures = [recorder.submit(row(n)) for n in range(5)]
    try:
        async with asyncio.timeout(5):
            told = await asyncio.gather(*futures, return_exceptions=True)
        assert all(isinstance(each, RecordsUnavailable) for each in told)
        assert not recorder.available
    finally:
        go.set()
    with suppress(RecordsUnavailable):
        await first
    async with asyncio.timeout(5):
        await recorder.wait_available()
        while recorder.depth:
            await asyncio.sleep(0)
    assert await recorder.submit(row(9)) == 1
    assert stored(database.path) == ["req_9"]
    await recorder.close()


def test_a_loop_that_ends_right_after_a_submission_has_handed_it_over(tmp_path: Path) -> None:
    path = tmp_path / "outpost.db"
    recorder: list[Recorder] = []

    async def story() -> None:
        recorder.append(Recorder(await Database.open(path)))
        await recorder[0].start()
        recorder[0].submit(row(1)).add_done_callback(lambda _: None)

    asyncio.run(story())
    thread = recorder[0]._thread
    assert thread is not None
    recorder[0]._queue.put(None)
    thread.join(10)
    assert stored(path) == ["req_1"]
