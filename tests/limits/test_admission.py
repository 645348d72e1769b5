"""The gate: never more inside than there is room for, nobody forgotten, whatever is cancelled when.

Most tests run on a loop whose clock they move themselves, one turn of the loop after the other.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections import Counter
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.errors import BadRequest, Overloaded
from appliance.identity.principal import PRIORITIES, Priority
from appliance.limits.admission import (
    UNLIMITED,
    Gate,
    choose_priority,
    least_urgent,
)
from appliance.limits.fair_queue import Rules
from tests.limits.waiting_room import Guest, StepLoop, gate_on

CLASSES = st.sampled_from(PRIORITIES)
LARGEST = 5
CROWDS = int(os.environ.get("OUTPOST_TEST_CROWDS", "25"))
"""Random interleavings; 1,000 take some minutes."""


@pytest.fixture
def loop() -> Iterator[StepLoop]:
    loop = StepLoop()
    yield loop
    loop.end()


# --- random interleavings -------------------------------------------------------------------------


class Crowd(RuleBasedStateMachine):
    """Guests come, go, are cancelled at any moment and run out of time, while the capacity changes."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = StepLoop()
        self.complaints: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self.gate = gate_on(self.loop, 3, max_waiting=6)
        self.guests = self.loop.guests
        self.most = 3
        """The largest capacity since the gate was last within it."""

    @property
    def here(self) -> list[Guest]:
        return [guest for guest in self.guests if not guest.over]

    @rule(
        priority=CLASSES,
        caller=st.sampled_from("abc"),
        places=st.integers(1, LARGEST),
        wait=st.sampled_from((0.0, 3.0, 50.0)),
    )
    def come(self, priority: Priority, caller: str, places: int, wait: float) -> None:
        Guest(self.loop, self.gate.enter(priority, caller, wait, places=places))

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.here)).task.cancel()

    @precondition(lambda self: any(guest.inside for guest in self.guests))
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([guest for guest in self.guests if guest.inside])).go.set()

    @rule(count=st.integers(1, 3))
    def turn(self, count: int) -> None:
        self.loop.turn(count)

    @rule(seconds=st.sampled_from((0.5, 4.0)))
    def wait(self, seconds: float) -> None:
        self.loop.now += seconds

    @precondition(lambda self: any(guest.inside for guest in self.guests))
    @rule(data=st.data(), places=st.integers(1, 3))
    def give_back(self, data: st.DataObject, places: int) -> None:
        data.draw(st.sampled_from([guest for guest in self.guests if guest.inside])).visit.give_back(places)

    @rule(capacity=st.integers(0, 6), beyond=st.integers(0, 6))
    def resize(self, capacity: int, beyond: int) -> None:
        self.gate.resize(capacity, capacity + beyond)
        self.most = max(self.most, capacity)

    @invariant()
    def holds(self) -> None:
        gate = self.gate
        assert gate.inside >= sum(guest.visit._inside for guest in self.guests if guest.inside)
        assert gate.inside == sum(guest.visit._inside for guest in self.guests)
        assert gate.inside < self.most + LARGEST
        if gate.inside <= gate.capacity:
            self.most = gate.capacity
        first = gate._queue.peek()
        if first is not None:  # a place that is free is given at once
            assert gate.inside >= gate.capacity or gate.inside + first.places > gate.most > 0 < gate.inside
        assert self.complaints == []

    def teardown(self) -> None:
        try:
            self.loop.settle()
            assert sum(self.gate.waiting(each) for each in PRIORITIES) == len(
                [guest for guest in self.here if not guest.inside]
            )
            self.gate.resize(4)
            for _ in range(2 * len(self.guests) + 2):
                for guest in self.here:
                    guest.go.set()
                self.loop.turn()
            assert self.here == []
            assert self.gate.inside == 0
            for guest in self.guests:
                assert guest.task.cancelled() or guest.task.exception() is None
                assert guest.error is None or guest.error.code in ("overloaded", "queue_timeout")
            self.guests.clear()
            gc.collect(1)  # a future that nobody asked complains when it goes
            assert self.complaints == []
        finally:
            self.loop.end()


