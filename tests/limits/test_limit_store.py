"""What was used outlives the process: over real databases, with processes that are killed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from appliance.errors import RecordsUnavailable
from appliance.limits.book import Book, Reservation
from appliance.limits.clock import Now
from appliance.limits.rules import Bound, Context, Demand, Rule, Used
from appliance.limits.store import GRAIN, LimitStore
from appliance.limits.windows import Window
from appliance.records.database import Database, Where
from appliance.records.recorder import Recorder
from appliance.records.rows import ExchangeRow, read_charges
from appliance.records.tables import limit_counters
from tests.limits.book_samples import NOTHING, standings
from tests.postgres import Cluster

T0 = 1_700_000_000.0
DAY, MINUTE = Window(86_400, "day", "UTC"), Window(60)
REQUESTS, TOKENS = 0, 3
CTX = Context(team="t", user="ann", model="small", route="chat")


def now(t: float = 0.0, process: float = 0.0) -> Now:
    """`process`: when the process began; its monotonic clock begins anew."""
    return Now(T0 + t, 50.0 + t - process)


def rules(amount: int = 1000, window: Window = DAY) -> list[Rule]:
    return [
        Rule(id="l", name="l", scope="team", bounds=(Bound(TOKENS, amount, window), Bound(REQUESTS, 10_000, window)))
    ]


class House:
    """One life of a process: a book over a database."""

    def __init__(self, book: Book, store: LimitStore, recorder: Recorder) -> None:
        self.book = book
        self.store = store
        self.recorder = recorder

    async def begin(self, at: Now, tokens: int = 100) -> Reservation:
        held = self.book.reserve(CTX, Demand(tokens), at)
        assert isinstance(held, Reservation)
        await self.store.ensure(held, at)
        return held

    async def end(self, held: Reservation, at: Now, tokens: int = 30) -> None:
        charges = self.book.settle(held, Used(tokens), at)
        await self.recorder.submit(row(charges))
        self.store.release(held)

    def left(self, at: Now) -> int:
        (tokens,) = [each for each in standings(self.book, CTX, at) if each.measure == "tokens"]
        return tokens.remaining


def row(charges: list[Any]) -> ExchangeRow:
    return ExchangeRow(id="x", kind="chat.completions", started_at=T0, charges=charges)


@asynccontextmanager
async def house(where: Where, made: list[Rule], at: Now, *, clean: bool = False) -> AsyncIterator[House]:
    """A life that ends without a word, or, `clean`, with a last checkpoint."""
    database = await Database.open(where)
    recorder = Recorder(database)
    await recorder.start()
    store = LimitStore(recorder, database)
    book = Book(made, at)
    book.restore(await store.load(at), at)
    opened = House(book, store, recorder)
    try:
        yield opened
        if clean:
            await store.close(at)
    finally:
        await recorder.close()
        await database.close()


def refuse(*args: Any, **how: Any) -> Any:
    raise RecordsUnavailable("The disk is full.", retry_after_s=1.0)


def stored(path: Path) -> dict[str, tuple[str, int]]:
    """Counter → state, held."""
    with sqlite3.connect(path) as connection:
        found = connection.execute("SELECT counter, state, held FROM limit_counters WHERE counter <> '*'").fetchall()
    connection.close()
    return {counter: (state, held) for counter, state, held in found}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outpost.db"


@pytest.mark.parametrize("window", [DAY, MINUTE, Window(3600, "hour", "Asia/Kolkata")], ids=["day", "minute", "hour"])
async def test_what_was_settled_and_what_was_under_way_is_used_after_a_death(path: Path, window: Window) -> None:
    async with house(path, rules(1000, window), now()) as one:
        for number in range(3):
            await one.end(await one.begin(now(number)), now(number + 0.5))
        await one.begin(now(4))
        assert one.left(now(4)) == 810
    async with house(path, rules(1000, window), now(10, 10)) as two:
        assert two.left(now(10, 10)) == 810, "90 by the rows, 100 by what was under way"
        assert all(held == 0 for _, held in stored(path).values())
    async with house(path, rules(1000, window), now(11, 11)) as three:
        assert three.left(now(11, 11)) == 810, "a second death changes nothing"
    async with house(path, rules(1000, window), now(100_000, 100_000)) as later:
        assert later.left(now(100_000, 100_000)) == 1000
        assert stored(path) == {}


async def test_a_clean_stop_leaves_only_what_was_used(path: Path) -> None:
    async with house(path, rules(), now(), clean=True) as one:
        await one.end(await one.begin(now()), now(1))
        gave_back = await one.begin(now(1))
        assert one.book.settle(gave_back, NOTHING, now(1)) == []
        one.store.release(gave_back)
    assert {held for _, held in stored(path).values()} == {0}
    async with house(path, rules(), now(5, 5)) as two:
        assert two.left(now(5, 5)) == 970


@pytest.mark.parametrize("checkpoints", [0, 1, 3])
async def test_rows_are_counted_once_however_checkpoints_fall(path: Path, checkpoints: int) -> None:
    async with house(path, rules(100_000), now(), clean=True) as one:
        for number in range(600):
            held = await one.begin(now(number / 100))
            charges = one.book.settle(held, Used(1), now(number / 100))
            last = one.recorder.submit(row(charges))
            one.store.release(held)
            if checkpoints and number % (600 // checkpoints) == 100:
                await one.store.checkpoint(now(number / 100))
            if number % 40 == 39:
                one.book.change([], now(number / 100))
                one.book.change(rules(100_000), now(number / 100))
                gave_back = await one.begin(now(number / 100), 50_000)
                one.book.settle(gave_back, NOTHING, now(number / 100))
                one.store.release(gave_back)
            if number % 50 == 49:
                await last
        assert one.left(now(9)) == 99_400
    async with house(path, rules(100_000), now(10, 10)) as two:
        assert two.left(now(10, 10)) == 99_400


async def test_a_lone_request_writes_once_and_those_after_it_not_at_all(path: Path) -> None:
    async with house(path, rules(10**9), now()) as one:
        before = one.recorder.depth
        assert before == 0
        await one.end(await one.begin(now()), now())
        held = stored(path)["l|team|tokens|day@UTC|t"][1]
        assert held == 100 * (GRAIN + 1)
        many = [one.book.reserve(CTX, Demand(100, 0, 0, 0), now(1)) for _ in range(GRAIN)]
        for each in many:
            assert isinstance(each, Reservation)
            ensured = one.store.ensure(each, now(1))
            with pytest.raises(StopIteration):
                ensured.send(None)  # it did not wait for anything
        await one.store.checkpoint(now(2))
        assert stored(path)["l|team|tokens|day@UTC|t"] == ("[[1699920000.0,30]]", held)
        for each in many:
            assert isinstance(each, Reservation)
            one.book.settle(each, NOTHING, now(3))
            one.store.release(each)
        await one.store.checkpoint(now(4))
        await one.store.checkpoint(now(6))
        assert stored(path)["l|team|tokens|day@UTC|t"] == ("[[1699920000.0,30]]", 0)


async def test_with_little_room_no_more_is_held_than_is_needed(path: Path) -> None:
    async with house(path, rules(1000), now()) as one:
        holds = await asyncio.gather(*(one.begin(now()) for _ in range(10)))
        assert stored(path)["l|team|tokens|day@UTC|t"] == ("[]", 1000)
        for held in holds:
            await one.end(held, now(1))
        assert one.left(now(1)) == 700


async def test_a_new_window_is_allowed_for_anew(path: Path) -> None:
    midnight = 86_400 - T0 % 86_400
    async with house(path, rules(10**6), now(midnight - 1)) as one:
        await one.end(await one.begin(now(midnight - 1), 500), now(midnight - 1), 400)
        await one.begin(now(midnight + 1), 70)
    after = now(midnight + 2, midnight + 2)
    async with house(path, rules(10**6), after) as two:
        assert 10**6 - 70 * (GRAIN + 9) <= two.left(after) <= 10**6 - 70


async def test_an_old_allowance_counts_as_old(path: Path) -> None:
    async with house(path, rules(1000, MINUTE), now()) as one:
        await one.begin(now(), 100)
    async with house(path, rules(1000, MINUTE), now(90, 90)) as two:
        assert two.left(now(90, 90)) == 900, "it may have been dispatched up to a minute after the write"
    path.unlink()
    async with house(path, rules(1000, MINUTE), now()) as one:
        await one.begin(now(), 100)
    async with house(path, rules(1000, MINUTE), now(130, 130)) as two:
        assert two.left(now(130, 130)) == 1000


@pytest.mark.parametrize("window", [DAY, MINUTE])
async def test_a_clock_that_went_back_over_the_restart_gives_nothing_away(path: Path, window: Window) -> None:
    async with house(path, rules(1000, window), now(), clean=True) as one:
        await one.end(await one.begin(now(), 500), now(), 400)
    async with house(path, rules(1000, window), now(-90_000, 5), clean=True) as two:
        assert two.left(now(-90_000, 5)) == 600


async def test_a_row_that_could_not_be_written_is_kept_in_the_state(path: Path) -> None:
    async with house(path, rules(), now(), clean=True) as one:
        held = await one.begin(now())
        one.book.settle(held, Used(40), now(1))
        one.store.lost(held, "x")
        await one.store.checkpoint(now(2))
        assert stored(path)["l|team|tokens|day@UTC|t"][0] == "[[1699920000.0,40]]"
    async with house(path, rules(), now(5, 5)) as two:
        assert two.left(now(5, 5)) == 960


async def test_a_state_that_is_newer_than_the_mark_counts_each_row_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house(path, rules(), now()) as one:
        await one.end(await one.begin(now()), now(1))
        with monkeypatch.context() as trouble:
            trouble.setattr(one.recorder, "write", refuse)
            with pytest.raises(RecordsUnavailable):
                await one.store.checkpoint(now(2))  # it has read the row
        await one.begin(now(3), 200)  # the raise writes the state, but not up to where all of them go
    async with house(path, rules(), now(5, 5)) as two:
        assert two.left(now(5, 5)) == 770, "30 by the row, 200 by what was under way"


async def test_a_clean_end_holds_nothing_of_a_row_that_could_not_be_written(path: Path) -> None:
    async with house(path, rules(), now(), clean=True) as one:
        held = await one.begin(now())
        one.book.settle(held, Used(40), now(1))
        one.store.lost(held, "never written")
    async with house(path, rules(), now(5, 5)) as two:
        assert two.left(now(5, 5)) == 960


async def test_nothing_is_dispatched_that_the_database_does_not_allow_for(path: Path) -> None:
    async with house(path, rules(), now()) as one:
        await one.recorder.close()
        held = one.book.reserve(CTX, Demand(100), now())
        assert isinstance(held, Reservation)
        with pytest.raises(RecordsUnavailable):
            await one.store.ensure(held, now())
        one.book.settle(held, NOTHING, now())
        one.store.release(held)
        with pytest.raises(RecordsUnavailable):
            await one.store.close(now())
    async with house(path, rules(), now(1, 1)) as two:
        assert two.left(now(1, 1)) == 1000


async def test_one_that_leaves_while_it_waits_takes_nobody_along(path: Path) -> None:
    async with house(path, rules(), now()) as one:
        tasks = [asyncio.create_task(one.begin(now())) for _ in range(4)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert all(isinstance(each, Reservation) for each in results[1:])


async def test_a_counter_that_cannot_be_read_is_left_out(path: Path) -> None:
    async with house(path, rules(), now(), clean=True) as one:
        await one.end(await one.begin(now()), now())
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO limit_counters VALUES ('l|team|tokens|month@Nowhere/X|t', 0, '[]', 0, 1)")
        connection.execute("INSERT INTO limit_counters VALUES ('nonsense', 0, '{', 5, 1)")
    connection.close()
    async with house(path, rules(), now(1, 1)) as two:
        assert two.left(now(1, 1)) == 970
    assert set(stored(path)) == {"l|team|tokens|day@UTC|t", "l|team|requests|day@UTC|t"}


# --- killed in the middle -------------------------------------------------------------------------

ROUNDS = int(os.environ.get("OUTPOST_KILL_ROUNDS", "8"))
CLIENTS, WORST = 8, 100

SPEND_UNTIL_KILLED = """
import asyncio, os, random, sys, time
from pathlib import Path
from appliance.limits.book import Book, Reservation
from appliance.limits.clock import Now
from appliance.limits.rules import Bound, Context, Demand, Rule, Used
from appliance.limits.store import LimitStore
from appliance.limits.windows import Window
from appliance.records.database import Database
from appliance.records.recorder import Recorder
from appliance.records.rows import ExchangeRow

