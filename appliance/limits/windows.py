"""Windows of time and what was used in them. Pure; time is an argument.

A rolling window is kept in buckets of a sixtieth of its length. A bucket counts until the whole of it is older than
the window, so that never too little is counted and at most a sixtieth too long.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from appliance.settings.rates import UNITS
from appliance.settings.units import format_duration

BUCKETS = 60
SMALL_STEP_S = 2 * 86_400.0
"""How far a clock may go back without being taken for one that was wrong before."""
_BY_SECONDS = {seconds: unit for unit, seconds in UNITS.items()}

Bucket = list[Any]
"""[index (rolling) or start (calendar), amount]; kept by those who may have to correct the amount."""


@dataclass(frozen=True, slots=True)
class Window:
    """zone: None for a rolling window, else the time zone in which the calendar's `unit` begins."""

    seconds: int
    unit: str | None = None
    zone: str | None = None

    @property
    def code(self) -> str:
        """Short text that says which window this is; part of a counter's name."""
        return f"r{self.seconds}" if self.zone is None else f"{self.unit}@{self.zone}"

    @property
    def period(self) -> str:
        """As people say it: minute, 5m."""
        return self.unit or _BY_SECONDS.get(self.seconds) or format_duration(float(self.seconds))

    def usage(self) -> Usage:
        return Rolling(self.seconds) if self.zone is None else Calendar(self.unit or "day", self.zone)


def window_of(code: str) -> Window:
    """The inverse of `Window.code`. Raises ValueError."""
    if code[:1] == "r" and code[1:].isdecimal():
        return Window(int(code[1:]))
    unit, at, zone = code.partition("@")
    if not at or unit not in UNITS:
        raise ValueError(f"{code!r} is no window")
    _zone(zone)
    return Window(UNITS[unit], unit, zone)


