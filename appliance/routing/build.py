"""From settings to a router."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from appliance.dialects.chat import HINTS, REFUSED, ChatRequest
from appliance.dialects.wire import explain
from appliance.providers.upstream import Upstream
from appliance.routing.routes import Deadlines, Route, Router, Target, Zone
from appliance.settings.checks import OWN_FIELDS
from appliance.settings.document import Finding
from appliance.settings.problems import suggest


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


def _on_box(_target: Any) -> Zone:
    return "on_box"


def build_router(
    routes: Sequence[RouteSettings],
    upstream_of: Callable[[Any], Upstream],
    zone_of: Callable[[Any], Zone] = _on_box,
) -> Router:
    """`upstream_of` gives the upstream of a target as the settings declare it, `zone_of` where it is.

    Raises ValueError for overrides that are no request fields or have wrong values.
    """
    return Router(
        Route(
            model=route.model,
            aliases=tuple(route.aliases),
            strategy=route.strategy,
            targets=tuple(
                Target(upstream_of(target), check_overrides(_overrides(target)), zone_of(target))
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


def override_findings(routes: Sequence[RouteSettings]) -> list[Finding]:
    """Overrides that no request could carry, each with its place in the settings file."""
    return [
        Finding(
            ("routes", index, "targets", place, "overrides", fault.field),
            f"{fault.message} (route {route.model})",
            fault.cure,
        )
        for index, route in enumerate(routes)
        for place, target in enumerate(route.targets)
        for fault in _faults(_overrides(target))
    ]


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


def _overrides(target: Any) -> Mapping[str, Any]:
    return getattr(target, "overrides", None) or {}
