"""Why a request may not go on, and when it may. Pure."""

from __future__ import annotations

import msgspec

from appliance.errors import BadRequest, OutpostError, PermissionDenied, RateLimited
from appliance.limits.rules import Scope
from appliance.settings.rates import UNITS, format_usd
from appliance.settings.units import spoken_period, spoken_wait

IN_FLIGHT = "in_flight"
_WORDS = {"input_tokens": "tokens of prompts", "output_tokens": "tokens of answers"}
_ONE = "1 request"
_SCOPES = {"service_account": "service account"}


class Refusal(msgspec.Struct, frozen=True):
    """One limit that does not allow a request. Amounts are counts, or nano-USD where the measure is usd."""

    limit: str
    scope: Scope
    whom: str
    """As people know it."""
    measure: str
    """One of `MEASURES`, or in_flight."""
    amount: int
    used: int
    """Reserved and settled."""
    needed: int
    """The worst case of this request."""
    period: str
    """minute, 5m; empty for in_flight."""
    retry_after_s: float | None
    """Seconds until it is certain to pass, if nobody else asks; None = it never will."""
    by_target: bool = False
    """Whether another target of the route may be free of this limit."""

    @property
    def message(self) -> str:
        """Which limit, the numbers, and what to do."""
        whose = "the whole box" if self.scope == "box" else f"the {_SCOPES.get(self.scope, self.scope)} {self.whom}"
        if self.measure == IN_FLIGHT:
            return (
                f"The limit {self.limit} allows {_ONE if self.amount == 1 else f'{self.amount} requests'} at the same "
                f"time for {whose}, and as many are "
                "under way; try again when one has ended."
            )
        head = f"The limit {self.limit} allows {self._shown(self.amount)} {_per(self.period)} for {whose}"
        if self.retry_after_s is not None:
            used, needed = self._shown(self.used), self._shown(self.needed)
            wait = spoken_wait(self.retry_after_s)
            verb = "is" if used == _ONE else "are"
            return f"{head}; {used} {verb} used or reserved and this request may need {needed}. Try again in {wait}."
        if self.amount == 0:
            return f"{head}; ask the operator to raise it."
        return f"{head}, but this request alone may need {self._shown(self.needed)}; {self._cure()}"

    def error(self) -> OutpostError:
        """429 where waiting helps; 400 naming max_tokens where only a smaller request does; 403 where nothing does."""
        if self.retry_after_s is not None:
            code = "budget_exceeded" if self.measure == "usd" else "rate_limit_exceeded"
            return RateLimited(self.message, code=code, retry_after_s=self.retry_after_s)
        if self.amount == 0:
            return PermissionDenied(self.message, code="limit_is_zero")
        param = None if self.measure in ("requests", "input_tokens") else "max_tokens"
        return BadRequest(self.message, param=param, code="limit_too_small")

    def _shown(self, amount: int) -> str:
        if self.measure == "usd":
            return f"{format_usd(amount)} USD"
        if self.measure == "requests" and amount == 1:
            return _ONE
        return f"{amount:,} {_WORDS.get(self.measure, self.measure)}"

    def _cure(self) -> str:
        if self.measure == "input_tokens":
            return "send a shorter prompt."
        if self.measure == "output_tokens":
            return f"set max_tokens to {self.amount} or less (divided by n)."
        if self.measure == "requests":
            return "ask the operator to raise it."
        return "set a lower max_tokens, or send a shorter prompt."


def _per(period: str) -> str:
    """a minute, an hour, per 10 s."""
    if period not in UNITS:
        return f"per {spoken_period(period)}"
    return "an hour" if period == "hour" else f"a {period}"
