"""The order of those that wait: nobody starves, nobody is lost, nobody is served twice. No clock, no loop."""

from __future__ import annotations

import gc
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.identity.principal import PRIORITIES, Priority
from appliance.limits.fair_queue import Entry, FairQueue, Meter, Rules

CLASSES = st.sampled_from(PRIORITIES)
CALLERS = st.sampled_from("abcd")
WEIGHTS = Rules().weights


def entry(what: object, priority: Priority = "normal", caller: str = "a", places: int = 1) -> Entry[object]:
    return Entry(what, priority, caller, places, since=0.0, until=100.0)


def fill(queue: FairQueue[object], *those: Entry[object]) -> None:
    for each in those:
        assert queue.push(each) is None


def drain(queue: FairQueue[object]) -> list[object]:
    return [queue.pop().what for _ in range(len(queue))]


# --- random lives against a naive model -----------------------------------------------------------


class Lives(RuleBasedStateMachine):
    """Every entry that was taken in comes out exactly once: popped, removed, expired or made to give way."""

    MOST = 5

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue(Rules(max_waiting=self.MOST))
        self.now = 0.0
        self.inside: list[Entry[int]] = []
        """In order of arrival."""
        self.count = 0

    def of(self, priority: str) -> list[Entry[int]]:
        return [each for each in self.inside if each.priority == priority]

    @rule(priority=CLASSES, caller=CALLERS, places=st.integers(1, 5), wait=st.integers(0, 20))
    def push(self, priority: Priority, caller: str, places: int, wait: int) -> None:
        self.count += 1
        new = Entry(self.count, priority, caller, places, since=self.now, until=self.now + wait)
        mine = self.of(priority)
        held = Counter(each.caller for each in mine)
        loser = self.queue.push(new)
        if len(mine) < self.MOST:
            assert loser is None
        elif max(held.values()) > held[caller] + 1:
            assert loser is not None
            assert held[loser.caller] == max(held.values())
            assert loser is [each for each in mine if each.caller == loser.caller][-1]
            self.inside.remove(loser)
        else:
            assert loser is new
            assert not new.waiting
            return
        self.inside.append(new)

    @precondition(lambda self: self.inside)
    @rule()
    def pop(self) -> None:
        first = self.queue.peek()
        assert first is not None
        assert self.queue.pop() is first
        earlier = self.inside[: self.inside.index(first)]
        assert not [each for each in earlier if (each.priority, each.caller) == (first.priority, first.caller)]
        self.inside.remove(first)

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.inside))
        assert self.queue.remove(gone)
        assert not self.queue.remove(gone)
        self.inside.remove(gone)

    @rule(seconds=st.integers(1, 10))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        over = self.queue.expire(self.now)
        assert [each.until for each in over] == sorted(each.until for each in over)
        assert {each.what for each in over} == {each.what for each in self.inside if each.until <= self.now}
        self.inside = [each for each in self.inside if each.until > self.now]

    @invariant()
    def agree(self) -> None:
        assert len(self.queue) == len(self.inside)
        assert all(each.waiting for each in self.inside)
        for priority in PRIORITIES:
            assert self.queue.waiting(priority) == len(self.of(priority)) <= self.MOST
        assert self.queue.next_deadline() == min((each.until for each in self.inside), default=None)
        assert (self.queue.peek() is None) == (not self.inside)

    def teardown(self) -> None:
        assert sorted(each.what for each in self.inside) == sorted(self.queue.pop().what for _ in self.inside)
        assert self.queue.peek() is None
        with pytest.raises(IndexError):
            self.queue.pop()


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


