"""Routes as plain data: the model names that clients ask for, and what may answer them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from appliance.dialects.models import ModelCard
from appliance.errors import ModelNotFound
from appliance.providers.upstream import Upstream
from appliance.routing.conditions import Condition, uses_complexity
from appliance.routing.hedging import Hedging
from appliance.routing.residency import Action, Keep
from appliance.routing.strategies import UNPRICED, Priced, Zone

Rescue = Literal["off", "buffer", "resume"]


class Deadlines(msgspec.Struct, frozen=True):
    """Seconds. `total` bounds all attempts together."""

    connect: float = 2.0
    first_token: float = 60.0
    idle: float = 30.0
    total: float = 600.0
    whole: float | None = None
    """Of one attempt at a whole answer while another target could answer; None: half of what is left of `total`."""


class Target(msgspec.Struct, frozen=True):
    """An upstream as one route uses it; `overrides` are request fields that the route sets."""

    upstream: Upstream
    overrides: Mapping[str, Any] = {}
    zone: Zone = "on_box"
    weight: float = 1.0
    share: float | None = None
    """Of all requests, those that it gets as a canary; None = it is none."""
    when: Condition | None = None
    """None = always."""
    price: Priced = UNPRICED
    prefill: bool = False
    """It goes on with an answer that it is told the beginning of."""

    name: str = ""
    """The deployment's, or provider/model. Found out when it is made, like the next two."""
    model: str = ""
    """The model that answers, as callers are told: the deployment's name, or the provider's for it."""
    provider: str | None = None
    """None for a deployment of this box."""

    def __post_init__(self) -> None:
        name = self.upstream.name
        provider, slash, model = name.partition("/")
        msgspec.structs.force_setattr(self, "name", name)
        msgspec.structs.force_setattr(self, "model", model if slash else name)
        msgspec.structs.force_setattr(self, "provider", provider if slash else None)


class Nested(msgspec.Struct, frozen=True):
    """A route in the place of a target."""

    route: Route
    overrides: Mapping[str, Any] = {}
    weight: float = 1.0
    share: float | None = None
    when: Condition | None = None

    @property
    def name(self) -> str:
        return self.route.model


class Shadow(msgspec.Struct, frozen=True):
    """A target that gets a share of the requests too; its answers are compared and dropped."""

    target: Target
    share: float = 1.0


class Inside(msgspec.Struct, frozen=True):
    """A shadow of a route inside another one, as the outer one sees it."""

    shadow: Shadow
    routes: tuple[Route, ...]
    """The way to it: the routes inside the outer one, the last is the shadow's own."""
    overrides: Mapping[str, Any]
    """Of the way."""


class Route(msgspec.Struct, frozen=True):
    model: str
    targets: tuple[Target | Nested, ...]
    aliases: tuple[str, ...] = ()
    strategy: str = "priority"
    deadlines: Deadlines = Deadlines()
    retries: int = 2
    """Attempts after the first one."""
    drop_unsupported: bool = False
    rescue: Rescue = "off"
    """What becomes of a stream that breaks after the client has seen its beginning."""
    buffer_tokens: int = 16
    """Held back of each stream where `rescue` is buffer."""
    fallback_on_content_filter: bool = False
    sticky: bool = False
    """The requests of a session go to the same target."""
    hedging: Hedging | None = None
    shadows: tuple[Shadow, ...] = ()
    keep: Keep = "any"
    """Where the data of its requests must stay."""
    keep_action: Action = "drop"

    scored: bool = False
    """Whether the order of the targets is more than that of the file. Found out when it is made, like the next."""
    plain: bool = False
    """No target has a condition or is a route, nothing is scored, and data may go anywhere."""
    inside: tuple[Inside, ...] = ()
    """The shadows of routes inside it, which get what these routes have answered."""
    shadowed: bool = False
    """There are shadows, its own or inside."""

    def __post_init__(self) -> None:
        scored = self.strategy != "priority" or any(each.share is not None for each in self.targets)
        plain = not scored and self.keep == "any"
        plain = plain and all(isinstance(each, Target) and each.when is None for each in self.targets)
        msgspec.structs.force_setattr(self, "scored", scored)
        msgspec.structs.force_setattr(self, "plain", plain)
        inside = tuple(found for each in self.targets if isinstance(each, Nested) for found in _inside(each))
        msgspec.structs.force_setattr(self, "inside", inside)
        msgspec.structs.force_setattr(self, "shadowed", bool(self.shadows or inside))

    @property
    def uses_complexity(self) -> bool:
        return any(each.when is not None and uses_complexity(each.when) for each in self.targets)

    def told(self, target: Target) -> str:
        """The model that callers are told of: the one that answers; where a deployment is all there is, it has the name
        that they asked for."""
        return self.model if target.provider is None and len(self.targets) == 1 else target.model

    def all_targets(self) -> Iterator[Target]:
        """Its own, and those of the routes inside it."""
        for each in self.targets:
            if isinstance(each, Nested):
                yield from each.route.all_targets()
            else:
                yield each