TestCrowd = pytest.mark.timeout(120 + CROWDS)(Crowd.TestCase)
TestCrowd.settings = settings(max_examples=CROWDS, stateful_step_count=50, deadline=None)


@pytest.mark.parametrize("turns", range(6))
def test_a_place_that_comes_free_for_one_who_leaves_goes_to_the_next(loop: StepLoop, turns: int) -> None:
    """The client leaves so many turns of the loop after its place came free."""
    gate = gate_on(loop, 1)
    first, leaving, next_one = (Guest(loop, gate.enter("normal", "a")) for _ in range(3))
    loop.settle()
    assert (first.inside, leaving.inside, next_one.inside) == (True, False, False)
    first.go.set()
    loop.turn(turns)
    leaving.task.cancel()
    loop.settle()
    assert leaving.task.cancelled()
    assert next_one.inside
    assert gate.inside == 1


def test_one_place_wakes_one(loop: StepLoop) -> None:
    gate = gate_on(loop, 1)
    guests = [Guest(loop, gate.enter("normal", "a")) for _ in range(50)]
    loop.settle()
    guests[0].go.set()
    loop.settle()
    assert [guest.inside for guest in guests] == [False, True] + [False] * 48
    assert sum(guest.visit._future is not None and guest.visit._future.done() for guest in guests) == 1


# --- who waits, and how long ----------------------------------------------------------------------


def test_with_room_nobody_waits(loop: StepLoop) -> None:
    async def visit() -> float:
        async with gate.enter("batch", "a") as visit:
            assert gate.inside == 1
        assert gate.inside == 0
        return visit.queue_s

    gate = gate_on(loop, 1)
    with pytest.raises(StopIteration) as returned:  # without one turn of the loop
        _drive(visit())
    assert returned.value.value == 0.0


def _drive(work: Coroutine[Any, Any, Any]) -> None:
    try:
        work.send(None)
    finally:
        work.close()


def test_an_urgent_request_goes_before_those_that_wait_and_batch_still_advances(loop: StepLoop) -> None:
    gate = gate_on(loop, 1)
    guests = [Guest(loop, gate.enter("batch", "b")) for _ in range(4)]
    loop.settle()
    order: list[Priority] = []
    for _ in range(60):
        (here,) = (guest for guest in guests if guest.inside)
        order.append(here.visit._priority)
        guests.append(Guest(loop, gate.enter("interactive", "i")))  # however many keep coming
        loop.turn()
        here.go.set()
        loop.settle()
    assert order[:2] == ["batch", "interactive"]
    assert [at for at, each in enumerate(order) if each == "batch"] == [0, 17, 34, 51]


def test_waiting_is_measured(loop: StepLoop) -> None:
    gate = gate_on(loop, 1)
    first = Guest(loop, gate.enter("normal", "a"))
    second = Guest(loop, gate.enter("normal", "b"))
    loop.settle()
    loop.pass_time(2.5)
    first.go.set()
    loop.settle()
    assert second.inside
    assert (first.visit.queue_s, second.visit.queue_s) == (0.0, 2.5)


@pytest.mark.parametrize("priority", PRIORITIES)
def test_a_wait_ends_with_the_class_s_own_time(loop: StepLoop, priority: Priority) -> None:
    gate = gate_on(loop, 1)
    Guest(loop, gate.enter("normal", "a"))
    late = Guest(loop, gate.enter(priority, "b"))
    most = Rules().max_wait[priority]
    loop.settle()
    loop.pass_time(most - 0.5)
    assert not late.over
    loop.pass_time(0.6)
    assert isinstance(late.error, Overloaded)
    assert (late.error.code, late.error.status) == ("queue_timeout", 503)
    assert late.error.retry_after_s is not None
    assert priority in late.error.message
    assert gate.waiting(priority) == 0


def test_a_shorter_deadline_of_the_request_s_own(loop: StepLoop) -> None:
    gate = gate_on(loop, 0)
    slow, quick = Guest(loop, gate.enter("normal", "a")), Guest(loop, gate.enter("normal", "a", 1.0))
    loop.settle()
    loop.pass_time(1.1)
    assert quick.error is not None
    assert quick.error.code == "queue_timeout"
    assert not slow.over


