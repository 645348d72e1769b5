"""From settings to a router."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from appliance.dialects.chat import HINTS, REFUSED, ChatRequest
from appliance.dialects.wire import explain
from appliance.providers.upstream import Upstream
from appliance.routing.conditions import Condition, parse_hours
from appliance.routing.hedging import Hedging
from appliance.routing.routes import Deadlines, Nested, Route, Router, Shadow, Target
from appliance.routing.strategies import UNPRICED, Priced, Zone
from appliance.settings.checks_routing import OWN_FIELDS
from appliance.settings.document import Finding
from appliance.settings.problems import suggest
from appliance.settings.providers import Provider
from appliance.settings.routing import DeploymentTarget, RouteTarget, When
from appliance.settings.routing import Route as RouteSettings

PREFILL = frozenset({"prefill", "may_prefill"})
"""Features of models that are handed the beginning of an answer: the first go on from there, the others may also say it
again; see appliance.rescue."""


def _on_box(_target: Any) -> Zone:
    return "on_box"


def _no_price(_name: str) -> Priced:
    return UNPRICED


def zones(providers: Sequence[Provider]) -> Callable[[Any], Zone]:
    """Gives where a target of the settings is."""
    known: dict[str, Zone] = {each.name: each.zone for each in providers}
    return lambda target: "on_box" if isinstance(target, DeploymentTarget) else known[target.provider]


def build_router(
    routes: Sequence[RouteSettings],
    upstream_of: Callable[[Any], Upstream],
    zone_of: Callable[[Any], Zone] = _on_box,
    price_of: Callable[[str], Priced] = _no_price,
    shadow_of: Callable[[Any], Upstream] | None = None,
) -> Router:
    """`upstream_of` gives the upstream of a target as the settings declare it, `zone_of` where it is, `price_of` what
    a target of that name costs, `shadow_of` the upstream of one that is only a shadow, where that is another one.
    Routes must not lead back to themselves.

    Raises ValueError for overrides that are no request fields or have wrong values, and for hours that are none.
    """
    declared = {route.model: route for route in routes}
    built: dict[str, Route] = {}

    def shadow(target: Any) -> Target:
        return leaf(target, shadow_of or upstream_of)

    def leaf(target: Any, upstream_of: Callable[[Any], Upstream] = upstream_of) -> Target:
        upstream = upstream_of(target)
        prefill = getattr(target, "prefill", None)
        return Target(
            upstream,
            check_overrides(target.overrides),
            zone_of(target),
            weight=float(target.weight),
            share=target.canary,
            when=condition(target.when),
            price=price_of(upstream.name),
            prefill=not PREFILL.isdisjoint(upstream.capabilities.features) if prefill is None else prefill,
        )

    def route_of(model: str) -> Route:
        if model not in built:
            built[model] = _route(declared[model], leaf, route_of, shadow)
        return built[model]

    return Router(route_of(route.model) for route in routes)


def _route(
    route: RouteSettings,
    leaf: Callable[[Any], Target],
    route_of: Callable[[str], Route],
    shadow: Callable[[Any], Target],
) -> Route:
    return Route(
        model=route.model,
        aliases=tuple(route.aliases),
        strategy=route.strategy,
        sticky=route.sticky,
        targets=tuple(
            Nested(
                route_of(target.route),
                check_overrides(target.overrides),
                weight=float(target.weight),
                share=target.canary,
                when=condition(target.when),
            )
            if isinstance(target, RouteTarget)
            else leaf(target)
            for target in route.targets
        ),
        deadlines=Deadlines(
            connect=route.deadlines.connect,
            first_token=route.deadlines.first_token,
            idle=route.deadlines.idle,
            total=route.deadlines.total,
            whole=route.deadlines.whole,
        ),
        retries=route.retries,
        drop_unsupported=route.drop_unsupported,
        rescue=route.rescue,
        buffer_tokens=route.buffer_tokens,
        fallback_on_content_filter=route.fallback_on_content_filter,
        hedging=None if route.hedge is None else Hedging(float(route.hedge.percentile), route.hedge.share),
        shadows=tuple(Shadow(shadow(each.target), each.share) for each in route.shadow),
        keep=route.residency,
    )


def condition(when: When | None) -> Condition | None:
    """Raises ValueError for hours or a time zone that there are not."""
    if when is None:
        return None
    hours = () if when.hours is None else (parse_hours(when.hours, when.weekdays, when.timezone),)
    return Condition(
        min_prompt_tokens=when.min_prompt_tokens,
        max_prompt_tokens=when.max_prompt_tokens,
        capability=when.capability,
        tags=when.tags,
        teams=when.teams,
        organizations=when.organizations,
        keys=when.keys,
        zones=when.zones,
        hours=hours,
        min_complexity=when.min_complexity,
        max_complexity=when.max_complexity,
    )


def override_findings(routes: Sequence[RouteSettings]) -> list[Finding]:
    """Overrides that no request could carry, and hours that are none, each with its place in the settings file."""
    found: list[Finding] = []
    for index, route in enumerate(routes):
        for place, target in enumerate(route.targets):
            path = ("routes", index, "targets", place)
            found += [
                Finding((*path, "overrides", fault.field), f"{fault.message} (route {route.model})", fault.cure)
                for fault in _faults(target.overrides)
            ]
            try:
                condition(target.when)
            except ValueError as error:
                message, _, cure = str(error).partition("; ")
                found.append(Finding((*path, "when", "hours"), message, cure or "correct it"))
    return found


def check_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides as typed values. Raises ValueError naming the field at fault."""
    for fault in _faults(overrides):
        raise ValueError(f"overrides.{fault.field}: {fault.message}")
    return {field: getattr(_request(**overrides), field) for field in overrides}


class _Fault(NamedTuple):
    field: str
    message: str
    cure: str


def _faults(overrides: Mapping[str, Any]) -> Iterator[_Fault]:
    known = [field for field in ChatRequest.__struct_fields__ if field not in OWN_FIELDS]
    for field, value in overrides.items():
        if field in OWN_FIELDS:
            yield _Fault(field, "cannot be overridden", "remove it: no route sets this field")
        elif field not in known:
            meant = suggest(field, known)
            yield _Fault(field, "there is no such request field", f"did you mean {meant}?" if meant else "remove it")
        else:
            try:
                _request(**{field: value})
            except msgspec.ValidationError as error:
                message = explain(str(error), REFUSED, HINTS).message.rstrip(".")
                yield _Fault(field, message, "correct the value, or remove it")


def _request(**fields: Any) -> ChatRequest:
    return msgspec.convert({"model": "m", "messages": [{"role": "user", "content": ""}], **fields}, ChatRequest)
