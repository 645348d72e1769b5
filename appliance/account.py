"""What one exchange may use and what it used: between the relay and the book of limits.

reserve (the worst case, before anything is dispatched) ▶ move, cover (another attempt) ▶ settle (what was really
used) ▶ the row is on record ▶ release.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from appliance.dialects.kinds import Request
from appliance.dialects.tally import Tally
from appliance.dialects.texts import reading
from appliance.errors import OutpostError
from appliance.identity.principal import Principal
from appliance.limits.book import Book
from appliance.limits.clock import Now
from appliance.limits.counters import Reservation
from appliance.limits.estimate import likely_most_tokens
from appliance.limits.headers import headers
from appliance.limits.refusal import Refusal
from appliance.limits.rules import Context, Demand, Used
from appliance.pricing import FREE, Consumption, Prices, cost, worst_cost
from appliance.records.rows import Charge
from appliance.routing.candidate import Candidate

UNKNOWN_OUTPUT = 16_384
"""Tokens of an answer of which nobody says how long it may be: neither the request nor the target."""
LEASE_MARGIN_S = 60.0
A_FILE = 4096
"""Tokens that an image or another file may come to."""
A_SYSTEM_MESSAGE = 128
"""Tokens of what a deployment's manifest may put before a chat that has no system message."""
ONE_REQUEST = Demand()
MOST_CONTEXTS = 4096
COUNTABLE = frozenset({"tokens", "input_tokens", "output_tokens", "usd"})
"""Measures under which the exact number of a prompt's tokens may make a difference."""


class Store(Protocol):
    """See appliance.limits.store.LimitStore."""

    async def ensure(self, reservation: Reservation, now: Now) -> None: ...
    def release(self, reservation: Reservation) -> None: ...
    def lost(self, reservation: Reservation, exchange_id: str) -> None: ...


class Limits:
    """The book with its store and the prices. `prices` is replaced whole by a reload.

    estimate: an upper bound of the prompt's tokens.
    """

    def __init__(
        self,
        book: Book,
        store: Store,
        prices: Prices,
        clock: Callable[[], Now],
        estimate: Callable[[Request], int],
    ) -> None:
        self.book = book
        self.store = store
        self.prices = prices
        self.clock = clock
        self.estimate = estimate
        self._contexts: dict[tuple[int, str, str, tuple[str, ...]], tuple[Principal, Context]] = {}

    def context(self, principal: Principal, route: str, tags: tuple[str, ...], candidate: Candidate) -> Context:
        """What a request is to the limits; the same object where principal, route, tags and target are the same."""
        target = candidate.target
        # By its identity, which tells as much as all of its fields and costs less to look up.
        key = (id(principal), route, target.name, tags)
        known = self._contexts.get(key)
        if known is not None and known[0] is principal and known[1].provider == target.provider:
            return known[1]
        if len(self._contexts) >= MOST_CONTEXTS:
            self._contexts.clear()
        context = Context(
            organization=principal.organization,
            team=principal.team,
            user=principal.user,
            service_account=principal.service_account,
            key=principal.key_id,
            route=route,
            model=target.name,
            provider=target.provider,
            tags=tags,
            key_name=principal.key_name,
            credential=principal.credential,
        )
        self._contexts[key] = (principal, context)
        return context

    def account(
        self, principal: Principal, route: str, tags: Sequence[str], work_s: float, wait_s: float = 0.0
    ) -> Account:
        """For one exchange. work_s: how long it may be under way, beside the wait at a gate. wait_s: the longest of
        these."""
        return Account(self, principal, route, tuple(tags), work_s + LEASE_MARGIN_S, wait_s)


