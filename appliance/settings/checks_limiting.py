"""What must hold between keys of `limiting`. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from appliance.settings.document import Finding, Path
from appliance.settings.limiting import Limit
from appliance.settings.problems import suggest
from appliance.settings.routing import ProviderTarget, leaf_targets
from appliance.settings.schema import Settings

DATABASE_ID = "limit_"
"""How ids of the database's limits begin; a name in the file must not look like one."""
_PLAIN = re.compile(r"[A-Za-z0-9._:=,/@+-]{1,63}", re.ASCII)


def limit_name(limit: Limit) -> str:
    """The name of a limit: the given one, else one made from scope and match. Printable ASCII, at most 63."""
    if limit.name is not None:
        return limit.name
    given = {field: names for field in type(limit.match).model_fields if (names := getattr(limit.match, field))}
    text = limit.scope + "".join(f":{field}={','.join(names)}" for field, names in given.items())
    if _PLAIN.fullmatch(text):
        return text
    return f"{limit.scope}:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def check(settings: Settings) -> Iterator[Finding]:
    """What cannot work."""
    known = _Known(settings)
    seen: set[str] = set()
    for index, limit in enumerate(settings.limits):
        path: Path = ("limits", index)
        name = limit_name(limit)
        if name in seen:
            if limit.name is None:
                yield Finding(path, f"there are two limits with the same scope and match ({name})", "give each a name")
            else:
                yield Finding((*path, "name"), f"there are two of the limit {name!r}", "give one another name")
        seen.add(name)
        if name.startswith(DATABASE_ID):
            cure = "choose another name: the limits in the database have ids like that"
            yield Finding((*path, "name"), f"begins with {DATABASE_ID!r}", cure)
        yield from _match(limit, (*path, "match"), known)
    yield from _prices(settings, known)


def check_limit(limit: Limit, settings: Settings) -> list[Finding]:
    """What cannot work of one limit on its own, for limits that do not come from the file."""
    return list(_match(limit, ("match",), _Known(settings)))


@dataclass(frozen=True)
class _Way:
    """One way that a request can take."""

    route: str
    provider: str | None
    model: str


class _Known:
    """The names that the file declares."""

    def __init__(self, settings: Settings) -> None:
        self.ways = [
            _Way(route.model, target.provider if isinstance(target, ProviderTarget) else None, str(target))
            for route in settings.routes
            for target in leaf_targets(route, settings.routes)
        ]
        self.routes = {route.model for route in settings.routes}
        self.aliases = {alias: route.model for route in settings.routes for alias in route.aliases}
        self.providers = {each.name for each in settings.providers}
        self.deployments = {each.name for each in settings.deployments}
        self.targets = {way.model for way in self.ways} | self.deployments


def _match(limit: Limit, path: Path, known: _Known) -> Iterator[Finding]:
    match = limit.match
    dangling = False
    for field, names, there in (
        ("route", match.route, known.routes),
        ("provider", match.provider, known.providers),
        ("model", match.model, known.targets),
    ):
        for name in names or ():
            if name not in there:
                dangling = True
                yield _unknown((*path, field), field, name, there, known)
    if dangling or not (match.route or match.provider or match.model):
        return
    if not any(
        _fits(match.route, way.route) and _fits(match.provider, way.provider) and _fits(match.model, way.model)
        for way in known.ways
    ):
        yield Finding(path, "can never fit: no route has such a target", "remove one of route, provider and model")
    elif limit.scope == "provider" and match.model and set(match.model) <= known.deployments:
        yield Finding(path, "can never fit: deployments of this box have no provider", "write scope: model")


def _fits(names: Collection[str] | None, name: str | None) -> bool:
    return not names or name in names


def _unknown(path: Path, field: str, name: str, there: Iterable[str], known: _Known) -> Finding:
    if field == "route" and name in known.aliases:
        return Finding(path, f"{name!r} is an alias of {known.aliases[name]!r}", f"write {known.aliases[name]}")
    if field == "provider" and name in known.deployments:
        return Finding(path, f"{name!r} is a deployment of this box, not a provider", f"write model: {name}")
    if field == "model" and name in known.routes:
        return Finding(path, f"{name!r} is a route, not a target", f"write route: {name}")
    what = "target" if field == "model" else field
    return Finding(path, f"there is no {what} {name!r}", _cure(name, there))


def _cure(name: str, there: Iterable[str]) -> str:
    names = sorted(there)
    meant = suggest(name, names)
    if meant:
        return f"did you mean {meant}? Otherwise remove it"
    return f"known are {', '.join(names[:10])}" if names else "remove it: there is none"


def _prices(settings: Settings, known: _Known) -> Iterator[Finding]:
    seen: set[str] = set()
    for index, price in enumerate(settings.prices):
        path: Path = ("prices", index)
        if price.target in seen:
            yield Finding((*path, "target"), f"there are two prices of {price.target!r}", "remove one")
        seen.add(price.target)
        if price.target not in known.targets:
            yield _unknown((*path, "target"), "model", price.target, known.targets, known)
        if price.gpu_second and price.target not in known.deployments:
            message = f"{price.target} does not run on this box: its seconds are not known"
            yield Finding((*path, "gpu_second"), message, "remove it, and set input, output or request")
