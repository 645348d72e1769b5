"""What must hold of routes and their targets. Pure: settings in, findings out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from appliance.settings.document import Finding, Path
from appliance.settings.problems import suggest
from appliance.settings.routing import (
    REQUEST_FEATURES,
    DeploymentTarget,
    ProviderTarget,
    Route,
    RouteTarget,
    Target,
)
from appliance.settings.schema import Settings
from appliance.settings.units import format_duration

OWN_FIELDS = ("model", "messages", "prompt", "input", "stream", "stream_options", "n")
"""Request fields that only the client or the gateway decides; an override would break the exchange."""


def check(settings: Settings) -> list[Finding]:
    """Names that lead nowhere, routes that lead to themselves, strategies that cannot be."""
    return [*_names(settings), *_circles(settings.routes), *_strategies(settings.routes), *_residency(settings)]


def warn(settings: Settings) -> list[Finding]:
    """What works, but is probably not meant."""
    found = []
    for index, route in enumerate(settings.routes):
        path: Path = ("routes", index)
        if route.rescue != "off" and len(route.targets) == 1 and route.retries == 0:
            message = f"nobody can go on with a broken stream of {route.model}"
            found.append(Finding((*path, "rescue"), message, "add a target, or retries"))
        if route.hedge is not None and len(route.targets) == 1:
            message = f"there is no second target of {route.model} that could be asked"
            found.append(Finding((*path, "hedge"), message, "add a target, or remove hedge"))
        deadlines = route.deadlines
        for name in ("connect", "first_token", "idle", "whole"):
            # One that is left out is no mistake of who wrote a short total.
            if name in deadlines.model_fields_set and (getattr(deadlines, name) or 0.0) > deadlines.total:
                message = f"is longer than total ({format_duration(deadlines.total)}): it never counts"
                found.append(Finding((*path, "deadlines", name), message, "make it shorter, or total longer"))
        if all(target.when is not None for target in route.targets):
            message = f"every target of {route.model} has a condition: a request for which none holds is refused"
            found.append(Finding((*path, "targets"), message, "add a target without `when`, as the last one"))
    return found


def _names(settings: Settings) -> Iterator[Finding]:
    for index, route in enumerate(settings.routes):
        seen: set[str] = set()
        for place, target in enumerate(route.targets):
            path: Path = ("routes", index, "targets", place)
            if not isinstance(target, ProviderTarget):
                if str(target) in seen:
                    yield Finding(path, f"{target} is listed twice", "remove one: retries need no second entry")
                seen.add(str(target))
            yield from _name(settings, target, path)
        for place, shadow in enumerate(route.shadow):
            yield from _name(settings, shadow.target, ("routes", index, "shadow", place))


def _name(settings: Settings, target: Target, path: Path) -> Iterator[Finding]:
    deployments = {each.name for each in settings.deployments}
    providers = {each.name for each in settings.providers}
    for name in target.overrides:
        if name in OWN_FIELDS:
            yield Finding((*path, "overrides", name), "cannot be overridden", "remove it: no route sets this field")
    if isinstance(target, ProviderTarget):
        if target.provider not in providers:
            yield _dangling((*path, "provider"), "provider", target.provider, providers, deployments)
    elif isinstance(target, DeploymentTarget):
        if target.deployment not in deployments:
            yield _dangling((*path, "deployment"), "deployment", target.deployment, deployments, providers)
    else:
        models = [each.model for each in settings.routes]
        if target.route not in models:
            alias = next((each.model for each in settings.routes if target.route in each.aliases), None)
            cure = f"write {alias}" if alias else _did_you_mean(target.route, models, "add it to routes")
            yield Finding((*path, "route"), f"there is no route {target.route!r}", cure)


def _circles(routes: Iterable[Route]) -> Iterator[Finding]:
    """Routes that lead back to themselves: their targets would never end."""
    known = {each.model: each for each in routes}
    for index, route in enumerate(known.values()):
        for place, target in enumerate(route.targets):
            if isinstance(target, RouteTarget) and route.model in _reached(target.route, known):
                message = f"the route {route.model} leads back to itself through {target.route}"
                yield Finding(("routes", index, "targets", place, "route"), message, "remove this target")


def _reached(start: str, known: dict[str, Route]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in found or name not in known:
            continue
        found.add(name)
        waiting += [target.route for target in known[name].targets if isinstance(target, RouteTarget)]
    return found


def _strategies(routes: Iterable[Route]) -> Iterator[Finding]:
    for index, route in enumerate(routes):
        total = 0.0
        for place, target in enumerate(route.targets):
            path: Path = ("routes", index, "targets", place)
            total += target.canary or 0.0
            for key, usual in (("weight", 1), ("canary", None)):
                if getattr(target, key) != usual and route.strategy != "weighted":
                    message = f"{key} has no effect with strategy {route.strategy}"
                    yield Finding((*path, key), message, "write strategy: weighted, or remove it")
            when = target.when
            if when is None:
                continue
            for low, high in (("min_prompt_tokens", "max_prompt_tokens"), ("min_complexity", "max_complexity")):
                least, most = getattr(when, low), getattr(when, high)
                if least is not None and most is not None and least > most:
                    message = f"{low} is more than {high}: it never holds"
                    yield Finding((*path, "when", low), message, "swap them")
            for number, name in enumerate(when.capability):
                if name not in REQUEST_FEATURES:
                    otherwise = f"use one of {', '.join(REQUEST_FEATURES)}"
                    cure = _did_you_mean(name, REQUEST_FEATURES, otherwise)
                    message = f"no request uses {name!r}: it never holds"
                    yield Finding((*path, "when", "capability", number), message, cure)
            if when.hours is None and (when.weekdays or when.timezone != "UTC"):
                yield Finding((*path, "when"), "weekdays and timezone go with hours", "add hours: 00:00-24:00")
        if total > 1.0:
            message = f"the canaries of {route.model} add up to {total * 100:g}%"
            yield Finding(("routes", index, "targets"), message, "let them add up to 100% at most")


def _residency(settings: Settings) -> Iterator[Finding]:
    order = {"on_box": 0, "on_prem": 1, "cloud": 2, "any": 2}
    zones = {each.name: each.zone for each in settings.providers}
    for index, route in enumerate(settings.routes):
        if route.residency == "any" or any(isinstance(each, RouteTarget) for each in route.targets):
            continue
        reach = [
            order["on_box" if isinstance(each, DeploymentTarget) else zones.get(each.provider) or "cloud"]
            for each in route.own_targets
        ]
        if reach and min(reach) > order[route.residency]:
            message = f"no target of {route.model} is where its data must stay ({route.residency})"
            yield Finding(("routes", index, "residency"), message, "add a target there, or widen residency")


def _dangling(path: Path, what: str, name: str, known: set[str], others: set[str]) -> Finding:
    if name in others:
        other = "provider" if what == "deployment" else "deployment"
        return Finding(path, f"{name!r} is a {other}, not a {what}", f"write {other}: {name}")
    cure = _did_you_mean(name, sorted(known), f"add it to {what}s")
    return Finding(path, f"there is no {what} {name!r}", cure)


def _did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    meant = suggest(name, known)
    return f"did you mean {meant}? Otherwise {otherwise}" if meant else otherwise
