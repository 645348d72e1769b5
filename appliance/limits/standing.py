"""How a counter stands, for people and for the headers of answers: plain data."""

from __future__ import annotations

from typing import NamedTuple


class Standing(NamedTuple):
    """How a counter stands. Amounts are counts, or nano-USD; times are seconds."""

    limit: str
    scope: str
    whom: str
    measure: str
    amount: int
    used: int
    """Settled."""
    reserved: int
    remaining: int
    window_s: int
    period: str
    reset_s: float
    """Until nothing of what counts now counts any longer."""


class Near(NamedTuple):
    """What a caller is told of a counter: amounts are counts, times are seconds."""

    limit: str
    measure: str
    amount: int
    window_s: int
    remaining: int
    reset_s: float
