"""Retries stay a share of the requests, whatever the order of events; pauses grow. No clock."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.routing.budget import BASE_S, LEAST, MOST_S, RATIO, SLICES, WINDOW_S, RetryBudget, pause_s, take_all
from appliance.routing.hedging import Hedging, Race, hedge_at_s, hedge_budget

CHANCE = st.floats(0, 1, exclude_max=True)
STEPS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.0, 0.0, 0.05, 0.7, 1.0, 4.0, 15.0]), st.sampled_from("rrrtttt")), max_size=400
)


@given(STEPS, st.sampled_from([0, 3, LEAST]), st.sampled_from([0.1, RATIO, 0.5, 1.0]))
@settings(max_examples=200, deadline=None)
def test_the_bound_holds_for_every_interleaving(steps: list[tuple[float, str]], least: int, ratio: float) -> None:
    budget, now = RetryBudget(ratio, least), 1000.0
    requests: list[float] = []
    retries: list[float] = []
    for seconds, what in steps:
        now += seconds
        if what == "r":
            budget.request(now)
            requests.append(now)
        elif budget.take(now):
            retries.append(now)
            # The window moves a slice at a time: it is never longer than it says, and at most a slice shorter.
            asked = sum(at > now - WINDOW_S for at in requests)
            tried = sum(at > now - WINDOW_S + WINDOW_S / SLICES for at in retries)
            assert tried <= max(least, math.floor(ratio * asked + 1e-9))
    if not least:
        assert len(retries) <= ratio * len(requests) + 1e-9


def test_when_everything_fails_there_are_at_most_1_2_attempts_for_each_request() -> None:
    budget = RetryBudget()
    attempts = 0
    for number in range(1000):
        now = number / 100
        budget.request(now)
        attempts += 1
        while budget.take(now):  # every attempt fails, and each wants as many more as it can get
            attempts += 1
    assert attempts <= 1.2 * 1000 + LEAST
    assert attempts >= 1.15 * 1000


def test_a_few_failures_may_always_be_tried_again() -> None:
    budget = RetryBudget()
    budget.request(0.0)
    assert [budget.take(0.0) for _ in range(LEAST + 1)] == [True] * LEAST + [False]
    assert not budget.take(WINDOW_S - 0.01)
    assert budget.take(WINDOW_S)
    assert budget.left(WINDOW_S) == LEAST - 1


def test_a_clock_that_stands_or_goes_back_grants_nothing_new() -> None:
    budget = RetryBudget()
    for _ in range(LEAST):
        assert budget.take(100.0)
    assert not budget.take(100.0)
    assert not budget.take(0.0)
    assert not budget.take(-50.0)
    assert budget.take(100.0 + WINDOW_S)


@pytest.mark.parametrize("later", [11.5, 14.5, 20.5, 21.5, 1000.5])
@pytest.mark.parametrize("begin", [0.5 + second for second in range(10)])
def test_nothing_is_left_of_requests_from_before_the_window(begin: float, later: float) -> None:
    budget = RetryBudget(least=0)
    for _ in range(100):
        budget.request(begin)
    assert budget.take(begin)
    assert budget.left(begin + later) == 0


@given(st.integers(0, 500))
@settings(deadline=None)
def test_the_ratio_is_counted_exactly(requests: int) -> None:
    budget = RetryBudget(least=0)
    for _ in range(requests):
        budget.request(0.0)
    assert budget.left(0.0) == requests // 5


def test_all_budgets_agree_or_none_is_used() -> None:
    route, process = RetryBudget(least=2), RetryBudget(least=3)
    assert [take_all([route, process], 0.0) for _ in range(3)] == [True, True, False]
    assert process.left(0.0) == 1
    assert take_all([process], 0.0)
    assert take_all([], 0.0)


# --- pauses -----------------------------------------------------------------------------------------


@given(st.lists(CHANCE, min_size=2, max_size=6))
@settings(deadline=None)
def test_pauses_grow_as_long_as_they_may(chances: list[float]) -> None:
    pauses = [pause_s(attempt, chance) or 0.0 for attempt, chance in enumerate(chances, 1)]
    assert all(0.6 * BASE_S <= pause <= MOST_S for pause in pauses)
    assert all(later > 1.1 * earlier for earlier, later in pairwise(pauses))


@given(st.integers(1, 1000), CHANCE, CHANCE)
@settings(deadline=None)
def test_no_two_requests_pause_alike(attempt: int, one: float, other: float) -> None:
    pauses = pause_s(attempt, one), pause_s(attempt, other)
    assert None not in pauses
    if abs(one - other) > 1e-9:
        assert pauses[0] != pauses[1]
    assert max(pauses[0] or 0, pauses[1] or 0) <= MOST_S


@given(st.integers(1, 10), CHANCE, st.floats(0.001, 1000), st.floats(0, 1000))
@settings(deadline=None)
def test_nobody_comes_back_before_the_time_that_was_told(attempt: int, chance: float, told: float, left: float) -> None:
    waits = pause_s(attempt, chance, retry_after_s=told, left_s=left)
    if told >= left:
        assert waits is None
    else:
        assert waits is not None
        assert told <= waits <= told * 1.1
        assert waits <= told + 1.0
        assert waits < left


def test_who_has_just_enough_time_left_comes_back_at_the_time_that_was_told() -> None:
    assert pause_s(1, 0.99, retry_after_s=5.0, left_s=5.1) == 5.0
    assert pause_s(1, 0.99, retry_after_s=5.0, left_s=9.0) == pytest.approx(5.495)


@pytest.mark.parametrize("told", [None, 0.0, -3.0])
def test_no_time_or_an_odd_one_is_none(told: float | None) -> None:
    assert pause_s(1, 0.5, retry_after_s=told) == pytest.approx(0.8 * BASE_S)
    assert pause_s(1, 0.5, retry_after_s=told, left_s=0.01) is None


# --- hedges -----------------------------------------------------------------------------------------


def test_a_hedge_is_sent_after_the_percentile_but_not_at_once() -> None:
    assert hedge_at_s(0.8, Hedging(), left_s=10.0) == 0.8
    assert hedge_at_s(0.001, Hedging(least_s=0.05), left_s=10.0) == 0.05


def test_no_hedge_without_samples_or_time() -> None:
    assert hedge_at_s(None, Hedging(), left_s=10.0) is None
    assert hedge_at_s(3.0, Hedging(), left_s=2.0) is None
    assert hedge_at_s(1.0, Hedging(), left_s=2.0, other_s=1.5) is None
    assert hedge_at_s(1.0, Hedging(), left_s=2.0, other_s=0.5) == 1.0


def test_hedges_are_a_small_share_of_the_requests() -> None:
    budget, sent = hedge_budget(Hedging(share=0.05)), 0
    for _ in range(1000):
        budget.request(0.0)
        sent += budget.take(0.0)
    assert 45 <= sent <= 51
    quiet = hedge_budget(Hedging(share=0.05))
    quiet.request(0.0)
    assert quiet.take(0.0)
    assert not quiet.take(0.0)


@given(st.lists(st.tuples(st.sampled_from(["joined", "first", "failed"]), st.integers(0, 2)), max_size=20))
@settings(deadline=None)
def test_one_wins_at_most_and_only_who_runs(life: list[tuple[str, int]]) -> None:
    race = Race()
    running: set[int] = set()
    winners = []
    for what, runner in life:
        if what == "joined":
            race.joined(runner)
            running.add(runner)
        elif what == "first":
            if race.first(runner):
                assert runner in running
                winners.append(runner)
        else:
            running.discard(runner)
            assert race.failed(runner) == (not running and not winners)
    assert len(winners) <= 1
    assert race.winner == (winners[0] if winners else None)
    assert race.losers() == (sorted(running - set(winners)) if winners else [])
