"""Where the data of a request may go. Pure.

A key, a route or a verdict on the content may each demand that data stays on the box or on the premises. All demands
hold together: nothing goes where one of them forbids it, and what goes beyond a demand that pseudonyms satisfy is
pseudonymised. Whoever asks later can only add to them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec

from appliance.routing.strategies import Zone

Keep = Literal["on_box", "on_prem", "any"]
Action = Literal["drop", "pseudonymise"]
"""What is done where a target is beyond the demand: leave the target out, or let it have pseudonyms."""

DISTANCE: dict[Zone, int] = {"on_box": 0, "on_prem": 1, "cloud": 2}
_REACH: dict[Keep, Zone] = {"on_box": "on_box", "on_prem": "on_prem", "any": "cloud"}
PLACES: dict[Zone, str] = {"on_box": "on the box", "on_prem": "on the premises", "cloud": "off the premises"}


class Demand(msgspec.Struct, frozen=True):
    """`by`: who demands it, for people, like "the key ci"."""

    keep: Keep
    by: str
    action: Action = "drop"


class Residency(msgspec.Struct, frozen=True):
    """All demands together."""

    zone: Zone = "cloud"
    """The farthest that data may go as it is."""
    by: str = ""
    """Who demands that; empty: nobody demands anything."""
    farthest: Zone = "cloud"
    """The farthest that it may go at all, pseudonymised beyond `zone`."""
    farthest_by: str = ""


UNBOUND = Residency()


class Verdict(NamedTuple):
    allowed: bool
    pseudonymise: bool = False
    why: str = ""
    """Who demands what is done; empty where nothing is."""


def strictest(demands: Iterable[Demand]) -> Residency:
    """The demands together; of equal ones the first is named."""
    found = UNBOUND
    for demand in demands:
        reach = _REACH[demand.keep]
        zone, by, farthest, farthest_by = found.zone, found.by, found.farthest, found.farthest_by
        if DISTANCE[reach] < DISTANCE[zone]:
            zone, by = reach, demand.by
        if demand.action == "drop" and DISTANCE[reach] < DISTANCE[farthest]:
            farthest, farthest_by = reach, demand.by
        found = Residency(zone, by, farthest, farthest_by)
    return found


def allowed(zone: Zone, residency: Residency) -> Verdict:
    """Whether a target in `zone` may have the data, and whether as it is."""
    distance = DISTANCE[zone]
    if distance > DISTANCE[residency.farthest]:
        return Verdict(False, why=_why(zone, residency.farthest, residency.farthest_by))
    if distance > DISTANCE[residency.zone]:
        return Verdict(True, True, f"{_why(zone, residency.zone, residency.by)}, so it gets pseudonyms")
    return Verdict(True)


def _why(zone: Zone, keep: Zone, by: str) -> str:
    return f"it is {PLACES[zone]}, and {by} keeps data {PLACES[keep]}"
