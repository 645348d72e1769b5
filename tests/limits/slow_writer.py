"""A life of the store of limits over a writer that goes on when the test says so, on a clock of the test's own."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, create_engine, insert, select

from appliance.errors import RecordsUnavailable
from appliance.limits.book import Book, Reservation
from appliance.limits.clock import Now
from appliance.limits.refusal import Refusal
from appliance.limits.rules import Bound, Context, Demand, Rule, Used
from appliance.limits.store import SOON_S, LimitStore
from appliance.limits.windows import Window
from appliance.records.rows import COLUMNS, Charge, ExchangeRow, flatten, read_charges
from appliance.records.tables import events, exchanges, limit_counters, metadata
from appliance.records.transaction import Tail, Transaction

T0 = 1_700_000_000.0
REQUESTS, TOKENS = 0, 3
DAY = Window(86_400, "day", "UTC")
CTX = Context(team="t")
T = TypeVar("T")
STEP = 100
"""The worst case of a request, in tokens."""


class Waiting(NamedTuple):
    work: Callable[[Transaction], Any]
    future: asyncio.Future[Any]
    asked_at: float


class SlowWriter:
    """A recorder whose writer goes on when the test says so, over a database in memory that is read without delay."""

    def __init__(self, clock: Callable[[], float]) -> None:
        engine = create_engine("sqlite://")
        metadata.create_all(engine, tables=[exchanges, events, limit_counters])
        self.connection: Connection = engine.connect()
        self.waiting: deque[Waiting] = deque()
        self.lowerings: list[float] = []
        """When somebody asked for one, in seconds of the test's clock."""
        self.asked = 0
        self._clock = clock
        self._tail = Tail(0, bytes(32), 0)

    def write(self, work: Callable[[Transaction], Any], *, durable: bool = True) -> asyncio.Future[Any]:
        self.asked += 1
        if work.__qualname__.startswith("lower."):
            self.lowerings.append(self._clock())
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(Waiting(work, future, self._clock()))
        return future

    def submit(self, exchange_id: str, charges: list[Charge]) -> asyncio.Future[Any]:
        row = ExchangeRow(id=exchange_id, kind="chat.completions", started_at=T0, charges=charges)

        def work(tx: Transaction) -> None:
            tx.tail.seq += 1
            values = dict(zip(COLUMNS, flatten(tx.tail.seq, row), strict=True))
            tx.connection.execute(insert(exchanges).values(**values, hash=b""))

        return self.write(work)

    def go_on(self, *, fails: bool = False, happens: bool = True) -> None:
        """Do the next work. fails: whoever asked is told that it was not done; `happens`: whether that is wrong."""
        work, future, _ = self.waiting.popleft()
        result = None
        if happens:
            tx = Transaction(self.connection, self._tail, T0)
            result = work(tx)
            self._tail = tx.tail
        if future.done():
            return
        if fails:
            future.set_exception(RecordsUnavailable("The record could not be written.", retry_after_s=1.0))
        else:
            future.set_result(result)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Any]:
        outer = self.connection

        class Reading:
            async def execute(self, query: Any) -> Any:
                return outer.execute(query)

        yield Reading()

    # --- what a start would find -------------------------------------------------------------------

    def held(self) -> dict[str, int]:
        return {row.counter: row.held for row in self.connection.execute(select(limit_counters)) if row.held}

    def settled(self) -> dict[str, int]:
        """By counter, what the states and the rows after them say; of one window that takes all in."""
        rows = self.connection.execute(select(limit_counters)).all()
        found = {row.counter: sum(amount for _, amount in json.loads(row.state)) for row in rows if row.counter != "*"}
        as_of = {row.counter: row.as_of for row in rows}
        for row in self.connection.execute(select(exchanges.c.seq, exchanges.c.charges)):
            for each in read_charges(row.charges):
                if row.seq > as_of.get(each.counter, as_of.get("*", 0)):
                    found[each.counter] = found.get(each.counter, 0) + each.amount
        return found

    def told(self) -> list[dict[str, Any]]:
        """What the events of starts say, counter by counter."""
        found = []
        for row in self.connection.execute(select(events).order_by(events.c.seq)):
            assert row.kind == "limits.interrupted"
            found += json.loads(row.body)["counters"]
        return found


