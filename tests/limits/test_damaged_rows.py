"""Rows and tables that somebody has damaged: the start goes on, and what other rows say counts."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest

from tests.limits.test_limit_store import DAY, house, now, rules, stored

DAMAGE = [
    "UPDATE exchanges SET charges = '[{' WHERE seq = 1",
    "UPDATE exchanges SET charges = '7' WHERE seq = 1",
    "UPDATE exchanges SET charges = '[[1,-9000000000000000,\"l|team|tokens|day@UTC|t\"]]' WHERE seq = 1",
    "UPDATE exchanges SET charges = '[[1,5,\"l|team|tokens|day@Nowhere|t\"]]' WHERE seq = 1",
    "UPDATE exchanges SET charges = '[[1,5,\"l|team|tokens|r0|t\"]]' WHERE seq = 1",
    "UPDATE exchanges SET charges = '[[1,-9000000000000000000,\"l|team|tokens|day@UTC|new\"]]' WHERE seq = 1",
    "UPDATE exchanges SET charges = '[]' WHERE seq = 1",
]
STATES = ["[[1e300,5]]", "[[-1e15,5]]", '[["x",5]]', "[[1]]", "{", "7"]


def spoil(path: Path, statement: str, *values: str) -> None:
    with sqlite3.connect(path) as connection:
        assert connection.execute(statement, values).rowcount, statement
    connection.close()


@pytest.mark.parametrize("damage", DAMAGE)
async def test_charges_that_nobody_can_read_count_nowhere(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "outpost.db"
    async with house(path, rules(1000, DAY), now()) as one:
        for number in range(2):
            held = await one.begin(now(number))
            await one.end(held, now(number), tokens=30)
        one.store._holding.clear()
        spoil(path, "UPDATE limit_counters SET held = 0")
    spoil(path, damage)
    async with house(path, rules(1000, DAY), now(9, 9)) as two:
        assert two.left(now(9, 9)) == 970, "the other row"
        held = await two.begin(now(10, 9))
        await two.end(held, now(10, 9), tokens=30)
        await two.store.checkpoint(now(11, 9))


@pytest.mark.parametrize("start", ["9e999", "-9e999", "1e300"])
async def test_what_is_held_since_no_moment_at_all_keeps_no_gateway_from_starting(tmp_path: Path, start: str) -> None:
    path = tmp_path / "outpost.db"
    async with house(path, rules(1000, DAY), now(), clean=True) as one:
        await one.end(await one.begin(now()), now(), tokens=30)
    spoil(path, f"UPDATE limit_counters SET window_start = {start}, held = 3 WHERE counter LIKE '%|tokens|%'")
    async with house(path, rules(1000, DAY), now(9, 9)) as two:
        assert two.left(now(9, 9)) in (967, 970)


@pytest.mark.parametrize("state", STATES)
async def test_a_state_that_nobody_can_read_counts_nowhere(tmp_path: Path, state: str) -> None:
    path = tmp_path / "outpost.db"
    async with house(path, rules(1000, DAY), now(), clean=True) as one:
        held = await one.begin(now())
        await one.end(held, now(), tokens=30)
    spoil(path, "UPDATE limit_counters SET state = ? WHERE counter LIKE '%|tokens|%'", state)
    async with house(path, rules(1000, DAY), now(9, 9)) as two:
        assert two.left(now(9, 9)) == 1000


@pytest.mark.parametrize(
    "change",
    ["counter = 'l|team|tokens|r0|t'", "window_start = 'abc', held = 3", "held = 'abc'", "as_of = 'abc'"],
)
async def test_a_counter_that_nobody_can_read_counts_nowhere(tmp_path: Path, change: str) -> None:
    path = tmp_path / "outpost.db"
    async with house(path, rules(1000, DAY), now(), clean=True) as one:
        await one.end(await one.begin(now()), now(), tokens=30)
    spoil(path, f"UPDATE limit_counters SET {change} WHERE counter LIKE '%|tokens|%'")
    async with house(path, rules(1000, DAY), now(9, 9)) as two:
        assert two.left(now(9, 9)) == 1000


async def test_checkpoints_go_on_after_trouble_that_nobody_expected(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "outpost.db"
    async with house(path, rules(1000, DAY), now()) as one:
        await one.end(await one.begin(now()), now(), tokens=30)
        spoil(path, "ALTER TABLE limit_counters RENAME TO elsewhere")
        running = asyncio.create_task(one.store.run(lambda: now(1), interval_s=0.001))
        async with asyncio.timeout(10):
            while "limits_not_written" not in caplog.messages:
                await asyncio.sleep(0.001)
            spoil(path, "ALTER TABLE elsewhere RENAME TO limit_counters")
            while not any("30" in state for state, _ in stored(path).values()):
                await asyncio.sleep(0.001)
        assert not running.done()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
