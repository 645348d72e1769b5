"""Shadows: targets that get a share of a route's requests too, so that their answers can be compared.

A shadow is asked once the caller's answer is on record, in the background and in one piece. Nobody waits for it, nobody
is charged for it, and it takes a place at a busy target from nobody who waits there. Of its answer nothing is kept but
how it compares.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from appliance.dialects import openai_reader
from appliance.dialects.asked import Asked
from appliance.dialects.kinds import Kind
from appliance.dialects.messages import reader as messages_reader
from appliance.dialects.responses import reader as responses_reader
from appliance.dialects.tally import Tally
from appliance.errors import OutpostError, UpstreamTimeout
from appliance.pricing import FREE, Consumption, Prices, cost
from appliance.providers.upstream import Call
from appliance.records.rows import ExchangeRow
from appliance.routing.breaker import usable
from appliance.routing.health import Health
from appliance.routing.plan import Allowed, Candidate, Situation, fit_shadow
from appliance.routing.routes import Route, Shadow
from appliance.routing.shadow import COMPARED, Comparison, Said, compare
from runtimes.engine import Delta, Event, Finished

logger = logging.getLogger("outpost.shadows")

MOST = 64
"""Shadows that are asked at a time; others are left out."""
KEPT = 100
"""Comparisons that are kept of a route, the latest."""
PIECES = 64 * COMPARED * 4
"""Bytes of a stream that are kept to be compared: frames and fields are most of it."""

Result = Literal["same", "different", "failed", "skipped", "dropped"]
"""failed: the shadow gave no answer. skipped: it could not have the request, or had no room for it. dropped: too many
were under way."""
ReadWhole = Callable[[bytes, str, Any], list[Event]]

READERS: Mapping[str, ReadWhole] = {
    "chat.completions": openai_reader.read_whole,
    "completions": openai_reader.read_whole,
    "messages": lambda body, target, request: messages_reader.read_whole(body, target),
    "responses": lambda body, target, request: responses_reader.read_events(body, target),
}
"""Kinds of requests that have shadows, and what reads their whole answers."""


class Visit(Protocol):
    """See appliance.limits.admission.Visit."""

    def enter_at_once(self) -> bool: ...
    def give_back(self, places: int = 1) -> None: ...
    def leave(self) -> None: ...


class Gates(Protocol):
    """See appliance.limits.admission.Gates."""

    def enter(self, target: str, priority: Literal["batch"], caller: str, *, choices: int = 1) -> Visit: ...


class Clock(Protocol):
    def wall(self) -> float: ...
    def monotonic(self) -> float: ...


Told = Callable[[str, str, str, float | None, int], None]
"""Gets route, shadow, result, similarity (None where nothing was compared) and nano-USD."""


class Given(NamedTuple):
    """A complete answer that a caller was given."""

    row: ExchangeRow
    last: bytes
    """The whole answer, or the last events of a stream."""
    pieces: Sequence[bytes] = ()
    """Of a stream, from its beginning, perhaps not to its end."""


class Compared(msgspec.Struct, frozen=True):
    """One request that a shadow had too."""

    at: float
    """Unix seconds."""
    request_id: str
    target: str
    """The caller's."""
    shadow: str
    result: Result
    comparison: Comparison


class ShadowView(msgspec.Struct, frozen=True):
    """One shadow of a route, since the start."""

    shadow: str
    results: dict[str, int]
    similarity: float | None
    """The mean over `latest`."""
    skipped_for: str
    """Why the last one was skipped that was."""


class Overview(msgspec.Struct, frozen=True):
    """The shadows of a route."""

    route: str
    shadows: list[ShadowView]
    latest: list[Compared]
    """The newest first."""


class _Route:
    """What is known of one route's shadows."""

    def __init__(self) -> None:
        self.latest: deque[Compared] = deque(maxlen=KEPT)
        self.results: dict[str, dict[str, int]] = {}
        self.skipped_for: dict[str, str] = {}


class _Skipped(Exception):
    """The shadow does not get the request."""


