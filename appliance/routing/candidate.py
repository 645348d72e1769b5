"""What a plan consists of."""

from __future__ import annotations

import msgspec

from appliance.dialects.kinds import Request
from appliance.providers.upstream import Readiness
from appliance.routing import residency
from appliance.routing.routes import Route, Target


class Candidate(msgspec.Struct, frozen=True):
    """A target that can honour the request, and the request as this target gets it."""

    target: Target
    request: Request
    native: object = None
    """The same in the client's own dialect; see appliance.dialects.asked."""
    pseudonymise: bool = False
    """What is sensitive must not leave the premises as it is."""
    within: residency.Residency = residency.UNBOUND
    """Where the data must stay that goes to this target."""


class Plan(msgspec.Struct, frozen=True):
    """What may be tried, the best first, never empty."""

    route: Route
    candidates: tuple[Candidate, ...]
    why: tuple[str, ...] = ()
    """Why the other targets were left out."""
    larger: Readiness | None = None
    """Of a target that cannot answer now but could take more text than all candidates; None = there is none."""
