"""What is dropped when: the order of it as a property, and the steps over a real database."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st
from sqlalchemy import func, insert, select

from appliance.errors import RecordsUnavailable
from appliance.records.content import Keeper
from appliance.records.database import Database
from appliance.records.disk import Usage, measure
from appliance.records.export.forwarder import set_delivered
from appliance.records.recorder import Recorder
from appliance.records.retention import (
    HIGH,
    LOW,
    RESERVE,
    Drop,
    Oldest,
    Retention,
    Rules,
    Stuck,
    drop_content,
    drop_metadata,
    quota,
    what_to_drop,
)
from appliance.records.rows import ExchangeRow
from appliance.records.tables import anchors, checkpoints, contents, events, exchanges
from appliance.records.transaction import Transaction
from appliance.settings.recording import DAY, Records
from tests.records.altering import altering
from tests.records.ledger_walk import walk

NOW = 1_000 * DAY
RULES = Rules(metadata=400 * DAY, content=30 * DAY, minimum=180 * DAY, max_disk=1000)


def usage(live: int, free: int | None = None) -> Usage:
    return Usage(total=live, live=live, free=free)


def days(content: float | None, record: float | None) -> Oldest:
    return Oldest(*(None if age is None else NOW - age * DAY for age in (content, record)))


# --- the decision ---


@pytest.mark.parametrize(
    ("live", "oldest", "flags", "wanted"),
    [
        (100, days(None, None), {}, None),
        (100, days(29, 399), {}, None),
        (100, days(31, 500), {}, Drop("content", NOW - 30 * DAY, "age")),
        (100, days(29, 401), {}, Drop("metadata", NOW - 400 * DAY, "age")),
        (100, days(29, 401), {"held": True}, None),
        (900, days(1, 300), {}, None),
        (901, days(1, 300), {}, Drop("content", NOW + 1, "quota")),
        (850, days(1, 300), {"relieving": True}, Drop("content", NOW + 1, "quota")),
        (800, days(1, 300), {"relieving": True}, None),
        (950, days(None, 181), {}, Drop("metadata", NOW - 180 * DAY, "quota")),
        (950, days(None, 179), {}, None),
        (1001, days(None, 179), {}, Stuck("minimum", 1)),
        (1100, days(None, 300), {"held": True}, Stuck("export", 100)),
        (1100, days(None, None), {}, Stuck("minimum", 100)),
    ],
)
def test_the_next_step(live: int, oldest: Oldest, flags: dict[str, bool], wanted: object) -> None:
    assert what_to_drop(NOW, usage(live), oldest, RULES, **flags) == wanted


@pytest.mark.parametrize(
    ("live", "content", "response", "wanted"),
    [
        (100, None, 29, None),
        (100, None, 31, Drop("responses", NOW - 30 * DAY, "age")),
        (100, 31, 31, Drop("content", NOW - 30 * DAY, "age")),
        (901, None, 1, Drop("responses", NOW + 1, "quota")),
        (901, 2, 1, Drop("content", NOW + 1, "quota")),
        (901, 1, 2, Drop("responses", NOW + 1, "quota")),
    ],
)
def test_stored_responses_go_with_the_texts(
    live: int, content: float | None, response: float | None, wanted: object
) -> None:
    oldest = Oldest(*(None if age is None else NOW - age * DAY for age in (content, 300, response)))
    assert what_to_drop(NOW, usage(live), oldest, RULES) == wanted


AGES = st.none() | st.floats(0, 800)


@bounds(deadline=None, max_examples=400)
@given(st.integers(0, 2000), AGES, AGES, st.booleans(), st.booleans(), st.floats(1, 500), st.floats(0, 300))
def test_content_goes_before_records_and_no_record_before_its_time(
    live: int, content: float | None, record: float | None, relieving: bool, held: bool, keep: float, minimum: float
) -> None:
    rules = Rules(keep * DAY, 30 * DAY, minimum * DAY, 1000)
    step = what_to_drop(NOW, usage(live), days(content, record), rules, relieving=relieving, held=held)
    if isinstance(step, Drop) and step.what == "metadata":
        assert step.before <= NOW - rules.minimum
        assert record is not None
        assert not held
        if step.why == "quota":
            assert content is None
    if isinstance(step, Stuck):
        assert content is None
        assert step.over == live - 1000 > 0
    if step is None and not relieving:
        assert live <= 1000 * HIGH or (content is None and live <= 1000)


@bounds(deadline=None, max_examples=200)
@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 10**9))
def test_a_full_disk_is_a_smaller_quota(live: int, free: int, most: int) -> None:
    found = quota(Rules(1, 1, 1, most), usage(live, free))
    assert 0 <= found <= most
    if free >= RESERVE + most:
        assert found == most
    if free < RESERVE:
        assert found < live or found in (0, most)


@bounds(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.floats(0, 900), st.integers(1, 200)), max_size=30), st.integers(100, 2000))
def test_a_sweep_ends_and_leaves_the_quota_kept_or_nothing_to_drop(items: list[tuple[float, int]], most: int) -> None:
    """The loop of `Retention.sweep` over a model of a database: contents and records as (age, size)."""
    texts = sorted(items[::2], reverse=True)
    records = sorted(items[1::2], reverse=True)
    rules, relieving = Rules(400 * DAY, 30 * DAY, 180 * DAY, most), False
    for _ in range(200):
        live = sum(size for _, size in texts + records)
        oldest = days(texts[0][0] if texts else None, records[0][0] if records else None)
        step = what_to_drop(NOW, usage(live), oldest, rules, relieving=relieving)
        relieving = isinstance(step, Drop) and step.why == "quota"
        if not isinstance(step, Drop):
            break
        (texts if step.what == "content" else records).pop(0)
    else:
        pytest.fail("it never ends")
    assert all(age <= 30 for age, _ in texts)
    assert all(age <= 400 for age, _ in records)
    if step is None:
        assert live <= most
    else:
        assert not texts
        assert all(age <= 180 for age, _ in records)


# --- over a database ---


@dataclasses.dataclass
class Box:
    database: Database
    recorder: Recorder
    keeper: Keeper
    retention: Retention
    now: float = NOW
    live: int | None = None
    """What the database is said to take; None: what it takes."""

    async def measure(self, database: Database, interesting: int = 0) -> Usage:
        return await measure(database) if self.live is None else usage(self.live)

    async def record(self, exchange: str, age_days: float, *, text: bytes | None = None) -> int:
        moment = self.now - age_days * DAY
        if text is not None:
            kept = await self.keeper.keep("user_a", exchange, "full", {"request": text})
            assert kept is not None
            await self.recorder.write(self.keeper.insert_content(kept), durable=False)
            await self.recorder.write(
                lambda tx: tx.connection.execute(
                    contents.update().where(contents.c.exchange_id == exchange).values(created_at=moment)
                ),
                durable=False,
            )
        return await self.recorder.submit(ExchangeRow(id=exchange, kind="chat", started_at=moment))

    async def checkpoint(self, seq: int) -> None:
        row = {"seq": seq, "at": 1.0, "note": f"signed for {seq}"}
        await self.recorder.write(lambda tx: tx.connection.execute(insert(checkpoints), row))

    async def seqs(self, table: Any) -> list[int]:
        async with self.database.read() as connection:
            return list(await connection.scalars(select(table.c.seq).order_by(table.c.seq)))

    async def texts(self) -> list[str]:
        async with self.database.read() as connection:
            return list(await connection.scalars(select(contents.c.exchange_id).order_by(contents.c.exchange_id)))

    async def dropped(self) -> list[dict[str, Any]]:
        """What retention has said on the ledger."""
        query = select(events.c.body).where(events.c.kind == "records.dropped").order_by(events.c.seq)
        async with self.database.read() as connection:
            return [json.loads(body) for body in await connection.scalars(query)]

    async def kinds(self) -> list[str]:
        async with self.database.read() as connection:
            return list(await connection.scalars(select(events.c.kind).order_by(events.c.seq)))


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[Box]:
    recorder = Recorder(database, wall=lambda: NOW)
    await recorder.start()
    keeper = Keeper(database, bytes(32), clock=lambda: NOW)
    made = Box(database, recorder, keeper, None)  # type: ignore[arg-type]
    made.retention = Retention(
        database, recorder, Records(max_disk=16 << 20), clock=lambda: made.now, measure=made.measure
    )
    yield made
    await recorder.close()


async def test_old_texts_go_and_their_records_stay(any_box: Box) -> None:
    for number, age in enumerate([31, 29, 100]):
        await any_box.record(f"req_{number}", age, text=b"x")
    state = await any_box.retention.sweep()
    assert await any_box.texts() == ["req_1"]
    assert await any_box.seqs(exchanges) == [1, 2, 3]
    assert (state.contents_dropped, state.records_dropped, state.stuck) == (2, 0, None)
    assert await any_box.kinds() == ["records.dropped"]
    assert len(await walk(any_box.database)) == 4
    await any_box.retention.sweep()
    assert await any_box.kinds() == ["records.dropped"], "a sweep without work says nothing"


async def test_old_records_go_up_to_a_signed_checkpoint_that_stays(any_box: Box) -> None:
    ages = [420, 419, 418, 417, 399, 1]
    for number, age in enumerate(ages, 1):
        await any_box.record(f"req_{number}", age)
    for seq in (1, 3, 5):
        await any_box.checkpoint(seq)
    state = await any_box.retention.sweep()
    # Four are old enough, but only up to the third somebody has signed for the chain.
    assert await any_box.seqs(exchanges) == [4, 5, 6]
    assert await any_box.seqs(checkpoints) == [3, 5]
    assert await any_box.seqs(anchors) == [3]
    assert (state.records_dropped, state.begins_after) == (3, 3)
    assert await walk(any_box.database) == [4, 5, 6, 7]
    # The next number goes on, also over a restart.
    assert await any_box.record("req_7", 0) == 8


async def test_a_cut_and_the_word_of_it_are_one(any_box: Box) -> None:
    """Whatever ends the transaction between them ends both; and no cut leaves a ledger without the newest word."""
    for number in range(1, 4):
        await any_box.record(f"req_{number}", 420)
        await any_box.checkpoint(number)

    def broken(transaction: Transaction) -> None:
        drop_metadata(NOW, None)(transaction)
        raise ValueError("no more of it")

    with pytest.raises(ValueError, match="no more of it"):
        await any_box.recorder.write(broken)
    assert await any_box.seqs(anchors) == [0]
    assert await any_box.dropped() == []
    for through in (1, 2, 3):
        done = await any_box.recorder.write(drop_metadata(NOW, through))
        assert (done.rows, done.through) == (1, through)
        assert await any_box.seqs(anchors) == [through]
        assert [body["through"] for body in await any_box.dropped()] == list(range(1, through + 1))
    # The words themselves go with a later cut, but never the newest.
    await any_box.checkpoint(6)
    done = await any_box.recorder.write(drop_metadata(NOW + DAY, None))
    assert (done.rows, done.through) == (3, 6)
    assert [(said["seq"], said["through"]) for said in await any_box.dropped()] == [(7, 6)]
    assert await walk(any_box.database) == [7]


async def test_records_whose_times_are_out_of_order_go_with_the_youngest_before_them(box: Box) -> None:
    for number, age in enumerate([420, 10, 420], 1):
        await box.record(f"req_{number}", age)
    for seq in (1, 2, 3):
        await box.checkpoint(seq)
    await box.retention.sweep()
    assert await box.seqs(exchanges) == [2, 3]
    await walk(box.database)


async def test_many_old_records_go_in_small_steps(box: Box) -> None:
    rows = [ExchangeRow(id=f"r{n}", kind="chat", started_at=NOW - 500 * DAY) for n in range(2500)]
    for begin in range(0, len(rows), 250):
        await asyncio.gather(*map(box.recorder.submit, rows[begin : begin + 250]))
    for seq in range(100, 2501, 400):
        await box.checkpoint(seq)
    assert (await box.retention.sweep()).begins_after == 2500
    assert await box.seqs(exchanges) == []
    # Each step says itself what it has cut off.
    assert await walk(box.database) == [2501, 2502, 2503]
    assert [body["through"] for body in await box.dropped()] == [900, 1700, 2500]


async def test_no_record_goes_without_a_checkpoint(box: Box) -> None:
    await box.record("req_1", 500)
    assert (await box.retention.sweep()).records_dropped == 0
    assert await box.seqs(exchanges) == [1]


async def test_what_an_exporter_has_not_had_stays(any_box: Box) -> None:
    for number in (1, 2, 3, 4):
        await any_box.record(f"req_{number}", 500)
        await any_box.checkpoint(number)
    any_box.retention.records = Records.model_validate(
        {"max_disk": 16 << 20, "export": [{"name": "one", "host": "h"}, {"name": "two", "host": "h"}]}
    )
    await any_box.recorder.write(set_delivered("one", 4))
    assert (await any_box.retention.sweep()).records_dropped == 0
    await any_box.recorder.write(set_delivered("two", 2))
    await any_box.retention.sweep()
    assert await any_box.seqs(exchanges) == [3, 4]
    await walk(any_box.database)


async def test_a_quota_takes_the_oldest_texts_and_only_as_many_as_needed(box: Box, monkeypatch: Any) -> None:
    for number in range(8):
        await box.record(f"req_{number}", 20 - number, text=b"x")

    async def said(_: Database, __: int) -> Usage:
        return usage(int((16 << 20) * (0.5 + 0.06 * len(await box.texts()))))

    box.retention._measure = said
    monkeypatch.setattr("appliance.records.retention.drop_content", lambda before: drop_content(before, 1))
    state = await box.retention.sweep()
    # 98 % is above the high mark: down to at most 80 %.
    assert await box.texts() == ["req_3", "req_4", "req_5", "req_6", "req_7"]
    assert (state.stuck, state.contents_dropped) == (None, 3)
    assert await box.seqs(exchanges) == list(range(1, 9))
    assert LOW < 0.86 < HIGH


async def test_every_text_that_went_is_told_also_when_the_sweep_fails_behind_it(any_box: Box, monkeypatch: Any) -> None:
    for number in range(4):
        await any_box.record(f"req_{number}", 40 - number, text=b"x")
    steps = 0

    async def failing(_: Database, __: int) -> Usage:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise RecordsUnavailable("locked")
        return usage(1)

    any_box.retention._measure = failing
    monkeypatch.setattr("appliance.records.retention.drop_content", lambda before: drop_content(before, 1))
    with pytest.raises(RecordsUnavailable):
        await any_box.retention.sweep()
    assert await any_box.texts() == ["req_2", "req_3"]
    assert [body["contents"] for body in await any_box.dropped()] == [1, 1]
    await any_box.retention.sweep()
    assert [body["contents"] for body in await any_box.dropped()] == [1, 1, 1, 1]
    await walk(any_box.database)


async def test_a_quota_never_takes_what_the_law_wants_kept(any_box: Box, caplog: pytest.LogCaptureFixture) -> None:
    for number, age in enumerate([300, 200, 170], 1):
        await any_box.record(f"req_{number}", age, text=b"x" if age < 30 else None)
        await any_box.checkpoint(number)
    any_box.live = 17 << 20
    with caplog.at_level(logging.INFO, "outpost.retention"):
        state = await any_box.retention.sweep()
        assert await any_box.seqs(exchanges) == [3]
        assert state.stuck == "minimum"
        await any_box.retention.sweep()
        await any_box.recorder.submit(ExchangeRow(id="req_4", kind="chat", started_at=NOW))
        any_box.live = 1 << 20
        assert (await any_box.retention.sweep()).stuck is None
    said = [record.message for record in caplog.records]
    assert said == ["records_quota_exceeded", "records_quota_kept_again"], "each said once"
    await walk(any_box.database)


async def test_records_from_before_the_ledger_go_by_age_too(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "outpost.db")
    old = {
        "id": "req_0", "kind": "chat", "stream": False, "status": 200, "outcome": "completed", "finish_reasons": "[]",
        "attempts": "[]", "prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0, "usage_source": "none",
        "duration_s": 0.0, "client": "",
    }  # fmt: skip
    async with altering(database) as connection:
        for age in (500, 10):
            await connection.execute(insert(exchanges).values(**old, started_at=NOW - age * DAY))
    recorder = Recorder(database, wall=lambda: NOW)
    await recorder.start()
    retention = Retention(database, recorder, Records(), clock=lambda: NOW)
    assert (await retention.sweep()).records_dropped == 1
    async with database.read() as connection:
        assert list(await connection.scalars(select(exchanges.c.seq))) == [2]
    await walk(database)
    await recorder.close()
    await database.close()


async def test_the_size_falls_when_texts_go(any_box: Box) -> None:
    before = await measure(any_box.database)
    for number in range(40):
        # Not to be compressed away.
        await any_box.record(f"req_{number}", 31, text=random.Random(number).randbytes(20_000))
    full = await measure(any_box.database)
    assert full.live > before.live + 40 * 15_000
    assert full.total >= full.live
    await any_box.retention.sweep()
    after = await measure(any_box.database)
    assert after.live < full.live - 40 * 15_000


async def test_the_task_outlives_trouble_and_stops_when_told(box: Box) -> None:
    waited: list[float] = []
    done = asyncio.Event()

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 4:
            done.set()
            await asyncio.Event().wait()

    box.retention._sleep = sleep
    calls = 0

    async def failing(database: Database, interesting: int) -> Usage:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RecordsUnavailable("locked")
        if calls == 2:
            raise OSError(5, "Input/output error")
        return usage(1)

    box.retention._measure = failing
    task = asyncio.create_task(box.retention.run())
    await asyncio.wait_for(done.wait(), 10)
    assert calls >= 4, "also after an error that is not the house's own"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_newest_number_is_not_given_twice_after_everything_went(box: Box) -> None:
    for number in (1, 2):
        await box.record(f"req_{number}", 500)
    await box.checkpoint(2)
    await box.retention.sweep()
    await box.recorder.close()
    again = Recorder(box.database, wall=lambda: NOW)
    await again.start()
    async with box.database.read() as connection:
        assert await connection.scalar(select(func.count()).select_from(exchanges)) == 0
    assert await again.submit(ExchangeRow(id="req_9", kind="chat", started_at=NOW)) == 4
    await walk(box.database)
    await again.close()
