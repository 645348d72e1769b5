"""In which order the targets of a route are asked. Pure: states of the board, prices and chance come in as arguments.

A strategy is an entry in one table. Each gives every choice a score, lower is better, and says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from appliance.routing.board import TOKEN_S, TargetState
from appliance.routing.breaker import usable
from appliance.routing.hashing import bounded, digest, race, rendezvous, room, unit

Zone = Literal["on_box", "on_prem", "cloud"]
Random = Callable[[], float]
"""Gives numbers in [0, 1)."""

EXPLORED = 0.05
"""How often a target of which nothing is known goes before those that are known."""
MANY = 8
"""From more choices than this, two are drawn and the better one is taken: else all processes run to the same one."""
A_REQUEST = 32
"""What a request costs a target beside its tokens, in tokens."""
MILLION = 1_000_000


class Priced(Protocol):
    """A target's prices, in nano-USD: per million tokens, per second of work, per request (see appliance.pricing)."""

    @property
    def input(self) -> int: ...
    @property
    def output(self) -> int: ...
    @property
    def gpu_second(self) -> int: ...
    @property
    def request(self) -> int: ...


class Unpriced(msgspec.Struct, frozen=True):
    input: int = 0
    output: int = 0
    gpu_second: int = 0
    request: int = 0


UNPRICED = Unpriced()


class Choice(msgspec.Struct, frozen=True):
    """A target that can honour the request."""

    state: TargetState
    weight: float = 1.0
    share: float | None = None
    """Of all requests, for a canary: 0.05 for 5 %. The others divide the rest by their weights."""
    zone: Zone = "on_box"
    price: Priced = UNPRICED
    context_length: int | None = None

    @property
    def name(self) -> str:
        return self.state.name


class Asking(msgspec.Struct, frozen=True):
    """What of a request matters for the order."""

    prompt_tokens: int = 0
    output_tokens: int = 256
    """As many as are expected."""
    session: str = ""
    """Requests with the same session go to the same target; empty: to any."""
    prefix: bytes = b""
    """See `hashing.prefix_key`."""


class Ranked(NamedTuple):
    """A choice in its order."""

    at: int
    """Its place among the choices that were given."""
    score: float
    reason: str


class Ranking(msgspec.Struct, frozen=True):
    order: tuple[Ranked, ...]
    """Those that may be asked now, the best first."""
    out: tuple[Ranked, ...] = ()
    """Those that may not, the soonest first; the score is the wait in seconds."""


Strategy = Callable[[Sequence[Choice], Asking, Random], list[Ranked]]


def rank(strategy: str, choices: Sequence[Choice], asking: Asking, random: Random) -> Ranking:
    """The choices in the order of a strategy, without those that are broken or want to be left alone for now. Who fails
    often comes after all others."""
    usables = [at for at, choice in enumerate(choices) if usable(choice.state.standing)]
    first = [at for at in usables if not choices[at].state.standing.last]
    last = [at for at in usables if choices[at].state.standing.last]
    placed: tuple[Ranked, ...] = ()
    for up in (first, last):
        if up:
            order = STRATEGIES[strategy]([choices[at] for at in up], asking, random)
            placed += tuple([Ranked(up[each.at], each.score, _why(each, choices[up[each.at]])) for each in order])
    if len(placed) == len(choices):
        return Ranking(placed)
    standings = [(at, choice.state.standing) for at, choice in enumerate(choices) if not usable(choice.state.standing)]
    out = [Ranked(at, standing.wait_s, standing.reason) for at, standing in standings]
    return Ranking(placed, tuple(sorted(out, key=lambda each: each.score)))


def _why(ranked: Ranked, choice: Choice) -> str:
    standing = choice.state.standing
    return f"after others, as {standing.reason}; {ranked.reason}" if standing.last else ranked.reason


def _priority(choices: Sequence[Choice], asking: Asking, random: Random) -> list[Ranked]:
    """As written."""
    return [Ranked(at, float(at), f"number {at + 1} of the route") for at in range(len(choices))]


def _weighted(choices: Sequence[Choice], asking: Asking, random: Random) -> list[Ranked]:
    """By lot, in proportion to the weights. A session's lot is drawn from its name, so that it keeps its target for as
    long as that is there, and moves with as few others as may be when the set changes."""
    parts = shares(choices)
    key = digest(asking.session) if asking.session else b""
    ranked = []
    for at, (choice, part) in enumerate(zip(choices, parts, strict=True)):
        chance = unit(key, choice.name) if key else 1.0 - random()
        held = "the session's lot" if key else "a lot"
        ranked.append(Ranked(at, race(chance, part), f"{held} with {part:.1%}"))
    return _sorted(ranked)


def shares(choices: Sequence[Choice]) -> list[float]:
    """The share of requests that each choice gets first, together 1 (or all 0, when every weight is).

    Canaries have a fixed one; what they leave is divided by weights. Where there is nobody to take the rest, or the
    canaries want more than all, they divide it in proportion.
    """
    fixed = math.fsum(max(0.0, choice.share) for choice in choices if choice.share is not None)
    weights = math.fsum(max(0.0, choice.weight) for choice in choices if choice.share is None)
    rest = max(0.0, 1.0 - fixed)
    whole = fixed if fixed > 0 and (weights <= 0 or fixed > 1.0) else 1.0
    return [
        (max(0.0, choice.weight) / weights * rest if weights > 0 else 0.0)
        if choice.share is None
        else max(0.0, choice.share) / whole
        for choice in choices
    ]