def test_a_full_queue_refuses_at_once_and_by_class(loop: StepLoop) -> None:
    gate = gate_on(loop, 1, max_waiting=2)
    guests = [Guest(loop, gate.enter("batch", "a")) for _ in range(4)]
    loop.settle()
    refused = guests[3].error
    assert isinstance(refused, Overloaded)
    assert (refused.code, refused.status, refused.retryable) == ("overloaded", 503, True)
    other = Guest(loop, gate.enter("interactive", "a"))
    loop.settle()
    assert not other.over
    fair = Guest(loop, gate.enter("batch", "b"))
    loop.settle()
    assert not fair.over
    assert guests[2].error is not None
    assert guests[2].error.code == "overloaded"


# --- how honest is Retry-After --------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    capacity=st.integers(1, 8),
    seconds=st.lists(st.floats(0.2, 20.0), min_size=1, max_size=5),
    mine=CLASSES,
    others=st.lists(CLASSES, max_size=2),
)
def test_retry_after_is_when_one_would_have_had_its_turn(
    capacity: int, seconds: list[float], mine: Priority, others: list[Priority]
) -> None:
    """A busy target, a full queue: whoever is refused is told about how long those that were let in still take."""
    loop = StepLoop()
    try:
        gate = gate_on(loop, capacity, max_waiting=40, max_wait=dict.fromkeys(PRIORITIES, 1e6))
        served = 0

        async def serve(priority: Priority) -> None:
            nonlocal served
            async with gate.enter(priority, "a"):
                served += 1
                await asyncio.sleep(seconds[served % len(seconds)])

        async def probe() -> float:
            began = loop.time()
            async with gate.enter(mine, "a"):
                return loop.time() - began

        tasks = [loop.create_task(serve(each)) for each in (mine, *others) for _ in range(40)]

        def step() -> None:
            loop.settle()
            loop.now = min((handle.when() for handle in loop._scheduled), default=loop.now)

        while served < 40:
            step()
        while gate.waiting(mine) < 39:
            tasks.append(loop.create_task(serve(mine)))
            loop.settle()
        told = gate.retry_after(mine)
        last = loop.create_task(probe())
        while not last.done():
            step()
        # One service time is in the nature of things: nobody knows how far those inside have come.
        assert last.result() / 2 - max(seconds) <= told <= 2 * last.result() + max(seconds)
    finally:
        loop.end()


# --- room and size ----------------------------------------------------------------------------------


def test_more_room_lets_the_waiting_in_at_once(loop: StepLoop) -> None:
    gate = gate_on(loop, 0)
    guests = [Guest(loop, gate.enter("normal", "a")) for _ in range(6)]
    loop.settle()
    assert gate.inside == 0
    gate.resize(4)
    loop.settle()
    assert [guest.inside for guest in guests] == [True] * 4 + [False] * 2
    gate.resize(2)  # a replica dies: nobody is thrown out, nobody comes in
    guests[0].go.set()
    guests[1].go.set()
    loop.settle()
    assert [guest.inside for guest in guests] == [False, False, True, True, False, False]
    guests[2].go.set()
    loop.settle()
    assert guests[4].inside


def test_a_large_one_goes_in_with_its_first_choice_and_gives_places_back_as_choices_end(loop: StepLoop) -> None:
    gate = gate_on(loop, 4)
    small = [Guest(loop, gate.enter("normal", "a")) for _ in range(3)]
    large = Guest(loop, gate.enter("normal", "b", places=100))
    after = Guest(loop, gate.enter("normal", "c"))
    loop.settle()
    assert (large.inside, after.inside, gate.inside) == (True, False, 103)
    for guest in small:
        guest.go.set()
    large.visit.give_back(96)
    loop.settle()
    assert (after.inside, gate.inside) == (False, 4)
    large.visit.give_back()
    loop.settle()
    assert (after.inside, gate.inside) == (True, 4)
    large.visit.give_back(100)  # more than it has
    large.go.set()
    loop.settle()
    assert gate.inside == 1


