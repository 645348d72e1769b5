"""Who goes next among those that wait for one target. Pure: times are arguments, monotonic seconds.

Three classes share the target by weight (self-clocked fair queueing): each has a clock that moves on by places/weight
when one of its entries goes, and the class goes next whose clock would then be furthest behind. So with weights 16:4:1
an urgent entry goes before all others that wait, and yet a batch entry lets only 16 interactive and 4 normal ones pass,
however many keep coming.
Inside a class the callers take turns; who took several places at once sits out as many rounds. Inside a caller the
order is that of arrival.

Every operation costs O(log n); only `push` into a full class looks at all its callers.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

import msgspec

from appliance.identity.principal import PRIORITIES, Priority

T = TypeVar("T")

EPSILON = 1e-9
"""Sums of fractions that should be equal differ by less."""
SLACK = 64
"""Dead members of a heap that are not worth a clean-up."""
MEMORY = 32
"""Places over whose time the service rate is averaged, at least; at most twice as many."""


class Rules(msgspec.Struct, frozen=True):
    """How one target is shared."""

    max_waiting: int = 1000
    """Most entries of one class."""
    max_wait: Mapping[Priority, float] = MappingProxyType({"interactive": 30.0, "normal": 60.0, "batch": 86_400.0})
    """Seconds."""
    weights: Mapping[Priority, int] = MappingProxyType({"interactive": 16, "normal": 4, "batch": 1})
    """Shares of the target while all classes wait; each at least 1."""


class Entry(Generic[T]):
    """One that waits. `what` is the owner's."""

    __slots__ = ("caller", "places", "priority", "since", "ticket", "until", "waiting", "what")

    def __init__(
        self, what: T, priority: Priority, caller: str, places: int = 1, *, since: float, until: float
    ) -> None:
        """since, until: when it came, and when it will have waited too long."""
        self.what = what
        self.priority = priority
        self.caller = caller
        self.places = places
        self.since = since
        self.until = until
        self.waiting = False
        """Whether it is in the queue."""
        self.ticket = 0


