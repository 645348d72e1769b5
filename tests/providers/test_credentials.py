"""Several keys of one provider: who is chosen, who rests and for how long, and how often a provider is asked."""

from __future__ import annotations

import itertools
import logging
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import OutpostError, RateLimited, TargetLimited, TargetUsedUp, UpstreamError, UpstreamFailed
from appliance.providers.credentials import (
    REFUSED_REST_S,
    Credential,
    Credentials,
    Key,
    Keys,
    Pace,
    choose,
    next_rest_s,
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def house(*weights: float, clock: Clock | None = None, draw: float = 0.0, most: int | None = None) -> Credentials:
    keys = [Key(f"k{i}", f"sk-secret-number-{i}", weight) for i, weight in enumerate(weights)]
    made = Keys("lab", keys, clock=clock or Clock(), draw=lambda: draw, requests_per_minute=most)
    return made.credentials("lab/m")


LIMITED = "slow down"


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=5), st.integers(0, 2**32))
def test_shares_follow_the_weights(weights: list[float], seed: int) -> None:
    credentials = [Credential(Key(str(i), "s", weight)) for i, weight in enumerate(weights)]
    drawn = random.Random(seed)
    tries = 3000
    counts = dict.fromkeys(range(len(weights)), 0)
    for _ in range(tries):
        found = choose(credentials, drawn.random(), 0.0)
        assert found is not None
        counts[int(found.name)] += 1
    for i, weight in enumerate(weights):
        assert abs(counts[i] / tries - weight / sum(weights)) < 0.06


@given(
    st.lists(st.tuples(st.floats(0.1, 10), st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=5),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 10),
)
def test_none_that_rests_is_chosen(keys: list[tuple[float, float, float]], share: float, now: float) -> None:
    credentials = []
    for weight, rests, out in keys:
        credentials.append(made := Credential(Key("k", "s", weight)))
        made.rests_until, made.key.out_until = rests, out
    found = choose(credentials, share, now)
    free = [each for each in credentials if each.rests_until <= now and each.key.out_until <= now]
    assert (found is None) == (not free)
    assert found is None or found in free


def test_a_rate_limit_lets_its_key_rest_and_another_goes_on() -> None:
    clock = Clock()
    credentials = house(1, 1, clock=clock)
    first = credentials.take()
    error = TargetLimited(LIMITED, retry_after_s=7.0)
    credentials.failed(first, 429, error)
    assert error.retry_after_s == 0.0  # another is free
    assert credentials.another_is_free()
    second = credentials.take()
    assert second is not first
    error = TargetLimited(LIMITED, retry_after_s=30.0)
    credentials.failed(second, 429, error)
    assert error.retry_after_s == 7.0
    assert not credentials.another_is_free()
    with pytest.raises(TargetLimited) as caught:
        credentials.take()
    assert caught.value.retry_after_s == 7.0
    clock.now += 7.0
    assert credentials.take() is first


def test_without_a_word_of_the_provider_rests_grow_and_an_answer_ends_that() -> None:
    clock = Clock()
    credentials = house(1, 1, clock=clock)
    first = credentials.take()
    rests = []
    for _ in range(9):
        credentials.failed(first, 429, TargetLimited(LIMITED))
        rests.append(first.rests_until - clock.now)
        clock.now = first.rests_until
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    credentials.succeeded(first)
    credentials.failed(first, 429, TargetLimited(LIMITED))
    assert first.rests_until - clock.now == 1


