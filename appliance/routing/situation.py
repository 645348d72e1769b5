"""What a plan goes by, beside the route and the request: who asks, and how things stand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from appliance.routing import residency
from appliance.routing.board import Board
from appliance.routing.routes import Target
from appliance.routing.strategies import Zone


class Allowed(Protocol):
    """What the asker is limited to; None = not limited. `models` are names of targets."""

    @property
    def models(self) -> tuple[str, ...] | None: ...
    @property
    def zones(self) -> tuple[Zone, ...] | None: ...


def _zero() -> int:
    return 0


class Situation(msgspec.Struct):
    """What a plan goes by, beside the request itself."""

    board: Board
    now: float
    """Monotonic seconds."""
    wall: float
    """Unix seconds."""
    random: Callable[[], float]
    """Numbers in [0, 1)."""
    count: Callable[[], int] = _zero
    """Tokens of the prompt, about; asked for where it matters."""
    session: str = ""
    """Whose requests should stay where they are; "" = nobody's."""
    partition: str = ""
    tags: tuple[str, ...] = ()
    teams: frozenset[str] = frozenset()
    organizations: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    demands: tuple[residency.Demand, ...] = ()
    """Where the data must stay, beside what the route says."""


def forbidden(target: Target, allowed: Allowed | None) -> str:
    """Why the asker may not use a target; empty when it may."""
    if allowed is None:
        return ""
    if allowed.models is not None and target.name not in allowed.models:
        return "it is limited to other targets"
    if allowed.zones is not None and target.zone not in allowed.zones:
        return f"it is limited to targets that are {' or '.join(allowed.zones)}"
    return ""
