"""How often a route may try again, all its requests together, and how long it waits before it does. Pure but for the
counts; `now` is monotonic seconds.

When everything fails, retries multiply the load on what has just begun to fail. So they may be no more than a share of
the requests; a few may always be made, since a share of little traffic is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

RATIO = 0.2
"""Attempts after the first, per request."""
LEAST = 10
"""So many may be made in a window, however few requests there are."""
WINDOW_S = 10.0
SLICES = 10

BASE_S = 0.1
MOST_S = 8.0
SPREAD_S = 1.0
"""Those who were told the same time come back within this time after it."""


class RetryBudget:
    """In every window of time, retries are at most `ratio` of its requests, or `least`.

    A request that has left the window allows nothing any more, and leaves it before the retries that it has allowed;
    so that over any time in which `least` is not what counts, retries are at most `ratio` of all requests.
    """

    __slots__ = ("_least", "_ratio", "_requests", "_retries", "_slice", "_slice_s", "_sums", "_until")

    def __init__(self, ratio: float = RATIO, least: int = LEAST, window_s: float = WINDOW_S) -> None:
        self._ratio = ratio
        self._least = least
        self._slice_s = window_s / SLICES
        self._slice = -1
        self._until = -math.inf
        """When the present slice is over."""
        self._requests = [0] * SLICES
        self._retries = [0] * SLICES
        self._sums = [0, 0]
        """Requests and retries in the window."""

    def request(self, now: float) -> None:
        """A request has come."""
        if now >= self._until:
            self._turn(now)
        self._requests[self._slice % SLICES] += 1
        self._sums[0] += 1

    def left(self, now: float) -> int:
        """How many retries may be made now."""
        if now >= self._until:
            self._turn(now)
        requests, retries = self._sums
        # Without the tiny number, 0.2 of 35 would be 6.
        return max(self._least, math.floor(self._ratio * requests + 1e-9)) - retries

    def take(self, now: float) -> bool:
        """Whether one more attempt may be made; it counts as made then."""
        if self.left(now) <= 0:
            return False
        self._retries[self._slice % SLICES] += 1
        self._sums[1] += 1
        return True

    def _turn(self, now: float) -> None:
        """Forget the slices that have left the window. Time that goes back is taken for no time at all."""
        at = math.floor(now / self._slice_s)
        if at <= self._slice:
            return
        for gone in range(max(self._slice + 1, at - SLICES + 1), at + 1):
            place = gone % SLICES
            self._sums[0] -= self._requests[place]
            self._sums[1] -= self._retries[place]
            self._requests[place] = self._retries[place] = 0
        self._slice = at
        self._until = (at + 1) * self._slice_s


def take_all(budgets: Sequence[RetryBudget], now: float) -> bool:
    """Whether every one of them allows one more attempt; it counts in all of them then, else in none."""
    if any(budget.left(now) <= 0 for budget in budgets):
        return False
    for budget in budgets:
        budget.take(now)
    return True


def pause_s(
    attempt: int,
    random: float,
    *,
    retry_after_s: float | None = None,
    left_s: float = math.inf,
    base_s: float = BASE_S,
    most_s: float = MOST_S,
) -> float | None:
    """Seconds to wait before the same target is asked again after its `attempt`-th failure (from 1).

    Each step is twice the one before, and the pause somewhere in the upper part of it: so pauses grow, and those of
    many requests spread out. A target that says when to come back is not asked before. None: the wait would be longer
    than the `left_s` seconds that are left of the request.
    """
    if retry_after_s is not None and retry_after_s > 0:
        wait_s = retry_after_s + random * min(SPREAD_S, retry_after_s / 10)
        if wait_s >= left_s > retry_after_s:
            wait_s = retry_after_s
    else:
        wait_s = min(most_s, base_s * 2.0 ** min(attempt - 1, 32)) * (0.6 + 0.4 * random)
    return wait_s if wait_s < left_s else None
