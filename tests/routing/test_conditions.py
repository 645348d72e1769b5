"""Which requests a target is for, also when clocks are turned."""

from __future__ import annotations

import ast
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dialects import chat
from appliance.routing.conditions import (
    ALWAYS,
    Condition,
    Facts,
    Hours,
    clock,
    features_of,
    matches,
    parse_hours,
    uses_complexity,
    within,
)
from appliance.settings.routing import REQUEST_FEATURES

ROOT = Path(__file__).parents[2]
BERLIN = ZoneInfo("Europe/Berlin")
SPRING = datetime(2026, 3, 29, tzinfo=BERLIN)
"""02:00 to 03:00 is left out."""
AUTUMN = datetime(2026, 10, 25, tzinfo=BERLIN)
"""02:00 to 03:00 comes twice."""
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])
MOMENTS = st.integers(1_700_000_000, 1_900_000_000)
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()  # a Monday


def at(text: str, zone: str = "Europe/Berlin", fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def facts(**fields: Any) -> Facts:
    return Facts(**{"at": NOON, **fields})


FULL = Facts(
    at=NOON,
    prompt_tokens=1000,
    features=frozenset({"tools", "images"}),
    tags=frozenset({"research"}),
    teams=frozenset({"team_1", "blue"}),
    organizations=frozenset({"org_default"}),
    keys=frozenset({"key_1", "ci"}),
    zone="on_prem",
    complexity=50,
)


@pytest.mark.parametrize(
    ("condition", "holds", "says"),
    [
        (Condition(), True, ""),
        (Condition(max_prompt_tokens=1000), True, ""),
        (Condition(max_prompt_tokens=999), False, "up to 999 tokens, and this one has about 1000"),
        (Condition(min_prompt_tokens=1000), True, ""),
        (Condition(min_prompt_tokens=1001), False, "1001 tokens or more"),
        (Condition(capability=("images",)), True, ""),
        (Condition(capability=("json_schema", "tools")), True, ""),
        (Condition(capability=("json_schema", "reasoning")), False, "requests with json_schema or reasoning"),
        (Condition(tags=("research", "x")), True, ""),
        (Condition(tags=("x",)), False, "the tag x"),
        (Condition(teams=("blue",)), True, ""),
        (Condition(teams=("team_1",)), True, ""),
        (Condition(teams=("red",)), False, "the team red"),
        (Condition(organizations=("org_default",)), True, ""),
        (Condition(organizations=("org_2",)), False, "the organization org_2"),
        (Condition(keys=("ci",)), True, ""),
        (Condition(keys=("cd",)), False, "the key cd"),
        (Condition(zones=("on_box", "on_prem")), True, ""),
        (Condition(zones=("cloud",)), False, "may go as far as cloud"),
        (Condition(min_complexity=50, max_complexity=50), True, ""),
        (Condition(min_complexity=51), False, "complexity of 51 to 100, and this prompt has 50"),
        (Condition(max_complexity=49), False, "complexity of 0 to 49"),
        (Condition(hours=(parse_hours("08:00-18:00"),)), True, ""),
        (Condition(hours=(parse_hours("18:00-08:00"),)), False, "18:00-08:00 (UTC)"),
        (Condition(hours=(parse_hours("18:00-08:00"), parse_hours("11:00-13:00"))), True, ""),
        (Condition(hours=(parse_hours("08:00-18:00", ["sat", "sun"]),)), False, "08:00-18:00 sat,sun (UTC)"),
        (Condition(max_prompt_tokens=5000, tags=("research",), teams=("red",)), False, "the team red"),
    ],
)
def test_each_part_of_a_condition(condition: Condition, holds: bool, says: str) -> None:
    met, why = matches(condition, FULL)
    assert met == holds
    assert says in why
    assert bool(why) == (not holds)


def test_an_unknown_complexity_meets_no_condition_on_it() -> None:
    assert matches(Condition(max_complexity=100), facts()) == (
        False,
        "when: it is for prompts of some complexity, and this request has none that could be told",
    )
    assert uses_complexity(Condition(max_complexity=0))
    assert not uses_complexity(ALWAYS)


PARTS = {
    "min_prompt_tokens": st.integers(0, 2000),
    "max_prompt_tokens": st.integers(0, 2000),
    "capability": st.sampled_from([("tools",), ("reasoning",)]),
    "tags": st.sampled_from([("research",), ("x",)]),
    "teams": st.sampled_from([("blue",), ("red",)]),
    "zones": st.sampled_from([("on_prem",), ("cloud",)]),
    "min_complexity": st.integers(0, 100),
}


@given(st.fixed_dictionaries({}, optional=PARTS))
@settings(deadline=None)
def test_all_parts_must_hold(parts: dict[str, Any]) -> None:
    alone = [matches(Condition(**{name: value}), FULL)[0] for name, value in parts.items()]
    assert matches(Condition(**parts), FULL)[0] == all(alone)


def test_features_are_those_that_a_request_needs() -> None:
    needs = [("tools", "tools", False), ("images", "messages[0].content[1]", False), ("images", "x", False)]
    assert features_of(needs) == {"tools", "images"}


# --- hours ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("08:00-18:00", (480, 1080)),
        (" 8:00 - 18:30 ", (480, 1110)),
        ("22:00–06:00", (1320, 360)),
        ("00:00-24:00", (0, 1440)),
        ("12:00-12:00", (720, 720)),
    ],
)
def test_hours_are_read(text: str, hours: tuple[int, int]) -> None:
    read = parse_hours(text, ["mon", "fri"], "Europe/Berlin")
    assert read == Hours(*hours, frozenset({0, 4}), "Europe/Berlin")


