"""What the book has to agree with: every request kept as it was, and added up anew each time."""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.limits.rules import Rule
from appliance.limits.windows import BUCKETS, Window, bounds


@dataclass(eq=False)
class Entry:
    """What one request holds of one owner of one bound. Two that look the same are two."""

    rule: str
    whom: str
    measure: int
    window: Window
    at: float
    amount: int


@dataclass
class Naive:
    """All that was ever dispatched and not given back."""

    entries: list[Entry] = field(default_factory=list)

    def total(self, rule: Rule, measure: int, window: Window, whom: str, t: float, *, longest: bool) -> int:
        """Used in the window that ends at `t`; `longest`: in that and the sixtieth before it."""
        seconds = window.seconds * (1 + 1 / BUCKETS if longest else 1)
        start = t - seconds if window.zone is None else bounds(window.unit or "", window.zone, t)[0]
        return sum(
            each.amount
            for each in self.entries
            if (each.rule, each.measure, each.window, each.whom) == (rule.id, measure, window, whom)
            and (each.at > start if window.zone is None else each.at >= start)
        )