class Shadows:
    """Those of one process. They belong to the event loop."""

    def __init__(
        self,
        health: Health,
        gates: Gates,
        prices: Callable[[], Prices],
        clock: Clock,
        told: Told,
        *,
        most: int = MOST,
    ) -> None:
        self._health = health
        self._gates = gates
        self._prices = prices
        self._clock = clock
        self._told = told
        self._most = most
        self._routes: dict[str, _Route] = {}
        self._closed = False
        self.running: set[asyncio.Task[None]] = set()

    def draw(self, route: Route, kind: Kind) -> tuple[Shadow, ...]:
        """Those of a route's shadows whose share a request falls into."""
        if self._closed or kind.name not in READERS:
            return ()
        random = self._health.random
        return tuple([shadow for shadow in route.shadows if random() < shadow.share])

    def ask(
        self,
        drawn: Iterable[Shadow],
        route: Route,
        kind: Kind,
        asked: Asked,
        allowed: Allowed | None,
        situation: Situation,
        given: Given,
    ) -> None:
        """Have shadows asked what a caller has been answered. Returns at once."""
        for shadow in drawn:
            name = shadow.target.name
            if self._closed or len(self.running) >= self._most:
                self._count(route.model, name, "dropped", None, 0)
                continue
            inquiry = _Inquiry(shadow, route, kind, asked, allowed, situation, given)
            task = asyncio.create_task(self._try(inquiry))
            self.running.add(task)
            task.add_done_callback(self.running.discard)

    def keep(self, routes: Collection[str]) -> None:
        """These are the routes from now on; what is known of others is forgotten."""
        for name in [name for name in self._routes if name not in routes]:
            del self._routes[name]

    def overview(self, route: Route) -> Overview:
        found = self._routes.get(route.model) or _Route()
        names = dict.fromkeys([*(shadow.target.name for shadow in route.shadows), *found.results])
        latest = list(reversed(found.latest))
        return Overview(
            route.model,
            [
                ShadowView(
                    name,
                    dict(found.results.get(name, {})),
                    _mean([each.comparison.similarity for each in latest if _counts(each, name)]),
                    found.skipped_for.get(name, ""),
                )
                for name in names
            ],
            latest,
        )

    async def close(self) -> None:
        """End those under way, and begin no more."""
        self._closed = True
        tasks = list(self.running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- one of them --------------------------------------------------------------------------------

    async def _try(self, inquiry: _Inquiry) -> None:
        """Nothing that goes wrong in here is anybody's error but ours."""
        route, name = inquiry.route.model, inquiry.shadow.target.name
        try:
            await self._compare(inquiry)
        except _Skipped as skipped:
            self._of(route).skipped_for[name] = str(skipped)
            self._count(route, name, "skipped", None, 0)
        except Exception:
            logger.exception("shadow_broken", extra={"route": route, "shadow": name})
            self._count(route, name, "failed", None, 0)

    async def _compare(self, inquiry: _Inquiry) -> None:
        candidate = _fitted(inquiry)
        outcome = await self._asked(inquiry, candidate)
        # Not on the event loop: long texts take milliseconds.
        comparison = await asyncio.to_thread(_compared, inquiry, candidate, outcome)
        self._put(inquiry, comparison, outcome.cost_nanousd)

    async def _asked(self, inquiry: _Inquiry, candidate: Candidate) -> _Outcome:
        """Raises _Skipped."""
        health, name = self._health, candidate.target.name
        partition = inquiry.situation.partition
        visit = self._gates.enter(name, "batch", partition, choices=candidate.request.choices)
        if not usable(health.board.standing(name, health.clock())):
            raise _Skipped("it is left alone")
        if not visit.enter_at_once():
            raise _Skipped("it is busy")
        try:
            # On a card of its own: what a shadow meets keeps no caller away from the same target.
            try:
                flight = health.began(_card(name), 0)
            except OutpostError as resting:
                raise _Skipped(f"it is left alone: {resting.message}") from None
            call = self._call(inquiry, candidate, visit)
            began, error, body = self._clock.monotonic(), "", b""
            failure: BaseException | None = None
            try:
                async with asyncio.timeout(inquiry.route.deadlines.total):
                    body = await candidate.target.upstream.whole(call)
            except TimeoutError:
                failure = UpstreamTimeout(f"{name} did not answer in time.")
                error = failure.code
            except OutpostError as refused:
                failure, error = refused, refused.code
            except BaseException as broken:
                failure = broken
                raise
            finally:
                health.ended(flight, _card(name), failure, call.tally.completion_tokens)
                failure = None  # its traceback holds this frame
            seconds = self._clock.monotonic() - began
            return _Outcome(body, error, seconds, call.tally, self._cost(name, call.tally, seconds))
        finally:
            visit.leave()

    def _call(self, inquiry: _Inquiry, candidate: Candidate, visit: Visit) -> Call:
        row = inquiry.given.row
        return Call(
            id=row.id,
            created=int(row.started_at),
            kind=inquiry.kind,
            request=candidate.request,
            model=candidate.target.model,
            partition=inquiry.situation.partition,
            connect_s=inquiry.route.deadlines.connect,
            tally=Tally(),
            native=candidate.native,
            drop=inquiry.route.drop_unsupported,
            ended=visit.give_back,
        )

    def _cost(self, target: str, tally: Tally, seconds: float) -> int:
        """Nano-USD that the operator pays."""
        price = self._prices().of(target)
        if price is FREE or tally.source == "none":
            return 0
        return cost(
            price,
            Consumption(
                prompt_tokens=tally.prompt_tokens,
                cached_tokens=tally.cached_tokens,
                cache_write_tokens=tally.cache_write_tokens,
                completion_tokens=tally.completion_tokens,
                reasoning_tokens=tally.reasoning_tokens,
                gpu_us=max(0, round(seconds * 1_000_000)),
            ),
        )

    # --- what comes of it ---------------------------------------------------------------------------

    def _put(self, inquiry: _Inquiry, comparison: Comparison, cost_nanousd: int) -> None:
        row, route, name = inquiry.given.row, inquiry.route.model, inquiry.shadow.target.name
        result = result_of(comparison)
        found = Compared(self._clock.wall(), row.id, row.target or "", name, result, comparison)
        self._of(route).latest.append(found)
        self._count(route, name, result, None if comparison.error else comparison.similarity, cost_nanousd)
        logger.info(
            "shadow_compared",
            extra={
                "request_id": row.id,
                "route": route,
                "target": row.target,
                "shadow": name,
                "result": result,
                **msgspec.to_builtins(comparison),
            },
        )

    def _count(self, route: str, name: str, result: Result, similarity: float | None, cost_nanousd: int) -> None:
        results = self._of(route).results.setdefault(name, {})
        results[result] = results.get(result, 0) + 1
        self._told(route, name, result, similarity, cost_nanousd)

    def _of(self, route: str) -> _Route:
        return self._routes.setdefault(route, _Route())


class _Inquiry(NamedTuple):
    """What a shadow is to be asked, and what to compare its answer with."""

    shadow: Shadow
    route: Route
    kind: Kind
    asked: Asked
    allowed: Allowed | None
    situation: Situation
    given: Given


class _Outcome(NamedTuple):
    """What came of asking a shadow; `error`: the code, "" where there is a body."""

    body: bytes
    error: str
    seconds: float
    tally: Tally
    cost_nanousd: int


def _card(target: str) -> str:
    """What a shadow's failures are kept under."""
    return f"{target} (shadow)"


def _counts(each: Compared, shadow: str) -> bool:
    return each.shadow == shadow and not each.comparison.error


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _fitted(inquiry: _Inquiry) -> Candidate:
    """The request as the shadow gets it. Raises _Skipped."""
    _, route, kind, asked, allowed, situation, _ = inquiry
    try:
        candidate, why = fit_shadow(route, kind, _whole(kind, asked), allowed, situation, inquiry.shadow.target)
    except OutpostError as error:
        raise _Skipped(error.message) from None
    if candidate is None:
        raise _Skipped(why)
    return candidate


def _whole(kind: Kind, asked: Asked) -> Asked:
    """The same request for an answer in one piece."""
    request, native = asked.request, asked.native
    if not request.stream and request.stream_options is None:
        return asked
    plain = msgspec.structs.replace(request, stream=None, stream_options=None)
    if native is not None:
        native = kind.carry(native, request, plain)
        if getattr(native, "stream_options", None) is not None:
            native = msgspec.structs.replace(native, stream_options=None)
    return Asked(plain, native)


# --- comparing: pure --------------------------------------------------------------------------------


def result_of(comparison: Comparison) -> Result:
    """Same: the same text but for its spacing and upper case, the same calls of tools, the same end."""
    if comparison.error:
        return "failed"
    alike = comparison.similarity == 1.0 and comparison.same_tool_calls and comparison.same_finish_reason
    return "same" if alike else "different"


def _compared(inquiry: _Inquiry, candidate: Candidate, outcome: _Outcome) -> Comparison:
    said = said_by_given(inquiry.kind, inquiry.asked.request, inquiry.given)
    events: list[Event] = []
    error = outcome.error
    if not error:
        try:
            events = READERS[inquiry.kind.name](outcome.body, candidate.target.name, candidate.request)
        except OutpostError as unreadable:
            error = unreadable.code
    told = _heard(events)
    shadow = Said(
        *told,
        seconds=outcome.seconds,
        completion_tokens=outcome.tally.completion_tokens,
        cost_nanousd=outcome.cost_nanousd,
        error=error,
    )
    return compare(said, shadow)


def said_by_given(kind: Kind, request: Any, given: Given) -> Said:
    """What the caller was told. Of an answer that was too long to be kept whole, as far as it was."""
    row = given.row
    events: list[Event] = []
    target = row.target or "target"
    with suppress(OutpostError):
        if not row.stream:
            events = READERS[kind.name](given.last, target, request)
        elif kind.make_reader is not None:
            reader = kind.make_reader(target, request)
            for piece in (*given.pieces, given.last):
                events += reader.feed(piece) if piece else []
    told = _heard(events)
    if not told[2] and row.finish_reasons:
        told = (told[0], told[1], row.finish_reasons[0])
    return Said(
        *told,
        ttft_s=row.ttft_s if row.stream else None,
        seconds=row.duration_s,
        completion_tokens=row.completion_tokens,
        cost_nanousd=row.cost_nanousd,
    )


def _heard(events: Iterable[Event]) -> tuple[str, tuple[tuple[str, str], ...], str]:
    """Text, calls of tools (name, arguments) and finish reason of the first choice."""
    text: list[str] = []
    calls: dict[int, list[str]] = {}
    reason = ""
    for event in events:
        if isinstance(event, Delta) and event.index == 0:
            text.append(event.text or event.refusal)
            for piece in event.tool_calls:
                call = calls.setdefault(piece.index, ["", ""])
                call[0] += piece.name
                call[1] += piece.arguments
        elif isinstance(event, Finished) and event.index == 0:
            reason = event.reason
    return "".join(text), tuple([(name, arguments) for name, arguments in calls.values()]), reason
