"""Durations and sizes: exact both ways, and refused with a cure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st

from appliance.settings.units import (
    BadForm,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    spoken_period,
    spoken_wait,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2s", 2.0),
        ("500ms", 0.5),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("30d", 2592000.0),
        ("1h30m", 5400.0),
        ("1m500ms", 60.5),
        ("0.1s", 0.1),
        ("1_000s", 1000.0),
        ("10", 10.0),
        ("0", 0.0),
        (" 2s ", 2.0),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "10:30", "-1s", "1 s", "1x", "1m1h", "1s1s", "inf", "nan", "1e9s", "٣s", "9" * 40 + "s"]
)
def test_what_is_no_duration_is_refused_with_a_cure(text: str) -> None:
    with pytest.raises(BadForm) as caught:
        parse_duration(text)
    assert "is not a duration" in caught.value.message
    assert "1h30m" in caught.value.cure


@bounds(deadline=None, max_examples=100)
@given(st.integers(0, 10**12))
def test_a_duration_in_milliseconds_survives_printing(milliseconds: int) -> None:
    seconds = float(milliseconds) / 1000
    assert parse_duration(format_duration(seconds)) == seconds


@bounds(deadline=None, max_examples=100)
@given(st.floats(min_value=0.0, max_value=1e8).map(lambda value: round(value, 9)))
def test_any_sensible_duration_survives_printing(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-12)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0s"), (60.0, "1m"), (90.0, "90s"), (3600.0, "1h"), (86400.0, "1d"), (0.5, "500ms"), (0.0015, "1.5ms")],
)
def test_durations_are_printed_in_one_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1 s"),
        (0.2, "1 s"),
        (59.1, "1 min"),
        (3599.0, "59 min 59 s"),
        (3599.5, "1 h"),
        (3601.0, "1 h 1 min"),
        (77_597.0, "21 h 34 min"),
        (86_341.0, "1 day"),
        (90_001.0, "1 day 2 h"),
        (2_592_000.0, "30 days"),
    ],
)
def test_a_wait_is_told_in_two_units_and_never_too_short(seconds: float, text: str) -> None:
    assert spoken_wait(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(10, "10 s"), (90, "90 s"), (300, "5 min"), (43_200, "12 h"), (172_800, "2 days")]
)
def test_a_period_is_told_exactly(seconds: int, text: str) -> None:
    assert spoken_period(format_duration(float(seconds))) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20MiB", 20 << 20),
        ("50GiB", 50 << 30),
        ("1.5KiB", 1536),
        ("20MB", 20_000_000),
        ("20mb", 20_000_000),
        ("7B", 7),
        ("1_000", 1000),
        ("64 KiB", 65536),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "20M", "1.5", "0.3B", "-1B", "MiB", "99999999TiB", "1e9", "1" * 30])
def test_what_is_no_size_is_refused_with_a_cure(text: str) -> None:
    with pytest.raises(BadForm) as caught:
        parse_size(text)
    assert "20MiB" in caught.value.cure


@bounds(deadline=None, max_examples=100)
@given(st.integers(0, 1 << 60))
def test_every_size_survives_printing(size: int) -> None:
    assert parse_size(format_size(size)) == size


@bounds(deadline=None, max_examples=100)
@given(st.text(max_size=30))
def test_no_text_raises_anything_but_bad_form(text: str) -> None:
    for parse in (parse_duration, parse_size):
        try:
            told = f"{parse(text)}"
        except BadForm as bad:
            told = bad.cure
        assert told
        assert not told.startswith("-")
