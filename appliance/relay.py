"""Asking the targets of a plan in turn, and passing the answer on: the part of an exchange that waits.

Everything that is measured of an attempt goes into the exchange's row, whatever becomes of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from appliance.account import Account
from appliance.dialects.kinds import Kind
from appliance.dialects.tally import Tally
from appliance.errors import ClientStalled, DeadlineExceeded, InternalError, OutpostError, UpstreamTimeout
from appliance.identity.principal import Priority
from appliance.limits.admission import Gates, Visit
from appliance.limits.rules import Used
from appliance.providers.upstream import Call, Stream
from appliance.records.rows import Attempt, ExchangeRow
from appliance.routing.attempts import first_answer
from appliance.routing.plan import Candidate, Plan, unavailable
from appliance.routing.routes import Route
from appliance.routing.watch import Watch

T = TypeVar("T")

BYTES_A_TOKEN = 4
"""What a token of an answer comes to, frame and all, where nobody has counted."""


class Outgoing(Protocol):
    """The way back to the client. A client that has gone cancels the exchange's task."""

    async def begin(self, headers: dict[str, str], data: bytes) -> None:
        """Start a streamed answer with status 200 and its first bytes."""
        ...

    def send(self, data: bytes) -> bool:
        """More of a stream; False when the client does not keep up and `drained` must be awaited."""
        ...

    async def drained(self) -> None: ...


