"""/admin/v1/routes: what there is to ask for, how its targets fare, and what a route would do with a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from appliance.dialects.kinds import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, Kind, Request
from appliance.dialects.wire import encode
from appliance.door.operation import Asked, Operation
from appliance.errors import BadRequest, OutpostError, PermissionDenied
from appliance.identity.key_store import KeyInfo
from appliance.identity.principal import Principal, Zone
from appliance.routing.board import TargetState
from appliance.routing.breaker import Phase, usable
from appliance.routing.explain import Explanation, in_order
from appliance.routing.health import Health
from appliance.routing.plan import explain_plan
from appliance.routing.routes import Nested, Rescue, Route, Router, Target
from appliance.routing.situation import Situation
from appliance.wishes import parse_session, parse_tags

Dialect = Literal["chat", "messages", "responses", "completions", "embeddings"]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
Spec = tuple[Kind, Callable[[str], dict[str, Any]]]

DIALECTS: dict[Dialect, Spec] = {
    "chat": (CHAT, lambda text: {"messages": [{"role": "user", "content": text}]}),
    "messages": (MESSAGES, lambda text: {"max_tokens": 1024, "messages": [{"role": "user", "content": text}]}),
    "responses": (RESPONSES, lambda text: {"input": text}),
    "completions": (COMPLETIONS, lambda text: {"prompt": text}),
    "embeddings": (EMBEDDINGS, lambda text: {"input": text}),
}
"""How clients may put a request, and the smallest one that says a text."""
NO_GATEWAY = "No gateway is running: whether a target is up, busy or resting is not known."
SAMPLE = "Hello"
NOBODY = KeyInfo(id="", name="", role="member", organization="")
"""Who asks where no key is named: without a team, and not limited."""
_MAX_DEPTH = 64


@dataclass
class RouteDesk:
    """The collaborators of these operations.

    router: the routes in force. health: None where no gateway runs, so that nothing is known of targets. find_key: a
    key by id or name; raises NotFound. estimate: tokens of a request's prompt, about. wall: unix seconds.
    """

    router: Callable[[], Router]
    health: Health | None
    find_key: Callable[[Principal, str], Awaitable[KeyInfo]]
    estimate: Callable[[Request], int]
    wall: Callable[[], float]
    remarks: tuple[str, ...] = ()
    """What is to be said of every plan."""


class Failure(msgspec.Struct, frozen=True):
    """A failed attempt of late."""

    seconds_ago: float
    code: str


class TargetHealth(msgspec.Struct, frozen=True):
    """What the gateway has seen of a target since it started. Times are seconds; null is not known."""

    phase: Phase
    usable: bool
    """Whether a request may be sent to it now."""
    wait_s: float
    """Until it may."""
    reason: str
    in_flight: int
    in_flight_tokens: int
    ttft_s: float | None
    per_token_s: float | None
    requests: int
    failures: int
    errors: list[Failure]
    """The last ones, the newest last."""


class TargetInfo(msgspec.Struct, frozen=True):
    """A target of a route. `through`: the routes inside the route that lead to it."""

    name: str
    zone: Zone
    weight: float
    canary: float | None
    conditional: bool
    """It has a `when`, or a route that leads to it has."""
    through: list[str]
    ready: bool | None
    reason: str
    """Why it is not ready."""
    health: TargetHealth | None
    """null: no gateway runs."""


class RouteInfo(msgspec.Struct, frozen=True):
    """A model name that clients ask for."""

    model: str
    aliases: list[str]
    strategy: str
    sticky: bool
    rescue: Rescue
    residency: str
    hedged: bool
    shadows: list[str]
    targets: list[TargetInfo]


class TryRoute(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request to be planned and not sent: a message, or a whole request in one of the dialects."""

    message: Annotated[str, msgspec.Meta(max_length=1_000_000)] | UnsetType = UNSET
    request: dict[str, Any] | UnsetType = UNSET
    dialect: Dialect = "chat"
    key: Text | UnsetType = UNSET
    tags: Annotated[list[Text], msgspec.Meta(max_length=16)] = []
    session: Text | UnsetType = UNSET


def operations(desk: RouteDesk) -> tuple[Operation, ...]:
    async def list_all(asked: Asked) -> list[RouteInfo]:
        return [_info(desk, route) for route in desk.router().routes]

    async def test(asked: Asked) -> Explanation:
        return await explained(desk, asked.actor, asked.parameters["model"], asked.body)

    return (
        Operation(
            "GET",
            "/admin/v1/routes",
            "status.read",
            list_all,
            "All routes with their targets: how each is reached, and how it fares.",
            list[RouteInfo],
        ),
        Operation(
            "POST",
            "/admin/v1/routes/{model}/test",
            "status.read",
            test,
            "What a route would do with a request, and why. Nothing is sent, and no limit counts it.",
            Explanation,
            TryRoute,
        ),
    )