# --- nobody starves -------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(waiting=CLASSES, others=st.lists(st.tuples(CLASSES, CALLERS), min_size=1, max_size=6), before=st.integers(0, 40))
def test_however_many_keep_coming_only_so_many_pass(
    waiting: Priority, others: list[tuple[Priority, str]], before: int
) -> None:
    queue: FairQueue[object] = FairQueue(Rules())
    for number in range(before):  # a history
        priority, caller = others[number % len(others)]
        fill(queue, entry("before", priority, caller), entry("more", priority, caller))
        queue.pop()
    mine = entry("mine", waiting, "me")
    fill(queue, mine)
    ahead = Counter(other for other in PRIORITIES for _ in range(queue.waiting(other)))
    passed: Counter[Priority] = Counter()
    while queue.peek() is not mine:
        for priority, caller in others:
            fill(queue, entry("pushing in", priority, caller))
        passed[queue.pop().priority] += 1
        assert sum(passed.values()) < 2000
    own = passed[waiting]
    # In its own class each other caller goes before it at most twice: for the round that is under way and for the next.
    assert own <= 2 * len({caller for priority, caller in others if priority == waiting}) <= max(2 * ahead[waiting], 8)
    for other in PRIORITIES:
        if other != waiting:
            assert passed[other] <= (own + 1) * WEIGHTS[other] / WEIGHTS[waiting] + 1


