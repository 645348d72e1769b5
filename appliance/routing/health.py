"""What every attempt goes by and adds to: the board of targets, and the budgets of attempts after a failure."""

from __future__ import annotations

import random as chance
import time
from collections.abc import Callable

from appliance.errors import DeadlineExceeded, OutpostError, TargetLimited, TargetResting, TargetUsedUp
from appliance.routing.board import Board, Flight
from appliance.routing.breaker import Standing, outcome_of
from appliance.routing.budget import RetryBudget
from appliance.routing.candidate import Candidate
from appliance.routing.hedging import Hedging, hedge_at_s, hedge_budget

SHORTEST_S = 0.1
SILENT_SHARE = 0.5
"""Of the time for all attempts together: who said nothing for so much of it has failed, when it is over."""


def resting(target: str, standing: Standing) -> OutpostError:
    """The error for a target that is not to be asked now."""
    wait_s = max(standing.wait_s, SHORTEST_S)
    if standing.cooling and standing.phase == "closed":
        if standing.code == TargetUsedUp.code:
            used_up = f"{target} has no quota left for the gateway's account; the operator must raise it."
            error: TargetLimited = TargetUsedUp(used_up, retry_after_s=wait_s)
        else:
            error = TargetLimited(f"{target} limits the rate of requests; slow down.", retry_after_s=wait_s)
        error.again, error.elsewhere = False, True  # nothing was sent to it
        return error
    return TargetResting(f"{target} is left alone for now: {standing.reason}.", retry_after_s=wait_s)


class Health:
    """One a process. It belongs to the event loop.

    Each route has a budget of attempts that are likely to be in vain: to ask a target once more that has failed the
    same request, and to go on to one that fails half the time. A first attempt is never refused for it, nor one at
    another target that mostly answers: what a target costs that fails is bounded by its breaker.
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

    def asked(self, route: str) -> None:
        """A request of a route begins."""
        (self._budgets.get(route) or self._budget(route)).request(self.clock())

    def may_retry(self, route: str, candidate: Candidate, again: bool) -> bool:
        """Whether a target may be asked after a failed attempt for the same request. again: that was at this target."""
        now = self.clock()
        if not again:
            standing = self.board.standing(candidate.target.name, now)
            if standing.phase == "closed" or not standing.last:
                return True
        return self._budget(route).take(now)

    def rest(self, target: str) -> Standing:
        """Whether a target may be asked now, and when."""
        return self.board.standing(target, self.clock())

    def began(self, target: str, tokens: int, *, alone: bool = False) -> Flight:
        """An attempt begins. alone: nobody else could be asked. Raises TargetResting where the target must not be asked
        now."""
        now = self.clock()
        flight = self.board.began(target, tokens, now, alone=alone)
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

    def ended(self, flight: Flight, error: BaseException | None, tokens_out: int) -> None:
        """An attempt has ended. tokens_out: how many of an answer there were."""
        now = self.clock()
        if error is None:
            flight.ended("ok", now, tokens_out=tokens_out)
            return
        outcome = outcome_of(error)
        if isinstance(error, DeadlineExceeded) and not tokens_out:
            silent = flight.silent_s(now) >= SILENT_SHARE * error.total_s
            outcome = "failed" if silent else outcome
        after = error.retry_after_s if isinstance(error, OutpostError) else None
        code = error.code if isinstance(error, OutpostError) else ""
        flight.ended(outcome, now, tokens_out=tokens_out, retry_after_s=after, code=code)

    def _hedges(self, route: str, hedging: Hedging) -> RetryBudget:
        budget = self._hedging.get(route)
        if budget is None:
            budget = self._hedging[route] = hedge_budget(hedging)
        return budget

    def _budget(self, route: str) -> RetryBudget:
        budget = self._budgets.get(route)
        if budget is None:
            budget = self._budgets[route] = RetryBudget()
        return budget