def test_nobody_gives_back_more_places_than_they_have(loop: StepLoop) -> None:
    gate = gate_on(loop, 4)
    guest = Guest(loop, gate.enter("normal", "a", places=2))
    loop.settle()
    assert gate.inside == 2
    guest.visit.give_back(5)
    assert gate.inside == 0
    guest.visit.leave()
    assert gate.inside == 0


def test_no_more_goes_in_together_with_a_large_one_than_the_target_takes(loop: StepLoop) -> None:
    gate = gate_on(loop, 4)
    gate.resize(4, 8)
    Guest(loop, gate.enter("normal", "a"))
    large = Guest(loop, gate.enter("normal", "b", places=8))
    small = Guest(loop, gate.enter("normal", "c"))
    loop.settle()
    assert (large.inside, small.inside) == (False, False)  # the small one would keep the large one out for ever
    large.task.cancel()
    loop.settle()
    assert small.inside
    for_all = Gate("small", Rules(), 4, 8, clock=loop.time)
    alone = Guest(loop, for_all.enter("normal", "a", places=9))
    loop.settle()
    assert alone.inside  # and may be told by the target itself that it is too large


# --- on a loop with a real clock ------------------------------------------------------------------


def test_many_guests_on_uvloop() -> None:
    async def crowd() -> Counter[str]:
        gate = Gate("small", Rules(max_waiting=10_000), 5)
        seen: Counter[str] = Counter()
        most = 0

        async def guest(number: int) -> None:
            nonlocal most
            try:
                async with gate.enter(PRIORITIES[number % 3], str(number % 7), 0.05 if number % 5 == 0 else 30.0):
                    most = max(most, gate.inside)
                    await asyncio.sleep(0.001)
                    seen["served"] += 1
            except Overloaded as error:
                seen[error.code] += 1

        tasks = [asyncio.create_task(guest(number)) for number in range(600)]
        await asyncio.sleep(0.01)
        for task in tasks[::4]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        seen["cancelled"] = sum(isinstance(each, asyncio.CancelledError) for each in done)
        assert [each for each in done if isinstance(each, Exception)] == []
        assert gate.inside == 0
        assert most == 5
        return seen

    seen = uvloop.run(crowd())
    assert sum(seen.values()) == 600
    assert seen["overloaded"] == 0
    assert seen["served"] > 300


# --- the class of a request -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "most", "default", "given"),
    [
        (None, None, "normal", "normal"),
        ("interactive", None, "normal", "interactive"),
        (" Batch ", None, "normal", "batch"),
        ("interactive", "normal", "batch", "normal"),
        ("batch", "normal", "normal", "batch"),
        (None, "batch", "normal", "batch"),
        (None, "interactive", "normal", "normal"),
    ],
)
def test_the_class_of_a_request(asked: str | None, most: Priority | None, default: Priority, given: Priority) -> None:
    assert choose_priority(asked, most, default) == given


@pytest.mark.parametrize("word", ["", "urgent", "interactive,batch", "0", "batch\n\x1b[31m", "é" * 500])
def test_a_word_that_is_no_class_is_refused_by_name(word: str) -> None:
    with pytest.raises(BadRequest) as refused:
        choose_priority(word, None, "normal")
    assert refused.value.param == "x-outpost-priority"
    assert "interactive, normal, batch" in refused.value.message
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 400


@given(st.lists(CLASSES | st.none(), max_size=4), CLASSES)
def test_the_least_urgent_bound_counts(others: list[Priority | None], first: Priority) -> None:
    ranks = [PRIORITIES.index(each) for each in (first, *others) if each is not None]
    assert least_urgent(first, *others) == PRIORITIES[max(ranks)]


def test_unlimited_is_more_than_anybody_asks_for(loop: StepLoop) -> None:
    gate = gate_on(loop, UNLIMITED)
    for _ in range(10):
        Guest(loop, gate.enter("normal", "a", places=128))
    loop.settle()
    assert gate.inside == 1280