def _least_busy(choices: Sequence[Choice], asking: Asking, random: Random) -> list[Ranked]:
    """By the tokens under way, for its weight. Of many, the better one of two that are drawn comes first."""
    ranked = []
    for at, choice in enumerate(choices):
        state = choice.state
        load = state.in_flight_tokens + A_REQUEST * state.in_flight
        reason = f"{state.in_flight} requests with {state.in_flight_tokens} tokens under way"
        ranked.append(Ranked(at, load / choice.weight if choice.weight > 0 else math.inf, reason))
    ranked = _sorted_by_lot(ranked, random)
    if len(ranked) > MANY:
        first, second = int(random() * len(ranked)), int(random() * (len(ranked) - 1))
        second += second >= first
        best = ranked.pop(min(first, second))  # they are in order
        ranked.insert(0, best._replace(reason=f"{best.reason}, the better one of two drawn"))
    return ranked


def _latency(choices: Sequence[Choice], asking: Asking, random: Random) -> list[Ranked]:
    """By the time that an answer is expected to take. Targets of which nothing is known are tried a little: when their
    lot comes up, one request at a time; else they come last."""
    known, unknown = [], []
    for at, choice in enumerate(choices):
        seconds = expected_s(choice.state, asking.output_tokens)
        if seconds is None:
            unknown.append(Ranked(at, math.inf, "nothing is known of its speed yet"))
        else:
            ranked = Ranked(at, seconds, f"an answer is expected in {seconds:.3g} s")
            known.append(ranked)
    known, unknown = _sorted_by_lot(known, random), _sorted_by_lot(unknown, random)
    free = next((each for each in unknown if not choices[each.at].state.in_flight), None)
    if known and free is not None and random() < EXPLORED:
        unknown.remove(free)
        return [Ranked(free.at, 0.0, f"{free.reason}: tried this time"), *known, *unknown]
    return known + unknown


def expected_s(state: TargetState, tokens: int) -> float | None:
    """Seconds until an answer of so many tokens is complete, if what is under way slows it down; None: not known."""
    if state.ttft_s is None and state.per_token_s is None:
        return None
    per_token_s = TOKEN_S if state.per_token_s is None else state.per_token_s
    return ((state.ttft_s or 0.0) + tokens * per_token_s) * (state.in_flight + 1)


def _cost(choices: Sequence[Choice], asking: Asking, random: Random) -> list[Ranked]:
    """By the price that an answer is expected to have, then by its time."""
    ranked = []
    for at, choice in enumerate(choices):
        seconds = expected_s(choice.state, asking.output_tokens)
        nanousd = expected_nanousd(choice, asking, seconds)
        ranked.append((nanousd, math.inf if seconds is None else seconds, at))
    ranked.sort()
    return [Ranked(at, float(nanousd), f"expected to cost {nanousd / 1e9:.3g} USD") for nanousd, _, at in ranked]


def expected_nanousd(choice: Choice, asking: Asking, seconds: float | None = None) -> int:
    price = choice.price
    millionths = asking.prompt_tokens * price.input + asking.output_tokens * price.output
    if price.gpu_second:
        alone_s = asking.output_tokens * TOKEN_S if seconds is None else seconds / (choice.state.in_flight + 1)
        millionths += int(alone_s * MILLION) * price.gpu_second
    return -(-millionths // MILLION) + price.request


def _prefix(choices: Sequence[Choice], asking: Asking, random: Random) -> list[Ranked]:
    """Conversations that begin alike go to the same target, whose cache has their beginning, as long as it has not much
    more to do than the others; then to the next in their order."""
    key = asking.prefix or digest(asking.session)
    if not asking.prefix and not asking.session:
        return _least_busy(choices, asking, random)
    loads = [choice.state.in_flight for choice in choices]
    preferred = rendezvous(key, [choice.name for choice in choices], [choice.weight for choice in choices])
    place = {at: number for number, at in enumerate(preferred, 1)}
    most = room(loads)
    ranked = []
    for number, at in enumerate(bounded(preferred, loads)):
        reason = f"number {place[at]} for what the conversation begins with"
        full = f"; {loads[at]} under way, {most} is the most" if loads[at] >= most else ""
        ranked.append(Ranked(at, float(number), reason + full))
    return ranked


def _sorted(ranked: list[Ranked]) -> list[Ranked]:
    return sorted(ranked, key=lambda each: each.score)


def _sorted_by_lot(ranked: list[Ranked], random: Random) -> list[Ranked]:
    """By score; equal ones in an order that differs each time, else all would run to the first."""
    if len(ranked) < 2:
        return ranked
    return [each for _, _, each in sorted([(each.score, random(), each) for each in ranked], key=lambda key: key[:2])]


STRATEGIES: dict[str, Strategy] = {
    "priority": _priority,
    "weighted": _weighted,
    "least_busy": _least_busy,
    "latency": _latency,
    "cost": _cost,
    "prefix": _prefix,
}