@pytest.mark.parametrize(
    ("text", "weekdays", "zone", "says"),
    [
        ("8-18", [], "UTC", "like 08:00-18:00"),
        ("", [], "UTC", "like 08:00-18:00"),
        ("25:00-26:00", [], "UTC", "00:00 to 24:00"),
        ("08:60-09:00", [], "UTC", "there is no 08:60"),
        ("24:00-06:00", [], "UTC", "begins at 00:00"),
        ("٠٨:00-09:00", [], "UTC", "like 08:00-18:00"),
        ("08:00-18:00", ["monday"], "UTC", "mon, tue"),
        ("08:00-18:00", [], "Mars/Olympus", "like Europe/Berlin"),
        ("08:00-18:00", [], "../etc/passwd", "like Europe/Berlin"),
        ("08:00-18:00", [], "", "like Europe/Berlin"),
    ],
)
def test_hours_that_are_none_are_refused_with_what_to_write(
    text: str, weekdays: list[str], zone: str, says: str
) -> None:
    with pytest.raises(ValueError, match=says.replace(".", r"\.")):
        parse_hours(text, weekdays, zone)


def test_hours_past_midnight_belong_to_the_day_on_which_they_begin() -> None:
    night = parse_hours("22:00-06:00", ["fri"], "Europe/Berlin")
    assert within(night, at("2026-06-05T22:00"))  # Friday
    assert within(night, at("2026-06-06T05:59"))  # Saturday morning
    assert not within(night, at("2026-06-06T06:00"))
    assert not within(night, at("2026-06-05T05:00"))  # Friday morning: that began on Thursday
    assert not within(night, at("2026-06-06T23:00"))


def test_a_day_may_begin_at_noon() -> None:
    day = parse_hours("12:00-12:00", ["mon"])
    assert within(day, NOON)
    assert within(day, NOON + 23.99 * 3600)
    assert not within(day, NOON - 1)
    assert not within(day, NOON + 24 * 3600)


def test_clocks_that_are_turned_forward_leave_an_hour_out() -> None:
    hours = parse_hours("02:00-03:00", timezone="Europe/Berlin")
    begin = SPRING.timestamp()
    assert not any(within(hours, begin + minute * 60) for minute in range(23 * 60))
    early = parse_hours("01:00-04:00", timezone="Europe/Berlin")
    assert sum(within(early, begin + minute * 60) for minute in range(23 * 60)) == 2 * 60


def test_clocks_that_are_turned_back_show_an_hour_twice() -> None:
    hours = parse_hours("02:00-03:00", timezone="Europe/Berlin")
    begin = AUTUMN.timestamp()
    assert sum(within(hours, begin + minute * 60) for minute in range(25 * 60)) == 2 * 60
    assert within(hours, at("2026-10-25T02:30", fold=0))
    assert within(hours, at("2026-10-25T02:30", fold=1))


def test_nights_over_a_change_of_clocks_belong_to_their_day() -> None:
    night = parse_hours("22:00-06:00", ["sat"], "Europe/Berlin")
    for sunday, hours in ((SPRING, 7), (AUTUMN, 9)):
        begin = sunday.timestamp() - 2 * 3600  # Saturday 22:00
        assert sum(within(night, begin + minute * 60) for minute in range(24 * 60)) == hours * 60


@given(MOMENTS, ZONES, st.integers(0, 1439), st.integers(0, 1440), st.frozensets(st.integers(0, 6), max_size=3))
@settings(deadline=None)
def test_a_moment_is_within_when_a_clock_shows_it(
    moment: int, zone: str, begin: int, end: int, weekdays: frozenset[int]
) -> None:
    local = datetime.fromtimestamp(moment, ZoneInfo(zone))
    shown, today = local.hour * 60 + local.minute, local.weekday()
    length = (end - begin) % 1440 or 1440
    if begin < end:
        length = end - begin
    # The day on which the hours that could hold this minute began.
    began = today if shown >= begin else (today - 1) % 7
    expected = (shown - begin) % 1440 < length and (not weekdays or began in weekdays)
    assert within(Hours(begin, end, weekdays, zone), moment) == expected


@given(MOMENTS, ZONES, st.integers(0, 1439), st.integers(0, 1439))
@settings(deadline=None)
def test_hours_and_the_others_make_up_a_day(moment: int, zone: str, begin: int, end: int) -> None:
    if begin != end:
        assert within(Hours(begin, end, timezone=zone), moment) != within(Hours(end, begin, timezone=zone), moment)


@given(MOMENTS, ZONES)
@settings(deadline=None)
def test_hours_follow_the_clock_and_not_the_number_of_seconds(moment: int, zone: str) -> None:
    """Nine o'clock is nine o'clock on every day of the year."""
    local = datetime.fromtimestamp(moment, clock(zone)).replace(hour=9, minute=30, fold=0)
    hours = parse_hours("09:00-10:00", timezone=zone)
    for days in range(0, 364, 13):
        assert within(hours, (local + timedelta(days=days)).timestamp())


def needed() -> dict[str, str]:
    """Every feature that a dialect says a request may need, and the file that says so."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "appliance" / "dialects").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 3:
                words = [each.value for each in ast.walk(node.value.elts[0]) if isinstance(each, ast.Constant)]
                found |= {word: path.name for word in words if isinstance(word, str)}
    return found | dict.fromkeys((*chat._MEDIA.values(), *(name for _, name in chat._FEATURES)), "chat.py")


def test_every_feature_that_a_request_may_use_can_be_a_condition() -> None:
    missing = {name: where for name, where in needed().items() if name not in REQUEST_FEATURES}
    assert not missing, "add them to REQUEST_FEATURES in appliance/settings/routing.py"
    assert {"images", "json_object", "container", "top_k"} <= needed().keys()
