"""Shadows: targets that get a share of a route's requests too, so that their answers can be compared.

A shadow is asked once the caller's answer is on record, in the background and in one piece. The record names it: whom a
request may have been sent to can be proved. Nobody waits for it, nobody is charged for it, and it takes a place at a
busy target from nobody who waits there. Of its answer nothing is kept but how it compares.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from appliance.dialects.asked import Asked
from appliance.dialects.kinds import Kind
from appliance.dialects.tally import Tally
from appliance.errors import OutpostError, UpstreamTimeout
from appliance.pricing import FREE, Consumption, Prices, cost
from appliance.providers.upstream import Call
from appliance.records.rows import SHADOW, Attempt, ExchangeRow, tries
from appliance.routing.breaker import usable
from appliance.routing.candidate import Candidate
from appliance.routing.health import Health
from appliance.routing.plan import fit_shadow
from appliance.routing.routes import Route, Shadow
from appliance.routing.shadow import COMPARED, Comparison, Said, compare
from appliance.routing.situation import Allowed, Situation
from appliance.shadow_answers import READERS, Given, Result, heard, result_of, said_by_given
from runtimes.engine import Event

logger = logging.getLogger("outpost.shadows")

MOST = 64
"""Shadows that are asked at a time; others are left out."""
KEPT = 100
"""Comparisons that are kept of a route, the latest."""
PIECES = 64 * COMPARED * 4
"""Bytes of a stream that are kept to be compared: frames and fields are most of it."""


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

    def draw(self, route: Route, kind: Kind, asked: Asked) -> Drawn | None:
        """Those of a route's shadows whose share a request falls into; None: it falls into none's."""
        if self._closed or kind.name not in READERS:
            return None
        random = self._health.random
        lots = [_Lot(shadow, (route,), {}) for shadow in route.shadows if random() < shadow.share]
        lots += [
            _Lot(each.shadow, (route, *each.routes), each.overrides)
            for each in route.inside
            if random() < each.shadow.share
        ]
        return Drawn(self, lots, kind, asked) if lots else None

    def choose(
        self, lots: Iterable[_Lot], kind: Kind, asked: Asked, allowed: Allowed | None, situation: Situation, target: str
    ) -> list[_Inquiry]:
        """Those that may have what `target` has answered, and could have it now."""
        found: list[_Inquiry] = []
        for lot in lots:
            own, name = lot.routes[-1], lot.shadow.target.name
            if len(lot.routes) > 1 and all(each.name != target for each in own.all_targets()):
                continue  # another route's target has answered
            if self._closed or len(self.running) >= self._most:
                self._count(own.model, name, "dropped", None, 0)
                continue
            try:
                candidate = _fitted(lot, kind, asked, allowed, situation)
                self._check_up(name)
            except _Skipped as skipped:
                self._skip(own.model, name, skipped)
            else:
                found.append(_Inquiry(lot.routes, candidate, kind, asked, situation.partition))
        return found

    def ask(self, inquiries: Iterable[_Inquiry], given: Given) -> None:
        """Have shadows asked what a caller has been answered. Returns at once."""
        for inquiry in inquiries:
            if self._closed or len(self.running) >= self._most:
                self._count(inquiry.route, inquiry.name, "dropped", None, 0)
                continue
            task = asyncio.create_task(self._try(inquiry, given))
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

    async def _try(self, inquiry: _Inquiry, given: Given) -> None:
        """Nothing that goes wrong in here is anybody's error but ours."""
        route, name = inquiry.route, inquiry.name
        try:
            outcome = await self._asked(inquiry, given.row)
            # Not on the event loop: long texts take milliseconds.
            comparison = await asyncio.to_thread(_compared, inquiry, given, outcome)
            self._put(inquiry, given.row, comparison, outcome.cost_nanousd)
        except _Skipped as skipped:
            self._skip(route, name, skipped)
        except Exception:
            logger.exception("shadow_broken", extra={"route": route, "shadow": name})
            self._count(route, name, "failed", None, 0)

    def _skip(self, route: str, name: str, skipped: _Skipped) -> None:
        self._of(route).skipped_for[name] = str(skipped)
        self._count(route, name, "skipped", None, 0)

    def _check_up(self, name: str) -> None:
        """Raises _Skipped."""
        if not usable(self._health.board.standing(name, self._health.clock())):
            raise _Skipped("it is left alone")

    async def _asked(self, inquiry: _Inquiry, row: ExchangeRow) -> _Outcome:
        """Raises _Skipped."""
        health, name, candidate = self._health, inquiry.name, inquiry.candidate
        visit = self._gates.enter(name, "batch", inquiry.partition, choices=candidate.request.choices)
        self._check_up(name)
        if not visit.enter_at_once():
            raise _Skipped("it is busy")
        try:
            # On a card of its own: what a shadow meets keeps no caller away from the same target.
            try:
                flight = health.began(_card(name), 0)
            except OutpostError as resting:
                raise _Skipped(f"it is left alone: {resting.message}") from None
            call = self._call(inquiry, row, visit)
            began, error, body = self._clock.monotonic(), "", b""
            failure: BaseException | None = None
            try:
                async with asyncio.timeout(inquiry.routes[0].deadlines.total):
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
                health.ended(flight, failure, call.tally.completion_tokens)
                failure = None  # its traceback holds this frame
            seconds = self._clock.monotonic() - began
            return _Outcome(body, error, seconds, call.tally, self._cost(name, call.tally, seconds))
        finally:
            visit.leave()

    def _call(self, inquiry: _Inquiry, row: ExchangeRow, visit: Visit) -> Call:
        candidate = inquiry.candidate
        return Call(
            id=row.id,
            created=int(row.started_at),
            kind=inquiry.kind,
            request=candidate.request,
            model=candidate.target.model,
            partition=inquiry.partition,
            connect_s=inquiry.routes[0].deadlines.connect,
            tally=Tally(),
            native=candidate.native,
            drop=inquiry.routes[0].drop_unsupported,
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

    def _put(self, inquiry: _Inquiry, row: ExchangeRow, comparison: Comparison, cost_nanousd: int) -> None:
        route, name = inquiry.route, inquiry.name
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


class Drawn:
    """The shadows that one request falls to."""

    def __init__(self, shadows: Shadows, lots: list[_Lot], kind: Kind, asked: Asked) -> None:
        self.asked = asked
        self._shadows = shadows
        self._lots = lots
        self._kind = kind
        self._chosen: list[_Inquiry] = []

    def name(self, row: ExchangeRow, allowed: Allowed | None, situation: Situation) -> None:
        """Put those that are to be asked on record. To be done once the caller is answered, and before the row is
        written."""
        found = self._shadows.choose(self._lots, self._kind, self.asked, allowed, situation, row.target or "")
        self._chosen = found
        row.attempts += [Attempt(each.name, row.duration_s, 0.0, SHADOW) for each in found]

    def drop(self, row: ExchangeRow) -> None:
        """None is asked: the caller was not answered after all."""
        self._chosen = []
        row.attempts = tries(row)

    def ask(self, given: Given) -> None:
        """To be done once the row is written."""
        self._shadows.ask(self._chosen, given)


class _Lot(NamedTuple):
    """A shadow that a request falls to."""

    shadow: Shadow
    routes: tuple[Route, ...]
    """See routing.plan.fit_shadow."""
    overrides: Mapping[str, object]


class _Inquiry(NamedTuple):
    """What a shadow is to be asked."""

    routes: tuple[Route, ...]
    candidate: Candidate
    kind: Kind
    asked: Asked
    partition: str

    @property
    def route(self) -> str:
        """Whose shadow it is."""
        return self.routes[-1].model

    @property
    def name(self) -> str:
        return self.candidate.target.name


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


def _fitted(lot: _Lot, kind: Kind, asked: Asked, allowed: Allowed | None, situation: Situation) -> Candidate:
    """The request as the shadow gets it. Raises _Skipped."""
    whole = _whole(kind, asked)
    try:
        candidate, why = fit_shadow(lot.routes, kind, whole, allowed, situation, lot.shadow.target, lot.overrides)
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


def _compared(inquiry: _Inquiry, given: Given, outcome: _Outcome) -> Comparison:
    said = said_by_given(inquiry.kind, inquiry.asked.request, given)
    events: list[Event] = []
    error = outcome.error
    if not error:
        try:
            events = READERS[inquiry.kind.name](outcome.body, inquiry.name, inquiry.candidate.request)
        except OutpostError as unreadable:
            error = unreadable.code
    told = heard(events)
    shadow = Said(
        *told,
        seconds=outcome.seconds,
        completion_tokens=outcome.tally.completion_tokens,
        cost_nanousd=outcome.cost_nanousd,
        error=error,
    )
    return compare(said, shadow)
