"""The server goes away while it is written to, and comes back: nothing acknowledged is missing, nobody restarts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from appliance.errors import RecordsUnavailable
from appliance.records.database import Database
from appliance.records.recorder import Recorder
from appliance.records.store import ExchangeStore
from appliance.records.tables import counters, exchanges
from appliance.records.transaction import Transaction
from tests.postgres import Cluster, find_binaries
from tests.records.test_recorder_both import chain, row

ROUNDS = int(os.environ.get("OUTPOST_CRASH_ROUNDS", "3"))
CLIENTS = 12
PATIENCE_S = 30.0


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """One of this test's own: others must not see it crash."""
    made = Cluster(find_binaries(os.environ))
    yield made
    made.remove()


class Load:
    """Clients that write rows and works without end, and what they were told."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.rows: dict[int, str] = {}
        self.works: set[str] = set()
        self.refused = 0
        self._more = asyncio.Event()

    async def client(self, number: int) -> None:
        count = 0
        while True:
            name = f"{number}.{count}"
            count += 1
            try:
                if count % 4:
                    self._row(await self._recorder.submit(row(count, id=name)), name)
                else:
                    self.works.add(await self._recorder.write(self._work(name)))
            except RecordsUnavailable:
                self.refused += 1
                await self._recorder.wait_available()
            self._more.set()

    def _row(self, seq: int, name: str) -> None:
        assert seq not in self.rows, "a number was given twice"
        self.rows[seq] = name

    def _work(self, name: str):  # type: ignore[no-untyped-def]
        def work(tx: Transaction) -> str:
            tx.connection.execute(insert(counters), {"name": f"test.{name}", "value": 1})
            tx.append("test.made", {"name": name})
            return name

        return work

    async def reaches(self, rows: int) -> None:
        """Return when so many rows are acknowledged."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.rows) < rows:
                self._more.clear()
                await self._more.wait()


async def test_a_server_that_crashes_costs_nothing_that_was_acknowledged(cluster: Cluster, tmp_path: Path) -> None:
    name = cluster.new_database(cluster.template)
    database = await Database.open(cluster.server(name, backups=tmp_path))
    recorder = Recorder(database, probe_s=0.05)
    await recorder.start()
    load = Load(recorder)
    clients = [asyncio.create_task(load.client(number)) for number in range(CLIENTS)]
    token = await database.changed_since(None)
    for _ in range(ROUNDS):
        await load.reaches(len(load.rows) + 150)
        refused = load.refused
        await asyncio.to_thread(cluster.stop, immediately=True)
        with pytest.raises(RecordsUnavailable):
            await ExchangeStore(database).tail()
        with pytest.raises(RecordsUnavailable):
            await database.changed_since(token)
        await asyncio.to_thread(cluster.start)
        async with asyncio.timeout(PATIENCE_S):
            await recorder.wait_available()
        assert load.refused > refused
        assert len(await ExchangeStore(database).tail()) == 20
        newer = await database.changed_since(token)
        assert newer not in (None, token)
        token = newer
    await load.reaches(len(load.rows) + 100)
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    await recorder.close()

    async with database.read() as connection:
        found = dict((await connection.execute(select(exchanges.c.seq, exchanges.c.id))).all())
        made = (await connection.execute(select(counters.c.name).where(counters.c.name.like("test.%")))).scalars().all()
    assert {seq: name for seq, name in load.rows.items() if found.get(seq) != name} == {}
    assert {f"test.{name}" for name in load.works} - set(made) == set()
    numbers = await chain(database)
    assert numbers == list(range(1, len(numbers) + 1))
    await database.close()


async def test_a_session_that_an_administrator_ends_is_replaced(cluster: Cluster, tmp_path: Path) -> None:
    name = cluster.new_database(cluster.template)
    database = await Database.open(cluster.server(name, backups=tmp_path))
    recorder = Recorder(database, probe_s=0.05)
    await recorder.start()
    assert await recorder.submit(row(1)) == 1
    ended = cluster.sql(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'outpost%'"
    )
    assert int(ended) >= 1
    with pytest.raises(RecordsUnavailable, match=r"terminating connection|network error|closed"):
        await recorder.submit(row(2))
    assert not recorder.available
    async with asyncio.timeout(PATIENCE_S):
        await recorder.wait_available()
    assert await recorder.submit(row(3)) == 2
    await recorder.close()
    assert await chain(database) == [1, 2]
    await database.close()


async def test_a_locked_table_fails_in_time_and_passes(cluster: Cluster, tmp_path: Path) -> None:
    name = cluster.new_database(cluster.template)
    database = await Database.open(cluster.server(name, backups=tmp_path), busy_timeout_s=0.3)
    recorder = Recorder(database, probe_s=0.05)
    await recorder.start()
    assert await recorder.submit(row(1)) == 1
    async with database.engine.connect() as holder:
        await holder.exec_driver_sql("LOCK TABLE exchanges, counters IN ACCESS EXCLUSIVE MODE")
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(RecordsUnavailable, match="lock timeout"):
            await recorder.submit(row(2))
        assert loop.time() - began < 2.0
        assert not recorder.available
    async with asyncio.timeout(PATIENCE_S):
        await recorder.wait_available()
    assert await recorder.submit(row(3)) == 2
    await recorder.close()
    assert await chain(database) == [1, 2]
    await database.close()
