"""What the gateway knows of its targets: counts go back to nothing, measures follow what is seen. No clock."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.routing.board import ENOUGH_SAMPLES, Board, Flight, TargetState
from appliance.routing.breaker import FAILURES_IN_A_ROW, FINE
from appliance.routing.measures import KEPT, STALE_S, PeakAverage, Recent

OUTCOMES = st.sampled_from(["ok", "failed", "refused", "limited", "cancelled"])


def board() -> Board:
    return Board(random=lambda: 0.5)


def began(at: Board, name: str = "a", tokens: int = 100, now: float = 0.0) -> Flight:
    flight = at.began(name, tokens, now)
    assert flight is not None
    return flight


def test_nothing_is_known_of_a_target_that_nobody_has_asked() -> None:
    assert board().snapshot("a", 0.0) == TargetState("a")
    assert board().standing("a", 0.0) is FINE


def test_what_is_under_way_is_counted_and_given_back_once() -> None:
    at = board()
    first, second = began(at, tokens=100), began(at, tokens=50)
    state = at.snapshot("a", 0.0)
    assert (state.in_flight, state.in_flight_tokens, state.requests) == (2, 150, 2)
    first.ended("ok", 1.0)
    first.ended("failed", 1.0)
    first.first_token(2.0)
    state = at.snapshot("a", 1.0)
    assert (state.in_flight, state.in_flight_tokens, state.failures) == (1, 50, 0)
    assert state.ttft_s == pytest.approx(1.0)
    second.ended("cancelled", 1.0)
    assert at.snapshot("a", 1.0).in_flight_tokens == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9999), OUTCOMES, st.booleans()), max_size=60))
@settings(max_examples=100, deadline=None)
def test_whatever_happens_nothing_stays_under_way(life: list[tuple[str, int, str, bool]]) -> None:
    at, now = board(), 0.0
    flights: list[tuple[Flight, str]] = []
    expected = dict.fromkeys("abc", 0)
    for name, tokens, outcome, early in life:
        now += 0.1
        flight = at.began(name, tokens, now)
        if flight is None:
            assert at.standing(name, now).wait_s > 0
            continue
        expected[name] += tokens
        if early:
            flight.first_token(now + 0.01)
        flights.append((flight, outcome))
    for name in "abc":
        assert at.snapshot(name, now).in_flight_tokens == expected[name]
    for flight, outcome in flights:
        flight.ended(outcome, now, tokens_out=3)  # type: ignore[arg-type]
    for name in "abc":
        state = at.snapshot(name, now)
        assert (state.in_flight, state.in_flight_tokens) == (0, 0)


def test_a_stream_tells_of_its_first_token_and_of_the_others() -> None:
    at = board()
    flight = began(at)
    flight.first_token(0.3)
    flight.first_token(0.9)  # only the first counts
    flight.ended("ok", 2.3, tokens_out=101)
    state = at.snapshot("a", 2.3)
    assert state.ttft_s == pytest.approx(0.3)
    assert state.per_token_s == pytest.approx(0.02)
    assert state.samples == 1


def test_a_long_whole_answer_tells_of_its_tokens_and_a_short_one_of_the_start() -> None:
    at = board()
    began(at).ended("ok", 10.0, tokens_out=100)
    assert at.snapshot("a", 10.0).per_token_s == pytest.approx(0.1)
    assert at.snapshot("a", 10.0).ttft_s is None
    began(at, now=10.0).ended("ok", 11.5, tokens_out=5)
    assert at.snapshot("a", 11.5).ttft_s == pytest.approx(1.0)


def test_whoever_is_silent_for_long_and_then_fails_is_slow_and_who_fails_at_once_is_not_quick() -> None:
    at = board()
    flight = began(at)
    flight.first_token(0.2)
    flight.ended("ok", 1.0, tokens_out=2)
    began(at, now=1.0).ended("failed", 1.001)
    assert at.snapshot("a", 1.0).ttft_s == pytest.approx(0.2)
    began(at, now=1.0).ended("failed", 11.0)
    assert at.snapshot("a", 11.0).ttft_s == pytest.approx(10.0)


def test_errors_are_remembered_with_their_age_the_last_ones() -> None:
    at = board()
    for number in range(4):
        began(at, now=float(number)).ended("failed", float(number), code="upstream_error")
        began(at, now=float(number)).ended("ok", float(number))
    began(at, now=5.0).ended("limited", 5.0, retry_after_s=2.0, code="rate_limit_exceeded")
    state = at.snapshot("a", 6.0)
    assert state.failures == 5
    assert state.errors[-1] == (1.0, "rate_limit_exceeded")
    assert state.errors[0] == (6.0, "upstream_error")
    assert state.standing.cooling
    assert at.began("a", 1, 6.9) is None
    assert at.began("a", 1, 7.0) is not None


def test_a_failure_with_a_time_to_come_back_is_left_alone_for_that_long() -> None:
    at = board()
    began(at).ended("failed", 0.0, retry_after_s=9.0)
    standing = at.standing("a", 0.0)
    assert (standing.phase, standing.wait_s, standing.cooling) == ("closed", 9.0, False), (
        "it did not say it was limited"
    )


def test_one_target_fails_and_the_others_are_as_before() -> None:
    at = board()
    for _ in range(FAILURES_IN_A_ROW):
        began(at, "a").ended("failed", 0.0)
        began(at, "b").ended("ok", 0.0)
    assert at.began("a", 1, 0.0) is None
    assert at.standing("b", 0.0) is FINE
    flight = began(at, "a", now=2.0)
    assert flight.trial
    assert at.began("a", 1, 2.0) is None
    flight.first_token(2.1)
    assert not flight.trial
    assert at.began("a", 1, 2.1) is not None


def test_health_checks_are_due_only_where_there_are_any() -> None:
    at = board()
    at.keep({"a": True, "b": False, "c": True})
    for name in "ab":
        for _ in range(FAILURES_IN_A_ROW):
            began(at, name).ended("failed", 0.0)
    assert at.due_probes(0.5) == []
    assert at.due_probes(2.0) == ["a"]
    probe = at.probe_began("a", 2.0)
    assert probe is not None
    assert at.due_probes(2.0) == []
    assert at.probe_began("a", 2.0) is None
    assert at.probe_began("c", 2.0) is None
    assert at.probe_began("nobody", 2.0) is None
    probe.ended(True, 2.1)
    probe.ended(False, 2.1)
    assert at.standing("a", 2.1).phase == "half_open"
    flight = began(at, "a", now=2.1)
    assert flight.trial
    assert at.began("a", 1, 2.1) is None
    assert at.began("a", 1, 2.1, alone=True) is not None
    flight.ended("ok", 2.2)
    assert at.standing("a", 2.2) is FINE


def test_a_reload_forgets_targets_that_are_gone_and_keeps_the_others() -> None:
    at = board()
    began(at, "a").ended("failed", 0.0)
    busy = began(at, "b")
    at.keep({"c": False})
    assert sorted(at.names()) == ["b", "c"]
    busy.ended("ok", 1.0)
    at.keep({"c": False})
    assert at.names() == ["c"]
    began(at, "c").ended("failed", 1.0)
    at.keep({"c": True})
    assert at.snapshot("c", 1.0).failures == 1


def test_hedges_wait_for_enough_samples() -> None:
    at = board()
    assert at.hedge_after_s("a", 95) is None
    for number in range(ENOUGH_SAMPLES):
        assert at.hedge_after_s("a", 95) is None
        flight = began(at)
        flight.first_token(0.01 * (number + 1))
        flight.ended("ok", 1.0)
    assert at.hedge_after_s("a", 95) == pytest.approx(0.19)
    assert at.hedge_after_s("a", 50) == pytest.approx(0.10)


# --- measures --------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=50), st.floats(0.0, 5.0))
@settings(deadline=None)
def test_a_peak_counts_at_once_and_good_news_slowly(samples: list[float], gap: float) -> None:
    average, now = PeakAverage(), 0.0
    for sample in samples:
        before = average.read(now)
        average.add(sample, now)
        after = average.read(now)
        assert after is not None
        if before is not None and sample < before:
            assert sample <= after <= before
        else:
            assert after == sample
        now += gap


def test_good_news_are_believed_in_the_end_even_all_at_one_moment() -> None:
    average = PeakAverage()
    average.add(10.0, 0.0)
    for _ in range(200):
        average.add(0.1, 0.0)
    assert average.read(0.0) == pytest.approx(0.1, rel=0.05)


def test_what_was_long_ago_is_not_known_any_more() -> None:
    average = PeakAverage()
    assert average.read(0.0) is None
    average.add(9.0, 0.0)
    assert average.read(STALE_S - 1) == 9.0
    assert average.read(STALE_S) is None
    average.add(1.0, STALE_S)
    assert average.read(STALE_S) == 1.0


@given(st.lists(st.floats(0, 100), min_size=1, max_size=3 * KEPT), st.floats(0, 100))
@settings(deadline=None)
def test_a_quantile_is_one_of_the_last_samples_in_its_place(samples: list[float], percentile: float) -> None:
    recent = Recent()
    for sample in samples:
        recent.add(sample)
    last = sorted(samples[-KEPT:])
    assert len(recent) == len(last)
    assert recent.quantile(percentile) == last[max(0, math.ceil(len(last) * percentile / 100) - 1)]


def test_quantiles_follow_new_samples_though_not_each() -> None:
    recent = Recent()
    for _ in range(KEPT):
        recent.add(1.0)
    assert recent.quantile(99) == 1.0
    for _ in range(KEPT):
        recent.add(5.0)
    assert recent.quantile(1) == 5.0
