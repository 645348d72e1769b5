"""Targets that a plan leaves out: why, and what the asker is told where no other is left. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from appliance.errors import ModelLoading, OutpostError, TargetLimited, TargetResting, Unavailable
from appliance.providers.upstream import Readiness, Upstream
from appliance.routing.candidate import Candidate
from appliance.routing.routes import Target


class Cut(msgspec.Struct, frozen=True):
    """A target that is left out."""

    target: Target
    why: str
    error: OutpostError | None = None
    readiness: Readiness | None = None
    """Of one that could, but is not up."""


def reasons(cuts: Sequence[Cut]) -> tuple[str, ...]:
    """One for each. They name teams, keys and tags of the settings: for operators."""
    return tuple([f"{cut.target.name}: {cut.why}" for cut in cuts]) if cuts else ()


def larger(cuts: Sequence[Cut], candidates: Sequence[Candidate]) -> Readiness | None:
    """See Plan.larger."""
    if not cuts:
        return None
    most = max(_length(candidate.target.upstream) for candidate in candidates)
    return next((cut.readiness for cut in cuts if cut.readiness and _length(cut.target.upstream) > most), None)


def refusal(model: str, cuts: Sequence[Cut]) -> OutpostError:
    """Why there is no candidate: the first that is not up, or rests, tells most; then the first refusal."""
    down = next((cut.readiness for cut in cuts if cut.readiness is not None), None)
    if down is not None:
        return unavailable(model, down)
    rest = [cut.error for cut in cuts if isinstance(cut.error, TargetResting | TargetLimited)]
    if rest:
        return min(rest, key=lambda error: error.retry_after_s or 0.0)
    refused = next((cut.error for cut in cuts if cut.error is not None), None)
    if refused is not None:
        return refused
    nobody = Unavailable(
        f"The model {model} is not for requests like this one: the conditions of its targets do not hold. "
        "Ask for another model, or the operator, who can see why."
    )
    for why in reasons(cuts):
        nobody.add_note(why)
    return nobody


def unavailable(model: str, readiness: Readiness) -> OutpostError:
    """The error for a model of which nothing is up."""
    after = readiness.retry_after_s if readiness.retry_after_s is not None else 2.0
    if readiness.loading:
        return ModelLoading(f"The model {model} is still being loaded ({readiness.reason}).", retry_after_s=after)
    return Unavailable(f"The model {model} is not available now: {readiness.reason}", retry_after_s=after)


def _length(upstream: Upstream) -> float:
    """Most tokens that it takes; without end where that is not known."""
    return upstream.capabilities.context_length or math.inf