class Rolling:
    """Used in the last `seconds`. Times are those of one clock that does not jump.

    floor, turn: at floor ≤ t < turn `advance` would change nothing and may be left out.
    """

    __slots__ = ("_width", "buckets", "floor", "oldest", "total", "turn")

    def __init__(self, seconds: float) -> None:
        self._width = seconds / BUCKETS
        self.floor = self.turn = -math.inf
        self.buckets: deque[Bucket] = deque()
        """In the order of their index."""
        self.oldest = -(1 << 62)
        """Lowest index that still counts. Never falls."""
        self.total = 0

    def advance(self, t: float) -> None:
        """Forget what has left the window at `t`."""
        index = int(t // self._width)
        oldest = index - BUCKETS
        if oldest > self.oldest:
            self.oldest = oldest
            self.turn = (index + 1) * self._width
            buckets = self.buckets
            while buckets and buckets[0][0] < oldest:
                self.total -= buckets.popleft()[1]

    def add(self, t: float, amount: int) -> Bucket:
        """Count `amount` at `t`. What has left the window already counts nowhere."""
        index = int(t // self._width)
        if index < self.oldest:
            return [index, amount]
        return self._put(index, amount)

    def take(self, t: float, amount: int) -> Bucket:
        """`add` right after `advance`, at the same moment."""
        return self._put(self.oldest + BUCKETS, amount)

    def _put(self, index: int, amount: int) -> Bucket:
        buckets = self.buckets
        if buckets and buckets[-1][0] == index:
            bucket = buckets[-1]
            bucket[1] += amount
        elif not buckets or buckets[-1][0] < index:
            bucket = [index, amount]
            buckets.append(bucket)
        else:
            bucket = self._between(index)
            bucket[1] += amount
        self.total += amount
        return bucket

    def has(self, bucket: Bucket) -> bool:
        """Whether a bucket that `add` gave still counts."""
        return bool(bucket[0] >= self.oldest)

    def _between(self, index: int) -> Bucket:
        place = bisect.bisect_left(self.buckets, index, key=lambda each: each[0])
        if self.buckets[place][0] == index:
            return self.buckets[place]
        bucket = [index, 0]
        self.buckets.insert(place, bucket)
        return bucket

    def correct(self, bucket: Bucket, by: int) -> None:
        """Change what a bucket that `add` gave holds."""
        bucket[1] += by
        if bucket[0] >= self.oldest:
            self.total += by

    def free_at(self, amount: int) -> float:
        """When at least `amount` of the total will have left, if nothing is added. `amount` ≤ total."""
        for index, held in self.buckets:
            amount -= held
            if amount <= 0:
                return float((index + BUCKETS + 1) * self._width)
        return self.reset_at()

    def reset_at(self) -> float:
        """When all of it will have left; 0.0 when there is nothing."""
        return float((self.buckets[-1][0] + BUCKETS + 1) * self._width) if self.buckets else 0.0

    def plain(self) -> list[list[int]]:
        return [list(bucket) for bucket in self.buckets if bucket[1]]

    def fill(self, plain: Sequence[Sequence[int]], t: float) -> None:
        """Take what `plain` gave. What lies after `t` counts as of `t`: a clock that went back gives nothing away."""
        now = int(t // self._width)
        for index, amount in plain:
            self.add((min(index, now) + 0.5) * self._width, amount)
        self.advance(t)


class Calendar:
    """Used since the calendar's unit began. Times are those of the wall clock. floor, turn: as `Rolling` has them."""

    __slots__ = ("_bucket", "_unit", "_zone", "end", "floor", "start", "total", "turn")

    def __init__(self, unit: str, zone: str) -> None:
        self._unit = unit
        self._zone = zone
        self.start = self.end = self.floor = self.turn = 0.0
        self._bucket: Bucket = [0.0, 0]
        self.total = 0

    def advance(self, t: float) -> None:
        """A clock that goes back a little stays in the window that it was in; one that goes back far has been wrong,
        and what was used moves along."""
        if t >= self.end:
            self._enter(t)
            self._bucket = [self.start, 0]
            self.total = 0
        elif t < self.floor:
            self._enter(t)
            self._bucket[0] = self.start

    def _enter(self, t: float) -> None:
        self.start, self.end = bounds(self._unit, self._zone, t)
        self.floor, self.turn = self.start - SMALL_STEP_S, self.end

    def add(self, t: float, amount: int) -> Bucket:
        """Count `amount` at `t`. What belongs to a window that is over counts nowhere."""
        self.advance(t)
        if t < self.start:
            return [t, amount]
        return self.take(t, amount)

    def take(self, t: float, amount: int) -> Bucket:
        """Count `amount` in the window that `advance` has found, whatever the clock says since."""
        self._bucket[1] += amount
        self.total += amount
        return self._bucket

    def has(self, bucket: Bucket) -> bool:
        return bucket is self._bucket

    def correct(self, bucket: Bucket, by: int) -> None:
        bucket[1] += by
        if bucket is self._bucket:  # a window that is over has given its bucket up
            self.total += by

    def free_at(self, amount: int) -> float:
        return self.end

    def reset_at(self) -> float:
        return self.end if self.total else 0.0

    def plain(self) -> list[list[Any]]:
        return [[self.start, self.total]] if self.total else []

    def fill(self, plain: Sequence[Sequence[Any]], t: float) -> None:
        """Take what `plain` gave, before anything was added."""
        for start, amount in plain:
            self._enter(float(start))
            self.total = int(amount)
            self._bucket = [self.start, self.total]
        self.advance(t)


Usage = Rolling | Calendar


@lru_cache(maxsize=64)
def _zone(name: str) -> tzinfo:
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (KeyError, OSError) as error:
        raise ValueError(f"there is no time zone {name!r}") from error


def bounds(unit: str, zone: str, t: float) -> tuple[float, float]:
    """Start and end (unix seconds) of the calendar's unit that `t` is in. Weeks begin on Monday.

    Days of 23 or 25 hours are as long as they are.
    """
    info = _zone(zone)
    local = datetime.fromtimestamp(t, info)
    if unit in ("second", "minute", "hour"):
        length = UNITS[unit]
        offset = (local.utcoffset() or timedelta()).total_seconds()
        start = (t + offset) // length * length - offset
        return start, start + length
    midnight = datetime(local.year, local.month, local.day)  # noqa: DTZ001 - a date; the zone comes with `_instant`
    if unit == "day":
        first, following = midnight, midnight + timedelta(days=1)
    elif unit == "week":
        first = midnight - timedelta(days=local.weekday())
        following = first + timedelta(days=7)
    else:
        first = midnight.replace(day=1)
        following = (first + timedelta(days=32)).replace(day=1)
    return _instant(first, info), _instant(following, info)


def _instant(local: datetime, info: tzinfo) -> float:
    """The first moment at which clocks show `local` or, where that hour is left out, have passed it."""
    return local.replace(tzinfo=info, fold=0).timestamp()
