"""A moment, some windows, and limits in few words."""

from __future__ import annotations

from typing import Any

from appliance.limits.book import Book
from appliance.limits.clock import Now
from appliance.limits.rules import Bound, Context, Rule, Used
from appliance.limits.standing import Standing
from appliance.limits.windows import Window

T0 = 1_700_000_000.0
MINUTE, DAY = Window(60), Window(86_400, "day", "Europe/Berlin")
REQUESTS, INPUT, OUTPUT, TOKENS, USD = range(5)
NOTHING = Used(requests=0)
"""What an attempt used that did not begin."""


def now(t: float = 0.0, wall: float | None = None) -> Now:
    return Now(T0 + (t if wall is None else wall), 1000.0 + t)


def limit(scope: Any, *bounds: Bound, name: str = "l", cap: int | None = None, **match: str) -> Rule:
    return Rule(
        id=name,
        name=name,
        scope=scope,
        bounds=bounds,
        in_flight=cap,
        match={field: frozenset(value.split(",")) for field, value in match.items()},
    )


def standings(book: Book, context: Context, at: Now) -> list[Standing]:
    """How the counters of a context stand, also those that hold nothing."""
    selection = book._selections.get(context) or book._select(context, at)
    return [book._standing(counter, at) for counter in selection.counters]