class Relay:
    """The attempts of one exchange. `now` gives seconds since the exchange began."""

    def __init__(
        self,
        *,
        kind: Kind,
        partition: str,
        gates: Gates,
        traceparent: Callable[[], str | None],
        outgoing: Outgoing,
        watch: Watch,
        row: ExchangeRow,
        now: Callable[[], float],
        pause: Callable[[float], Awaitable[None]],
        write_timeout_s: float,
    ) -> None:
        self._kind = kind
        self._partition = partition
        self._gates = gates
        self._traceparent = traceparent
        self._outgoing = outgoing
        self._watch = watch
        self._now = now
        self._pause = pause
        self._write_timeout_s = write_timeout_s
        self.row = row
        self.tally = Tally()
        """What the present attempt has used."""
        self.kept: list[bytes] | None = None
        """The pieces of a stream as they pass, if they are to be kept."""
        self.keep_most = 0
        """Bytes of them, about."""
        self.streaming = False
        """The client has seen the beginning of a stream."""
        self.account: Account | None = None
        self.spent: Used | None = None
        """What the attempt that ended last has used; None where none has ended since it was counted."""
        self.priority: Priority = "normal"
        self.queue_s: float | None = None
        """How long the attempts waited for their targets at the gate; None: no target was busy."""

    def headers(self) -> dict[str, str]:
        """What an answer's headers tell of its way, and of what its caller may still ask for."""
        return {
            "x-outpost-target": self.row.target or "none",
            "x-outpost-attempts": str(len(self.row.attempts)),
            **(self.account.headers() if self.account is not None else {}),
        }

    async def whole(self, plan: Plan) -> bytes:
        """The body of a whole answer."""
        route = plan.route
        self._watch.total(route.deadlines.total, lambda: _total_over(route))
        body = await self._first(plan, lambda candidate: self._whole(route, candidate))
        self.row.ttft_s = self._now()
        return body

    async def stream(self, plan: Plan) -> None:
        """Pass a streamed answer on, all but the event that says that it is complete."""
        route = plan.route
        self._watch.total(route.deadlines.total, lambda: _total_over(route))
        await self._pump(await self._first(plan, lambda candidate: self._open(route, candidate)))

    async def _first(self, plan: Plan, ask: Callable[[Candidate], Awaitable[T]]) -> T:
        """The first answer of the plan's candidates."""
        try:
            return await first_answer(plan.candidates, plan.route.retries, ask, self._pause)
        except OutpostError as error:
            if error.elsewhere and plan.larger is not None:
                # Too much for those that are up; a target that is not may take it, once it is.
                raise unavailable(plan.route.model, plan.larger) from error
            raise

    async def _whole(self, route: Route, candidate: Candidate) -> bytes:
        visit = await self._enter(candidate)
        try:
            call = self._call(route, candidate, visit)
            with self._attempt(candidate):
                body = await candidate.target.upstream.whole(call)
                _count_unreported(call.tally, call.kind, body)
                return body
        finally:
            visit.leave()

    async def _open(self, route: Route, candidate: Candidate) -> _Opened:
        """A stream with its first token: until then another target may take over."""
        name, deadlines, watch = candidate.target.name, route.deadlines, self._watch

        def started() -> None:
            watch.arm(deadlines.first_token, lambda: _silent(name, "a first token", deadlines.first_token))

        visit = await self._enter(candidate)
        try:
            call = self._call(route, candidate, visit)
            call.started, call.queued, call.alive = started, watch.disarm, watch.touch
            attempt = self._attempt(candidate)
            with attempt:
                started()
                stream = await candidate.target.upstream.stream(call)
        except BaseException:
            visit.leave()
            raise
        watch.disarm()
        return _Opened(stream, attempt, visit, name, deadlines.idle)

    async def _enter(self, candidate: Candidate) -> Visit:
        """Have the limits of a target cover the request, and wait for a place there. The wait has bounds of its own;
        the request's deadlines stand still."""
        account = self.account
        if account is not None and (self.spent is not None or candidate.target.name != account.target):
            account.move(candidate, self.spent)
            self.spent = None
            await account.cover()
        visit = self._gates.enter(
            candidate.target.name, self.priority, self._partition, choices=candidate.request.choices
        )
        left = self._watch.suspend()
        try:
            await visit.enter()
        finally:
            self._watch.resume(left)
            if visit.queue_s:
                self.queue_s = (self.queue_s or 0.0) + visit.queue_s
                if account is not None:
                    account.touch()
        return visit

    async def _pump(self, opened: _Opened) -> None:
        """From the target to the client, at the client's pace, until the target says that it is done."""
        watch, stream = self._watch, opened.stream
        try:
            with opened.attempt:
                self.streaming = True
                self.row.ttft_s = self._now()
                watch.arm(self._write_timeout_s, _stalled)
                outgoing = self._outgoing
                if self.kept is not None:
                    outgoing = _Keeping(outgoing, self.kept, self.keep_most)
                await outgoing.begin(self.headers(), stream.first)
                watch.arm(opened.idle_s, opened.silent)
                await stream.pump(_Way(outgoing, watch, self._write_timeout_s, opened))
        finally:
            watch.disarm()
            try:
                await stream.aclose()
            finally:
                opened.visit.leave()

    def _call(self, route: Route, candidate: Candidate, visit: Visit) -> Call:
        self.tally = Tally()
        return Call(
            id=self.row.id,
            created=int(self.row.started_at),
            kind=self._kind,
            request=candidate.request,
            model=route.model,
            partition=self._partition,
            connect_s=route.deadlines.connect,
            tally=self.tally,
            ended=visit.give_back,
            traceparent=self._traceparent(),
        )

    def _attempt(self, candidate: Candidate) -> _Attempt:
        self.row.target = candidate.target.name
        return _Attempt(candidate.target.name, self, far=candidate.target.provider is not None)

    def count_abandoned(self, far: bool) -> None:
        """A client that leaves before a provider has said anything has had it work all the same: that costs the prompt,
        and is a request. Else whoever leaves in time would be bound by no limit."""
        if far and self.tally.source == "none":
            self.tally.source = "estimated"

    def ended(self, target: str, at: int, started_s: float, outcome: str, code: str | None) -> None:
        """Put an attempt and what it used on record."""
        tally, account, now, cost = self.tally, self.account, self._now(), 0
        prompt_tokens = tally.prompt_tokens
        if account is not None:
            prompt_tokens = account.prompt_tokens(tally)
            cost = account.cost(target, tally, now - started_s)
            self.spent = account.used(tally, cost)
        self.row.attempts[at] = Attempt(
            target,
            started_s,
            now - started_s,
            outcome,
            code,
            prompt_tokens,
            tally.completion_tokens,
            cost,
        )


