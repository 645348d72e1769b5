"""`when:` on a target: which requests it is for. Pure over plain facts.

Every part of a condition that is given must hold; where a part is a list, one of its entries suffices.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo

import msgspec

from appliance.routing.strategies import Zone

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 24 * 60
_HOURS = re.compile(r"([0-9]{1,2}):([0-9]{2})\s*[-–]\s*([0-9]{1,2}):([0-9]{2})", re.ASCII)


class Hours(msgspec.Struct, frozen=True):
    """A time of day, as clocks there show it: from the one minute up to, not including, the other. Where it ends before
    it begins it goes on past midnight, and belongs to the day on which it began."""

    from_minute: int
    until_minute: int
    """1440: midnight, the end of the day. The same as `from_minute`: a whole day from there."""
    weekdays: frozenset[int] = frozenset()
    """0 is Monday; empty: all."""
    timezone: str = "UTC"


class Condition(msgspec.Struct, frozen=True):
    min_prompt_tokens: int | None = None
    max_prompt_tokens: int | None = None
    capability: tuple[str, ...] = ()
    """Features that the request uses, as the dialects name them (tools, images, json_schema, reasoning, …)."""
    tags: tuple[str, ...] = ()
    teams: tuple[str, ...] = ()
    organizations: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    zones: tuple[Zone, ...] = ()
    """How far the data of the request may go."""
    hours: tuple[Hours, ...] = ()
    min_complexity: int | None = None
    max_complexity: int | None = None
    """Both 0 to 100, included."""


ALWAYS = Condition()


class Facts(msgspec.Struct, frozen=True):
    """What conditions ask of a request."""

    at: float
    """Unix seconds."""
    prompt_tokens: int = 0
    features: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    teams: frozenset[str] = frozenset()
    """Ids and names of the team that asks: a condition may use either. So with the next two."""
    organizations: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    zone: Zone = "cloud"
    """The farthest that its data may go; cloud: nobody demands anything."""
    complexity: int | None = None
    """None: nobody has asked for it (see `uses_complexity`), or it is no chat; then no condition on it holds."""


def matches(condition: Condition, facts: Facts) -> tuple[bool, str]:
    """Whether the target is for this request; if not, why. An asker's own name never is part of the reason."""
    if condition == ALWAYS:
        return True, ""
    for check in _CHECKS:
        why = check(condition, facts)
        if why:
            return False, f"when: {why}"
    return True, ""


def uses_complexity(condition: Condition) -> bool:
    return condition.min_complexity is not None or condition.max_complexity is not None


def features_of(needs: Iterable[tuple[str, str, bool]]) -> frozenset[str]:
    """The features that a request uses, from its kind's `needs`."""
    return frozenset([feature for feature, _, _ in needs])


def parse_hours(text: str, weekdays: Sequence[str] = (), timezone: str = "UTC") -> Hours:
    """Hours from settings: `08:00-18:00`, `22:00-06:00`, `00:00-24:00`. Raises ValueError that says what to write."""
    match = _HOURS.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no time of day; write it like 08:00-18:00 or 22:00-06:00")
    from_minute, until_minute = _minute(text, match[1], match[2]), _minute(text, match[3], match[4])
    if from_minute == DAY_MINUTES:
        raise ValueError(f"{text!r}: 24:00 can only be an end; a day begins at 00:00")
    days = []
    for day in weekdays:
        if day not in WEEKDAYS:
            raise ValueError(f"{day!r} is no day of the week; use {', '.join(WEEKDAYS)}")
        days.append(WEEKDAYS.index(day))
    clock(timezone)
    return Hours(from_minute, until_minute, frozenset(days), timezone)


@lru_cache(maxsize=64)
def clock(name: str) -> tzinfo:
    """Raises ValueError for a time zone that there is not."""
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (KeyError, OSError, ValueError) as error:
        raise ValueError(f"there is no time zone {name!r}; write it like Europe/Berlin or UTC") from error


def within(hours: Hours, at: float) -> bool:
    """Whether clocks in the time zone show a time of these hours at `at` (unix seconds). They are read as people read
    them: an hour that clocks show twice counts twice, and one that they leave out not at all."""
    local = datetime.fromtimestamp(at, clock(hours.timezone))
    minute = local.hour * 60 + local.minute
    if hours.from_minute < hours.until_minute:
        return hours.from_minute <= minute < hours.until_minute and _on(hours, local)
    if minute >= hours.from_minute:
        return _on(hours, local)
    # What began yesterday.
    return minute < hours.until_minute and _on(hours, local - timedelta(days=1))


def _on(hours: Hours, local: datetime) -> bool:
    return not hours.weekdays or local.weekday() in hours.weekdays


def _minute(text: str, hour: str, minute: str) -> int:
    total = int(hour) * 60 + int(minute)
    if int(minute) > 59 or total > DAY_MINUTES:
        raise ValueError(f"{text!r}: there is no {hour}:{minute}; a day has 00:00 to 24:00")
    return total


# --- the parts of a condition: each says what does not hold, or nothing ----------------------------


def _length(condition: Condition, facts: Facts) -> str:
    least, most, tokens = condition.min_prompt_tokens, condition.max_prompt_tokens, facts.prompt_tokens
    if least is not None and tokens < least:
        return f"it is for prompts of {least} tokens or more, and this one has about {tokens}"
    if most is not None and tokens > most:
        return f"it is for prompts of up to {most} tokens, and this one has about {tokens}"
    return ""


def _capability(condition: Condition, facts: Facts) -> str:
    return _any(condition.capability, facts.features, "requests with")


def _tags(condition: Condition, facts: Facts) -> str:
    return _any(condition.tags, facts.tags, "requests with the tag")


def _teams(condition: Condition, facts: Facts) -> str:
    return _any(condition.teams, facts.teams, "the team")


def _organizations(condition: Condition, facts: Facts) -> str:
    return _any(condition.organizations, facts.organizations, "the organization")


def _keys(condition: Condition, facts: Facts) -> str:
    return _any(condition.keys, facts.keys, "the key")


def _zone(condition: Condition, facts: Facts) -> str:
    return _any(condition.zones, (facts.zone,), "requests whose data may go as far as")


def _time(condition: Condition, facts: Facts) -> str:
    if not condition.hours or any(within(hours, facts.at) for hours in condition.hours):
        return ""
    return f"it is for {' or '.join(map(_shown, condition.hours))}"


def _complexity(condition: Condition, facts: Facts) -> str:
    if not uses_complexity(condition):
        return ""
    least, most = condition.min_complexity or 0, 100 if condition.max_complexity is None else condition.max_complexity
    if facts.complexity is None:
        return "it is for prompts of some complexity, and this request has none that could be told"
    if least <= facts.complexity <= most:
        return ""
    return f"it is for a complexity of {least} to {most}, and this prompt has {facts.complexity}"


_CHECKS: tuple[Callable[[Condition, Facts], str], ...] = (
    _length,
    _capability,
    _tags,
    _teams,
    _organizations,
    _keys,
    _zone,
    _complexity,
    _time,
)


def _any(wanted: Sequence[str], has: Collection[str], what: str) -> str:
    if not wanted or any(each in has for each in wanted):
        return ""
    return f"it is for {what} {' or '.join(wanted)}"


def _shown(hours: Hours) -> str:
    days = f" {','.join([WEEKDAYS[day] for day in sorted(hours.weekdays)])}" if hours.weekdays else ""
    begin, end = (f"{minute // 60:02}:{minute % 60:02}" for minute in (hours.from_minute, hours.until_minute))
    return f"{begin}-{end}{days} ({hours.timezone})"
