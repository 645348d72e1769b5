"""When a target may be asked: never more than one trial, back soon after it recovers. No clock."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appliance.errors import (
    BadRequest,
    ClientStalled,
    ContentFiltered,
    DeadlineExceeded,
    EngineLost,
    ModelLoading,
    Overloaded,
    RateLimited,
    UpstreamFailed,
    UpstreamTimeout,
)
from appliance.routing.breaker import (
    FAILURES_IN_A_ROW,
    FINE,
    FIRST_PAUSE_S,
    MOST_PAUSE_S,
    MOST_TRIALS,
    STEADY_S,
    TRIAL_LEASE_S,
    WINDOW_LEAST,
    Breaker,
    Pass,
    Standing,
    outcome_of,
    usable,
)

CHANCE = st.floats(0, 1, exclude_max=True)


def take(breaker: Breaker, now: float) -> Pass:
    given = breaker.take(now)
    assert given is not None
    return given


def take_probe(breaker: Breaker, now: float) -> Pass:
    given = breaker.take_probe(now)
    assert given is not None
    return given


def fail(breaker: Breaker, now: float, times: int = 1) -> None:
    for _ in range(times):
        breaker.failed(take(breaker, now), now, 0.5, "upstream_error")


def opened(now: float = 0.0, *, has_probe: bool = False) -> Breaker:
    breaker = Breaker(has_probe=has_probe)
    fail(breaker, now, FAILURES_IN_A_ROW)
    assert not usable(breaker.standing(now))
    return breaker


def half_open(*, has_probe: bool = False) -> tuple[Breaker, float]:
    breaker = opened(has_probe=has_probe)
    return breaker, breaker.standing(0.0).wait_s


def trial(breaker: Breaker, now: float) -> Pass:
    given = take(breaker, now)
    assert given.trial
    return given


def test_a_new_target_is_fine() -> None:
    assert Breaker().standing(0.0) is FINE


def test_it_opens_at_the_fifth_failure_in_a_row_and_says_why() -> None:
    breaker = Breaker()
    fail(breaker, 0.0, FAILURES_IN_A_ROW - 1)
    assert breaker.standing(0.0) is FINE
    fail(breaker, 0.0)
    standing = breaker.standing(0.0)
    assert standing.phase == "open"
    assert 0.75 * FIRST_PAUSE_S <= standing.wait_s <= FIRST_PAUSE_S
    assert standing.reason == "5 failures in a row (upstream_error)"
    assert breaker.take(0.0) is None


def test_a_success_between_failures_begins_the_row_anew() -> None:
    breaker = Breaker()
    for _ in range(2):
        fail(breaker, 0.0, FAILURES_IN_A_ROW - 1)
        breaker.ok(take(breaker, 0.0), 0.0)
    assert breaker.standing(0.0) is FINE


def test_half_of_many_failures_open_it_though_never_in_a_row() -> None:
    breaker = Breaker()
    for number in range(WINDOW_LEAST):
        given = take(breaker, 0.0)
        if number % 2:
            breaker.failed(given, 0.0, 0.5)
        else:
            breaker.ok(given, 0.0)
    assert breaker.standing(0.0).phase == "open"
    assert "10 of its last 20" in breaker.standing(0.0).reason


def test_failures_long_ago_are_forgotten() -> None:
    breaker = Breaker()
    for number in range(200):  # every second one fails, but only one a second is asked
        given = take(breaker, number * 3.0)
        if number % 2:
            breaker.failed(given, number * 3.0, 0.5)
        else:
            breaker.ok(given, number * 3.0)


@pytest.mark.parametrize("outcome", ["given_back", "answered"])
def test_what_says_nothing_neither_opens_it_nor_ends_a_row(outcome: str) -> None:
    breaker = Breaker()
    for _ in range(100):
        getattr(breaker, outcome)(breaker.take(0.0), 0.0)
    assert breaker.standing(0.0) is FINE
    fail(breaker, 0.0, FAILURES_IN_A_ROW - 1)
    getattr(breaker, outcome)(breaker.take(0.0), 0.0)
    fail(breaker, 0.0)
    assert breaker.standing(0.0).phase == "open"


def test_pauses_double_with_each_failed_trial_up_to_the_longest() -> None:
    breaker, now = half_open()
    waits = []
    for _ in range(8):
        breaker.failed(trial(breaker, now), now, 0.999)
        waits.append(breaker.standing(now).wait_s)
        now += waits[-1]
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(2.0, rel=0.01)
    assert waits[-1] == pytest.approx(MOST_PAUSE_S, rel=0.01)
    assert max(waits) <= MOST_PAUSE_S


def test_a_trial_that_begins_to_answer_closes_it_but_one_failure_opens_it_again() -> None:
    breaker, now = half_open()
    given = breaker.proven(trial(breaker, now), now)
    assert breaker.standing(now) is FINE
    breaker.failed(given, now, 0.5)  # the stream was cut after its first token
    assert breaker.standing(now).phase == "open"
    assert breaker.standing(now).wait_s > FIRST_PAUSE_S  # longer than the first time


def test_a_complete_answer_ends_the_probation() -> None:
    breaker, now = half_open()
    breaker.ok(trial(breaker, now), now)
    fail(breaker, now, FAILURES_IN_A_ROW - 1)
    assert breaker.standing(now) is FINE


def test_a_flapping_target_waits_longer_and_a_steady_one_begins_anew() -> None:
    breaker, now = half_open()
    breaker.ok(trial(breaker, now), now)
    fail(breaker, now, FAILURES_IN_A_ROW)
    assert breaker.standing(now).wait_s > FIRST_PAUSE_S
    now += MOST_PAUSE_S
    breaker.ok(trial(breaker, now), now)
    now += STEADY_S
    fail(breaker, now, FAILURES_IN_A_ROW)
    assert breaker.standing(now).wait_s <= FIRST_PAUSE_S


def test_a_trial_that_is_called_off_is_made_by_the_next() -> None:
    breaker, now = half_open()
    given = trial(breaker, now)
    assert breaker.take(now) is None
    assert not usable(breaker.standing(now))
    breaker.given_back(given, now)
    assert usable(breaker.standing(now))
    trial(breaker, now)


def test_a_trial_that_is_refused_shows_that_the_target_lives() -> None:
    breaker, now = half_open()
    breaker.answered(trial(breaker, now), now)
    assert breaker.standing(now) is FINE


def test_a_lost_trial_does_not_lock_a_target_out_for_ever() -> None:
    breaker, now = half_open()
    lost = trial(breaker, now)
    assert breaker.take(now + TRIAL_LEASE_S - 1) is None
    later = now + TRIAL_LEASE_S
    again = trial(breaker, later)
    breaker.failed(lost, later, 0.5)  # it is heard of after all, and changes nothing
    assert breaker.take(later) is None
    breaker.ok(again, later)
    assert breaker.standing(later) is FINE


def test_outcomes_of_attempts_from_before_it_opened_change_nothing() -> None:
    breaker = Breaker()
    old = [take(breaker, 0.0) for _ in range(20)]
    fail(breaker, 0.0, FAILURES_IN_A_ROW)
    wait_s = breaker.standing(0.0).wait_s
    for given in old[:10]:
        breaker.failed(given, 0.5, 0.5)
    breaker.ok(old[10], 0.5)
    assert breaker.standing(0.0).wait_s == wait_s
    now = wait_s
    breaker.ok(trial(breaker, now), now)
    for given in old[11:]:
        breaker.failed(given, now, 0.5)
    assert breaker.standing(now) is FINE


def test_a_target_with_a_health_check_is_never_tried_with_a_request() -> None:
    breaker, now = half_open(has_probe=True)
    assert not breaker.wants_probe(now - 0.01)
    assert breaker.take(now) is None
    assert not usable(breaker.standing(now))
    assert breaker.wants_probe(now)
    probe = breaker.take_probe(now)
    assert probe is not None
    assert not breaker.wants_probe(now)
    assert breaker.take_probe(now) is None
    assert breaker.take(now) is None
    breaker.failed(probe, now, 0.5, "health_check")
    assert not breaker.wants_probe(now)
    now += breaker.standing(now).wait_s
    breaker.probed(take_probe(breaker, now), now)
    assert not breaker.wants_probe(now)
    given = trial(breaker, now)
    assert breaker.take(now) is None, "that it can be reached lets one request through, not all"
    breaker.failed(given, now, 0.5)  # healthy, as it says; but requests still fail
    assert breaker.standing(now).phase == "open"
    now += breaker.standing(now).wait_s
    assert breaker.take(now) is None
    breaker.probed(take_probe(breaker, now), now)
    breaker.ok(trial(breaker, now), now)
    assert breaker.standing(now) is FINE


def test_a_target_that_is_told_to_cool_down_is_left_alone_for_that_long_and_not_opened() -> None:
    breaker = Breaker()
    breaker.cool(0.0, 0.5, 7.0)
    standing = breaker.standing(0.0)
    assert standing[:4] == ("closed", 7.0, True, "it gets too many requests")
    assert breaker.take(6.99) is None
    assert breaker.take(7.0) is not None
    assert breaker.standing(7.0) is FINE


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("", "it gets too many requests"),
        ("rate_limit_exceeded", "it gets too many requests"),
        ("upstream_quota", "the gateway's account there has no quota left"),
    ],
)
def test_why_it_takes_no_more_is_kept_as_long_as_it_counts(code: str, reason: str) -> None:
    breaker = Breaker()
    breaker.cool(0.0, 0.5, 7.0, code=code)
    breaker.cool(1.0, 0.5, 2.0, code="another")
    assert breaker.standing(1.0) == Standing("closed", 6.0, True, reason, code=code)
    breaker.cool(2.0, 0.5, 9.0, code="another")
    assert breaker.standing(2.0).code == "another"


def test_it_is_down_while_its_failures_are_what_it_waits_for() -> None:
    breaker = Breaker()
    for _ in range(FAILURES_IN_A_ROW):
        breaker.failed(take(breaker, 0.0), 0.0, 0.999)
    assert breaker.standing(0.0).down
    breaker.cool(0.0, 0.5, 0.5)
    assert breaker.standing(0.0).down
    breaker.cool(0.0, 0.5, 5.0)
    assert not breaker.standing(0.0).down
    now = 5.0
    assert not breaker.standing(now).down, "it may be asked"
    trial(breaker, now)
    assert breaker.standing(now).down


def test_without_a_time_coolings_grow_and_those_of_one_moment_are_one() -> None:
    breaker = Breaker()
    now, waits = 0.0, []
    for _ in range(8):
        for _ in range(5):
            breaker.cool(now, 0.999)
        waits.append(breaker.standing(now).wait_s)
        now += waits[-1]
    assert waits[0] == pytest.approx(1.0, rel=0.01)
    assert waits[1] == pytest.approx(2.0, rel=0.01)
    assert waits[-1] == pytest.approx(30.0, rel=0.01)
    breaker.ok(take(breaker, now), now)
    breaker.cool(now, 0.999)
    assert breaker.standing(now).wait_s == pytest.approx(1.0, rel=0.01)


def test_times_that_were_told_at_one_moment_are_one_too() -> None:
    breaker = Breaker()
    for _ in range(5):
        breaker.cool(0.0, 0.999, 2.0)
    breaker.cool(2.0, 0.999)
    assert breaker.standing(2.0).wait_s == pytest.approx(2.0, rel=0.01)


def test_a_shorter_time_never_shortens_a_longer_one() -> None:
    breaker = Breaker()
    breaker.cool(0.0, 0.5, 60.0)
    breaker.cool(1.0, 0.5, 2.0)
    breaker.cool(1.0, 0.5)
    assert breaker.standing(1.0).wait_s == 59.0


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "ok"),
        (UpstreamFailed("x"), "failed"),
        (UpstreamTimeout("x"), "failed"),
        (EngineLost("x"), "cancelled"),
        (UpstreamFailed("x", code="answer_diverged"), "cancelled"),
        (RateLimited("x"), "limited"),
        (BadRequest("x"), "refused"),
        (ContentFiltered("x"), "refused"),
        (DeadlineExceeded("x"), "cancelled"),
        (ClientStalled("x"), "cancelled"),
        (ModelLoading("x"), "cancelled"),
        (Overloaded("x"), "cancelled"),
        (asyncio.CancelledError(), "cancelled"),
        (KeyError("a mistake of ours"), "cancelled"),
    ],
)
def test_what_an_error_says_about_the_target(error: BaseException | None, outcome: str) -> None:
    assert outcome_of(error) == outcome


@for_all(
    chances=st.lists(CHANCE, min_size=1, max_size=12), recovers=st.floats(0, 200), asked_every=st.floats(0.01, 2.0)
)
@settings(max_examples=60, deadline=None)
def test_it_is_back_within_30_seconds_of_recovery(chances: list[float], recovers: float, asked_every: float) -> None:
    breaker, now, draws = Breaker(), 0.0, 0
    while True:
        given = breaker.take(now)
        if given is not None:
            if now >= recovers:
                breaker.ok(given, now)
                break
            breaker.failed(given, now, chances[draws % len(chances)])
            draws += 1
        now += asked_every
    assert now - recovers <= 30.0
    assert breaker.standing(now) is FINE


class Lives(RuleBasedStateMachine):
    """Whatever happens in whatever order: one trial at a time, and no way in while it is open."""

    @initialize(has_probe=st.booleans())
    def begin(self, has_probe: bool) -> None:
        self.breaker = Breaker(has_probe=has_probe)
        self.has_probe = has_probe
        self.now = 0.0
        self.out: list[Pass] = []
        self.probing: Pass | None = None
        self.reached = False
        """Its health check has succeeded since it was opened."""

    @property
    def trials(self) -> list[Pass]:
        """Those that count."""
        return [given for given in self.out if given.trial and given.epoch == self.breaker._epoch]

    @rule()
    def ask(self) -> None:
        standing = self.breaker.standing(self.now)
        given = self.breaker.take(self.now)
        assert (given is not None) == usable(standing)
        if given is not None:
            assert not given.trial or self.reached or not self.has_probe
            assert given.trial == (standing.phase == "half_open" and not standing.last)
            assert not (given.trial and self.trials)
            self.out.append(given)

    @rule()
    def ask_alone(self) -> None:
        standing = self.breaker.standing(self.now)
        given = self.breaker.take(self.now, alone=True)
        assert (given is not None) == (usable(standing) or standing.alone)
        if given is not None:
            assert not given.trial or self.reached or not self.has_probe
            self.out.append(given)

    @rule()
    def probe(self) -> None:
        wanted = self.breaker.wants_probe(self.now)
        given = self.breaker.take_probe(self.now)
        assert (given is not None) == wanted
        if given is not None:
            assert self.has_probe
            assert not self.trials
            self.probing = given

    @precondition(lambda self: self.probing is not None)
    @rule(chance=CHANCE, ok=st.booleans())
    def end_probe(self, chance: float, ok: bool) -> None:
        assert self.probing is not None
        if ok:
            self.breaker.probed(self.probing, self.now)
            self.reached = True
        else:
            self.breaker.failed(self.probing, self.now, chance)
        self.probing = None

    @precondition(lambda self: self.out)
    @rule(data=st.data(), how=st.sampled_from(["ok", "failed", "failed", "given_back", "answered", "proven"]))
    def end(self, data: st.DataObject, how: str) -> None:
        given = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        if given.trial and given.epoch == self.breaker._epoch and how != "given_back":
            self.reached = False
        if how == "failed":
            self.breaker.failed(given, self.now, data.draw(CHANCE))
        elif how == "proven":
            going_on = self.breaker.proven(given, self.now)
            assert not going_on.trial
            self.out.append(going_on)
        else:
            getattr(self.breaker, how)(given, self.now)

    @rule(chance=CHANCE, after=st.none() | st.floats(0.1, 30))
    def cool(self, chance: float, after: float | None) -> None:
        self.breaker.cool(self.now, chance, after)

    @rule(seconds=st.sampled_from([0.01, 0.5, 1.0, 3.0, 25.0]))
    def wait(self, seconds: float) -> None:
        if not self.trials and self.probing is None:  # else its lease may end: see above
            self.now += seconds

    @invariant()
    def a_few_trials_at_most(self) -> None:
        assert len(self.trials) <= MOST_TRIALS
        assert self.breaker._trials == len(self.trials) + (self.probing is not None)

    @invariant()
    def no_pause_is_too_long(self) -> None:
        standing = self.breaker.standing(self.now)
        assert standing.wait_s <= 30.001
        assert bool(standing.reason) == (standing is not FINE)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
