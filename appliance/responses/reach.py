"""How far the data of a conversation may go: noted when it is asked, demanded of all that goes on from it. Pure.

What is noted is "ZONE FARTHEST", as a Residency has them: the zone up to which data went as it is, and the one up to
which it went at all. A conversation that goes on inherits both, whoever goes on with it, and on whatever route.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

from appliance.routing.residency import DISTANCE, Demand, Keep, Residency, strictest
from appliance.routing.strategies import Zone

BY = "the conversation that it goes on from"
UNNOTED = Demand("on_box", f"{BY}, begun before the gateway noted where one may go,")
"""Of what an earlier version stored: it may have been meant to stay on the box."""

_KEEP: dict[Zone, Keep] = {"on_box": "on_box", "on_prem": "on_prem", "cloud": "any"}


def noted(within: Iterable[Residency], zones: Sequence[Zone] | None, demands: Iterable[Demand] = ()) -> str:
    """How far a request may go. within: what is demanded of each target that may be tried; a request goes as far as any
    of them lets it. zones: those that the credential is limited to; None = all. demands: what holds beside."""
    all_of_it = list(demands)
    if zones is not None:
        all_of_it.append(Demand(_KEEP[max(zones, key=DISTANCE.__getitem__, default="on_box")], BY))
    if each := list(within):
        as_it_is: Zone = max([one.zone for one in each], key=DISTANCE.__getitem__)
        at_all: Zone = max([one.farthest for one in each], key=DISTANCE.__getitem__)
        all_of_it += _demands(as_it_is, at_all)
    found = strictest(all_of_it)
    return f"{found.zone} {found.farthest}"


def demanded(note: str | None) -> list[Demand]:
    """What a note demands of the request that goes on; None = there is none."""
    as_it_is, _, at_all = (note or "").partition(" ")
    if as_it_is not in get_args(Zone) or at_all not in get_args(Zone):
        return [UNNOTED]
    return _demands(as_it_is, at_all)  # type: ignore[arg-type]


def _demands(as_it_is: Zone, at_all: Zone) -> list[Demand]:
    found = []
    if as_it_is != at_all:
        found.append(Demand(_KEEP[as_it_is], BY, "pseudonymise"))
    if at_all != "cloud":
        found.append(Demand(_KEEP[at_all], BY))
    return found
