"""A limit whose making was refused because nobody could tell what became of it: what is in force is what is kept."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from appliance.errors import RecordsUnavailable
from appliance.identity.principal import Principal
from appliance.limits.book import Book
from appliance.limits.clock import Now
from appliance.limits.keeper import LimitKeeper
from appliance.records.database import Database
from appliance.records.recorder import Recorder
from appliance.settings import Settings

OWNER = Principal(key_id="k", key_name="owner", role="owner")


def now() -> Now:
    return Now(time.time(), time.monotonic())


@asynccontextmanager
async def keeper_of(folder: Path) -> AsyncIterator[LimitKeeper]:
    """Its recorder gives up long before the database does."""
    database = await Database.open(folder / "outpost.db")
    recorder = Recorder(database, patience_s=0.1)
    await recorder.start()
    keeper = LimitKeeper(database, recorder, Book((), now()), now, again_s=0.05)
    await keeper.load(Settings())
    try:
        yield keeper
    finally:
        await keeper.close()
        await recorder.close()
        await database.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_changes_that_were_refused_and_written_all_the_same_are_in_force(tmp_path: Path) -> None:
    async with keeper_of(tmp_path) as keeper:
        await keeper.create(OWNER, {"name": "old", "scope": "key", "requests": "5/hour"})
        lock = sqlite3.connect(tmp_path / "outpost.db", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        for ask in (
            keeper.create(OWNER, {"name": "new", "scope": "key", "requests": "5/hour"}),
            keeper.change(OWNER, "old", {"requests": "7/hour"}),
        ):
            with pytest.raises(RecordsUnavailable):
                await ask
        lock.execute("ROLLBACK")
        lock.close()

        def stored() -> int:
            with sqlite3.connect(tmp_path / "outpost.db") as connection:
                (count,) = connection.execute("SELECT count(*) FROM limits").fetchone()
            connection.close()
            return int(count)

        await until(lambda: len(keeper.list(OWNER)) == stored() == 2)
        assert {info.name for info in keeper.list(OWNER)} == {"old", "new"}
        assert {rule.name for rule in keeper.book.rules} == {"old", "new"}
        with sqlite3.connect(tmp_path / "outpost.db") as connection:
            (text,) = connection.execute("SELECT rule FROM limits WHERE name = 'old'").fetchone()
        connection.close()
        await until(lambda: f'"{keeper.show(OWNER, "old").requests}"' in text)
