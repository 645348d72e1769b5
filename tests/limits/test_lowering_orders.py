"""Requests, writes, failures and deaths in any order: what the database says is never less than what was dispatched."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from hypothesis import HealthCheck
from hypothesis import settings as bounds_of
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from appliance.limits.book import Reservation
from appliance.limits.refusal import Refusal
from appliance.limits.store import ROOM, SOON_S
from tests.limits.book_samples import standings
from tests.limits.slow_writer import CTX, STEP, Life, bounded


class Request:
    def __init__(self, name: str, reservation: Reservation) -> None:
        self.name = name
        self.reservation = reservation
        self.worst = {hold.counter.key: hold.amount for hold in reservation.holds}
        self.begun: asyncio.Task[None]
        self.dispatched = False
        self.row: asyncio.Future[Any] | None = None
        self.used: dict[str, int] = {}


class Writes(RuleBasedStateMachine):
    """What the database says at any moment – which is what a start after a death finds – is never less than what was
    dispatched."""

    @initialize(tokens=st.sampled_from([10 * STEP, 60 * STEP, 3000 * STEP]), requests=st.sampled_from([10, 2000]))
    def begin(self, tokens: int, requests: int) -> None:
        self.box = Life(bounded(tokens, requests))
        self.amounts = {"tokens": tokens, "requests": requests}
        self.requests: list[Request] = []
        """All whose worst case or charge may count."""
        self.base: dict[str, int] = {}
        """By counter, what a start has found."""
        self.number = 0
        self.doubtful = False
        """Whether something was told to have failed since the start."""

    def after(self) -> None:
        self.box.turn()
        for each in self.requests:
            if not each.dispatched and each.begun.done() and not each.begun.cancelled():
                each.dispatched = each.begun.exception() is None
                if not each.dispatched:
                    self.box.give_back(each.reservation)
        self.requests = [each for each in self.requests if each.dispatched or not each.begun.done()]
        self.box.turn()

    @rule(tokens=st.lists(st.sampled_from([STEP // 4, STEP, 3 * STEP]), min_size=1, max_size=3))
    def ask(self, tokens: list[int]) -> None:
        for each in tokens:
            answer = self.box.reserve(each)
            if not isinstance(answer, Refusal):
                self.number += 1
                request = Request(f"x{self.number}", answer)
                request.begun = self.box.loop.create_task(self.box.store.ensure(answer, self.box.now()))
                self.requests.append(request)
        self.after()

    @rule(data=st.data(), part=st.sampled_from([0.0, 0.1, 1.0]))
    def finish(self, data: st.DataObject, part: float) -> None:
        running = [each for each in self.requests if each.dispatched and each.row is None]
        if running:
            each = data.draw(st.sampled_from(running))
            tokens = int(part * each.worst["l|team|tokens|day@UTC|t"])
            each.used = {"l|team|tokens|day@UTC|t": tokens, "l|team|requests|day@UTC|t": 1}
            each.row = self.box.end(each.reservation, each.name, tokens)
            self.after()

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """Somebody's client goes before the database allows for it."""
        waiting = [each for each in self.requests if not each.begun.done()]
        if waiting:
            each = data.draw(st.sampled_from(waiting))
            each.begun.cancel()
            self.box.turn()
            self.box.give_back(each.reservation)
            self.after()

    @rule(count=st.integers(1, 8))
    def writer_goes_on(self, count: int) -> None:
        for _ in range(min(count, len(self.box.writer.waiting))):
            self.box.writer.go_on()
            self.after()

    @rule(happens=st.booleans())
    def writer_fails(self, happens: bool) -> None:
        """The next that waits is told that it was not done."""
        if self.box.writer.waiting:
            self.box.writer.go_on(fails=True, happens=happens)
            self.doubtful = True
            self.after()

    @rule(seconds=st.sampled_from([SOON_S / 2, SOON_S, 0.3]))
    def time_goes_on(self, seconds: float) -> None:
        self.box.wait(seconds)
        self.after()

    @rule()
    def checkpoint(self) -> None:
        task = self.box.loop.create_task(self.box.store.checkpoint(self.box.now()))
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self.after()

    @rule()
    def die_and_begin_again(self) -> None:
        truth, told = self.truth(), len(self.box.writer.told())
        held, settled = self.box.writer.held(), self.box.writer.settled()
        self.box.die()
        self.base = self.box.start()
        for key in {*truth, *held, *settled}:
            assert self.base.get(key, 0) == held.get(key, 0) + settled.get(key, 0)
            assert self.base.get(key, 0) >= truth.get(key, 0)
        assert {each["counter"]: each["amount"] for each in self.box.writer.told()[told:]} == held
        self.requests, self.doubtful = [], False

    @rule()
    def nobody_comes_for_a_while(self) -> None:
        for _ in range(4):
            while self.box.writer.waiting:
                self.box.writer.go_on()
                self.after()
            self.box.wait(SOON_S)
            self.after()
        while self.box.writer.waiting:
            self.box.writer.go_on()
            self.after()
        if self.doubtful:
            return
        held = self.box.writer.held()
        for key, amount in held.items():
            limit = self.amounts[key.split("|")[2]]
            (standing,) = [
                each for each in standings(self.box.book, CTX, self.box.now()) if each.measure in key.split("|")
            ]
            spare = amount - self.under_way(key)
            assert 0 <= spare * ROOM <= max(0, limit - standing.used - standing.reserved)

    def under_way(self, key: str) -> int:
        """What may be used by requests without a row."""
        return sum(
            each.worst.get(key, 0)
            for each in self.requests
            if each.dispatched and (each.row is None or not each.row.done())
        )

    def truth(self) -> dict[str, int]:
        """By counter, the most that may have been used by now; of those that have ended, what they used."""
        found = dict(self.base)
        for each in self.requests:
            if each.dispatched:
                for key, amount in (each.used if each.row is not None else each.worst).items():
                    found[key] = found.get(key, 0) + amount
        return found

    @invariant()
    def the_database_says_enough(self) -> None:
        if not hasattr(self, "box"):
            return
        held, settled = self.box.writer.held(), self.box.writer.settled()
        for key, amount in self.truth().items():
            assert held.get(key, 0) + settled.get(key, 0) >= amount, key

    @invariant()
    def lowerings_are_few(self) -> None:
        if not hasattr(self, "box"):
            return
        times = self.box.writer.lowerings
        assert all(later - earlier >= SOON_S * 0.999 for earlier, later in itertools.pairwise(times))

    def teardown(self) -> None:
        if hasattr(self, "box"):
            self.box.close()


TestWrites = Writes.TestCase
TestWrites.settings = bounds_of(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
