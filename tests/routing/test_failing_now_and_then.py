"""Targets that fail, but not always: when they may still be asked, and in whose place. No clock."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from appliance.routing.breaker import (
    BACK_LEAST,
    BACK_S,
    FINE,
    FIRST_PAUSE_S,
    MOST_IN_A_ROW,
    MOST_TRIALS,
    WINDOW_LEAST,
    Breaker,
    usable,
)
from tests.routing.test_breaker import fail, half_open, take, take_probe, trial


def answer(breaker: Breaker, now: float, failures: int, successes: int, rounds: int = 1) -> None:
    """So many failures in a row, then so many answers; again and again."""
    for _ in range(rounds):
        fail(breaker, now, failures)
        for _ in range(successes):
            breaker.ok(take(breaker, now), now)


def test_who_fails_more_than_a_fifth_stands_back_for_a_while() -> None:
    breaker = Breaker()
    answer(breaker, 0.0, 1, 3, BACK_LEAST)
    assert breaker.standing(0.0) is FINE, "ten failures are too few"
    fail(breaker, 1.0)
    standing = breaker.standing(1.0)
    assert (standing.phase, standing.last, standing.wait_s) == ("closed", True, 0.0)
    assert usable(standing)
    assert not take(breaker, 1.0).trial
    assert breaker.standing(1.0 + BACK_S) is FINE
    fail(breaker, 1.0 + BACK_S)
    assert breaker.standing(1.0 + BACK_S).last
    others = Breaker()
    answer(others, 0.0, 1, 5, 5 * BACK_LEAST)
    assert others.standing(0.0) is FINE, "it fails less than that"


def softly_open() -> tuple[Breaker, float]:
    breaker = Breaker()
    answer(breaker, 0.0, 1, 1, WINDOW_LEAST // 2 - 1)
    breaker.ok(take(breaker, 0.0), 0.0)
    fail(breaker, 0.0)
    standing = breaker.standing(0.0)
    assert (standing.phase, standing.last) == ("open", True)
    return breaker, FIRST_PAUSE_S


def test_who_fails_half_the_time_may_still_be_asked_after_all_others_and_one_trial_decides() -> None:
    breaker, now = softly_open()
    assert usable(breaker.standing(0.0))
    assert not take(breaker, 0.0).trial
    standing = breaker.standing(now)
    assert (standing.phase, standing.last) == ("half_open", False), "its trial is asked in its own place"
    given = trial(breaker, now)
    assert breaker.standing(now).last
    assert not take(breaker, now).trial, "all others come last, and none of them waits for it"
    breaker.ok(given, now)
    assert breaker.standing(now).phase == "closed"
    fail(breaker, now)
    assert breaker.standing(now).last, "it fails as often as before"


def test_who_fails_half_the_time_and_then_always_is_left_alone() -> None:
    breaker, _ = softly_open()
    for _ in range(MOST_IN_A_ROW):
        given = breaker.take(0.0)
        if given is None:
            break
        breaker.failed(given, 0.0, 0.5)
    assert breaker.take(0.0) is None
    standing = breaker.standing(0.0)
    assert not standing.last
    assert not usable(standing)


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 5, 5), (0.05, 5, 5), (0.3, 9, 15), (0.45, 14, 23)])
def test_a_row_must_be_longer_than_chance_makes_it(share: float, least: int, most: int) -> None:
    breaker, random = Breaker(), Random(7)
    for number in range(500):
        now = number * 1.5  # so slow that the window never tells of half
        given = breaker.take(now)
        if given is None:
            continue
        if random.random() < share:
            breaker.failed(given, now, 0.5)
        else:
            breaker.ok(given, now)
    now = 2000.0
    while breaker.standing(now) is not FINE:
        now += 30.0
        if (given := breaker.take(now)) is not None:
            breaker.ok(given, now)
    breaker.ok(take(breaker, now), now)
    row = 0
    while breaker.standing(now).phase != "open":
        now += 1.5
        fail(breaker, now)
        row += 1
    assert least <= row <= most


@for_all(share=st.floats(0.0, 0.4), seed=st.integers(0, 1 << 32))
@settings(max_examples=25, deadline=None)
def test_who_fails_less_than_half_the_time_is_hardly_ever_refused_once_it_is_known(share: float, seed: int) -> None:
    breaker, random, refused = Breaker(), Random(seed), 0
    for number in range(3000):
        now = number / 40
        given = breaker.take(now)
        if given is None:
            refused += number > 500
        elif random.random() < share:
            breaker.failed(given, now, random.random())
        else:
            breaker.ok(given, now)
    # Chance makes a long row now and then just when few failures are usual; the pause after it is short.
    assert refused <= 2 * FIRST_PAUSE_S * 40


def test_alone_a_few_are_its_trial_at_the_same_time_and_the_first_to_end_decides() -> None:
    breaker, now = half_open()
    first = trial(breaker, now)
    assert breaker.standing(now).alone
    assert not usable(breaker.standing(now))
    assert breaker.take(now) is None
    others = [breaker.take(now, alone=True) for _ in range(MOST_TRIALS)]
    assert [given is not None and given.trial for given in others] == [True] * (MOST_TRIALS - 1) + [False]
    assert not breaker.standing(now).alone
    given_back = others[0]
    assert given_back is not None
    breaker.given_back(given_back, now)
    assert breaker.standing(now).alone
    assert breaker.take(now, alone=True) is not None
    assert others[1] is not None
    breaker.ok(others[1], now)
    assert breaker.standing(now) is FINE
    breaker.failed(first, now, 0.5)
    assert breaker.standing(now) is FINE, "one that began before it closed tells nothing new"


@pytest.mark.parametrize("reached", [False, True])
def test_nobody_is_a_trial_before_the_health_check_has_succeeded(reached: bool) -> None:
    breaker, now = half_open(has_probe=True)
    probe = take_probe(breaker, now)
    assert not breaker.standing(now).alone
    assert breaker.take(now, alone=True) is None
    if reached:
        breaker.probed(probe, now)
    assert (breaker.take(now, alone=True) is not None) == reached
