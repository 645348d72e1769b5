"""What clients are told of limits, read back by their own rules."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import RateLimited
from appliance.exchange import error_headers
from appliance.limits.book import Book, Reservation
from appliance.limits.clock import Now
from appliance.limits.headers import headers, reset_text
from appliance.limits.rules import Bound, Context, Demand, Rule
from appliance.limits.standing import Near
from appliance.limits.windows import Window

NOW = Now(1_700_000_000.0, 9.0)
MINUTE, DAY = Window(60), Window(86_400, "day", "UTC")
CTX = Context(team="t", user="u")
ITEM = re.compile(r'"((?:[^"\\]|\\.)*)"((?:;[a-z]+=\d+)*)')


def book() -> Book:
    rules = [
        Rule("burst", "burst", "user", (Bound(0, 10, MINUTE), Bound(3, 5000, DAY), Bound(4, 10**9, DAY))),
        Rule('od"d', 'od"d', "team", (Bound(0, 100, DAY), Bound(2, 700, MINUTE)), in_flight=3),
    ]
    return Book(rules, NOW)


def items(text: str) -> dict[str, dict[str, int]]:
    """A list of strings with parameters, as RFC 9651 has it."""
    found = {}
    for part in text.split(", "):
        match = ITEM.fullmatch(part)
        assert match is not None, part
        pairs = [each.split("=") for each in match[2].split(";") if each]
        found[re.sub(r"\\(.)", r"\1", match[1])] = {name: int(value) for name, value in pairs}
    return found


def test_the_tightest_of_each_kind_is_told() -> None:
    one = book()
    assert isinstance(one.reserve(CTX, Demand(100, 400, 5), NOW), Reservation)
    found = headers(*one.tightest(CTX, NOW))
    assert found["x-ratelimit-limit-requests"] == "10"
    assert found["x-ratelimit-remaining-requests"] == "9"
    assert found["x-ratelimit-reset-requests"] == "1m0.001s" or found["x-ratelimit-reset-requests"].startswith("1m")
    assert found["x-ratelimit-limit-tokens"] == "700"
    assert found["x-ratelimit-remaining-tokens"] == "300"
    assert items(found["RateLimit-Policy"]) == {
        "burst-requests": {"q": 10, "w": 60},
        'od"d-output_tokens': {"q": 700, "w": 60},
    }
    limits = items(found["RateLimit"])
    assert {name: each["r"] for name, each in limits.items()} == {"burst-requests": 9, 'od"d-output_tokens': 300}
    assert all(60 <= each["t"] <= 62 for each in limits.values())
    assert "usd" not in str(found)


def test_the_seconds_until_more_may_be_asked_are_never_too_few() -> None:
    near = Near("burst", "requests", 10, 60, 0, 1.2)
    assert items(headers(near, None)["RateLimit"]) == {"burst-requests": {"r": 0, "t": 2}}
    assert items(headers(None, near)["RateLimit"]) == {"burst-requests": {"r": 0, "t": 2}}


@pytest.mark.parametrize(("seconds", "told"), [(1.2, "2"), (2.0, "2"), (0.0, "1"), (0.3, "1")])
def test_nobody_is_told_to_come_back_too_early(seconds: float, told: str) -> None:
    assert error_headers(RateLimited("Wait.", retry_after_s=seconds)) == {"Retry-After": told}


def test_where_nothing_is_limited_nothing_is_told() -> None:
    assert headers(*Book([], NOW).tightest(CTX, NOW)) == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0201, "21ms"), (1, "1s"), (1.5, "1.5s"), (60, "1m0s"), (360, "6m0s"), (86_400, "24h0m0s")],
)
def test_reset_times_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert reset_text(seconds) == text


@given(st.floats(0, 10**7))
def test_reset_times_are_never_too_short(seconds: float) -> None:
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:(\d+)ms)?", reset_text(seconds))
    assert parts is not None
    hours, minutes, rest, ms = (float(part or 0) for part in parts.groups())
    total = hours * 3600 + minutes * 60 + rest + ms / 1000
    assert seconds - 1e-6 <= total <= seconds + 0.0011
