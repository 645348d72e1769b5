"""The life of a request, as one sequence of steps.

`run` is the list. Each step takes what it needs and gives what the next one needs; what is kept of the
exchange goes into its row. Steps that are not there yet are not in the list.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

import msgspec

from appliance.account import Account
from appliance.collaborators import Incoming, Recorder
from appliance.dialects.asked import Asked
from appliance.dialects.kinds import Kind
from appliance.dialects.tally import BYTES_A_TOKEN
from appliance.errors import (
    ClientStalled,
    InternalError,
    OutpostError,
    PermissionDenied,
    RecordsUnavailable,
    UpstreamError,
    forget_way,
)
from appliance.gateway import Gateway
from appliance.identity.principal import Principal
from appliance.limits.admission import choose_priority, least_urgent
from appliance.limits.rules import Used
from appliance.outgoing import Outgoing
from appliance.records.rows import ExchangeRow, Outcome
from appliance.relay import Relay
from appliance.responses.prepared import Prepared
from appliance.routing.candidate import Plan
from appliance.routing.explain import Explanation
from appliance.routing.plan import explain_plan, make_plan, plain_plan
from appliance.routing.residency import Demand
from appliance.routing.routes import Route
from appliance.routing.situation import Situation
from appliance.routing.watch import Watch
from appliance.settings.recording import Content
from appliance.shadow_answers import Given
from appliance.shadows import PIECES, Drawn
from appliance.wishes import PRIORITY_HEADER, SESSION_HEADER, TAGS_HEADER, parse_session, parse_tags

logger = logging.getLogger("outpost.exchange")

MISTAKE = "The gateway made a mistake; its log has it under the request id."
FEW_PIECES = 64
"""More of a stream are put together off the event loop: a thousand take 20 ms."""
STREAM_OVERHEAD = 64
"""Bytes of a stream for each byte of text, about: what frames and fields of short deltas come to."""


class Answer(msgspec.Struct):
    """What is still to be sent once the exchange is on record: a whole answer, or the last event of a stream."""

    status: int
    body: bytes
    headers: dict[str, str]
    """Empty for a stream, which began with them."""
    row: ExchangeRow
    streamed: bool = False
    cut: bool = False
    """Close the connection instead: the client does not take what it is sent."""


async def run(gateway: Gateway, kind: Kind, incoming: Incoming, outgoing: Outgoing) -> Answer:
    """One exchange, from its credential to its row; the answer's last byte is left to the caller.

    Raises Unauthenticated, PermissionDenied, ProviderError and RecordsUnavailable (no exchange is recorded then), and
    CancelledError when the client has gone.
    """
    principal = await gateway.authenticator.identify(incoming.credential, incoming.peer_certificate, incoming.client)
    check_may_ask(principal)
    check_recording(gateway.recorder)
    with gateway.running.watch() as watch:
        exchange = Exchange(gateway, kind, incoming, outgoing, principal, watch)
        try:
            asked = await exchange.parse()
            plan = await exchange.admit(exchange.plan(asked))
            answer = await exchange.relay(plan)
        except OutpostError as error:
            answer = exchange.fail(error)
            forget_way(error)
        except asyncio.CancelledError as error:
            stopped = watch.caught()
            if stopped is None:
                exchange.abandon()
                raise
            answer = exchange.fail(stopped)
            forget_way(error)
        except Exception:
            logger.exception("exchange_failed", extra={"request_id": incoming.id})
            answer = exchange.fail(InternalError(MISTAKE))
        watch.close()
        answer = await exchange.record(answer)
        exchange.shadow(answer)
        return answer


def check_may_ask(principal: Principal) -> None:
    """Raises PermissionDenied."""
    if not principal.may("models.use"):
        raise PermissionDenied(f"This needs the permission models.use; the role {principal.role} lacks it.")


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
        self._body = b""
        self._session = ""
        self._told: asyncio.Future[None] | None = None
        self._prepared: Prepared | None = None
        """What is kept of an answer that its caller may ask for again."""
        self._error: OutpostError | None = None
        self._policy: Content = "none"
        self._drawn: Drawn | None = None
        """Shadows that the request falls to."""
        self.demands: list[Demand] = []
        """Where its texts, and what it goes on from, want the data to stay; what key and route want comes on top."""
        now = self._now = _since(gateway.clock.monotonic)
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
        trace = self._trace = gateway.observer.begin(incoming.header("traceparent"))
        # Nothing in it may lead back to here: a circle would stay, with all that belongs to the exchange, until a
        # garbage collection, and looking for those at every fourteenth request took a tenth of the process.
        self._relay = Relay(
            kind=kind,
            partition=principal.credential,
            gates=gateway.gates,
            health=gateway.health,
            traceparent=lambda: gateway.observer.outgoing(trace),
            outgoing=outgoing,
            watch=watch,
            row=self.row,
            now=now,
            pause=gateway.pause,
            write_timeout_s=gateway.write_timeout_s,
        )

    async def parse(self) -> Asked:
        """The body as a typed request. Raises 4xx errors that name the field."""
        header, limited, gateway = self._incoming.header, self._principal.restrictions, self._gateway
        self.row.tags = parse_tags(header(TAGS_HEADER))
        self._session = parse_session(header(SESSION_HEADER))
        self.row.priority = self._relay.priority = choose_priority(
            header(PRIORITY_HEADER), least_urgent(gateway.max_priority, limited.priority), gateway.default_priority
        )
        body = self._body = await self._incoming.body()
        self._relay.size = len(body) // BYTES_A_TOKEN
        kind = self._kind
        more = (header(kind.header),) if kind.header else ()
        asked = kind.parse(body, gateway.max_json_depth, *more)
        if self._kind.keeps:
            self._prepared = await gateway.responses.begin(self._principal, asked, self.row.id)
            asked = self._prepared.asked
            self.demands += self._prepared.demands
        return asked

    def plan(self, asked: Asked) -> Plan:
        """The targets to try. Raises ModelNotFound, UnsupportedParameter, Unavailable."""
        gateway, limited, request = self._gateway, self._principal.restrictions, asked.request
        route = gateway.router.find(request.model, limited.routes)
        self.row.route = route.model
        self._policy = gateway.contents.policy(self._principal, route.model)
        if self._policy == "none":
            self._body = b""
        elif request.stream:
            self._relay.kept, self._relay.keep_most = [], STREAM_OVERHEAD * gateway.contents.most
        self.row.stream = bool(request.stream)
        if route.shadowed:
            self._draw(route, asked)
        health = gateway.health
        plan = None if self.demands else plain_plan(route, self._kind, asked, limited, health.board, health.clock())
        return plan or make_plan(route, self._kind, asked, limited, self._situation(asked))

    def explain(self, asked: Asked) -> Explanation:
        """What `plan` would decide, and why. Raises ModelNotFound."""
        limited = self._principal.restrictions
        route = self._gateway.router.find(asked.request.model, limited.routes)
        self.row.route = route.model
        return explain_plan(route, self._kind, asked, limited, self._situation(asked))

    def _draw(self, route: Route, asked: Asked) -> None:
        """Choose the shadows that the request falls to; the caller's answer is kept for them."""
        if drawn := self._gateway.shadows.draw(route, self._kind, asked):
            self._drawn = drawn
            if self.row.stream:
                relay = self._relay
                relay.kept, relay.keep_most = [] if relay.kept is None else relay.kept, max(relay.keep_most, PIECES)

    def _situation(self, asked: Asked) -> Situation:
        """What the plan goes by beside the request."""
        gateway, principal, health = self._gateway, self._principal, self._gateway.health
        return Situation(
            board=health.board,
            now=health.clock(),
            wall=self.row.started_at,
            random=health.random,
            count=lambda: gateway.limits.estimate(asked.request),
            session=self._session or principal.credential,
            partition=principal.credential,
            tags=tuple(self.row.tags),
            teams=_names(principal.team),
            organizations=_names(principal.organization),
            keys=_names(principal.key_id, principal.key_name),
            demands=tuple(self.demands),
        )

    async def admit(self, plan: Plan) -> Plan:
        """Reserve the worst case under every limit, in one step; the plan without the targets that have none left.

        Raises RateLimited, BadRequest or PermissionDenied that names the limit.
        """
        route = plan.route
        wait_s = self._gateway.gates.longest_wait(self._relay.priority)
        account = self._gateway.limits.account(
            self._principal, route.model, self.row.tags, route.deadlines.total, wait_s
        )
        self._account = self._relay.account = account
        left = await account.reserve(plan.candidates)
        if self._prepared is not None:
            within = [each.within for each in plan.candidates]
            await self._gateway.responses.admitted(self._prepared, route.model, within)
        return plan if len(left) == len(plan.candidates) else msgspec.structs.replace(plan, candidates=left)

    async def relay(self, plan: Plan) -> Answer:
        """Ask the targets in turn, pass the answer on, all but its last piece, and settle what was used."""
        if not self.row.stream:
            body = await self._relay.whole(plan)
            if self._prepared is not None:
                body = self._prepared.answer(body)
            self.settle()  # so that the headers tell what is left now
            return Answer(200, body, self._relay.headers(), self.row)
        end = await self._relay.stream(plan)
        self.settle()
        return Answer(200, end, {}, self.row, streamed=True)

    def settle(self) -> None:
        """What was used, by the count of the target that did the work."""
        row, tally = self.row, self._relay.tally
        account = self._account
        row.prompt_tokens = tally.prompt_tokens
        if account is not None:
            row.prompt_tokens = account.prompt_tokens(tally)
            row.charges = account.settle(self._relay.spent or Used(requests=0))
            row.cost_nanousd = sum(attempt.cost_nanousd for attempt in row.attempts)
        row.reasoning_tokens = tally.reasoning_tokens
        row.cached_tokens = tally.cached_tokens
        row.completion_tokens = tally.completion_tokens
        row.usage_source = tally.source
        if len(row.attempts) > 1 or (row.attempts and tally.source == "none"):
            self._add_up(tally.prompt_tokens, tally.completion_tokens)
        row.finish_reasons = tally.reasons()
        waited = self._relay.queue_s
        row.queue_s = tally.queue_s if waited is None else waited + (tally.queue_s or 0.0)

    def _add_up(self, prompt: int, completion: int) -> None:
        """What was asked in vain, or gone on with, is used too. Given the counts of the last attempt."""
        row = self.row
        row.prompt_tokens = sum([attempt.prompt_tokens for attempt in row.attempts])
        row.completion_tokens = sum([attempt.completion_tokens for attempt in row.attempts])
        if (row.prompt_tokens, row.completion_tokens) != (prompt, completion):
            row.usage_source = "estimated"  # who fails has seldom said what it used

    def fail(self, error: OutpostError) -> Answer:
        """The answer that tells of an error: a whole one, or the last event of a stream that has begun."""
        row, self._error = self.row, error
        if self._drawn is not None:
            self._drawn.drop(row)
        self.settle()
        row.error_code = error.code
        if notes := getattr(error, "__notes__", None):
            logger.info("no_target", extra={"request_id": row.id, "cause": "; ".join(notes)})
        refusal = self._account.refusal if self._account is not None else None
        if refusal is not None:
            self._gateway.observer.refused(refusal.limit, refusal.scope)
        row.status = 200 if self._relay.streaming else error.status
        row.outcome = _outcome(error, any(attempt.error_code == error.code for attempt in row.attempts))
        if self._relay.streaming:
            cut = isinstance(error, ClientStalled)
            return Answer(200, self._relay.failure(error), {}, self.row, streamed=True, cut=cut)
        headers = {**self._relay.headers(), **error_headers(error)}
        return Answer(error.status, self._kind.error_body(error, self.row.id), headers, self.row)

    def abandon(self) -> None:
        """The client has gone: nobody is answered, but the work that was done is on record."""
        self.settle()
        self.row.status = 200 if self._relay.streaming else 499
        self.row.outcome = "client_closed"
        self.row.error_code = "client_closed"
        self.row.duration_s = self._now()
        if self._policy == "none":
            self._submit()
        else:
            self._gateway.spawn(self._keep_abandoned())

    async def record(self, answer: Answer) -> Answer:
        """Make the row durable; without that the answer is withheld."""
        self.row.duration_s = self._now()
        if (drawn := self._drawn) is not None and self.row.outcome == "completed":
            drawn.name(self.row, self._principal.restrictions, self._situation(drawn.asked))
        if self._policy != "none" or self._prepared is not None:
            # It may take a while, and a client that leaves meanwhile changes nothing.
            return await asyncio.shield(self._gateway.spawn(self._record_with_texts(answer)))
        try:
            await self._submit()
        except OutpostError as error:
            return self.fail(error)
        return answer

    async def _record_with_texts(self, answer: Answer) -> Answer:
        """Texts that cannot be kept withhold the answer, but the work is on record."""
        content = stored = None
        try:
            content = await self._keep(answer.body)
            if self._prepared is not None:
                response = None if self._error is not None else self._relay.response
                stored = await self._gateway.responses.finish(self._prepared, response, self._error)
        except OutpostError as error:
            answer = self.fail(error)
        except Exception:
            logger.exception("content_not_kept", extra={"request_id": self.row.id})
            answer = self.fail(InternalError(MISTAKE))
        try:
            await self._submit()
            for durable in (content, stored):
                if durable is not None:
                    await durable
        except OutpostError as error:
            return self.fail(error)
        return answer

    async def _keep(self, answer: bytes) -> asyncio.Future[int] | None:
        """What the content policy wants of the texts, on its way to the disk; its digest is in the row."""
        if self._policy == "none":
            return None
        pieces = self._relay.kept
        contents, policy, self._policy = self._gateway.contents, self._policy, "none"
        if pieces is None:
            said = answer
        elif len(pieces) <= FEW_PIECES:
            said = self._kind.assemble(pieces)
        else:
            said = await asyncio.to_thread(self._kind.assemble, pieces)
        return await contents.keep(self._principal, self.row, policy, self._body, said)

    def shadow(self, answer: Answer) -> None:
        """Have shadows asked what the caller has been answered, if it has. Waits for none of them."""
        if self._drawn is not None:
            self._drawn.ask(Given(self.row, answer.body, self._relay.kept or ()))

    def _submit(self) -> asyncio.Future[None]:
        """Done once the row is on record and the limits know, or raises RecordsUnavailable. Whoever waits for it may be
        cancelled: a client that leaves now changes nothing."""
        written = self._gateway.recorder.submit(self.row)
        self._told = written.get_loop().create_future()
        written.add_done_callback(self._recorded)
        return self._told

    async def _keep_abandoned(self) -> None:
        try:
            await self._keep(b"")
        except OutpostError as error:
            logger.warning("content_not_kept", extra={"request_id": self.row.id, "cause": error.message})
        finally:
            self._submit()

    def _recorded(self, written: asyncio.Future[int]) -> None:
        told, self._told = self._told, None
        try:
            self._gateway.observer.observe(self.row, self._trace)
            account, self._account = self._account, None
            recorded = not written.cancelled() and written.exception() is None
            if not recorded:
                logger.warning("exchange_not_recorded", extra={"request_id": self.row.id})
            if account is not None:
                if recorded:
                    account.recorded()
                else:
                    account.unrecorded(self.row.id)
        finally:
            if told is not None and not told.done():
                _pass_on(written, told)


def _pass_on(written: asyncio.Future[int], told: asyncio.Future[None]) -> None:
    if written.cancelled():
        told.cancel()
    elif (error := written.exception()) is not None:
        told.set_exception(error)
        told.exception()  # perhaps nobody waits for it
    else:
        told.set_result(None)


def _names(*names: str | None) -> frozenset[str]:
    return frozenset([name for name in names if name])


def _since(clock: Callable[[], float]) -> Callable[[], float]:
    """Gives the seconds since now."""
    began = clock()
    return lambda: clock() - began


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
