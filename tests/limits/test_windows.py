"""Windows: rolling ones never count too little, calendar ones begin where people's days do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import settings as bounds_of
from hypothesis import strategies as st

from appliance.limits.windows import BUCKETS, Calendar, Rolling, Window, bounds, window_of

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Havana",  # changes its clocks at midnight
    "Asia/Kolkata",
    "Australia/Lord_Howe",  # by half an hour
    "Pacific/Apia",  # left out a whole day
    "America/Sao_Paulo",
    "Asia/Beirut",
]
UNITS = ["second", "minute", "hour", "day", "week", "month"]
moments = st.floats(0, 2_000_000_000) | st.sampled_from([1_711_846_800.0, 1_729_994_400.0, 1_325_239_200.0]).flatmap(
    lambda t: st.floats(t - 90_000, t + 90_000)
)


@bounds_of(deadline=None, max_examples=400)
@given(t=moments, zone=st.sampled_from(ZONES), unit=st.sampled_from(UNITS))
def test_every_moment_is_in_exactly_one_window_and_they_follow_each_other(t: float, zone: str, unit: str) -> None:
    start, end = bounds(unit, zone, t)
    assert start <= t < end
    assert bounds(unit, zone, start) == (start, end)
    assert bounds(unit, zone, (start + end) / 2) == (start, end)
    assert bounds(unit, zone, end)[0] == end
    if unit in ("day", "week", "month"):
        local = datetime.fromtimestamp(start, ZoneInfo(zone))
        before = datetime.fromtimestamp(start - 1, ZoneInfo(zone))
        assert before.date() < local.date(), "it begins with the first moment of its date"
        assert unit != "month" or local.day == 1
        assert unit != "week" or local.weekday() == 0


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Berlin", datetime(2026, 3, 29, 12, tzinfo=UTC), 23),
        ("Europe/Berlin", datetime(2026, 10, 25, 12, tzinfo=UTC), 25),
        ("Europe/Berlin", datetime(2026, 7, 1, 12, tzinfo=UTC), 24),
        ("Australia/Lord_Howe", datetime(2026, 4, 5, 3, tzinfo=UTC), 24.5),
    ],
)
def test_days_are_as_long_as_they_are(zone: str, day: datetime, hours: float) -> None:
    start, end = bounds("day", zone, day.timestamp())
    assert (end - start) / 3600 == hours


def test_a_month_is_a_month() -> None:
    start, end = bounds("month", "UTC", datetime(2028, 2, 10, tzinfo=UTC).timestamp())
    assert datetime.fromtimestamp(end, UTC) - datetime.fromtimestamp(start, UTC) == timedelta(days=29)


@bounds_of(deadline=None, max_examples=200)
@given(
    seconds=st.sampled_from([1, 7, 60, 300, 86_400]),
    steps=st.lists(st.tuples(st.floats(0, 1.5), st.integers(0, 100), st.floats(0, 1)), max_size=40),
)
def test_a_rolling_window_counts_all_of_it_and_at_most_a_sixtieth_more(
    seconds: int, steps: list[tuple[float, int, float]]
) -> None:
    rolling, kept, t = Rolling(seconds), [], 1_700_000_000.0
    for step, amount, back in steps:
        t += step * seconds / 4
        rolling.advance(t)
        at = t - back * seconds * 1.2  # also what was dispatched a while ago
        rolling.add(at, amount)
        kept.append((at, amount))
        exact = sum(each for when, each in kept if when > t - seconds)
        longest = sum(each for when, each in kept if when > t - seconds * (1 + 1 / BUCKETS) - 1e-6)
        assert exact <= rolling.total <= longest
        assert len(rolling.buckets) <= BUCKETS + 1
    copy = Rolling(seconds)
    copy.fill(rolling.plain(), t)
    assert (copy.total, copy.plain()) == (rolling.total, rolling.plain())
    rolling.advance(t + seconds * 2)
    assert rolling.total == 0


@given(amounts=st.lists(st.integers(1, 50), min_size=1, max_size=10), want=st.integers(1, 500))
def test_free_at_is_when_enough_has_left_and_not_later_than_a_bucket(amounts: list[int], want: int) -> None:
    rolling, t = Rolling(60), 1_700_000_000.0
    for number, amount in enumerate(amounts):
        rolling.add(t + number * 3.3, amount)
    want = min(want, rolling.total)
    before, at = rolling.total, rolling.free_at(want)
    rolling.advance(at - 1e-3)
    assert before - rolling.total < want
    rolling.advance(at + 1e-3)
    assert before - rolling.total >= want


def test_corrections_after_the_window_change_nothing() -> None:
    for usage, later in ((Rolling(60), 70.0), (Calendar("minute", "UTC"), 70.0)):
        usage.advance(1_700_000_000.0)
        bucket = usage.add(1_700_000_000.0, 50)
        usage.correct(bucket, -20)
        assert usage.total == 30
        assert usage.has(bucket)
        usage.advance(1_700_000_000.0 + later)
        usage.correct(bucket, 1000)
        assert usage.total == 0
        assert not usage.has(bucket)


@pytest.mark.parametrize(
    "window", [Window(60), Window(300), Window(86_400, "day", "Europe/Berlin"), Window(2_592_000, "month", "UTC")]
)
def test_a_windows_code_leads_back_to_it(window: Window) -> None:
    assert window_of(window.code) == window


@pytest.mark.parametrize("code", ["", "r", "r-1", "rx", "day", "day@Nowhere/X", "fortnight@UTC", "day@../etc"])
def test_other_texts_are_no_windows(code: str) -> None:
    with pytest.raises(ValueError):
        window_of(code)


@pytest.mark.parametrize(("window", "period"), [(Window(60), "minute"), (Window(300), "5m"), (Window(86_400), "day")])
def test_periods_have_names(window: Window, period: str) -> None:
    assert window.period == period
