"""When a second target is asked although the first has not failed, only because it lets wait. Pure.

The first of them to give a token wins, and the other is cancelled. What is gained is the tail of the times to the first
token, and what it costs is bounded: a share of the requests.
"""

from __future__ import annotations

import msgspec

from appliance.routing.budget import RetryBudget

LEAST_HEDGES = 1
"""May always be sent in a window, else a share of little traffic would never hedge."""


class Hedging(msgspec.Struct, frozen=True):
    """`percentile` of the target's latest times to a first token: who is slower is hedged. `share`: of all requests."""

    percentile: float = 95.0
    share: float = 0.05
    least_s: float = 0.05
    """Not before, however quick the target is: a second request costs more than that."""


def hedge_budget(hedging: Hedging) -> RetryBudget:
    """What keeps hedges to their share: `request` for each request, `take` before a hedge is sent."""
    return RetryBudget(ratio=hedging.share, least=LEAST_HEDGES)


def hedge_at_s(after_s: float | None, hedging: Hedging, left_s: float, other_s: float | None = None) -> float | None:
    """Seconds after the start of an attempt at which a hedge may be sent; None: never.

    after_s: the percentile of the target's times, None where there are too few. left_s: until the attempt is given up.
    other_s: what the other target is expected to take to a first token; one that would come too late is no use.
    """
    if after_s is None:
        return None
    at_s = max(after_s, hedging.least_s)
    return at_s if at_s + (other_s or 0.0) < left_s else None


class Race:
    """Several attempts for one request: which of them the client hears."""

    __slots__ = ("_running", "winner")

    def __init__(self) -> None:
        self._running: set[int] = set()
        self.winner: int | None = None

    def joined(self, runner: int) -> None:
        self._running.add(runner)

    def first(self, runner: int) -> bool:
        """A runner has a token. True: it is the first that has, and the others are to be cancelled."""
        if self.winner is not None or runner not in self._running:
            return False
        self.winner = runner
        return True

    def failed(self, runner: int) -> bool:
        """A runner has failed. True: nobody is left, and so the request has failed, as far as this race goes."""
        self._running.discard(runner)
        return not self._running and self.winner is None

    def losers(self) -> list[int]:
        """Those to cancel, once somebody has won."""
        return [] if self.winner is None else sorted(self._running - {self.winner})
