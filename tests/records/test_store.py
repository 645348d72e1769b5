"""Reading exchanges back."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from appliance.records.database import Database
from appliance.records.rows import ExchangeRow
from appliance.records.store import ExchangeStore
from appliance.records.writer import RowWriter


@pytest.fixture
async def store(database: Database) -> ExchangeStore:
    writer = RowWriter(database.writer_engine())
    writer.write([ExchangeRow(id=f"req_{n}", kind="embeddings", started_at=float(n)) for n in range(1, 11)])
    writer.close()
    return ExchangeStore(database)


async def test_tail_is_the_newest_oldest_first(store: ExchangeStore) -> None:
    assert [row.seq for row in await store.tail(3)] == [8, 9, 10]
    assert len(await store.tail(50)) == 10


@pytest.mark.parametrize(
    ("after", "limit", "wanted"),
    [
        (None, 2, [9, 10]),
        (0, 2, [1, 2]),
        (7, 100, [8, 9, 10]),
        (10, 5, []),
        (3, 0, [4]),
        (0, 10**9, list(range(1, 11))),
    ],
)
async def test_list(store: ExchangeStore, after: int | None, limit: int, wanted: list[int]) -> None:
    assert [row.seq for row in await store.list(after, limit)] == wanted


async def test_a_page_of_one_organization_is_full(database: Database) -> None:
    writer = RowWriter(database.writer_engine())
    places = {n: "org_b" if n % 5 == 0 else "org_a" for n in range(1, 101)}
    writer.write(
        [
            ExchangeRow(id=f"req_{n}", kind="embeddings", started_at=float(n), organization_id=place)
            for n, place in places.items()
        ]
    )
    writer.close()
    store = ExchangeStore(database)
    assert [row.seq for row in await store.list(None, 10, organization="org_b")] == list(range(55, 101, 5))
    assert [row.seq for row in await store.list(7, 3, organization="org_b")] == [10, 15, 20]
    assert [row.seq for row in await store.list(98, 3, organization="org_b")] == [100]
    assert await store.list(None, 10, organization="org_c") == []
    assert len(await store.list(0, 1000)) == 100


async def test_find(store: ExchangeStore) -> None:
    found = await store.find("req_4")
    assert found is not None
    assert (found.seq, found.started_at, found.kind) == (4, 4.0, "embeddings")
    for stranger in ("req_4' OR '1'='1", "\ud800", "req_", "", "req_4\0"):
        assert await store.find(stranger) is None


async def test_find_uses_the_index(store: ExchangeStore) -> None:
    explain = "EXPLAIN QUERY PLAN"
    async with store._database.read() as connection:
        if connection.dialect.name == "postgresql":
            explain = "EXPLAIN"
            # Ten rows are read faster without any index.
            await connection.execute(text("SET LOCAL enable_seqscan = off"))
        plan = (await connection.execute(text(f"{explain} SELECT * FROM exchanges WHERE id = 'x'"))).all()
    assert "ix_exchanges_id" in plan[0][-1]