def _inside(nested: Nested) -> Iterator[Inside]:
    for shadow in nested.route.shadows:
        yield Inside(shadow, (nested.route,), nested.overrides)
    for each in nested.route.inside:
        yield Inside(each.shadow, (nested.route, *each.routes), {**nested.overrides, **each.overrides})


class Router:
    """The routes by name. Immutable: a reload makes a new one, and an exchange keeps the one it began with."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes: tuple[Route, ...] = tuple(routes)
        self._by_name: dict[str, Route] = {}
        for route in self.routes:
            for name in (route.model, *route.aliases):
                self._by_name.setdefault(name, route)

    def find(self, model: str, only: Collection[str] | None = None) -> Route:
        """`only`: model names that the asker is limited to. Raises ModelNotFound, which names the models there are."""
        route = self._by_name.get(model)
        if route is None or not _among(model, route, only):
            raise ModelNotFound(
                f"The model {_shown(model)} does not exist or this key may not use it. {self._offer(only)}",
                param="model",
            )
        return route

    def _offer(self, only: Collection[str] | None) -> str:
        names = [name for name, route in self._by_name.items() if _among(name, route, only)]
        if not names:
            return "No model is set up." if only is None else "This key may use none of the models of this box."
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        return f"There is: {', '.join(names[:20])}{more}."

    def cards(self, created: int, only: Collection[str] | None = None) -> list[ModelCard]:
        """The models with their aliases, as clients list them; `created` is unix seconds, `only` as in `find`."""
        return [
            _card(name, route, created, None if name == route.model else route.model)
            for name, route in self._by_name.items()
            if _among(name, route, only)
        ]

    def card(self, model: str, created: int, only: Collection[str] | None = None) -> ModelCard:
        route = self.find(model, only)
        return _card(model, route, created, None if model == route.model else route.model)

    def ready(self) -> bool:
        """Whether at least one route can answer."""
        return any(target.upstream.readiness().ready for route in self.routes for target in route.all_targets())


def _among(name: str, route: Route, only: Collection[str] | None) -> bool:
    """Whether somebody who is limited to some names may use this one: it is named itself, or its route is."""
    return only is None or name in only or route.model in only


def _card(name: str, route: Route, created: int, alias_of: str | None) -> ModelCard:
    capabilities: set[str] = set()
    targets = list(route.all_targets())
    for target in targets:
        capabilities |= target.upstream.capabilities.kinds | target.upstream.capabilities.features
    first = targets[0].upstream.capabilities
    return ModelCard(
        id=name,
        created=created,
        capabilities=sorted(capabilities),
        context_length=first.context_length,
        dimensions=first.dimensions,
        targets=[target.name for target in targets],
        alias_of=alias_of,
    )


def _shown(model: str) -> str:
    return repr(model[:64]) if model.isprintable() else repr(ascii(model[:64]))