BUDGET, WORST = int(sys.argv[2]), int(sys.argv[3])

def now():
    return Now(1_700_000_000.0 + time.time() % 1000, time.monotonic())

async def spend(path, seed):
    database = await Database.open(Path(path))
    recorder = Recorder(database)
    await recorder.start()
    store = LimitStore(recorder, database)
    month = Bound(3, BUDGET, Window(2592000, "month", "UTC"))
    book = Book([Rule(id="l", name="l", scope="team", bounds=(month,))], now())
    book.restore(await store.load(now()), now())
    context = Context(team="t")
    print("start", sum(standing.used for _, standing in book.usage(now())), "end", flush=True)
    dice = random.Random(seed)
    async def client(number):
        while True:
            held = book.reserve(context, Demand(dice.randint(1, WORST)), now())
            if not isinstance(held, Reservation):
                print("full", "end", flush=True)
                await asyncio.Event().wait()
            worst = held.holds[0].amount
            await store.ensure(held, now())
            name = f"{seed}.{number}.{time.monotonic_ns()}"
            print("sent", name, worst, "end", flush=True)
            for _ in range(dice.randint(0, 3)):
                await asyncio.sleep(0)
            if dice.random() < 0.2:
                print("none", name, "end", flush=True)
                book.settle(held, Used(requests=0), now())
                store.release(held)
                continue
            used = dice.randint(0, worst)
            charges = book.settle(held, Used(used), now())
            await recorder.submit(ExchangeRow(id=name, kind="chat.completions", started_at=0.0, charges=charges))
            store.release(held)
            print("used", name, used, "end", flush=True)
            if dice.random() < 0.1:
                await store.checkpoint(now())
    await asyncio.gather(*[client(n) for n in range(8)])

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        asyncio.run(spend(sys.argv[1], int(line)))
    print("child", child, "end", flush=True)
    os.waitpid(child, 0)
    print("\\nkilled", flush=True)