@given(weights=st.tuples(*[st.integers(1, 20)] * 3), places=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_busy_classes_share_by_weight(weights: tuple[int, int, int], places: int) -> None:
    shares: dict[Priority, int] = dict(zip(PRIORITIES, weights, strict=True))
    queue: FairQueue[object] = FairQueue(Rules(weights=shares))
    for priority in PRIORITIES:
        fill(queue, *(entry(priority, priority, places=places) for _ in range(2)))
    given_to: Counter[Priority] = Counter()
    rounds = 10 * sum(weights)
    for _ in range(rounds):
        out = queue.pop()
        given_to[out.priority] += 1
        fill(queue, entry(out.priority, out.priority, places=places))
    for priority, weight in shares.items():
        assert abs(given_to[priority] - 10 * weight) <= 2


def test_an_urgent_one_goes_before_all_that_wait_longer() -> None:
    queue: FairQueue[object] = FairQueue(Rules())
    fill(queue, *(entry(f"batch {n}", "batch") for n in range(5)))
    assert queue.pop().what == "batch 0"
    fill(queue, entry("normal", "normal"), entry("urgent", "interactive"))
    assert drain(queue) == ["urgent", "normal", "batch 1", "batch 2", "batch 3", "batch 4"]


def test_who_was_away_has_saved_nothing_up() -> None:
    queue: FairQueue[object] = FairQueue(Rules())
    fill(queue, *(entry("batch", "batch") for _ in range(60)))
    for _ in range(50):
        queue.pop()
    fill(queue, *(entry("urgent", "interactive") for _ in range(100)))
    out = [queue.pop().what for _ in range(52)]
    assert [at for at, what in enumerate(out) if what == "batch"] == [16, 33, 50]


def test_callers_take_turns_and_keep_their_own_order() -> None:
    queue: FairQueue[object] = FairQueue(Rules())
    fill(queue, *(entry(f"a{n}", caller="a") for n in range(3)))
    fill(queue, *(entry(f"b{n}", caller="b") for n in range(2)), entry("c0", caller="c"))
    assert drain(queue) == ["a0", "b0", "c0", "a1", "b1", "a2"]


def test_a_caller_that_comes_back_at_once_does_not_push_in() -> None:
    queue: FairQueue[object] = FairQueue(Rules())
    fill(queue, *(entry("a", caller="a") for _ in range(20)), entry("b", caller="b"))
    out = []
    for _ in range(10):
        out.append(queue.pop().what)
        if out[-1] == "b":
            fill(queue, entry("b", caller="b"))
    assert out == ["a", "b"] * 5


def test_who_takes_several_places_sits_out_as_many_rounds() -> None:
    queue: FairQueue[object] = FairQueue(Rules())
    fill(queue, *(entry("large", caller="a", places=4) for _ in range(3)))
    fill(queue, *(entry("small", caller="b") for _ in range(9)))
    out = drain(queue)
    assert [out[: at + 1].count("small") for at, what in enumerate(out) if what == "large"] == [0, 4, 8]


@given(st.lists(st.tuples(CLASSES, CALLERS, st.integers(1, 6)), max_size=40))
def test_an_empty_queue_keeps_no_grudges(history: list[tuple[Priority, str, int]]) -> None:
    queue: FairQueue[object] = FairQueue(Rules())
    fill(queue, *(entry("old", priority, caller, places) for priority, caller, places in history))
    drain(queue)
    fill(queue, *(entry(priority, priority) for priority in reversed(PRIORITIES)))
    assert drain(queue) == list(PRIORITIES)


# --- bounds ---------------------------------------------------------------------------------------


def test_a_full_class_leaves_the_others_alone() -> None:
    queue: FairQueue[object] = FairQueue(Rules(max_waiting=2))
    fill(queue, entry(1, "batch"), entry(2, "batch"))
    third = entry(3, "batch")
    assert queue.push(third) is third
    fill(queue, entry(4, "interactive"))
    assert drain(queue) == [4, 1, 2]


def test_one_caller_cannot_keep_the_others_out() -> None:
    queue: FairQueue[object] = FairQueue(Rules(max_waiting=4))
    fill(queue, *(entry(f"a{n}", caller="a") for n in range(4)))
    given_way = [queue.push(entry(f"b{n}", caller="b")) for n in range(3)]
    assert [None if each is None else each.what for each in given_way] == ["a3", "a2", "b2"]
    assert drain(queue) == ["a0", "b0", "a1", "b1"]


def test_nothing_is_kept_of_those_that_left() -> None:
    queue: FairQueue[object] = FairQueue(Rules())
    stays = entry("stays", "batch", "stays")
    fill(queue, stays)
    for number in range(5000):
        gone = entry(number, PRIORITIES[number % 3], f"caller {number}")
        fill(queue, gone)
        queue.remove(gone)
    assert sum(isinstance(each, Entry) for each in gc.get_objects()) < 1000
    assert drain(queue) == ["stays"]


# --- estimates ------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    waiting=st.lists(st.tuples(CLASSES, CALLERS), max_size=80),
    priority=CLASSES,
    served=st.integers(0, 30),
)
def test_what_is_ahead_is_what_goes_before(
    waiting: list[tuple[Priority, str]], priority: Priority, served: int
) -> None:
    queue: FairQueue[object] = FairQueue(Rules())
    fill(queue, *(entry("other", each, caller) for each, caller in waiting))
    for _ in range(min(served, len(queue))):
        queue.pop()
    told = queue.ahead(priority)
    # The same caller as all others of its class, so that it comes last in it.
    same: FairQueue[object] = FairQueue(Rules())
    fill(same, *(entry("other", each) for each in PRIORITIES for _ in range(queue.waiting(each))))
    mine = entry("mine", priority)
    fill(same, mine)
    before = 1
    while same.pop() is not mine:
        before += 1
    assert before - 3 <= told <= before + 3 + WEIGHTS["interactive"] / WEIGHTS[priority] * 2


@given(
    places=st.integers(1, 20),
    service=st.floats(0.01, 100),
    count=st.integers(1, 400),
)
def test_the_meter_finds_the_time_of_a_steady_target(places: int, service: float, count: int) -> None:
    meter, now = Meter(0.0, seconds=service), 0.0
    meter.moved(places, now)
    for _ in range(count):
        now += service / places
        meter.moved(-1, now)
        meter.moved(1, now)
    assert math.isclose(meter.seconds(now), service, rel_tol=0.05)


def test_the_meter_follows_a_change_and_sees_a_target_that_hangs() -> None:
    meter, now = Meter(0.0), 0.0
    meter.moved(1, now)
    for service in [0.1] * 500 + [2.0] * 200:
        now += service
        meter.moved(-1, now)
        meter.moved(1, now)
    assert math.isclose(meter.seconds(now), 2.0, rel_tol=0.05)
    assert meter.seconds(now + 1000) > 4.0
