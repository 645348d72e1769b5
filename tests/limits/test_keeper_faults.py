"""Changes of limits while operators leave and the database is locked: what is on record is in force."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from appliance.errors import RecordsUnavailable
from appliance.limits.book import Book
from appliance.limits.keeper import LimitKeeper
from appliance.records.database import Database
from appliance.records.recorder import Recorder
from appliance.records.rows import ExchangeRow
from appliance.records.transaction import Transaction
from appliance.settings import Settings
from tests.limits.test_keeper import NOW, OWNER, SETTINGS, Desk

WISH = {"name": "tight", "scope": "team", "requests": "10/hour"}


class Impatient(Desk):
    """Its recorder gives up after a tenth of a second."""

    path: Path
    recorder: Recorder

    @contextmanager
    def locked(self) -> Iterator[None]:
        lock = sqlite3.connect(self.path, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            lock.execute("ROLLBACK")
            lock.close()

    def rules(self) -> list[str]:
        return sorted(rule.name for rule in self.keeper.book.rules)

    async def stored(self) -> int:
        with sqlite3.connect(self.path) as connection:
            return int(connection.execute("SELECT count(*) FROM limits").fetchone()[0])


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Impatient]:
    path = tmp_path / "outpost.db"
    database = await Database.open(path)
    recorder = Recorder(database, patience_s=0.1, probe_s=0.05)
    await recorder.start()
    keeper = LimitKeeper(database, recorder, Book([], NOW), lambda: NOW, wall=lambda: NOW.wall)
    await keeper.load(SETTINGS)
    opened = Impatient(keeper, database)
    opened.path, opened.recorder = path, recorder
    yield opened
    await keeper.close()
    await recorder.close()
    await database.close()


async def leave(desk: Impatient, *asked: Any) -> None:
    """Ask, and leave while the change is being written."""
    with desk.locked():
        task = asyncio.create_task(desk.ask(*asked))
        while not desk.recorder.depth:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])


async def settled(desk: Impatient, names: list[str]) -> None:
    async with asyncio.timeout(5):
        while desk.rules() != names:
            await asyncio.sleep(0.01)


async def test_a_change_counts_although_who_asked_has_left(desk: Impatient) -> None:
    await leave(desk, "POST", "", WISH)
    await settled(desk, ["declared", "tight"])
    assert [info.name for info in desk.keeper.list(OWNER)] == ["declared", "tight"]
    await leave(desk, "PATCH", "/tight", {"name": "tighter"})
    await settled(desk, ["declared", "tighter"])
    await leave(desk, "DELETE", "/tighter")
    await settled(desk, ["declared"])
    assert await desk.stored() == 0


async def test_what_was_written_after_all_is_in_force_after_all(desk: Impatient) -> None:
    with desk.locked(), pytest.raises(RecordsUnavailable):
        await desk.ask("POST", "", WISH)
    await desk.recorder.wait_available()
    await desk.recorder.write(lambda tx: None)
    expected = ["declared", "tight"] if await desk.stored() else ["declared"]
    await settled(desk, expected)
    assert len(desk.keeper.list(OWNER)) == len(expected)
    if "tight" in expected:
        with desk.locked(), pytest.raises(RecordsUnavailable):
            await desk.ask("DELETE", "/tight")
        await desk.recorder.wait_available()
        await desk.recorder.write(lambda tx: None)
        await settled(desk, ["declared"] if not await desk.stored() else expected)


async def test_settings_that_come_while_the_database_is_read_stay_in_force(
    desk: Impatient, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = Settings.model_validate({"limits": [{"scope": "team", "name": "later", "requests": "1/day"}]})
    read = desk.database.read

    @asynccontextmanager
    async def reloaded_meanwhile() -> AsyncIterator[AsyncConnection]:
        async with read() as connection:
            yield connection
        desk.keeper.apply(later)

    monkeypatch.setattr(desk.database, "read", reloaded_meanwhile)
    await leave(desk, "POST", "", WISH)
    await settled(desk, ["later", "tight"])


async def test_a_second_change_that_is_given_up_while_the_first_is_looked_after_is_in_force_too(
    desk: Impatient, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(desk.database, patience_s=30.0, max_batch=1)
    await recorder.start()
    keeper = desk.keeper = LimitKeeper(desk.database, recorder, Book([], NOW), lambda: NOW, wall=lambda: NOW.wall)
    await keeper.load(SETTINGS)
    looked = asyncio.Event()
    read = desk.database.read

    @asynccontextmanager
    async def noticed() -> AsyncIterator[AsyncConnection]:
        async with read() as connection:
            yield connection
        looked.set()

    monkeypatch.setattr(desk.database, "read", noticed)
    first, second = threading.Event(), threading.Event()

    async def waiting(entries: int) -> None:
        while recorder.depth != entries:
            await asyncio.sleep(0)

    recorder.write(lambda tx: first.wait(5))
    one = asyncio.create_task(desk.ask("POST", "", {**WISH, "name": "one"}))
    await waiting(2)
    one.cancel()
    await waiting(3)  # with the question what became of it
    recorder.write(lambda tx: second.wait(5))
    two = asyncio.create_task(desk.ask("POST", "", {**WISH, "name": "two"}))
    await waiting(5)
    first.set()
    await waiting(2)
    two.cancel()
    await asyncio.wait_for(looked.wait(), 5)
    second.set()
    await settled(desk, ["declared", "one", "two"])
    await keeper.close()
    await recorder.close()


@pytest.mark.parametrize("change", [("POST", "", WISH), ("PATCH", "/tight", {"match": {"team": "nobody"}})])
async def test_a_change_that_had_to_be_written_again_is_told_once(desk: Impatient, change: tuple[Any, ...]) -> None:
    method, path, body = change
    if method == "PATCH":
        await desk.ask("POST", "", WISH)
    patient = Recorder(desk.database)
    await patient.start()
    desk.keeper = LimitKeeper(desk.database, patient, Book([], NOW), lambda: NOW, wall=lambda: NOW.wall)
    await desk.keeper.load(SETTINGS)
    go = threading.Event()

    def wait(tx: Transaction) -> None:
        go.wait(5)

    bad = ExchangeRow(id="x", kind="chat.completions", started_at=NOW.wall)
    bad.kind = None  # type: ignore[assignment]
    held = patient.write(wait)
    asked = asyncio.create_task(desk.ask(method, path, {**body, "match": {"team": "nobody"}}))
    while patient.depth < 2:
        await asyncio.sleep(0)
    failed = patient.submit(bad)  # because of it all that were written with it are written once more, alone
    go.set()
    made = await asked
    assert made["remarks"] == ["match.team: there is no team with the id or name 'nobody' yet"]
    await asyncio.gather(held, failed, return_exceptions=True)
    await patient.close()
