"""Which targets an exchange may use, in which order, and with which request. Pure decisions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from appliance.dialects.embeddings import EmbeddingRequest
from appliance.dialects.kinds import Kind, Request
from appliance.errors import BadRequest, ModelLoading, OutpostError, PermissionDenied, Unavailable, UnsupportedParameter
from appliance.providers.upstream import Capabilities, Readiness, Upstream
from appliance.routing.routes import Route, Target, Zone

Strategy = Callable[[Sequence[Target]], Sequence[Target]]


def _priority(targets: Sequence[Target]) -> Sequence[Target]:
    """As written."""
    return targets


STRATEGIES: dict[str, Strategy] = {"priority": _priority}


class Candidate(msgspec.Struct, frozen=True):
    """A target that can honour the request, and the request as this target gets it."""

    target: Target
    request: Request


class Plan(msgspec.Struct, frozen=True):
    """What may be tried, the best first, never empty; `why` explains the targets that were left out."""

    route: Route
    candidates: tuple[Candidate, ...]
    why: tuple[str, ...] = ()
    larger: Readiness | None = None
    """Of a target that cannot answer now but could take more text than all candidates; None = there is none."""


class Allowed(Protocol):
    """What the asker is limited to; None = not limited. `models` are names of targets."""

    @property
    def models(self) -> tuple[str, ...] | None: ...
    @property
    def zones(self) -> tuple[Zone, ...] | None: ...


def make_plan(route: Route, kind: Kind, request: Request, allowed: Allowed | None = None) -> Plan:
    """Raises UnsupportedParameter or BadRequest if no target can honour the request, PermissionDenied if none is
    allowed to the asker, Unavailable if none is up."""
    candidates: list[Candidate] = []
    why: list[str] = []
    refusal: OutpostError | None = None
    down: list[tuple[Upstream, Readiness]] = []
    for target in STRATEGIES[route.strategy](route.targets):
        forbidden = _forbidden(target, allowed)
        if forbidden:
            refusal = refusal or PermissionDenied(f"This key may not use the model {route.model}: {forbidden}.")
            why.append(f"{target.name}: {forbidden}")
            continue
        try:
            fitted = fit(request, kind, target.upstream.capabilities, drop=route.drop_unsupported, model=route.model)
        except OutpostError as error:
            refusal = refusal or error
            why.append(f"{target.name}: {error.message}")
            continue
        readiness = target.upstream.readiness()
        if not readiness.ready:
            down.append((target.upstream, readiness))
            why.append(f"{target.name}: {readiness.reason}")
            continue
        candidates.append(Candidate(target, override(fitted, target.overrides)))
    if candidates:
        most = max(_length(candidate.target.upstream) for candidate in candidates)
        larger = next((readiness for upstream, readiness in down if _length(upstream) > most), None)
        return Plan(route, tuple(candidates), tuple(why), larger)
    if down:
        raise unavailable(route.model, down[0][1])
    assert refusal is not None  # a route has at least one target
    raise refusal


def _forbidden(target: Target, allowed: Allowed | None) -> str:
    """Why the asker may not use a target; empty when it may."""
    if allowed is None:
        return ""
    if allowed.models is not None and target.name not in allowed.models:
        return "it is limited to other targets"
    if allowed.zones is not None and target.zone not in allowed.zones:
        return f"it is limited to targets that are {' or '.join(allowed.zones)}"
    return ""


def _length(upstream: Upstream) -> float:
    """Most tokens that it takes; without end where that is not known."""
    return upstream.capabilities.context_length or math.inf


def unavailable(model: str, readiness: Readiness) -> OutpostError:
    """The error for a model of which nothing is up."""
    after = readiness.retry_after_s if readiness.retry_after_s is not None else 2.0
    if readiness.loading:
        return ModelLoading(f"The model {model} is still being loaded ({readiness.reason}).", retry_after_s=after)
    return Unavailable(f"The model {model} is not available now: {readiness.reason}", retry_after_s=after)


WORDS = {
    "images": "cannot take images",
    "image_addresses": "takes images only as data: URLs, because addresses are not fetched",
    "audio_input": "cannot take audio",
    "files": "cannot take files",
    "reasoning": "does not reason",
    "tools": "cannot call tools",
    "json_schema": "cannot be held to a JSON schema",
    "json_object": "cannot be held to JSON",
    "logprobs": "gives no logprobs",
    "token_prompts": "takes text, not token ids",
}


def fit(request: Request, kind: Kind, capabilities: Capabilities, *, drop: bool, model: str) -> Request:
    """The request as a target with these capabilities can honour it.

    With `drop`, fields that only shape the answer are left out instead of refused; content never is.
    Raises UnsupportedParameter or BadRequest, naming the first field at fault.
    """
    if kind.name not in capabilities.kinds:
        raise BadRequest(
            f"The model {model} cannot {kind.verb}; it offers: {', '.join(sorted(capabilities.kinds))}.",
            param="model",
            code="unsupported_operation",
        )
    dropped: dict[str, Any] = {}
    for feature, field, droppable in kind.needs(request):
        if feature in capabilities.features:
            continue
        if drop and droppable:
            dropped[field] = None
            continue
        what = WORDS.get(feature, f"does not know {field}")
        raise UnsupportedParameter(f"{field}: the model {model} {what}; leave it out.", param=field)
    if isinstance(request, EmbeddingRequest):
        _check_dimensions(request, capabilities, model)
    if "logprobs" in dropped and hasattr(request, "top_logprobs"):
        dropped["top_logprobs"] = None
    return msgspec.structs.replace(request, **dropped) if dropped else request


def _check_dimensions(request: EmbeddingRequest, capabilities: Capabilities, model: str) -> None:
    wanted, has = request.dimensions, capabilities.dimensions
    if wanted is not None and has is not None and wanted != has:
        raise UnsupportedParameter(
            f"dimensions: the vectors of {model} have {has} dimensions and cannot be cut to {wanted}.",
            param="dimensions",
        )


def override(request: Request, overrides: Mapping[str, Any]) -> Request:
    """The request with a route's fixed fields; those that this kind of request does not have are passed over."""
    if not overrides:
        return request
    changes = {field: value for field, value in overrides.items() if field in request.__struct_fields__}
    if "max_tokens" in changes and getattr(request, "max_completion_tokens", None) is not None:
        changes["max_completion_tokens"] = None
    return msgspec.structs.replace(request, **changes) if changes else request
