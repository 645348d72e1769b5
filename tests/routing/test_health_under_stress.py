"""What clients and targets get when targets fail: simulated, with the gateway's own rules and a clock set by hand.

Requests come at a fixed rate; each asks the candidates of a plan in turn, as the relay does.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Mapping
from copy import copy
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.errors import (
    BadRequest,
    DeadlineExceeded,
    OutpostError,
    TargetLimited,
    TargetResting,
    TargetUsedUp,
    UpstreamFailed,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from appliance.routing.attempts import MOST_DOWN_S, MOST_WAIT_S, Turns
from appliance.routing.board import Board
from appliance.routing.breaker import FAILURES_IN_A_ROW, FIRST_COOLING_S, FIRST_PAUSE_S, MOST_PAUSE_S, Standing, usable
from appliance.routing.budget import LEAST, RATIO, WINDOW_S
from appliance.routing.health import Health, resting

ANSWER_S = 0.05
TOTAL_S = 60.0
Fails = Callable[[float, Random], OutpostError | None]
"""What a target answers at a moment; None: all is well."""


@dataclass
class Target:
    fails: Fails
    failure_s: float = ANSWER_S
    asked: list[float] = field(default_factory=list)


@dataclass
class Result:
    requests: int = 0
    answered: int = 0
    refused: int = 0
    """Without anybody being asked."""
    attempts: int = 0
    told: set[type[OutpostError]] = field(default_factory=set)
    errors: list[OutpostError] = field(default_factory=list)
    """What callers were told."""
    paused_s: float = 0.0
    """By the request that paused for longest, between its attempts."""

    @property
    def success(self) -> float:
        return self.answered / self.requests

    @property
    def cost(self) -> float:
        """Attempts per request."""
        return self.attempts / self.requests


class Simulation:
    def __init__(self, targets: Mapping[str, Target], *, retries: int = 2, seed: int = 1) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.health = Health(Board(self.random.random), lambda: self.now, self.random.random)
        self.targets = targets
        self.retries = retries
        self.result = Result()
        self._events: list[tuple[float, int, Generator[float, None, None]]] = []
        self._number = 0

    def run(self, seconds: float, rate: float) -> Result:
        """Requests at `rate` a second for so long, each until its end. What came before is remembered, not counted."""
        self.result = Result()
        began = self.now
        for number in range(int(seconds * rate)):
            self._at(began + number / rate, self._request(self.result))
        while self._events:
            self.now, _, request = heapq.heappop(self._events)
            pause = next(request, None)
            if pause is not None:
                self._at(self.now + pause, request)
        return self.result

    def _at(self, at: float, request: Generator[float, None, None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (at, self._number, request))

    def _plan(self) -> list[Any]:
        """As the planner orders them, with the strategy `priority`."""
        standings = {name: self.health.board.standing(name, self.now) for name in self.targets}
        up = [name for name, standing in standings.items() if usable(standing)]
        up = [name for name in up if not standings[name].last] + [name for name in up if standings[name].last]
        names = up or [name for name, standing in standings.items() if standing.alone]
        return [SimpleNamespace(target=SimpleNamespace(name=name)) for name in names]

    def _request(self, result: Result) -> Generator[float, None, None]:
        health, began, attempts, paused_s = self.health, self.now, 0, 0.0
        result.requests += 1
        candidates = self._plan()
        if not candidates:
            result.refused += 1
            return
        turns = Turns(candidates, self.retries, health.random, lambda *asked: health.may_retry("route", *asked))
        candidate = turns.first()
        health.asked("route")
        while True:
            name = candidate.target.name
            target = self.targets[name]
            try:
                flight = health.began(name, 0, alone=not turns.others)
                target.asked.append(self.now)
                attempts += 1
                result.attempts += 1
                error = target.fails(self.now, self.random)
                yield ANSWER_S if error is None else target.failure_s
                health.ended(flight, error, 0)
            except TargetResting as left_alone:
                error = left_alone
            except TargetLimited as left_alone:
                error = left_alone
            if error is None:
                result.answered += 1
                return
            step = turns.failed(candidate, error, left_s=TOTAL_S - (self.now - began), rest=health.rest(name))
            if step is None:
                assert turns.told is not None
                result.told.add(type(turns.told))
                result.errors.append(turns.told)
                result.refused += not attempts
                return
            candidate, pause = step
            if pause:
                paused_s += pause
                result.paused_s = max(result.paused_s, paused_s)
                yield pause


def fine(now: float, random: Random) -> None:
    return None


def down(error: OutpostError) -> Fails:
    return lambda now, random: copy(error)


def flaky(share: float, error: OutpostError | None = None) -> Fails:
    said = error or UpstreamFailed("500")
    return lambda now, random: copy(said) if random.random() < share else None


THREE = "abc"
STRESS: dict[str, tuple[Fails, float]] = {
    "503": (down(UpstreamUnavailable("503")), ANSWER_S),
    "429": (down(TargetLimited("429")), ANSWER_S),
    "429-with-retry-after": (down(TargetLimited("429", retry_after_s=3.0)), ANSWER_S),
    "time-out": (down(UpstreamTimeout("late")), 5.0),
    "overloaded": (flaky(0.7, UpstreamUnavailable("503")), ANSWER_S),
    "often-limited": (flaky(0.7, TargetLimited("429")), ANSWER_S),
}
MOST_COST = 1.0 + RATIO
FOUND_OUT = 0.02
"""Failures by which it is found out how targets are, again and again."""


@pytest.mark.parametrize("rate", [10, 40, 200])
@pytest.mark.parametrize("stress", STRESS)
def test_when_all_targets_are_down_there_are_at_most_1_2_attempts_for_each_request(stress: str, rate: int) -> None:
    fails, failure_s = STRESS[stress]
    result = Simulation({name: Target(fails, failure_s) for name in THREE}).run(6000 / rate, rate)
    assert result.cost <= MOST_COST + FOUND_OUT


@pytest.mark.parametrize("stress", STRESS)
def test_when_half_of_the_targets_are_down_nobody_notices_and_they_are_hardly_asked(stress: str) -> None:
    fails, failure_s = STRESS[stress]
    targets = {"a": Target(fails, failure_s), "b": Target(fails, failure_s), "c": Target(fine), "d": Target(fine)}
    simulation = Simulation(targets, retries=3)
    result = simulation.run(200.0, 20)
    assert result.answered == result.requests
    assert result.cost <= MOST_COST


@pytest.mark.parametrize("share", [0.1, 0.3, 0.45])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_targets_that_fail_now_and_then_give_what_asking_them_allows(count: int, share: float) -> None:
    simulation = Simulation({name: Target(flaky(share)) for name in THREE[:count]})
    simulation.run(20.0, 40)
    result = simulation.run(100.0, 40)
    assert result.refused == 0
    assert result.told <= {UpstreamFailed}
    # Each other target may be asked; besides, a fifth of all requests may ask one again.
    once = 1.0 - share**count
    again = min(share**count, RATIO) * (1.0 - share)
    assert result.success >= 0.9 * (once + again)
    assert result.cost <= sum(share**place for place in range(count)) + RATIO + FOUND_OUT


def test_one_target_that_fails_now_and_then_is_asked_at_least_once_by_everybody() -> None:
    simulation = Simulation({"a": Target(flaky(0.3))}, retries=0)
    result = simulation.run(100.0, 40)
    assert result.refused == 0
    assert result.success == pytest.approx(0.7, abs=0.03)
    assert result.cost == 1.0


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_where_there_is_a_good_target_the_failing_one_is_hardly_asked(share: float) -> None:
    targets = {"a": Target(flaky(share)), "b": Target(fine)}
    simulation = Simulation(targets)
    simulation.run(20.0, 40)
    seen = len(targets["a"].asked)
    result = simulation.run(100.0, 40)
    assert result.answered == result.requests
    assert result.cost <= 1.03
    assert len(targets["a"].asked) - seen <= 0.1 * result.requests


@pytest.mark.parametrize("count", [1, 3])
def test_all_that_were_down_are_used_again_soon_after(count: int) -> None:
    back_s = 100.0

    def fails(now: float, random: Random) -> OutpostError | None:
        return UpstreamUnavailable("503") if now < back_s else None

    targets = {name: Target(fails) for name in THREE[:count]}
    simulation = Simulation(targets)
    simulation.run(back_s, 20)
    simulation.run(MOST_PAUSE_S + 2.0, 20)
    result = simulation.run(20.0, 20)
    assert result.success == 1.0
    assert result.cost == 1.0


BACKOFF_S = 0.3
"""Pauses of a request with two retries that are for nobody in particular."""


def changing(period_s: float, up: float) -> Fails:
    """Up for a share of each period."""
    return lambda now, random: None if now % period_s < up * period_s else UpstreamUnavailable("503")


@pytest.mark.parametrize("rate", [2.5, 20])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("fails", "most_s"),
    [
        (down(UpstreamUnavailable("503")), MOST_DOWN_S + BACKOFF_S),
        (changing(90.0, 0.5), MOST_DOWN_S + BACKOFF_S),
        (changing(7.0, 0.3), MOST_DOWN_S + BACKOFF_S),
        (flaky(0.9), MOST_DOWN_S + BACKOFF_S),
        (down(UpstreamUnavailable("503", retry_after_s=4.0)), MOST_WAIT_S),
        (down(TargetLimited("429", retry_after_s=13.0)), MOST_WAIT_S),
        (down(TargetLimited("429")), MOST_WAIT_S),
    ],
    ids=["down", "up and down", "up now and then", "fails mostly", "503 says when", "429 says when", "429"],
)
def test_nobody_waits_for_long_for_targets_that_are_down(fails: Fails, most_s: float, count: int, rate: float) -> None:
    result = Simulation({name: Target(fails) for name in THREE[:count]}).run(200.0, rate)
    assert 0.0 < result.paused_s <= most_s


@pytest.mark.parametrize("count", [1, 2])
def test_who_is_sent_away_from_a_target_that_is_down_is_told_when_to_come_back(count: int) -> None:
    simulation = Simulation({name: Target(down(UpstreamUnavailable("503"))) for name in THREE[:count]})
    simulation.run(30.0, 2.5)
    result = simulation.run(100.0, 2.5)
    assert result.errors
    assert all(0.0 < (error.retry_after_s or 0.0) <= MOST_PAUSE_S for error in result.errors)


def test_a_target_that_goes_down_is_left_alone_after_five_failures() -> None:
    targets = {"a": Target(lambda now, random: UpstreamFailed("500") if now >= 50.0 else None), "b": Target(fine)}
    Simulation(targets).run(50.7, 10)
    assert len([at for at in targets["a"].asked if at >= 50.0]) == 5


@pytest.mark.parametrize("failed", [False, True])
def test_the_error_of_a_target_that_is_left_alone_says_what_it_did(failed: bool) -> None:
    """Only one that said so limits the rate of requests."""
    health = Health(Board(lambda: 0.5), lambda: 0.0, lambda: 0.5)
    kind = UpstreamUnavailable if failed else TargetLimited
    health.ended(health.began("a", 0), kind("no", retry_after_s=3.0), 0)
    error = resting("a", health.board.standing("a", 0.0))
    assert isinstance(error, TargetResting if failed else TargetLimited)
    assert error.retry_after_s == 3.0
    assert ("limits the rate" in error.message) is not failed


def tell(health: Health, error: OutpostError) -> OutpostError:
    """What a caller is told where the only target, `a`, fails with `error`, and no other attempt may be made."""
    turns = Turns([candidate("a")], 0, health.random)
    health.ended(health.began("a", 0), error, 0)
    assert turns.failed(turns.first(), error, left_s=60.0, rest=health.rest("a")) is None
    assert turns.told is not None
    return turns.told


@pytest.mark.parametrize("said", [None, 3.0])
def test_a_429_says_when_to_come_back_also_where_the_target_does_not(said: float | None) -> None:
    health = Health(Board(lambda: 1.0), lambda: 0.0, lambda: 0.5)
    assert tell(health, TargetLimited("no", retry_after_s=said)).retry_after_s == (said or FIRST_COOLING_S)


def test_an_account_that_is_used_up_is_told_as_that_while_its_target_is_left_alone() -> None:
    now = 0.0
    health = Health(Board(lambda: 1.0), lambda: now, lambda: 0.5)
    told = tell(health, TargetUsedUp("a has nothing left"))
    for _ in range(3):
        with pytest.raises(TargetUsedUp, match="the operator must raise it") as refused:
            health.began("a", 0)
        assert (refused.value.status, refused.value.code) == (told.status, told.code) == (429, "upstream_quota")
        assert (refused.value.retry_after_s or 0.0) > 0.0
        assert "no quota left" in health.rest("a").reason
        now += health.rest("a").wait_s
        health.ended(health.began("a", 0), TargetUsedUp("a has nothing left"), 0)
    now += health.rest("a").wait_s
    health.ended(health.began("a", 0), TargetLimited("slow down", retry_after_s=2.0), 0)
    with pytest.raises(TargetLimited, match="slow down") as refused_now:
        health.began("a", 0)
    assert refused_now.value.code == "rate_limit_exceeded"


def test_who_waited_for_a_target_that_is_used_up_by_now_waits_no_more() -> None:
    turns = Turns([candidate("a")], 5, lambda: 0.5)
    first = turns.first()
    assert turns.failed(first, UpstreamFailed("500"), left_s=60.0) is not None
    used_up = resting("a", Standing("closed", 1.0, cooling=True, code=TargetUsedUp.code))
    assert turns.failed(first, used_up, left_s=60.0) is None


def test_a_failure_says_when_to_come_back_once_its_target_is_left_alone() -> None:
    health = Health(Board(lambda: 1.0), lambda: 0.0, lambda: 0.5)
    told = [tell(health, UpstreamFailed("500")).retry_after_s for _ in range(FAILURES_IN_A_ROW)]
    assert told == [None] * (FAILURES_IN_A_ROW - 1) + [FIRST_PAUSE_S]


def test_a_mistake_of_the_caller_does_not_pass_with_time() -> None:
    turns = Turns([candidate("a")], 0, lambda: 0.5)
    rest = Standing("open", 3.0, down=True)
    assert turns.failed(turns.first(), BadRequest("bad"), left_s=60.0, rest=rest) is None
    assert turns.told is not None
    assert turns.told.retry_after_s is None


# --- the budget -----------------------------------------------------------------------------------


def candidate(name: str) -> Any:
    return SimpleNamespace(target=SimpleNamespace(name=name))


def test_another_try_is_charged_once_to_its_route_and_a_first_one_never() -> None:
    health = Health(Board(lambda: 0.5), lambda: 0.0, lambda: 0.5)
    for _ in range(LEAST):
        flight = health.began("a", 0)
        health.ended(flight, UpstreamFailed("500") if _ % 4 == 0 else None, 0)
        assert health.may_retry("route", candidate("a"), True)
    assert not health.may_retry("route", candidate("a"), True)
    assert health.may_retry("another", candidate("a"), True)
    assert all(health.may_retry("route", candidate(name), False) for name in "abc" * LEAST)


def test_going_on_to_one_that_fails_half_the_time_is_charged_too() -> None:
    now = 0.0
    health = Health(Board(lambda: 0.5), lambda: now, lambda: 0.5)
    for number in range(20):
        health.ended(health.began("a", 0), UpstreamFailed("500") if number % 2 else None, 0)
    assert health.board.standing("a", now).last
    allowed = [health.may_retry("route", candidate("a"), False) for _ in range(LEAST + 1)]
    assert allowed == [True] * LEAST + [False]
    now = WINDOW_S
    assert health.may_retry("route", candidate("a"), False)


# --- silence to the end ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("began", "spoke", "tokens", "failed"),
    [
        (0.0, False, 0, True),
        (4.9, False, 0, True),
        (5.1, False, 0, False),
        (0.0, True, 0, False),
        (0.0, False, 3, False),
    ],
)
def test_who_says_nothing_for_most_of_the_time_of_a_request_has_failed(
    began: float, spoke: bool, tokens: int, failed: bool
) -> None:
    now = began
    health = Health(Board(lambda: 0.5), lambda: now, lambda: 0.5)
    flight = health.began("a", 0)
    if spoke:
        health.first_token(flight)
    now = 10.0
    error = DeadlineExceeded("over")
    error.total_s = 10.0
    health.ended(flight, error, tokens)
    assert health.board.snapshot("a", now).failures == failed
