"""What a plan says for itself: as data for a program, and as lines for people. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from appliance.routing.strategies import Zone

HEADINGS = ("#", "TARGET", "ZONE", "SCORE", "WHY")
Table = Callable[[Sequence[str], Sequence[Sequence[object]]], list[str]]


class Considered(msgspec.Struct, frozen=True, omit_defaults=True):
    """A target of the route."""

    target: str
    zone: Zone
    place: int | None
    """1 is asked first; None: it is not asked."""
    why: str
    """Why it has its place, or has none."""
    score: float | None = None
    """The strategy's; lower is better."""
    pseudonymise: bool = False
    """It gets pseudonyms instead of what was found sensitive."""
    without: tuple[str, ...] = ()
    """What of the request it does not get, by the names that the client has for it."""


class Explanation(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of one plan. Holds nothing of what the request says."""

    route: str
    strategy: str
    considered: tuple[Considered, ...]
    request: dict[str, Any] = {}
    """What the decisions were made from: tokens, features, complexity and its parts, …"""
    remarks: tuple[str, ...] = ()


def document(explanation: Explanation) -> dict[str, Any]:
    """As JSON: the targets in the order in which they are asked, those that are left out last."""
    ordered = msgspec.structs.replace(explanation, considered=in_order(explanation.considered))
    written: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(ordered))  # an infinite score becomes None
    return written


def in_order(considered: Sequence[Considered]) -> tuple[Considered, ...]:
    return tuple(sorted(considered, key=lambda each: (each.place is None, each.place or 0)))


def rows(explanation: Explanation) -> list[tuple[str, ...]]:
    """One for each target, under HEADINGS."""
    return [
        (
            "-" if each.place is None else str(each.place),
            each.target,
            each.zone,
            "" if each.score is None else f"{each.score:.4g}",
            "; ".join(
                [each.why]
                + (["pseudonymised"] if each.pseudonymise else [])
                + ([f"without {', '.join(each.without)}"] if each.without else [])
            ),
        )
        for each in in_order(explanation.considered)
    ]


def lines(explanation: Explanation, table: Table) -> list[str]:
    """For a terminal; `table` draws one and makes what is in it harmless."""
    facts = [(name, _shown(value)) for name, value in explanation.request.items()]
    return [
        f"Route {explanation.route}, strategy {explanation.strategy}",
        *(table(("REQUEST", ""), facts) if facts else ()),
        "",
        *table(HEADINGS, rows(explanation)),
        *explanation.remarks,
    ]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join([f"{name} {_shown(each)}" for name, each in value.items()]) or "none"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(map(str, sorted(value, key=str) if isinstance(value, set | frozenset) else value)) or "none"
    return "unknown" if value is None else str(value)