async def explained(desk: RouteDesk, actor: Principal, model: str, wanted: TryRoute) -> Explanation:
    """The plan of a request that is not sent. Raises ModelNotFound, NotFound for the key, PermissionDenied,
    BadRequest."""
    if wanted.key is not UNSET and not actor.may("keys.read"):
        raise PermissionDenied(
            f"key: needs the permission keys.read; the role {actor.role} lacks it. Leave the field out.", param="key"
        )
    key = NOBODY if wanted.key is UNSET else await desk.find_key(actor, wanted.key)
    route = desk.router().find(model, key.restrictions.routes)
    kind, asked = _parsed(route, wanted)
    tags = _named("tags", parse_tags, ",".join(wanted.tags))
    given = "" if wanted.session is UNSET else _named("session", parse_session, wanted.session)
    # As an exchange has it: a key's requests stay together where they name no session.
    who = key.id if key.user is None else f"{key.id}/{key.user}"
    known, health = desk.health is not None, desk.health or Health()
    situation = Situation(
        board=health.board,
        now=health.clock(),
        wall=desk.wall(),
        random=health.random,
        count=lambda: desk.estimate(asked.request),
        session=given or who,
        partition=who,
        tags=tuple(tags),
        teams=_names(key.team),
        organizations=_names(key.organization),
        keys=_names(key.id, key.name),
    )
    found = explain_plan(route, kind, asked, key.restrictions, situation)
    facts = {"asked by": "nobody in particular" if key is NOBODY else f"the key {key.name}", **found.request}
    remarks = [*found.remarks, *_remarks(desk, key, asked.native)]
    if not known:
        remarks.append(NO_GATEWAY)
    remarks += desk.remarks
    return msgspec.structs.replace(found, request=facts, considered=in_order(found.considered), remarks=tuple(remarks))


def _parsed(route: Route, wanted: TryRoute) -> tuple[Kind, Any]:
    """The request as a client's would be read. Raises BadRequest."""
    kind, body_of = DIALECTS[wanted.dialect]
    if wanted.request is UNSET:
        body = body_of(SAMPLE if wanted.message is UNSET else wanted.message)
    elif wanted.message is UNSET:
        body = wanted.request
    else:
        raise BadRequest("message: give a message or a whole request, not both", param="message")
    try:
        return kind, kind.parse(encode({**body, "model": route.model}), _MAX_DEPTH)
    except OutpostError as error:
        at = f"request.{error.param}" if error.param else "request"
        raise BadRequest(f"{at}: {error.message}", param=at, code=error.code) from error


def _remarks(desk: RouteDesk, key: KeyInfo, native: object) -> Iterator[str]:
    """What a real request of this kind would meet beside its plan."""
    ended = key.expires_at is not None and key.expires_at <= desk.wall()
    if key.revoked_at is not None or ended:
        yield f"The key {key.name} has ended: its requests are refused before they are planned."
    if key.restrictions.addresses is not None:
        yield f"The key {key.name} may only be used from {', '.join(key.restrictions.addresses)}."
    if getattr(native, "pending", False):
        yield "The earlier conversation that the request goes on from is not looked at."


def _named(field: str, parse: Callable[[str], Any], text: str) -> Any:
    """What a header would say. Raises BadRequest that names the field."""
    try:
        return parse(text)
    except BadRequest as error:
        raise BadRequest(error.message.replace(str(error.param), field, 1), param=field) from error


def _names(*names: str | None) -> frozenset[str]:
    return frozenset([name for name in names if name])


def _info(desk: RouteDesk, route: Route) -> RouteInfo:
    return RouteInfo(
        model=route.model,
        aliases=list(route.aliases),
        strategy=route.strategy,
        sticky=route.sticky,
        rescue=route.rescue,
        residency=route.keep,
        hedged=route.hedging is not None,
        shadows=[shadow.target.name for shadow in route.shadows],
        targets=list(_targets(desk, route, (), conditional=False)),
    )


def _targets(desk: RouteDesk, route: Route, through: tuple[str, ...], *, conditional: bool) -> Iterator[TargetInfo]:
    for each in route.targets:
        bound = conditional or each.when is not None
        if isinstance(each, Nested):
            yield from _targets(desk, each.route, (*through, each.name), conditional=bound)
        else:
            yield _target(desk, each, through, conditional=bound)


def _target(desk: RouteDesk, target: Target, through: tuple[str, ...], *, conditional: bool) -> TargetInfo:
    health = desk.health
    readiness = target.upstream.readiness()
    return TargetInfo(
        name=target.name,
        zone=target.zone,
        weight=target.weight,
        canary=target.share,
        conditional=conditional,
        through=list(through),
        ready=None if health is None else readiness.ready,
        reason=readiness.reason,
        health=None if health is None else shown(health.board.snapshot(target.name, health.clock())),
    )


def shown(state: TargetState) -> TargetHealth:
    """What the board knows, for people."""
    standing = state.standing
    return TargetHealth(
        phase=standing.phase,
        usable=usable(standing),
        wait_s=round(standing.wait_s, 3),
        reason=standing.reason,
        in_flight=state.in_flight,
        in_flight_tokens=state.in_flight_tokens,
        ttft_s=state.ttft_s,
        per_token_s=state.per_token_s,
        requests=state.requests,
        failures=state.failures,
        errors=[Failure(round(seconds, 3), code) for seconds, code in state.errors],
    )
