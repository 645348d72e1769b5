"""Waiting for a busy target: as many requests at a time as it can work on, the rest in a fair queue.

A place is handed over directly to the one that is next, in the callback that frees it; nobody else wakes up. Use from
one event loop. Times are the loop's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Protocol

import msgspec

from appliance.errors import BadRequest, OutpostError, Overloaded, Unavailable
from appliance.identity.principal import PRIORITIES, Priority
from appliance.limits.fair_queue import Entry, FairQueue, Meter, Rules

logger = logging.getLogger("outpost.limits")

UNLIMITED = 1 << 40
LONGEST_RETRY_S = 3600.0
EARLY_S = 0.001
"""The loop's clock is this coarse: a timer may ring that much before its time."""


_RANK = {each: rank for rank, each in enumerate(PRIORITIES)}


def choose_priority(asked: str | None, most: Priority | None, default: Priority) -> Priority:
    """The class of a request: what its header asks for or else `default`, but no more urgent than `most`.

    Raises BadRequest for a word that is no class.
    """
    wanted = default
    if asked is not None:
        word = asked.strip().lower()
        if word not in PRIORITIES:
            raise BadRequest(
                f"x-outpost-priority is {asked[:32]!a}; write one of {', '.join(PRIORITIES)}, or leave it out.",
                param="x-outpost-priority",
            )
        wanted = word
    return least_urgent(wanted, most)


def least_urgent(first: Priority, *others: Priority | None) -> Priority:
    """The least urgent of some classes; None counts as no bound."""
    least = first
    for other in others:
        if other is not None and _RANK[other] > _RANK[least]:
            least = other
    return least


