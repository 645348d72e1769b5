"""What every attempt goes by and adds to: the board of targets, and the budgets of attempts after a failure."""

from __future__ import annotations

import random as chance
import time
from collections.abc import Callable

from appliance.errors import OutpostError, TargetLimited, TargetResting
from appliance.routing.board import Board, Flight
from appliance.routing.breaker import Standing, outcome_of
from appliance.routing.budget import RetryBudget
from appliance.routing.hedging import Hedging, hedge_at_s, hedge_budget

REST_S = 2.0
"""How long a target that has used up its budget of failures is asked after all others."""
SHORTEST_S = 0.1


def resting(target: str, standing: Standing) -> OutpostError:
    """The error for a target that is not to be asked now."""
    wait_s = max(standing.wait_s, SHORTEST_S)
    if standing.cooling and standing.phase == "closed":
        error = TargetLimited(f"{target} limits the rate of requests; slow down.", retry_after_s=wait_s)
        error.again, error.elsewhere = False, True  # nothing was sent to it
        return error
    return TargetResting(f"{target} is left alone for now: {standing.reason}.", retry_after_s=wait_s)


class Health:
    """One a process. It belongs to the event loop.

    Each target has a budget of failed attempts that others make up for. Where it is used up, a target is left alone for
    a while, so that requests go to the others at once; where there is no other, nothing is asked twice.
    """

    def __init__(
        self,
        board: Board | None = None,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = chance.random,
    ) -> None:
        """clock: monotonic seconds. random: numbers in [0, 1)."""
        self.board = board or Board(random)
        self.clock = clock
        self.random = random
        self._budgets: dict[str, RetryBudget] = {}
        self._hedging: dict[str, RetryBudget] = {}

    def asked(self, target: str) -> None:
        """A request begins with this target."""
        (self._budgets.get(target) or self._budget(target)).request(self.clock())

    def may_retry(self, target: str) -> bool:
        """Whether a target that has failed may be asked again for the same request."""
        return self._budget(target).take(self.clock())

    def rest_s(self, target: str) -> float:
        """How long a target is to be left alone, in seconds."""
        return self.board.standing(target, self.clock()).wait_s

    def began(self, target: str, tokens: int) -> Flight:
        """An attempt begins. Raises TargetResting where the target must not be asked now."""
        now = self.clock()
        flight = self.board.began(target, tokens, now)
        if flight is None:
            raise resting(target, self.board.standing(target, now))
        return flight

    def hedge_at_s(self, route: str, target: str, hedging: Hedging, left_s: float) -> float | None:
        """A request begins that may be hedged: seconds after which a second target may be asked; None: never."""
        self._hedges(route, hedging).request(self.clock())
        return hedge_at_s(self.board.hedge_after_s(target, hedging.percentile), hedging, left_s)

    def may_hedge(self, route: str, hedging: Hedging) -> bool:
        """Whether one more request of a route may be hedged."""
        return self._hedges(route, hedging).take(self.clock())

    def first_token(self, flight: Flight) -> None:
        flight.first_token(self.clock())

    def ended(self, flight: Flight, target: str, error: BaseException | None, tokens_out: int) -> None:
        """An attempt has ended."""
        now = self.clock()
        outcome = outcome_of(error)
        after = error.retry_after_s if isinstance(error, OutpostError) else None
        if outcome == "failed" and after is None and not self._budget(target).take(now):
            after = REST_S
        code = error.code if isinstance(error, OutpostError) else ""
        flight.ended(outcome, now, tokens_out=tokens_out, retry_after_s=after, code=code)

    def _hedges(self, route: str, hedging: Hedging) -> RetryBudget:
        budget = self._hedging.get(route)
        if budget is None:
            budget = self._hedging[route] = hedge_budget(hedging)
        return budget

    def _budget(self, target: str) -> RetryBudget:
        budget = self._budgets.get(target)
        if budget is None:
            budget = self._budgets[target] = RetryBudget()
        return budget