@given(st.floats(0, 1e6), st.none() | st.floats(0, 3600), st.floats(1, 3600))
def test_a_rest_is_what_was_asked_for_or_bounded(last: float, asked: float | None, longest: float) -> None:
    rest, following = next_rest_s(last, asked, longest)
    if asked is not None:
        assert (rest, following) == (asked, last)
    else:
        assert 1.0 <= rest <= longest
        assert rest == following


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, UpstreamError("no", code="upstream_credentials")),
        (403, UpstreamError("no", code="upstream_credentials")),
        (400, UpstreamError("no", code="upstream_credentials")),
        (429, TargetUsedUp("nothing left")),
    ],
)
def test_a_key_that_is_refused_rests_for_every_target_and_is_told_once(
    status: int, error: RateLimited, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    keys = Keys("lab", [Key("a", "sk-secret-a"), Key("b", "sk-secret-b")], clock=clock, draw=lambda: 0.0)
    one, other = keys.credentials("lab/m"), keys.credentials("lab/n")
    first = one.take()
    with caplog.at_level(logging.WARNING):
        one.failed(first, status, error)
        one.failed(first, status, error)
    assert len(caplog.records) == 1
    assert "the key a of provider lab" in caplog.text
    assert "sk-secret" not in caplog.text
    assert other.take().name == one.take().name == "b"
    clock.now += REFUSED_REST_S
    assert one.take().name == "a"


def test_a_rate_limit_of_one_target_says_nothing_about_another() -> None:
    keys = Keys("lab", [Key("a", "x"), Key("b", "y")], clock=Clock(), draw=lambda: 0.0)
    one, other = keys.credentials("lab/m"), keys.credentials("lab/n")
    one.failed(one.take(), 429, TargetLimited(LIMITED, retry_after_s=9.0))
    assert one.take().name == "b"
    assert other.take().name == "a"


def test_a_failure_that_is_not_the_keys_changes_nothing() -> None:
    credentials = house(1, 1)
    first = credentials.take()
    error = UpstreamFailed("500")
    credentials.failed(first, 500, error)
    assert credentials.take() is first
    assert error.retry_after_s is None


def test_the_only_key_never_rests() -> None:
    credentials = house(1)
    for status, error in ((429, TargetLimited(LIMITED, retry_after_s=9.0)), (401, UpstreamError("no"))):
        credentials.failed(credentials.take(), status, error)
        assert credentials.take() is credentials.all[0]
    assert not credentials.another_is_free()
    limited = TargetLimited(LIMITED, retry_after_s=9.0)
    credentials.failed(credentials.take(), 429, limited)
    assert limited.retry_after_s == 9.0  # the target's own word


def test_without_keys_requests_go_out_without_one() -> None:
    found = Keys("lab").credentials("lab/m").take()
    assert (found.text, found.secret) == (None, b"")


def test_no_text_shows_a_secret() -> None:
    credentials = house(1, 1)
    for thing in (credentials.all[0], credentials.all[0].key, credentials.all):
        assert "secret" not in repr(thing)
        assert "secret" not in str(thing)
    assert credentials.all[0].secret == b"sk-secret-number-0"
    assert Credential(Key("k", "EMPTY")).secret == b""


# --- how often ------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.lists(st.floats(0, 40), min_size=1, max_size=40))
def test_no_minute_has_more_than_allowed_and_none_waits_longer_than_it_must(most: int, gaps: list[float]) -> None:
    pace, sent = Pace(most), []
    for now in itertools.accumulate(gaps):
        within = [at for at in sent if at > now - 60.0]
        wait = pace.take(now)
        if wait:
            assert len(within) == most
            assert wait == pytest.approx(min(within) + 60.0 - now)
        else:
            sent.append(now)
    for at in sent:
        assert sum(at <= each < at + 60.0 - 1e-6 for each in sent) <= most


def test_a_provider_that_is_asked_as_often_as_it_may_is_skipped_with_the_time_until_it_may_be() -> None:
    clock = Clock()
    keys = Keys("lab", [Key("a", "x")], clock=clock, requests_per_minute=2)
    one, other = keys.credentials("lab/m"), keys.credentials("lab/n")
    one.take()
    clock.now += 20
    other.take()
    with pytest.raises(TargetLimited, match="operator allows") as caught:
        one.take()
    assert caught.value.retry_after_s == 40.0
    clock.now += 40
    one.take()


# --- requests that must be nobody's trouble ---------------------------------------------------------


@pytest.mark.parametrize("error", [RateLimited(LIMITED), UpstreamError("no"), TargetUsedUp("no quota")])
def test_what_is_refused_aside_rests_no_key_of_others(error: OutpostError) -> None:
    clock = Clock()
    keys = Keys("lab", [Key("a", "sk-secret-number-a"), Key("b", "sk-secret-number-b")], clock=clock, draw=lambda: 0.0)
    aside, others = keys.aside().credentials("lab/m"), keys.credentials("lab/m")
    for status in (401, 403, 429):
        for credential in aside.all:
            aside.failed(credential, status, error)
    with pytest.raises(TargetLimited):
        aside.take()
    assert [each.text for each in aside.all] == [each.text for each in others.all]
    assert others.take().name == "a"


@given(st.integers(1, 20), st.lists(st.tuples(st.booleans(), st.floats(0, 30)), max_size=80))
def test_aside_half_of_what_may_be_asked_in_a_minute_is_left(most: int, asked: list[tuple[bool, float]]) -> None:
    """However both ask: the provider is asked no more often than allowed, and half of it aside at most."""
    clock = Clock()
    keys = Keys("lab", [Key("a", "sk-secret-number-a")], clock=clock, requests_per_minute=most)
    own, aside = keys.credentials("lab/m"), keys.aside().credentials("lab/m")
    sent: list[tuple[float, bool]] = []
    for beside, pause_s in asked:
        clock.now += pause_s
        try:
            (aside if beside else own).take()
        except TargetLimited:
            recent = [which for at, which in sent if at > clock.now - 60]
            assert 2 * len(recent) >= (most if beside else 2 * most)
            continue
        sent.append((clock.now, beside))
        recent = [which for at, which in sent if at > clock.now - 60]
        assert len(recent) <= most
        assert 2 * (sum(recent) - 1) < most