class Account:
    """One exchange's reservation, and the cost of its attempts."""

    __slots__ = (
        "_bound",
        "_context",
        "_counted",
        "_limits",
        "_request",
        "_reservation",
        "_seen",
        "_settled",
        "_wait_s",
        "_work_s",
        "charges",
        "refusal",
        "target",
    )

    def __init__(
        self, limits: Limits, principal: Principal, route: str, tags: tuple[str, ...], work_s: float, wait_s: float
    ) -> None:
        self._limits = limits
        self._context = (principal, route, tags)
        self._work_s = work_s
        self._wait_s = wait_s
        self._reservation: Reservation | None = None
        self._seen: Context | None = None
        """Whose limits the caller is told of."""
        self._settled: Now | None = None
        """When what was used took the place of what was reserved."""
        self._request: Request | None = None
        self._bound: int | None = None
        """An upper bound of the prompt's tokens, once somebody had to know."""
        self._counted: dict[str, int] = {}
        """How many they are, by the targets that have counted them."""
        self.refusal: Refusal | None = None
        """Why nothing could be reserved."""
        self.target = ""
        """What is reserved for."""
        self.charges: list[Charge] = []

    # --- before the work ------------------------------------------------------------------------------

    async def reserve(self, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """Reserve the worst case for the first candidate that the limits allow; gives it and those after it.

        Raises RateLimited, BadRequest or PermissionDenied that names the limit; RecordsUnavailable.
        """
        told: Refusal | None = None
        for place, candidate in enumerate(candidates):
            outcome = self._try(candidate)
            if isinstance(outcome, Refusal) and _may_fit(outcome) and await self._count(candidate):
                outcome = self._try(candidate)
            if isinstance(outcome, Refusal):
                told = told or outcome
                if not outcome.by_target:
                    break
                continue
            self._reservation, self.target = outcome, candidate.target.name
            await self.cover()
            return tuple(candidates[place:]) if place else tuple(candidates)
        assert told is not None  # a plan is never empty
        self.refusal = told
        raise told.error()

    def move(self, candidate: Candidate, used: Used | None, *, done: bool = False) -> None:
        """Another attempt: what the last one `used` stays used. Then `cover` it. done: it has been made already, so
        that it counts whatever the limits say.

        Raises what `reserve` raises; then all is as it was, and what was used is still to be settled.
        """
        limits, reservation = self._limits, self._reservation
        assert reservation is not None
        context, demand = self._context_of(candidate), self._demand(candidate)
        refusal = self.refusal = limits.book.move(reservation, context, demand, limits.clock(), used, done=done)
        if refusal is not None:
            error = refusal.error()
            # Whatever it is, another target may need less; and why the last attempt failed is worth more to the caller.
            error.elsewhere = True
            raise error
        self._seen, self.target = context, candidate.target.name

    def allows(self, candidate: Candidate) -> bool:
        """Whether `move` would let another target do the work."""
        limits, reservation = self._limits, self._reservation
        assert reservation is not None
        context, demand = self._context_of(candidate), self._demand(candidate)
        return limits.book.refuses(reservation, context, demand, limits.clock()) is None

    async def cover(self) -> None:
        """Return when the database allows for what is reserved. Raises RecordsUnavailable."""
        assert self._reservation is not None
        await self._limits.store.ensure(self._reservation, self._limits.clock())

    def touch(self) -> None:
        """The request is still under way."""
        if self._reservation is not None:
            self._limits.book.touch(self._reservation, self._limits.clock())

    # --- after it -------------------------------------------------------------------------------------

    def cost(self, target: str, tally: Tally, work_s: float) -> int:
        """Nano-USD of one attempt that worked for `work_s` seconds."""
        price = self._limits.prices.of(target)
        if price is FREE or tally.source == "none":
            return 0
        return cost(
            price,
            Consumption(
                prompt_tokens=self.prompt_tokens(tally),
                cached_tokens=tally.cached_tokens,
                cache_write_tokens=tally.cache_write_tokens,
                completion_tokens=tally.completion_tokens,
                reasoning_tokens=tally.reasoning_tokens,
                gpu_us=max(0, round(work_s * 1_000_000)),
            ),
        )

    def prompt_tokens(self, tally: Tally) -> int:
        """What the target counted, or else the bound that was reserved."""
        if tally.prompt_tokens or tally.source != "estimated":
            return tally.prompt_tokens
        return self._prompt_tokens(self.target)

    def used(self, tally: Tally, cost_nanousd: int) -> Used:
        """An attempt's consumption as limits count it; one that used nothing is no request, and costs nobody
        anything."""
        if tally.source == "none":
            return Used(requests=0)
        return Used(
            input_tokens=self.prompt_tokens(tally),
            output_tokens=tally.completion_tokens,
            cost_nanousd=cost_nanousd,
        )

    def settle(self, used: Used) -> list[Charge]:
        """Put what the last attempt used in the place of what was reserved; the charges go into the row."""
        if self._reservation is not None:
            now = self._settled = self._limits.clock()
            self.charges = self._limits.book.settle(self._reservation, used, now)
        return self.charges

    def recorded(self) -> None:
        """The row with the charges is durable."""
        if self._reservation is not None:
            self._limits.store.release(self._reservation)

    def unrecorded(self, exchange_id: str) -> None:
        """Nobody knows that the row was written."""
        if self._reservation is not None:
            self._limits.store.lost(self._reservation, exchange_id)

    def headers(self) -> dict[str, str]:
        """How much the caller may still ask for."""
        if self._seen is None:
            return {}
        limits = self._limits
        return headers(*limits.book.tightest(self._seen, self._settled or limits.clock()))

    # --- parts ----------------------------------------------------------------------------------------

    def _try(self, candidate: Candidate) -> Reservation | Refusal:
        self._request = candidate.request
        self._seen = context = self._context_of(candidate)
        limits = self._limits
        lease_s = self._work_s + self._wait_s
        return limits.book.reserve(context, self._demand(candidate), limits.clock(), lease_s=lease_s)

    def _context_of(self, candidate: Candidate) -> Context:
        return self._limits.context(*self._context, candidate)

    def _demand(self, candidate: Candidate) -> Demand:
        if not self._limits.book.rules:
            return ONE_REQUEST
        name = candidate.target.name
        prompt = self._prompt_tokens(name)
        output = _most_output(candidate, self._counted.get(name, 0))
        price = self._limits.prices.of(name)
        longest_us = round(self._work_s * 1_000_000)
        return Demand(prompt, output, worst_cost(price, prompt, output, longest_us))

    def _prompt_tokens(self, target: str) -> int:
        """The prompt's, as far as it is known for a target: each has a tokenizer of its own."""
        if (counted := self._counted.get(target)) is not None:
            return counted
        if self._bound is None:
            self._bound = 0 if self._request is None else self._limits.estimate(self._request)
        return self._bound

    async def _count(self, candidate: Candidate) -> bool:
        """Ask the target for the exact number of the prompt's tokens; False if it cannot tell fewer."""
        count = getattr(candidate.target.upstream, "count", None)
        if count is None:
            return False
        try:
            exact: int | None = await count(candidate.request)
        except OutpostError:
            return False  # whatever is wrong with the request, its attempt will tell
        if exact is None:
            return False
        self._counted[candidate.target.name] = exact
        return True


def _may_fit(refusal: Refusal) -> bool:
    """Whether the exact number of the prompt's tokens may make a difference. Where nothing is left it does not, and
    asking for it again and again would cost the engine."""
    left = refusal.used < refusal.amount or refusal.retry_after_s is None
    return left and refusal.measure in COUNTABLE


def prompt_bound(request: Request) -> int:
    """More tokens than the prompt of a request has, for all that is not made to defeat the estimate."""
    read = reading(request)
    texts = likely_most_tokens(read.texts, messages=read.messages)
    return texts + read.tokens + A_FILE * read.files + (A_SYSTEM_MESSAGE if read.messages else 0)


def _most_output(candidate: Candidate, prompt: int) -> int:
    """The most tokens that the answer may have, of all choices. prompt: those of all prompts together, as far as they
    are certain."""
    request = candidate.request
    limit = getattr(request, "token_limit", 0)
    context = candidate.target.upstream.capabilities.context_length
    if limit is None:
        limit = UNKNOWN_OUTPUT if context is None else context
    most = int(limit) * request.choices if limit else 0
    if context is None:
        return most
    # Each choice stands behind one of the prompts, in a context of its own.
    return min(most, max(0, context * request.choices - prompt))
