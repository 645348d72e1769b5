"""Asking the targets of a plan in turn, and passing the answer on: the part of an exchange that waits.

Everything that is measured of an attempt goes into the exchange's row, whatever becomes of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from appliance.account import Account
from appliance.attempt import Answered, Opened, RunningAttempt, drop
from appliance.dialects.kinds import Kind
from appliance.dialects.tally import Tally, count_unreported
from appliance.errors import BadRequest, ContentFiltered, Diverged, OutpostError, TargetBusy, forget_way
from appliance.hedged import Heat
from appliance.identity.principal import Priority
from appliance.limits.admission import Gates, Visit
from appliance.limits.rules import Used
from appliance.outgoing import Held, Keeping, Outgoing, Way, silent, stalled, total_over
from appliance.providers.upstream import Call, Stream
from appliance.records.rows import Attempt, ExchangeRow
from appliance.rescue import MOST_RESUMED, Rescue
from appliance.routing.attempts import Turns, far
from appliance.routing.candidate import Candidate, Plan
from appliance.routing.health import Health
from appliance.routing.hedging import Hedging
from appliance.routing.left_out import unavailable
from appliance.routing.routes import Route
from appliance.routing.watch import Watch

T = TypeVar("T")
Begun = TypeVar("Begun", Opened, Answered)
Start = Callable[[Route, Candidate, "Heat[Any] | None"], Coroutine[Any, Any, Begun]]


class Relay:
    """The attempts of one exchange. `now` gives seconds since the exchange began."""

    def __init__(
        self,
        *,
        kind: Kind,
        partition: str,
        gates: Gates,
        health: Health,
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
        self.health = health
        self._traceparent = traceparent
        self._outgoing = outgoing
        self.watch = watch
        self.now = now
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
        self.size = 0
        """Tokens of the prompt, about: how much work a target has with it."""
        self.response: Any = None
        """The complete answer as data, for kinds that are stored."""
        self._plan: Plan
        self._turns: Turns
        """Whose turn it is."""
        self._runners: list[RunningAttempt] = []
        """The attempts that run against each other."""
        self._fail: Callable[[OutpostError], bytes] = kind.error_event
        self.rescue: Rescue | None = None
        self._seen: Keeping
        """What the client was sent, where there is a rescue."""

    def headers(self) -> dict[str, str]:
        """What an answer's headers tell of its way, and of what its caller may still ask for."""
        return {
            "x-outpost-target": self.row.target or "none",
            "x-outpost-attempts": str(len(self.row.attempts)),
            **({self._kind.id_header: self.row.id} if self._kind.id_header else {}),
            **(self.account.headers() if self.account is not None else {}),
        }

    def failure(self, error: OutpostError) -> bytes:
        """The last event of a stream that the client has seen the beginning of."""
        return self._fail(error)

    async def whole(self, plan: Plan) -> bytes:
        """The body of a whole answer."""
        self.watch.total(plan.route.deadlines.total, lambda: total_over(plan.route))
        body = await self._in_turn(plan, self._whole)
        self.row.ttft_s = self.now()
        return body

    async def stream(self, plan: Plan) -> bytes:
        """Pass a streamed answer on; gives its last events, which say that it is complete."""
        route = plan.route
        self.watch.total(route.deadlines.total, lambda: total_over(route))
        if self.kept is not None:
            self._outgoing = Keeping(self._outgoing, self.kept, self.keep_most)
        if route.rescue == "resume" and Rescue.suits(plan.candidates[0].request):
            self.rescue = Rescue(self._kind)
            self._outgoing = self._seen = Keeping(self._outgoing, self.rescue.pieces, MOST_RESUMED)
        return await self._in_turn(plan, self._stream)

    async def _in_turn(self, plan: Plan, ask: Callable[[Route, Candidate], Awaitable[T]]) -> T:
        """The first answer of the plan's candidates; raises the most useful error when none gives one."""
        route, health = plan.route, self.health
        self._plan = plan
        may_retry = partial(health.may_retry, route.model)
        turns = self._turns = Turns(plan.candidates, route.retries, health.random, may_retry, far)
        candidate = turns.first()
        health.asked(route.model)
        try:
            while True:
                try:
                    return await ask(route, candidate)
                except OutpostError as error:
                    if self.streaming and not await self._resumes(error):
                        raise
                    if isinstance(error, ContentFiltered) and route.fallback_on_content_filter:
                        error.elsewhere = True
                    rest = health.rest(candidate.target.name)
                    step = turns.failed(candidate, error, left_s=self._left_s(route), rest=rest)
                    if step is None:
                        if error.elsewhere and plan.larger is not None and not self.streaming:
                            # Too much for those that are up; a target that is not may take it, once it is.
                            raise unavailable(route.model, plan.larger) from error
                        told = turns.told
                        assert told is not None
                        raise told  # noqa: B904 – it may be an earlier one, with a cause of its own
                    forget_way(error)
                candidate, pause = step
                if pause:
                    await self._pause(pause)
        finally:
            turns.told = told = None  # its traceback holds this frame: together they would stay until a collection

    def _left_s(self, route: Route) -> float:
        """Of the time for all attempts together, in which waits at gates do not count."""
        return route.deadlines.total - self.now() + (self.queue_s or 0.0)

    async def _resumes(self, error: OutpostError) -> bool:
        """Whether somebody else may go on with a stream that the client has seen the beginning of."""
        rescue = self.rescue
        passes = error.retryable or error.elsewhere
        return rescue is not None and passes and self._seen.whole and await rescue.may_resume()

    async def _whole(self, route: Route, candidate: Candidate) -> bytes:
        if route.hedging is None:
            answered = await self._answer(route, candidate, None)
        else:
            answered = await self._raced(route, candidate, self._answer, route.hedging)
        self.response = answered.response
        return answered.body

    async def _stream(self, route: Route, candidate: Candidate) -> bytes:
        if route.hedging is None:
            return await self._pump(route, await self._open(route, candidate, None))
        return await self._pump(route, await self._raced(route, candidate, self._open, route.hedging))

    async def _raced(self, route: Route, candidate: Candidate, start: Start[Begun], hedging: Hedging) -> Begun:
        """What a candidate begins with, or another one where the first lets wait."""
        candidates = self._plan.candidates
        if candidate is not candidates[0] or len(candidates) == 1 or self.row.attempts:
            return await start(route, candidate, None)
        at_s = self.health.hedge_at_s(route.model, candidate.target.name, hedging, route.deadlines.first_token)
        if at_s is None:
            return await start(route, candidate, None)
        account, other, heat = self.account, candidates[1], Heat[Begun](self.watch.caught)
        try:
            begun = await heat.run(
                start(route, candidate, heat),
                lambda: start(route, other, heat),
                at_s,
                lambda: (account is None or account.allows(other)) and self.health.may_hedge(route.model, hedging),
                drop,
            )
        except BaseException:
            self._count_race(candidate, other)
            raise
        finally:
            self.watch.disarm()
        self.tally, self.row.target = begun.attempt.tally, begun.attempt.target
        if self._count_race(candidate, other, begun.attempt) and account is not None:
            try:
                await account.cover()
            except BaseException:
                await drop(begun)
                raise
        return begun

    def _count_race(self, first: Candidate, second: Candidate, winner: RunningAttempt | None = None) -> bool:
        """What was used in vain is the caller's all the same, by the target that was asked; in the end the account is
        at the winner. Whether that changed anything of it."""
        runners, self._runners = self._runners, []  # they lead back to here
        account, used, moved = self.account, None, False
        if account is None:
            return False
        for attempt in sorted(runners, key=lambda each: each is winner):
            if used is not None or account.target != attempt.target:
                account.move(first if attempt.target == first.target.name else second, used, done=True)
                moved = True
            self.spent = used = attempt.used
        return moved

    async def _answer(self, route: Route, candidate: Candidate, heat: Heat[Any] | None) -> Answered:
        name, watch = candidate.target.name, self.watch
        visit = await self._enter(candidate, heat)
        try:
            call = self._call(route, candidate, visit)
            attempt = self._attempt(candidate, call.tally, heat)
            with attempt:
                if self._turns.others:
                    # Nothing of a whole answer is seen before its end; some of the time is for who comes next.
                    seconds = route.deadlines.whole or self._left_s(route) / 2
                    watch.arm(seconds, lambda: silent(name, "an answer", seconds))
                body = await candidate.target.upstream.whole(call)
                count_unreported(call.tally, body, says=call.kind.name != "embeddings")
                return Answered(body, attempt, call.response)
        finally:
            if heat is None:
                watch.disarm()
            visit.leave()

    async def _open(self, route: Route, candidate: Candidate, heat: Heat[Any] | None) -> Opened:
        """A stream with its first token."""
        name, deadlines, watch = candidate.target.name, route.deadlines, self.watch

        def started() -> None:
            watch.arm(deadlines.first_token, lambda: silent(name, "a first token", deadlines.first_token))

        visit = await self._enter(candidate, heat)
        try:
            call = self._call(route, candidate, visit)
            call.started, call.queued, call.alive = started, watch.disarm, watch.touch
            if self.rescue is not None:
                call.whole_events = not self._kind.resumes_bytes
                if self.streaming:
                    await self.rescue.prepare(call, candidate)
            attempt = self._attempt(candidate, call.tally, heat)
            with attempt:
                started()
                try:
                    stream = await candidate.target.upstream.stream(call)
                except BadRequest as error:
                    if not self.streaming:
                        raise
                    # It was well as the client asked it; so it is our way of asking for the rest that it refuses.
                    raise Diverged(f"{name} does not go on with an answer: {error.message}") from error
                attempt.first_token()
        except BaseException:
            if heat is None:  # else it is for who still runs
                watch.disarm()  # the pause before the next attempt is no silence of this target
            visit.leave()
            raise
        watch.disarm()
        return Opened(stream, attempt, visit, name, deadlines.idle)

    async def _enter(self, candidate: Candidate, heat: Heat[Any] | None) -> Visit:
        """Have the limits of a target cover the request, and wait for a place there; raises TargetBusy where somebody
        else may have one. The wait has bounds of its own; the request's deadlines stand still. The second runner of a
        race is covered by what the first one has."""
        account, name = self.account, candidate.target.name
        visit = self._gates.enter(name, self.priority, self._partition, choices=candidate.request.choices)
        inside = visit.enter_at_once()
        if not inside and not self._turns.patient:
            raise TargetBusy(f"{name} is busy.")
        if heat is None and account is not None and (self.spent is not None or name != account.target):
            try:
                account.move(candidate, self.spent)
                self.spent = None
                await account.cover()
            except BaseException:
                visit.leave()
                raise
        if inside:
            return visit
        left = self.watch.suspend()
        try:
            await visit.enter()
        finally:
            self.watch.resume(left)
            if visit.queue_s:
                self.queue_s = (self.queue_s or 0.0) + visit.queue_s
                if account is not None:
                    account.touch()
        return visit

    async def _pump(self, route: Route, opened: Opened) -> bytes:
        """From the target to the client, at the client's pace, until the target says that it is done."""
        watch, stream = self.watch, opened.stream
        try:
            with opened.attempt:
                way = Way(self._outgoing, watch, self._write_timeout_s, opened.idle_s, opened.silent)
                if self.streaming:
                    self._fail = stream.fail
                    way.resume()
                    if stream.first and not way.send(stream.first):
                        await way.drained()
                    await stream.pump(way)
                elif route.rescue == "buffer":
                    held = Held(partial(self.begin, stream), way, opened.attempt.tally, route.buffer_tokens)
                    held.send(stream.first)
                    way.resume()
                    await stream.pump(held)
                    await held.end()
                else:
                    await self.begin(stream, stream.first)
                    way.resume()
                    await stream.pump(way)
                end = stream.end()
                self.response = stream.response()  # the final one only now
                return end
        finally:
            watch.disarm()
            try:
                await stream.aclose()
            finally:
                opened.visit.leave()

    async def begin(self, stream: Stream, data: bytes) -> None:
        """The first that the client sees."""
        self.streaming = True
        self._fail = stream.fail
        self.row.ttft_s = self.now()
        self.watch.arm(self._write_timeout_s, stalled)
        await self._outgoing.begin(self.headers(), data)

    def _call(self, route: Route, candidate: Candidate, visit: Visit) -> Call:
        self.tally = Tally()
        return Call(
            id=self.row.id,
            created=int(self.row.started_at),
            kind=self._kind,
            request=candidate.request,
            model=route.told(candidate.target),
            partition=self._partition,
            connect_s=route.deadlines.connect,
            tally=self.tally,
            native=candidate.native,
            drop=route.drop_unsupported,
            ended=visit.give_back,
            traceparent=self._traceparent(),
        )

    def _attempt(self, candidate: Candidate, tally: Tally, heat: Heat[Any] | None) -> RunningAttempt:
        """Raises TargetResting where the target is not to be asked now."""
        name = candidate.target.name
        flight = self.health.began(name, self.size, alone=not self._turns.others)
        self.row.target = name
        attempt = RunningAttempt(name, self, flight, tally, heat, far=candidate.target.provider is not None)
        if heat is not None:
            self._runners.append(attempt)
        return attempt

    def ended(self, attempt: RunningAttempt, at: int, started_s: float, outcome: str, code: str | None) -> None:
        """Put an attempt and what it used on record."""
        target, tally, account, now, cost = attempt.target, attempt.tally, self.account, self.now(), 0
        prompt_tokens = tally.prompt_tokens
        if account is not None:
            prompt_tokens = account.prompt_tokens(tally)
            cost = account.cost(target, tally, now - started_s)
            attempt.used = self.spent = account.used(tally, cost)
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