class _Caller(Generic[T]):
    """Somebody's entries in their order. Keeps its place in the turns while it has none, until its round comes."""

    __slots__ = ("entries", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.entries: OrderedDict[int, Entry[T]] = OrderedDict()


class _Class(Generic[T]):
    """The entries of one class: whose turn it is, and how far its clock has moved."""

    __slots__ = ("_callers", "_order", "_round", "_turns", "clock", "places", "waiting")

    def __init__(self) -> None:
        self.clock = 0.0
        self.waiting = 0
        """Entries."""
        self.places = 0
        """What they ask for together."""
        self._callers: dict[str, _Caller[T]] = {}
        self._turns: list[tuple[int, int, _Caller[T]]] = []
        """A heap by round and, within a round, by arrival; each caller is in it once."""
        self._round = 0
        self._order = 0

    def add(self, entry: Entry[T]) -> None:
        caller = self._callers.get(entry.caller)
        if caller is None:
            caller = self._callers[entry.caller] = _Caller(entry.caller)
            self._order += 1
            heapq.heappush(self._turns, (self._round + 1, self._order, caller))
        caller.entries[entry.ticket] = entry
        self.waiting += 1
        self.places += entry.places

    def drop(self, entry: Entry[T]) -> None:
        """Take one out, wherever it is."""
        del self._callers[entry.caller].entries[entry.ticket]
        self.waiting -= 1
        self.places -= entry.places
        if len(self._turns) > 2 * self.waiting + SLACK:
            self._turns = [turn for turn in self._turns if turn[2].entries]
            heapq.heapify(self._turns)
            self._callers = {turn[2].name: turn[2] for turn in self._turns}

    def first(self) -> Entry[T]:
        """The next one; there must be one."""
        turns = self._turns
        while not (entries := turns[0][2].entries):
            del self._callers[heapq.heappop(turns)[2].name]
        return next(iter(entries.values()))

    def take(self) -> Entry[T]:
        """Take out the next one."""
        entry = self.first()
        self._round, _, caller = self._turns[0]
        self._order += 1
        heapq.heapreplace(self._turns, (self._round + entry.places, self._order, caller))
        self.drop(entry)
        return entry

    def last_of_longest(self, caller: str) -> Entry[T] | None:
        """The newest entry of whoever waits most; None if one more of `caller` would make that one no smaller."""
        mine = self._callers.get(caller)
        longest = max(self._callers.values(), key=lambda each: len(each.entries), default=None)
        if longest is None or len(longest.entries) <= (len(mine.entries) if mine else 0) + 1:
            return None
        return next(reversed(longest.entries.values()))


class FairQueue(Generic[T]):
    """A bounded queue of three classes."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        """May be replaced at any time; counts from then on."""
        self._classes: dict[Priority, _Class[T]] = {priority: _Class() for priority in PRIORITIES}
        self._now = 0.0
        """Where the clock of the class stands that was served last."""
        self._tickets = 0
        self._deadlines: list[tuple[float, int, Entry[T]]] = []
        self.count = 0
        """Entries of all classes."""

    def __len__(self) -> int:
        return self.count

    def waiting(self, priority: Priority) -> int:
        """Entries of a class."""
        return self._classes[priority].waiting

    def push(self, entry: Entry[T]) -> Entry[T] | None:
        """Add an entry. In a full class somebody has to give way, and is given back: the newest entry of the caller
        that waits most, or `entry` itself, which is then not added."""
        mine = self._classes[entry.priority]
        loser = None
        if mine.waiting >= self.rules.max_waiting:
            loser = mine.last_of_longest(entry.caller)
            if loser is None:
                return entry
            self.remove(loser)
        if not self.count:
            # Nobody competed, so that nobody owes anybody anything.
            self._now = 0.0
            for each in self._classes.values():
                each.clock = 0.0
        if not mine.waiting:
            mine.clock = max(mine.clock, self._now)
        self._tickets += 1
        entry.ticket = self._tickets
        entry.waiting = True
        self.count += 1
        mine.add(entry)
        heapq.heappush(self._deadlines, (entry.until, entry.ticket, entry))
        return loser

    def peek(self) -> Entry[T] | None:
        """Who goes next."""
        best = self._next()
        return None if best is None else self._classes[best].first()

    def pop(self) -> Entry[T]:
        """Take the next one out. Raises IndexError if nobody waits."""
        best = self._next()
        if best is None:
            raise IndexError("nobody waits")
        mine = self._classes[best]
        entry = mine.take()
        mine.clock += entry.places / self.rules.weights[best]
        self._now = max(self._now, mine.clock)
        self._gone(entry)
        return entry

    def remove(self, entry: Entry[T]) -> bool:
        """Take an entry out wherever it is; False if it is not in the queue."""
        if not entry.waiting:
            return False
        self._classes[entry.priority].drop(entry)
        self._gone(entry)
        return True

    def expire(self, now: float) -> list[Entry[T]]:
        """Take out those whose time is over, the earliest first."""
        over: list[Entry[T]] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            entry = heapq.heappop(self._deadlines)[2]
            if self.remove(entry):
                over.append(entry)
        return over

    def next_deadline(self) -> float | None:
        """When the next one will have waited too long."""
        while self._deadlines and not self._deadlines[0][2].waiting:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def clear(self) -> list[Entry[T]]:
        """Take out all."""
        return self.expire(float("inf"))

    def ahead(self, priority: Priority) -> float:
        """About how many places are given before one that would join this class now: all of its class, and what the
        other classes get meanwhile."""
        mine, weights = self._classes[priority], self.rules.weights
        own = mine.places + 1
        others = (
            min(other.places, own * weights[name] / weights[priority])
            for name, other in self._classes.items()
            if other is not mine
        )
        return own + sum(others)

    def _next(self) -> Priority | None:
        if not self.count:
            return None
        best, behind = None, float("inf")
        for priority, each in self._classes.items():
            if not each.waiting:
                continue
            if each.waiting == self.count:
                return priority
            clock = each.clock + each.first().places / self.rules.weights[priority]
            if clock < behind - EPSILON:  # equal clocks: the more urgent
                best, behind = priority, clock
        return best

    def _gone(self, entry: Entry[T]) -> None:
        entry.waiting = False
        self.count -= 1
        if len(self._deadlines) > 2 * self.count + SLACK:
            self._deadlines = [each for each in self._deadlines if each[2].waiting]
            heapq.heapify(self._deadlines)


class Meter:
    """How long a place is taken on average, from those taken and those given back (Little's law).

    It holds whether or not the target is busy, and one that answers nobody any more counts at once.
    """

    __slots__ = ("_at", "_given_back", "_place_seconds", "_taken")

    def __init__(self, now: float, seconds: float = 1.0) -> None:
        """seconds: the guess before anything is known."""
        self._at = now
        self._taken = 0
        self._given_back = 1.0
        self._place_seconds = seconds

    def moved(self, places: int, now: float) -> None:
        """Take in that so many places were taken (or, negative, given back)."""
        self._place_seconds += self._taken * (now - self._at)
        self._at = now
        self._taken += places
        if places < 0:
            self._given_back -= places
            if self._given_back > 2 * MEMORY:
                self._given_back /= 2
                self._place_seconds /= 2

    def seconds(self, now: float) -> float:
        """Mean time that one place is taken."""
        return (self._place_seconds + self._taken * (now - self._at)) / self._given_back
