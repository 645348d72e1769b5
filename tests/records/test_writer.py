"""Random batches of rows and works: the chain is whole whatever failed in between, and nothing of that is left."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from appliance.records.chain import GENESIS, link
from appliance.records.database import Database
from appliance.records.ledger_store import LedgerStore
from appliance.records.tables import counters
from appliance.records.transaction import Failed, Transaction, Work
from appliance.records.verify import Anchor
from appliance.records.writer import RowWriter
from tests.records.ledgers import verify
from tests.records.test_checkpoints import SIGNER
from tests.records.test_recorder import row

ITEM = st.sampled_from(["row", "append", "twice", "silent", "raise", "late", "constraint"])


def work_of(what: str, name: str) -> Work:
    def run(tx: Transaction) -> Any:
        if what in ("append", "twice", "raise", "constraint"):
            tx.append("test", {"name": name})
        if what == "twice":
            tx.append("test", {"name": f"{name}b"})
        tx.connection.execute(insert(counters), {"name": f"test.{name}", "value": 1})
        if what == "raise":
            raise KeyError(name)
        if what == "late":
            tx.append("test", {"bad": 0.5})
        if what == "constraint":
            tx.connection.execute(insert(counters), {"name": f"test.{name}", "value": 2})
        return name

    return Work(run, durable=what != "silent")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("writer") / "outpost.db"
    asyncio.run(_make(path))
    return path


async def _make(path: Path) -> None:
    await (await Database.open(path)).close()


@given(st.lists(st.lists(ITEM, min_size=1, max_size=6), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_whatever_fails_leaves_no_trace_and_no_gap(place: Path, batches: list[list[str]]) -> None:
    connection = sqlite3.connect(place)
    for table in ("exchanges", "events", "anchors", "counters", "sqlite_sequence"):
        connection.execute(f"DELETE FROM {table}")
    connection.commit()
    writer = RowWriter(Database(place).writer_engine(), wall=lambda: 1.0)
    kept: set[str] = set()
    numbers: list[int] = []
    for index, batch in enumerate(batches):
        items = [row(n) if what == "row" else work_of(what, f"{index}.{n}") for n, what in enumerate(batch)]
        results = writer.write_mixed(items)
        for n, (what, result) in enumerate(zip(batch, results, strict=True)):
            if what == "row":
                numbers.append(result)
            assert isinstance(result, Failed) == (what in ("raise", "late", "constraint"))
            if what in ("append", "twice", "silent"):
                kept.add(f"test.{index}.{n}")
    newest = writer.newest
    writer.close()
    assert {name for (name,) in connection.execute("SELECT name FROM counters")} == kept
    connection.close()
    assert numbers == sorted(set(numbers))
    whole = sum({"row": 1, "append": 1, "twice": 2}.get(what, 0) for batch in batches for what in batch)
    records = asyncio.run(_read(place))
    assert newest == len(records) == whole
    report = verify(records, {}, Anchor(0, GENESIS), SIGNER.public)
    assert report.problems == []
    digest = GENESIS
    for record in records:
        digest = link(digest, record.body)
        assert record.hash == digest


async def _read(path: Path) -> list[Any]:
    database = Database(path)
    try:
        return await LedgerStore(database).batch(0, 2**62, 1000)
    finally:
        await database.close()