class Visit:
    """One request's way through a gate: `async with` it, or `await enter()` and later `leave()`. For one use.

    `queue_s`: how long it waited, seconds.
    """

    __slots__ = ("_caller", "_deadline_s", "_future", "_gate", "_inside", "_places", "_priority", "queue_s")

    def __init__(self, gate: Gate, priority: Priority, caller: str, deadline_s: float | None, places: int) -> None:
        self._gate = gate
        self._priority = priority
        self._caller = caller
        self._deadline_s = deadline_s
        self._places = places
        self._inside = 0
        """The places it holds."""
        self._future: asyncio.Future[OutpostError | None] | None = None
        self.queue_s = 0.0

    async def enter(self) -> Visit:
        """Return when there is room. Raises Overloaded (codes overloaded, queue_timeout), or Unavailable after the
        gate was closed."""
        gate = self._gate
        if not gate.admit(self):
            await self._wait(gate)
        return self

    __aenter__ = enter

    def enter_at_once(self) -> bool:
        """Go in if there is room and nobody waits; else nothing has happened."""
        return self._gate.admit(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def give_back(self, places: int = 1) -> None:
        """Some of its work is done: give so many places back, at most those that it has."""
        if given := min(places, self._inside):
            self._inside -= given
            self._gate.free(given)

    def leave(self) -> None:
        """Give back all places; a second time it does nothing."""
        if places := self._inside:
            self._inside = 0
            self._gate.free(places)

    async def _wait(self, gate: Gate) -> None:
        loop = asyncio.get_running_loop()
        self._future = loop.create_future()
        entry = gate.line_up(self, self._priority, self._caller, self._places, self._deadline_s, loop.time())
        try:
            refused = await self._future
        except asyncio.CancelledError:
            # The client has gone, perhaps in the same turn of the loop in which its place came free.
            if not gate.step_out(entry):
                self.leave()
            raise
        finally:
            self.queue_s = loop.time() - entry.since
        if refused is not None:
            raise refused

    def admitted(self, places: int) -> bool:
        """Take the places and wake up; False if it has been given up already."""
        future = self._future
        if future is None or future.done():
            return False
        self._inside = places
        future.set_result(None)
        return True

    def refused(self, error: OutpostError) -> None:
        """Wake up with an error."""
        if self._future is not None and not self._future.done():
            self._future.set_result(error)


class Gate:
    """The entrance to one target, which works on `capacity` things at a time; a request may hold several of them.

    A request goes in when there is a place for its first choice; the others wait inside. So a large request neither
    lets places stand idle until it fits, nor fits never.
    """

    def __init__(
        self,
        name: str,
        rules: Rules,
        capacity: int,
        most: int = UNLIMITED,
        *,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """most: what may be inside together with a large request. clock: the loop's, if it is not the running one's."""
        self.name = name
        self.capacity = capacity
        self.most = most
        self.inside = 0
        """Places that are taken."""
        self._clock = clock or asyncio.get_running_loop().time
        self._queue: FairQueue[Visit] = FairQueue(rules)
        self._meter = Meter(self._clock())
        self._moved = self._meter.moved
        self._timer: asyncio.TimerHandle | None = None
        self._closed: OutpostError | None = None

    def enter(self, priority: Priority, caller: str, deadline_s: float | None = None, *, places: int = 1) -> Visit:
        """`async with gate.enter(…) as visit`. caller: those of one class take turns. deadline_s: the longest wait,
        instead of what the rules say for the class."""
        return Visit(self, priority, caller, deadline_s, places)

    def waiting(self, priority: Priority) -> int:
        """Requests of a class that wait."""
        return self._queue.waiting(priority)

    def resize(self, capacity: int, most: int = UNLIMITED) -> None:
        """Replicas have come or gone. Nobody is thrown out; 0 lets all wait."""
        self.capacity = capacity
        self.most = most
        self._pump()

    def change(self, rules: Rules) -> None:
        """Those that wait keep their deadlines."""
        self._queue.rules = rules

    def close(self, error: OutpostError) -> None:
        """Refuse all that wait and all that come; those inside finish."""
        self._closed = error
        for entry in self._queue.clear():
            entry.what.refused(error)
        self._watch()

    def retry_after(self, priority: Priority) -> float:
        """Seconds until one that joined the queue now would get its place, by what was measured of late."""
        seconds = self._queue.ahead(priority) * self._meter.seconds(self._clock()) / max(1, self.capacity)
        return min(seconds, LONGEST_RETRY_S)

    # --- for Visit ------------------------------------------------------------------------------

    def admit(self, visit: Visit) -> bool:
        """Let a request in if there is room and nobody waits."""
        places, inside = visit._places, self.inside
        if self._queue.count or inside >= self.capacity or self._closed is not None:
            return False
        if inside + places > self.most and inside:
            return False
        visit._inside = places
        self.inside = inside + places
        self._moved(places, self._clock())
        return True

    def line_up(
        self, visit: Visit, priority: Priority, caller: str, places: int, deadline_s: float | None, now: float
    ) -> Entry[Visit]:
        """Put a request into the queue. Raises Overloaded if it is full, Unavailable if the gate is closed."""
        if self._closed is not None:
            raise self._closed
        wait = self._queue.rules.max_wait[priority] if deadline_s is None else deadline_s
        entry = Entry(visit, priority, caller, places, since=now, until=now + wait)
        loser = self._queue.push(entry)
        if loser is entry:
            raise self._full(priority)
        if loser is not None:
            loser.what.refused(self._full(priority))
        self._pump()
        self._watch()
        return entry

    def step_out(self, entry: Entry[Visit]) -> bool:
        """Take one that has left out of the queue; False if it is not there any more."""
        if not self._queue.remove(entry):
            return False
        self._pump()  # it may have stood before smaller ones
        return True

    def free(self, places: int) -> None:
        """Take places back, and hand them on."""
        self.inside -= places
        self._moved(-places, self._clock())
        if self._queue.count:
            self._pump()

    # --- inside ---------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Let in as many as there is room for, in their order."""
        queue = self._queue
        while (entry := queue.peek()) is not None and self._fits(entry.places):
            if entry.what.admitted(entry.places):
                queue.pop()
                self.inside += entry.places
                self._moved(entry.places, self._clock())
            else:
                queue.remove(entry)

    def _fits(self, places: int) -> bool:
        return self.inside < self.capacity and (self.inside + places <= self.most or not self.inside)

    def _watch(self) -> None:
        """Have the timer ring for the next deadline."""
        at = self._queue.next_deadline()
        if at is None or (self._timer is not None and self._timer.when() <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(at, self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self._clock()
        for entry in self._queue.expire(now + EARLY_S):
            entry.what.refused(self._too_long(entry, now - entry.since))
        self._pump()
        self._watch()

    def _full(self, priority: Priority) -> OutpostError:
        return Overloaded(
            f"{self.name} is busy, and {self._queue.rules.max_waiting} requests of the class {priority} wait for it "
            "already; try again later.",
            retry_after_s=self.retry_after(priority),
        )

    def _too_long(self, entry: Entry[Visit], waited_s: float) -> OutpostError:
        return Overloaded(
            f"{self.name} is busy: the request waited {waited_s:.3g} s in vain, which is as long as one of the class "
            f"{entry.priority} may; try again later.",
            code="queue_timeout",
            retry_after_s=self.retry_after(entry.priority),
        )


# --- all gates --------------------------------------------------------------------------------------


class Opening(msgspec.Struct, frozen=True):
    """A gate as the settings ask for it."""

    name: str
    targets: tuple[str, ...]
    """The targets behind it, by the names that candidates have."""
    places: int
    """In all, or of each ready replica."""
    replicated: bool = False
    """A deployment: its capacity follows its ready replicas, and each choice of a request takes a place."""
    most: int = UNLIMITED
    """Choices that a replica takes at all."""


class GateView(msgspec.Struct, frozen=True):
    """One gate as others may see it, at one moment."""

    name: str
    capacity: int
    inside: int
    waiting: dict[str, int]
    """Class → requests."""


class Gates:
    """The gates of all targets, by the targets' names. They live across reloads, with those that wait at them."""

    def __init__(self, rules: Rules | None = None) -> None:
        self._rules = rules or Rules()
        self._gates: dict[str, Gate] = {}
        self._openings: dict[str, Opening] = {}
        self._by_target: dict[str, tuple[Gate, bool]] = {}
        self._replicas: dict[str, int] = {}
        self._open = Gate("", self._rules, UNLIMITED)

    def enter(
        self, target: str, priority: Priority, caller: str, *, choices: int = 1, deadline_s: float | None = None
    ) -> Visit:
        """A visit to a target, which is yet to be entered; one without a gate always has room. choices: answers or
        texts that are asked for."""
        gate, replicated = self._by_target.get(target, (self._open, False))
        return Visit(gate, priority, caller, deadline_s, choices if replicated else 1)

    def apply(self, rules: Rules, openings: Iterable[Opening]) -> None:
        """Put new settings in force. Those who wait for a deployment that is gone are refused; those who wait for a
        provider that is not limited any more go on."""
        self._rules = rules
        wanted = {each.name: each for each in openings}
        for name in [name for name in self._gates if name not in wanted]:
            gate = self._gates.pop(name)
            if self._openings[name].replicated:
                gate.close(Unavailable(f"{name} is not set up any more; try again.", retry_after_s=1.0))
            else:
                gate.resize(UNLIMITED)
        self._openings = wanted
        self._by_target = {}
        for opening in wanted.values():
            gate = self._gates.setdefault(opening.name, Gate(opening.name, rules, 0))
            gate.change(rules)
            self._resize(opening)
            self._by_target |= dict.fromkeys(opening.targets, (gate, opening.replicated))

    def ready(self, deployment: str, replicas: int) -> None:
        """So many replicas of a deployment are ready now."""
        self._replicas[deployment] = replicas
        opening = self._openings.get(deployment)
        if opening is not None and opening.replicated:
            self._resize(opening)

    def longest_wait(self, priority: Priority) -> float:
        """Seconds that a request of a class may wait at a gate."""
        return self._rules.max_wait[priority]

    def views(self) -> Sequence[GateView]:
        """All gates, by name."""
        return [
            GateView(name, gate.capacity, gate.inside, {each: gate.waiting(each) for each in PRIORITIES})
            for name, gate in sorted(self._gates.items())
        ]

    def _resize(self, opening: Opening) -> None:
        count = self._replicas.get(opening.name, 0) if opening.replicated else 1
        self._gates[opening.name].resize(opening.places * count, opening.most * count)


class Replica(Protocol):
    @property
    def deployment(self) -> str: ...
    @property
    def state(self) -> str: ...


class Replicas(Protocol):
    """The supervisor, as far as gates have to know it."""

    def replicas(self) -> Sequence[Replica]: ...
    def subscribe(self) -> AsyncIterable[Replica]: ...


async def follow(gates: Gates, supervisor: Replicas) -> None:
    """Keep capacities at what is ready, until the supervisor ends or this is cancelled."""
    known: set[str] = set()
    changes = supervisor.subscribe()
    known = _count(gates, supervisor, known)
    async for _ in changes:
        try:
            known = _count(gates, supervisor, known)
        except Exception:
            logger.exception("gates_not_resized")  # the next change does it


def _count(gates: Gates, supervisor: Replicas, known: set[str]) -> set[str]:
    ready = dict.fromkeys(known, 0)
    for replica in supervisor.replicas():
        ready[replica.deployment] = ready.get(replica.deployment, 0) + (replica.state == "ready")
    for deployment, count in ready.items():
        gates.ready(deployment, count)
    return set(ready)
