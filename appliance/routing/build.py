"""From settings to a router."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from appliance.dialects.chat import ChatRequest
from appliance.providers.upstream import Upstream
from appliance.routing.routes import Deadlines, Route, Router, Target


class DeadlineSettings(Protocol):
    @property
    def connect(self) -> float: ...
    @property
    def first_token(self) -> float: ...
    @property
    def idle(self) -> float: ...
    @property
    def total(self) -> float: ...


class RouteSettings(Protocol):
    """A route as the settings file declares it."""

    @property
    def model(self) -> str: ...
    @property
    def aliases(self) -> Sequence[str]: ...
    @property
    def strategy(self) -> str: ...
    @property
    def targets(self) -> Sequence[Any]: ...
    @property
    def deadlines(self) -> DeadlineSettings: ...
    @property
    def retries(self) -> int: ...
    @property
    def drop_unsupported(self) -> bool: ...


FORBIDDEN_OVERRIDES = frozenset(("model", "messages", "stream", "stream_options", "n", "prompt", "input"))


def build_router(routes: Sequence[RouteSettings], upstream_of: Callable[[Any], Upstream]) -> Router:
    """`upstream_of` gives the upstream of a target as the settings declare it.

    Raises ValueError for overrides that are no request fields or have wrong values.
    """
    return Router(
        Route(
            model=route.model,
            aliases=tuple(route.aliases),
            strategy=route.strategy,
            targets=tuple(
                Target(upstream_of(target), check_overrides(getattr(target, "overrides", None) or {}))
                for target in route.targets
            ),
            deadlines=Deadlines(
                connect=route.deadlines.connect,
                first_token=route.deadlines.first_token,
                idle=route.deadlines.idle,
                total=route.deadlines.total,
            ),
            retries=route.retries,
            drop_unsupported=route.drop_unsupported,
        )
        for route in routes
    )


def check_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides as typed values. Raises ValueError naming the field at fault."""
    known = ChatRequest.__struct_fields__
    for field in overrides:
        if field not in known:
            raise ValueError(f"overrides.{field}: there is no such request field")
        if field in FORBIDDEN_OVERRIDES:
            raise ValueError(f"overrides.{field}: this field cannot be overridden")
    try:
        request = msgspec.convert(
            {"model": "m", "messages": [{"role": "user", "content": ""}], **overrides}, ChatRequest
        )
    except msgspec.ValidationError as error:
        raise ValueError(f"overrides: {error}") from None
    return {field: getattr(request, field) for field in overrides}
