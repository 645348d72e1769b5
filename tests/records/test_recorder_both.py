"""The recorder over both kinds of database: what was acknowledged is there, in one chain, and works stand alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from appliance.errors import NotFound, RecordsUnavailable
from appliance.records.chain import GENESIS, exchange_body, link
from appliance.records.database import Database, DatabaseInUse, Where
from appliance.records.recorder import Recorder
from appliance.records.rows import COLUMNS, Attempt, Charge, ExchangeRow
from appliance.records.store import ExchangeStore
from appliance.records.tables import counters, events, exchanges, limits, teams
from appliance.records.transaction import Transaction

HOSTILE = "'; DROP TABLE exchanges; -- \\x00 \\ %s :rows {} \u2028 \U0001f511 \x7f \""


def row(number: int, **changed: Any) -> ExchangeRow:
    return ExchangeRow(
        **{
            "id": f"req_{number}",
            "kind": "chat.completions",
            "started_at": 1_764_000_000.123456,
            "route": HOSTILE,
            "target": "deployment:ä",
            "stream": bool(number % 2),
            "finish_reasons": ["stop", HOSTILE],
            "attempts": [Attempt("deployment:m", 0.0, 0.1, "completed", cost_nanousd=2**40)],
            "prompt_tokens": number,
            "queue_s": 0.000001,
            "duration_s": 1 / 3,
            "client": "127.0.0.1",
            "tags": [HOSTILE],
            "cost_nanousd": 2**53 - 1,
            "charges": [Charge("l:org_default", 2**52, 1.5)],
        }
        | changed
    )


async def chain(database: Database) -> list[int]:
    """The sequence numbers, after recomputing every hash from what the database gives back."""
    columns = [exchanges.c[name] for name in COLUMNS]
    async with database.read() as connection:
        found = [
            (each.seq, exchange_body(tuple(each)[:-1]), each.hash)
            for each in (await connection.execute(select(*columns, exchanges.c.hash))).all()
        ]
        found += [
            (each.seq, each.body.encode(), each.hash) for each in (await connection.execute(select(events))).all()
        ]
    digest = GENESIS
    for _, body, stored in sorted(found):
        digest = link(digest, body)
        assert stored == digest
    return sorted(seq for seq, _, _ in found)


@pytest.mark.parametrize("count", [1, 7, 64, 500])
async def test_batches_of_every_size_keep_order_and_content(database: Database, count: int) -> None:
    recorder = Recorder(database, max_batch=200)
    await recorder.start()
    assert await asyncio.gather(*[recorder.submit(row(n)) for n in range(count)]) == list(range(1, count + 1))
    await recorder.close()
    found = await ExchangeStore(database).tail(1000)
    assert [each.id for each in found] == [f"req_{n}" for n in range(count)]
    wanted = row(count - 1)
    for name in ExchangeRow.__struct_fields__:
        assert getattr(found[-1], name) == pytest.approx(getattr(wanted, name), abs=1e-6) if name in (
            "started_at", "queue_s", "duration_s"
        ) else getattr(found[-1], name) == getattr(wanted, name), name  # fmt: skip
    assert await chain(database) == list(range(1, count + 1))


async def test_rows_and_works_share_one_order(database: Database) -> None:
    recorder = Recorder(database)
    await recorder.start()
    futures: list[asyncio.Future[int]] = []
    for number in range(40):
        futures.append(recorder.submit(row(number)))
        futures.append(recorder.write(lambda tx, n=number: tx.append("test.made", {"n": n, "text": HOSTILE})))
    assert await asyncio.gather(*futures) == list(range(1, 81))
    await recorder.close()
    assert await chain(database) == list(range(1, 81))


@pytest.mark.parametrize("durable", [True, False])
async def test_a_work_is_kept_whole_or_not_at_all(database: Database, durable: bool) -> None:
    def put(name: str) -> Any:
        def work(tx: Transaction) -> str:
            tx.connection.execute(insert(counters), {"name": name, "value": 1})
            tx.append("test.put", {"name": name})
            return name

        return work

    def ours(tx: Transaction) -> None:
        put("ours")(tx)
        raise NotFound("no such thing")

    def wrong(tx: Transaction) -> None:
        put("wrong")(tx)
        tx.connection.execute(text("INSERT INTO nowhere VALUES (1)"))

    def orphan(tx: Transaction) -> None:
        put("orphan")(tx)
        tx.connection.execute(
            insert(teams), {"id": "team_x", "organization_id": "org_none", "name": "x", "created_at": 0.0}
        )

    recorder = Recorder(database)
    await recorder.start()
    works = [put("a"), ours, put("a"), wrong, orphan, put("b")]
    results = await asyncio.gather(*[recorder.write(work, durable=durable) for work in works], return_exceptions=True)
    assert results[0] == "a"
    assert isinstance(results[1], NotFound)
    assert isinstance(results[2], IntegrityError)
    assert isinstance(results[3], DBAPIError)
    assert isinstance(results[4], IntegrityError)
    assert results[5] == "b"
    assert recorder.available
    await recorder.close()
    async with database.read() as connection:
        names = (await connection.execute(select(counters.c.name).where(counters.c.name != "probe"))).scalars().all()
    assert sorted(names) == ["a", "b"]
    assert await chain(database) == [1, 2]


async def test_what_cannot_be_kept_as_it_is_costs_the_others_nothing(database: Database) -> None:
    recorder = Recorder(database)
    await recorder.start()
    broken = row(2)
    broken.kind = None  # type: ignore[assignment]
    given = [row(0), row(1, route="\ud800", prompt_tokens=2**70), broken, row(3)]
    results = await asyncio.gather(*[recorder.submit(each) for each in given], return_exceptions=True)
    assert isinstance(results[2], RecordsUnavailable)
    assert [each for each in results if isinstance(each, int)] == [1, 2, 3]
    assert recorder.available
    await recorder.close()
    assert await chain(database) == [1, 2, 3]


async def test_numbers_and_chain_go_on_after_a_restart(database: Database) -> None:
    for start in (1, 4):
        recorder = Recorder(database)
        await recorder.start()
        assert await recorder.submit(row(start)) == start
        assert await recorder.write(lambda tx: tx.append("test.x", {})) == start + 1
        assert await recorder.submit(row(start)) == start + 2
        await recorder.close()
    assert await chain(database) == [1, 2, 3, 4, 5, 6]


async def test_a_second_writer_waits_its_turn_or_is_refused(database: Database, where: Where) -> None:
    recorder = Recorder(database)
    await recorder.start()
    assert await recorder.submit(row(1)) == 1
    elsewhere = Database(where, busy_timeout_s=0.1)
    second = Recorder(elsewhere)
    if database.engine.dialect.name == "postgresql":
        with pytest.raises(DatabaseInUse, match="Another Outpost process writes to this database"):
            await second.start()
        await recorder.close()
        second = Recorder(elsewhere)
    await second.start()
    assert await second.submit(row(2)) == 2
    await second.close()
    await recorder.close()
    await elsewhere.close()
    assert await chain(database) == [1, 2]


async def test_large_and_small_values_come_back(database: Database) -> None:
    recorder = Recorder(database)
    await recorder.start()
    rule = {"id": "limit_1", "organization_id": "org_default", "name": "n", "rule": HOSTILE, "created_at": 1e9 + 0.25}
    await recorder.write(lambda tx: tx.connection.execute(insert(limits), rule) and None)
    await recorder.close()
    async with database.read() as connection:
        assert [dict(each) for each in (await connection.execute(select(limits))).mappings()] == [rule]