class Life:
    """One life of a process over the database of a `SlowWriter`, on a loop whose time the test moves on."""

    def __init__(self, rules: tuple[Rule, ...]) -> None:
        self.loop = asyncio.new_event_loop()
        self.t = 0.0
        self.loop.time = lambda: self.t  # type: ignore[method-assign]
        self.rules = rules
        self.writer = SlowWriter(lambda: self.t)
        self.born_at = 0.0
        self.start()

    def now(self) -> Now:
        return Now(T0 + self.t, 50.0 + self.t - self.born_at)

    def start(self) -> dict[str, int]:
        """Begin, or begin again after a death; gives what is used of each counter."""
        self.writer.waiting.clear()
        self.born_at = self.t
        self.store = LimitStore(self.writer, self.writer)  # type: ignore[arg-type]
        self.book = Book(self.rules, self.now())
        loading = self.loop.create_task(self.store.load(self.now()))
        while not loading.done():
            self.turn()
            if self.writer.waiting:
                self.writer.go_on()
        states = loading.result()
        used = {key: usage.total for key, usage in states.items()}
        self.book.restore(states, self.now())
        return used

    def die(self) -> None:
        """Nothing that was asked for is done any longer."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.store._soon = None  # the loop goes on, the dead process's timer does not
        for handle in list(self.loop._scheduled):  # type: ignore[attr-defined]
            handle.cancel()
        self.turn()
        self.writer.waiting.clear()

    def turn(self) -> None:
        """Let everything happen that can without time or the writer going on."""
        self.loop.run_until_complete(_some_turns())

    def wait(self, seconds: float) -> None:
        self.t += seconds
        self.turn()

    def settle_down(self) -> None:
        """The writer does all, and nobody comes for a while."""
        for _ in range(4):
            while self.writer.waiting:
                self.writer.go_on()
                self.turn()
            self.wait(SOON_S)
        while self.writer.waiting:
            self.writer.go_on()
            self.turn()

    def on_loop(self, function: Callable[[], T]) -> T:
        async def run() -> T:
            return function()

        return self.loop.run_until_complete(run())

    def reserve(self, tokens: int = STEP) -> Reservation | Refusal:
        return self.book.reserve(CTX, Demand(tokens), self.now())

    def end(self, reservation: Reservation, exchange_id: str, tokens: int) -> asyncio.Future[Any]:
        """As an exchange ends: its row is asked for, and once that is written nothing is held for it any longer."""
        charges = self.book.settle(reservation, Used(tokens), self.now())
        row = self.on_loop(lambda: self.writer.submit(exchange_id, charges))

        def recorded(row: asyncio.Future[Any]) -> None:
            if row.cancelled() or row.exception() is not None:
                self.store.lost(reservation, exchange_id)
            else:
                self.store.release(reservation)

        row.add_done_callback(recorded)
        return row

    def give_back(self, reservation: Reservation) -> None:
        """As somebody who leaves before anything was dispatched does."""
        self.book.settle(reservation, Used(requests=0), self.now())
        self.on_loop(lambda: self.store.release(reservation))

    def go_on(self) -> None:
        self.writer.go_on()
        self.turn()

    def begin(self, tokens: int = STEP) -> Reservation:
        """A request that is dispatched."""
        held = self.reserve(tokens)
        assert isinstance(held, Reservation)
        begun = self.loop.create_task(self.store.ensure(held, self.now()))
        self.turn()
        while not begun.done():
            self.go_on()
        return held

    def one(self, exchange_id: str, tokens: int = 3) -> None:
        """A whole request."""
        self.end(self.begin(), exchange_id, tokens)
        while self.writer.waiting:
            self.go_on()

    def close(self) -> None:
        self.die()
        self.loop.close()
        self.writer.connection.close()


def bounded(tokens: int, requests: int, window: Window = DAY) -> tuple[Rule, ...]:
    bounds = (Bound(TOKENS, tokens, window), Bound(REQUESTS, requests, window))
    return (Rule(id="l", name="l", scope="team", bounds=bounds),)


@contextmanager
def life(*rules: Rule) -> Iterator[Life]:
    lived = Life(rules)
    try:
        yield lived
    finally:
        lived.close()


async def _some_turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)
