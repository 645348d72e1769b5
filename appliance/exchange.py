"""The life of a request, as one sequence of steps.

`run` is the list. Each step takes what it needs and gives what the next one needs; what is kept of the
exchange goes into its row. Steps that are not there yet are not in the list.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from appliance.account import Account, Limits
from appliance.dialects import errors as openai_errors
from appliance.dialects.kinds import Kind, Request
from appliance.dialects.sse import DONE_EVENT
from appliance.errors import (
    ClientStalled,
    InternalError,
    OutpostError,
    RecordsUnavailable,
    Unauthenticated,
    UpstreamError,
)
from appliance.identity.principal import Principal
from appliance.limits.admission import Gates, choose_priority
from appliance.records.rows import ExchangeRow, Outcome
from appliance.relay import Outgoing, Relay
from appliance.routing.plan import Plan, make_plan
from appliance.routing.routes import Router
from appliance.routing.watch import Running, Watch
from appliance.wishes import PRIORITY_HEADER, TAGS_HEADER, parse_tags

logger = logging.getLogger("outpost.exchange")


class KeyRing(Protocol):
    def identify(self, presented: str) -> Principal | None: ...


class Recorder(Protocol):
    @property
    def available(self) -> bool: ...
    def submit(self, row: ExchangeRow) -> asyncio.Future[int]: ...


class Clock(Protocol):
    """wall: unix seconds, for people; monotonic: seconds, for durations."""

    def wall(self) -> float: ...
    def monotonic(self) -> float: ...


@dataclass
class Gateway:
    """The collaborators of every exchange. `router` is replaced whole by a reload."""

    keyring: KeyRing
    recorder: Recorder
    router: Router
    running: Running
    clock: Clock
    gates: Gates
    limits: Limits
    new_id: Callable[[], str]
    """A fresh unguessable id: letters and digits."""
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    draining: bool = False
    """A shutdown has begun: nothing new is taken."""
    max_json_depth: int = 64
    write_timeout_s: float = 30.0


class Incoming(Protocol):
    """A request as the door hands it over."""

    @property
    def id(self) -> str: ...
    @property
    def credential(self) -> str | None: ...
    @property
    def client(self) -> str: ...
    def header(self, name: str) -> str | None:
        """What the caller asks for beside the body; `name` in lower case."""
        ...

    async def body(self) -> bytes:
        """Raises BodyTooLarge, BodyTimeout, UnsupportedMediaType."""
        ...


class Answer(msgspec.Struct):
    """What is still to be sent once the exchange is on record: a whole answer, or the last event of a stream."""

    status: int
    body: bytes
    headers: dict[str, str]
    row: ExchangeRow
    streamed: bool = False
    cut: bool = False
    """Close the connection instead: the client does not take what it is sent."""


async def run(gateway: Gateway, kind: Kind, incoming: Incoming, outgoing: Outgoing) -> Answer:
    """One exchange, from its credential to its row; the answer's last byte is left to the caller.

    Raises Unauthenticated and RecordsUnavailable (nothing is recorded then), and CancelledError when the client
    has gone.
    """
    principal = identify(gateway.keyring, incoming.credential)
    check_recording(gateway.recorder)
    with gateway.running.watch() as watch:
        exchange = Exchange(gateway, kind, incoming, outgoing, principal, watch)
        try:
            request = await exchange.parse()
            plan = await exchange.admit(exchange.plan(request))
            answer = await exchange.relay(plan)
            exchange.settle()
        except OutpostError as error:
            answer = exchange.fail(error)
        except asyncio.CancelledError:
            stopped = watch.caught()
            if stopped is None:
                exchange.abandon()
                raise
            answer = exchange.fail(stopped)
        except Exception:
            logger.exception("exchange_failed", extra={"request_id": incoming.id})
            answer = exchange.fail(InternalError("The gateway made a mistake; its log has it under the request id."))
        watch.close()
        return await exchange.record(answer)


def identify(keyring: KeyRing, credential: str | None) -> Principal:
    """Who is asking. Raises Unauthenticated."""
    if credential is None:
        raise Unauthenticated("No API key was sent; send the header Authorization: Bearer YOUR_KEY.")
    principal = keyring.identify(credential)
    if principal is None:
        raise Unauthenticated("The API key is not known here; it may be mistyped or revoked.")
    return principal


def check_recording(recorder: Recorder) -> None:
    """No work is begun whose answer would have to be withheld. Raises RecordsUnavailable."""
    if not recorder.available:
        raise RecordsUnavailable("Requests cannot be put on record at the moment; try again soon.", retry_after_s=1.0)


class Exchange:
    """One exchange under way. The methods are the steps of `run`, in their order."""

    def __init__(
        self,
        gateway: Gateway,
        kind: Kind,
        incoming: Incoming,
        outgoing: Outgoing,
        principal: Principal,
        watch: Watch,
    ) -> None:
        self._gateway = gateway
        self._kind = kind
        self._incoming = incoming
        self._principal = principal
        self._account: Account | None = None
        self._began = gateway.clock.monotonic()
        self.row = ExchangeRow(
            id=incoming.id,
            kind=kind.name,
            started_at=gateway.clock.wall(),
            key_id=principal.key_id,
            key_name=principal.key_name,
            client=incoming.client,
            organization_id=principal.organization,
            team_id=principal.team,
            user_id=principal.user,
            service_account_id=principal.service_account,
        )
        self._relay = Relay(
            kind=kind,
            partition=principal.key_id,
            gates=gateway.gates,
            outgoing=outgoing,
            watch=watch,
            row=self.row,
            headers=self._headers,
            now=self._now,
            pause=gateway.pause,
            write_timeout_s=gateway.write_timeout_s,
        )

    async def parse(self) -> Request:
        """The body as a typed request. Raises 4xx errors that name the field."""
        header, limited = self._incoming.header, self._principal.restrictions
        self.row.tags = parse_tags(header(TAGS_HEADER))
        self.row.priority = self._relay.priority = choose_priority(header(PRIORITY_HEADER), limited.priority, "normal")
        body = await self._incoming.body()
        return self._kind.parse(body, self._gateway.max_json_depth)

    def plan(self, request: Request) -> Plan:
        """The targets to try. Raises ModelNotFound, UnsupportedParameter, Unavailable."""
        limited = self._principal.restrictions
        route = self._gateway.router.find(request.model, limited.routes)
        self.row.route = route.model
        self.row.stream = bool(request.stream)
        return make_plan(route, self._kind, request, limited)

    async def admit(self, plan: Plan) -> Plan:
        """Reserve the worst case under every limit, in one step; the plan without the targets that have none left.

        Raises RateLimited, BadRequest or PermissionDenied that names the limit.
        """
        route = plan.route
        account = self._gateway.limits.account(self._principal, route.model, self.row.tags, route.deadlines.total)
        self._account = self._relay.account = account
        return msgspec.structs.replace(plan, candidates=await account.reserve(plan.candidates))

    async def relay(self, plan: Plan) -> Answer:
        """Ask the targets in turn and pass the answer on, all but its last piece."""
        if not self.row.stream:
            body = await self._relay.whole(plan)
            return Answer(200, body, self._headers(), self.row)
        await self._relay.stream(plan)
        return Answer(200, DONE_EVENT, self._headers(), self.row, streamed=True)

    def settle(self) -> None:
        """What was used, by the count of the target that did the work."""
        row, tally = self.row, self._relay.tally
        account = self._account
        row.prompt_tokens = tally.prompt_tokens
        if account is not None:
            row.prompt_tokens = account.prompt_tokens(tally)
            row.charges = account.settle(account.used(tally, self._relay.cost_nanousd))
            row.cost_nanousd = sum(attempt.cost_nanousd for attempt in row.attempts)
        row.reasoning_tokens = tally.reasoning_tokens
        row.cached_tokens = tally.cached_tokens
        row.completion_tokens = tally.completion_tokens
        row.usage_source = tally.source
        row.finish_reasons = tally.reasons()
        waited = self._relay.queue_s
        row.queue_s = tally.queue_s if waited is None else waited + (tally.queue_s or 0.0)

    def fail(self, error: OutpostError) -> Answer:
        """The answer that tells of an error: a whole one, or the last event of a stream that has begun."""
        row = self.row
        self.settle()
        row.error_code = error.code
        row.status = 200 if self._relay.streaming else error.status
        row.outcome = _outcome(error, any(attempt.error_code == error.code for attempt in row.attempts))
        if self._relay.streaming:
            cut = isinstance(error, ClientStalled)
            return Answer(200, openai_errors.stream_event(error), self._headers(), self.row, streamed=True, cut=cut)
        return Answer(error.status, openai_errors.body(error), {**self._headers(), **error_headers(error)}, self.row)

    def abandon(self) -> None:
        """The client has gone: nobody is answered, but the work that was done is on record."""
        self.settle()
        self.row.status = 200 if self._relay.streaming else 499
        self.row.outcome = "client_closed"
        self.row.error_code = "client_closed"
        self.row.duration_s = self._now()
        self._gateway.recorder.submit(self.row).add_done_callback(self._recorded)

    async def record(self, answer: Answer) -> Answer:
        """Make the row durable; without that the answer is withheld."""
        self.row.duration_s = self._now()
        written = self._gateway.recorder.submit(self.row)
        # First in line, so that limits know before anybody is answered; and a client that leaves now changes nothing.
        written.add_done_callback(self._recorded)
        try:
            await asyncio.shield(written)
        except RecordsUnavailable as error:
            return self.fail(error)
        return answer

    def _recorded(self, written: asyncio.Future[int]) -> None:
        account, self._account = self._account, None
        recorded = not written.cancelled() and written.exception() is None
        if not recorded:
            logger.warning("exchange_not_recorded", extra={"request_id": self.row.id})
        if account is not None:
            (account.recorded if recorded else account.unrecorded)()

    def _now(self) -> float:
        """Seconds since the exchange began."""
        return self._gateway.clock.monotonic() - self._began

    def _headers(self) -> dict[str, str]:
        return {
            "x-outpost-target": self.row.target or "none",
            "x-outpost-attempts": str(len(self.row.attempts)),
            **(self._account.headers() if self._account is not None else {}),
        }


def _outcome(error: OutpostError, met: bool) -> Outcome:
    """What an error ends an exchange as; `met`: it is a target's, not the gateway's own."""
    if isinstance(error, InternalError):
        return "internal_error"
    if isinstance(error, ClientStalled):
        return "client_closed"
    if isinstance(error, UpstreamError) or (met and error.retryable):
        return "upstream_error"
    return "refused"


def error_headers(error: OutpostError) -> dict[str, str]:
    """Headers that go with an error: when to come back, in whole seconds."""
    if error.retry_after_s is None:
        return {}
    return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
