"""One attempt at one target, and what it begins with: how it ends is told to whoever counts it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from appliance.dialects.tally import Tally
from appliance.errors import InternalError, OutpostError
from appliance.hedged import Heat
from appliance.limits.admission import Visit
from appliance.limits.rules import Used
from appliance.outgoing import silent
from appliance.providers.upstream import Stream
from appliance.records.rows import Attempt, ExchangeRow
from appliance.rescue import Rescue
from appliance.routing.board import Flight
from appliance.routing.health import Health
from appliance.routing.watch import Watch


class Owner(Protocol):
    """The relay, as its attempts see it."""

    row: ExchangeRow
    now: Callable[[], float]
    health: Health
    watch: Watch
    rescue: Rescue | None
    streaming: bool

    def ended(self, attempt: RunningAttempt, at: int, started_s: float, outcome: str, code: str | None) -> None: ...


class RunningAttempt:
    """One attempt at one target, on record from its start. Enter it around all that it does."""

    __slots__ = ("_at", "_far", "_flight", "_heat", "_opening", "_relay", "_started", "tally", "target", "used")

    def __init__(
        self, target: str, relay: Owner, flight: Flight, tally: Tally, heat: Heat[Any] | None, *, far: bool
    ) -> None:
        """heat: the race that it runs in. far: the target is a provider's, which only tells at the end what it has
        used."""
        self.target = target
        self.tally = tally
        self.used: Used | None = None
        self._far = far
        self._flight = flight
        self._heat = heat
        self._opening = False
        self._relay = relay
        self._started = relay.now()
        self._at = len(relay.row.attempts)
        relay.row.attempts.append(Attempt(target, self._started, 0.0, "completed"))

    def first_token(self) -> None:
        """What was asked for has begun to come; the rest of it is still this attempt's."""
        self._opening = True
        self._heat = None
        self._relay.health.first_token(self._flight)

    def __enter__(self) -> None:
        self._opening = False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        relay, heat = self._relay, self._heat
        stopped: OutpostError | None = None
        if isinstance(error, asyncio.CancelledError):
            # In a race the task that is cancelled is not the one that the watch guards.
            stopped = relay.watch.caught() if heat is None else heat.stopped
        failure = stopped or error
        outcome, code = "completed", None
        if isinstance(failure, OutpostError):
            outcome, code = "failed", failure.code
            if relay.rescue is not None and relay.streaming:
                relay.rescue.ended(self.target, failure, self.tally)
        elif isinstance(failure, asyncio.CancelledError):
            outcome = "cancelled"
            self._count_abandoned()
        elif failure is not None:
            outcome, code = "failed", InternalError.code
        relay.ended(self, self._at, self._started, outcome, code)
        if failure is not None or not self._opening:
            relay.health.ended(self._flight, failure, self.tally.completion_tokens)
        if stopped is not None:
            try:
                raise stopped from None
            finally:
                failure = stopped = None  # its traceback holds this frame

    def drop(self) -> None:
        """Nobody takes what it has begun; see `Heat.run`."""
        self._count_abandoned()
        self._relay.ended(self, self._at, self._started, "cancelled", None)
        self._relay.health.ended(self._flight, asyncio.CancelledError(), self.tally.completion_tokens)

    def _count_abandoned(self) -> None:
        """A client that leaves before a provider has said anything has had it work all the same: that costs the prompt,
        and is a request. Else whoever leaves in time would be bound by no limit."""
        if self._far and self.tally.source == "none":
            self.tally.source = "estimated"


@dataclass(slots=True)
class Answered:
    """A whole answer, with the attempt it belongs to."""

    body: bytes
    attempt: RunningAttempt
    response: Any
    """The same as data, for kinds that are stored."""


@dataclass(slots=True)
class Opened:
    """A stream that has its first token, with the attempt it belongs to."""

    stream: Stream
    attempt: RunningAttempt
    visit: Visit
    target: str
    idle_s: float

    def silent(self) -> OutpostError:
        return silent(self.target, "another token", self.idle_s)


async def drop(begun: Opened | Answered) -> None:
    """End what nobody takes."""
    if isinstance(begun, Opened):
        begun.attempt.drop()
        try:
            await begun.stream.aclose()
        finally:
            begun.visit.leave()