"""


@pytest.mark.parametrize("budget", [6000, 10**7], ids=["little-room", "much-room"])
def test_killed_in_the_middle_and_started_again_it_is_never_over(path: Path, budget: int) -> None:
    """A life begins with at least what all lives before may have used, and at most with what was settled and held;
    all together never dispatch more than the budget."""
    dice = random.Random(budget)
    command = [sys.executable, "-c", SPEND_UNTIL_KILLED, str(path), str(budget), str(WORST)]
    spent: dict[str, int] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as spender:
        assert spender.stdin is not None
        assert spender.stdout is not None
        for life in range(ROUNDS):
            settled, held = on_record(path)
            before = sum(spent.values())
            spender.stdin.write(f"{life}\n")
            spender.stdin.flush()
            left, child, full = dice.randint(1, 60), 0, 0
            for line in spender.stdout:
                match line.split():
                    case ["killed"]:
                        break
                    case ["child", pid, "end"]:
                        child = int(pid)
                    case ["start", used, "end"]:
                        assert before <= int(used)
                        assert settled <= int(used) <= settled + held
                    case ["sent", name, worst, "end"]:
                        spent[name] = int(worst)
                    case ["used", name, used, "end"]:
                        spent[name] = int(used)
                    case ["none", name, "end"]:
                        spent[name] = 0
                    case ["full", "end"]:
                        full += 1
                left -= 1
                if child and (left <= 0 or full == CLIENTS):
                    os.kill(child, signal.SIGKILL)
                    child = 0
            assert sum(spent.values()) <= budget
        spender.stdin.close()
    assert len(spent) > ROUNDS


def on_record(path: Path) -> tuple[int, int]:
    """What was settled, by state and later rows, and what is held beside it."""
    if not path.exists():
        return 0, 0
    settled = held = as_of = 0
    with sqlite3.connect(path) as connection:
        for state, more, seq in connection.execute(
            "SELECT state, held, as_of FROM limit_counters WHERE counter <> '*'"
        ).fetchall():
            settled += sum(amount for _, amount in json.loads(state))
            held, as_of = held + more, seq
        texts = connection.execute("SELECT charges FROM exchanges WHERE seq > ?", (as_of,)).fetchall()
    connection.close()
    return settled + sum(each.amount for (text,) in texts for each in read_charges(text)), held


# --- the second kind of database ------------------------------------------------------------------


async def test_postgresql_keeps_it_too(postgres: Cluster, tmp_path: Path) -> None:
    name = postgres.new_database(postgres.template)
    where = postgres.server(name, backups=tmp_path / "backups")
    try:
        for life, left in enumerate((1000, 870, 740)):
            at = now(life * 10, life * 10)
            async with house(where, rules(), at) as one:
                assert one.left(at) == left
                await one.end(await one.begin(at), at)
                if life != 1:
                    await one.store.checkpoint(at)
                await one.begin(at)
    finally:
        postgres.drop(name)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_what_is_held_in_vain_is_lowered_without_a_checkpoint(
    kind: str, path: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    where: Where = path
    if kind == "postgresql":
        postgres = request.getfixturevalue("postgres")
        name = postgres.new_database(postgres.template)
        where = postgres.server(name, backups=tmp_path / "backups")
        request.addfinalizer(lambda: postgres.drop(name))
    query = select(limit_counters.c.held).where(limit_counters.c.counter == "l|team|tokens|day@UTC|t")
    async with house(where, rules(), now()) as one:
        await one.end(await one.begin(now()), now())
        database = await Database.open(where)
        try:
            async with asyncio.timeout(10):
                held = 100
                while held:
                    async with database.read() as connection:
                        held = (await connection.execute(query)).scalar_one()
        finally:
            await database.close()
    async with house(where, rules(), now(5, 5)) as two:
        assert two.left(now(5, 5)) == 970


@pytest.mark.parametrize("written", [True, False])
async def test_a_row_that_may_have_been_written_counts_once(path: Path, written: bool) -> None:
    """The caller was told that there is no record; whether there is one is known when the writer has gone on."""
    async with house(path, rules(), now(), clean=True) as one:
        held = await one.begin(now())
        charges = one.book.settle(held, Used(40), now(1))
        lock = sqlite3.connect(path, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        if written:
            kept = one.recorder.submit(row(charges))
        one.store.lost(held, "x")
        checkpoint = asyncio.ensure_future(one.store.checkpoint(now(2)))
        lock.execute("ROLLBACK")
        lock.close()
        if written:
            await kept
        await checkpoint
        assert one.left(now(3)) == 960
        assert held.closed[0].covered == 0
    async with house(path, rules(), now(5, 5)) as two:
        assert two.left(now(5, 5)) == 960