class _Attempt:
    """One try at one target, on record from its start. Enter it around all that the try does."""

    __slots__ = ("_at", "_far", "_relay", "_started", "_target")

    def __init__(self, target: str, relay: Relay, *, far: bool) -> None:
        """far: the target is a provider's, which only tells at the end what it has used."""
        self._target = target
        self._far = far
        self._relay = relay
        self._started = relay._now()
        self._at = len(relay.row.attempts)
        relay.row.attempts.append(Attempt(target, self._started, 0.0, "completed"))

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        stopped = self._relay._watch.caught() if isinstance(error, asyncio.CancelledError) else None
        failure = stopped or error
        outcome, code = "completed", None
        if isinstance(failure, OutpostError):
            outcome, code = "failed", failure.code
        elif isinstance(failure, asyncio.CancelledError):
            outcome = "cancelled"
            self._relay.count_abandoned(self._far)
        elif failure is not None:
            outcome, code = "failed", InternalError.code
        self._relay.ended(self._target, self._at, self._started, outcome, code)
        if stopped is not None:
            raise stopped from None


@dataclass(slots=True)
class _Opened:
    """A stream that has its first token, with the attempt it belongs to."""

    stream: Stream
    attempt: _Attempt
    visit: Visit
    target: str
    idle_s: float

    def silent(self) -> OutpostError:
        return _silent(self.target, "another token", self.idle_s)


class _Keeping:
    """The way to the client of a stream that is kept: remembers what passes, up to a size."""

    __slots__ = ("_kept", "_left", "_outgoing", "drained")

    def __init__(self, outgoing: Outgoing, kept: list[bytes], most: int) -> None:
        self._outgoing = outgoing
        self._kept = kept
        self._left = most
        self.drained = outgoing.drained

    async def begin(self, headers: dict[str, str], data: bytes) -> None:
        self._keep(data)
        await self._outgoing.begin(headers, data)

    def send(self, data: bytes) -> bool:
        self._keep(data)
        return self._outgoing.send(data)

    def _keep(self, data: bytes) -> None:
        if self._left > 0:
            self._left -= len(data)
            self._kept.append(bytes(data))


class _Way:
    """The last stretch to the client. Each piece moves the target's deadline; while the client lets the gateway wait,
    its own counts instead."""

    __slots__ = ("_opened", "_outgoing", "_send", "_touch", "_watch", "_write_timeout_s")

    def __init__(self, outgoing: Outgoing, watch: Watch, write_timeout_s: float, opened: _Opened) -> None:
        self._outgoing = outgoing
        self._watch = watch
        self._write_timeout_s = write_timeout_s
        self._opened = opened
        self._send = outgoing.send
        self._touch = watch.touch

    def send(self, data: bytes) -> bool:
        self._touch()
        return self._send(data)

    async def drained(self) -> None:
        self._watch.arm(self._write_timeout_s, _stalled)
        await self._outgoing.drained()
        self._watch.arm(self._opened.idle_s, self._opened.silent)


def _count_unreported(tally: Tally, kind: Kind, body: bytes) -> None:
    """An answer whose target does not say what it used must not be free: its size tells about how much it was."""
    if tally.source == "none":
        tally.source = "estimated"
        tally.completion_tokens = 0 if kind.name == "embeddings" else -(-len(body) // BYTES_A_TOKEN)


def _silent(target: str, what: str, seconds: float) -> OutpostError:
    return UpstreamTimeout(f"{target} gave no sign of {what} for {seconds:g} s.")


def _stalled() -> OutpostError:
    return ClientStalled("The client stopped taking its answer.")


def _total_over(route: Route) -> OutpostError:
    return DeadlineExceeded(f"The request took longer than the {route.deadlines.total:g} s that {route.model} allows.")
