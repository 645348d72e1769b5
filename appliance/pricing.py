"""What an exchange costs, exactly: whole nano-USD (10^-9 US dollars), rounded up once. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from appliance.settings.limiting import Price as PriceSettings

MILLION = 1_000_000


class Price(msgspec.Struct, frozen=True):
    """What a target costs, in nano-USD: per million tokens, per second of work, per request."""

    input: int = 0
    output: int = 0
    cached: int | None = None
    """None: as input."""
    reasoning: int | None = None
    """None: as output."""
    gpu_second: int = 0
    request: int = 0
    cache_write: int | None = None
    """None: as input."""


FREE = Price()


class Consumption(msgspec.Struct, frozen=True):
    """What an attempt used. Tokens that were read from a cache, and others that were put into one, are part of the
    prompt's; reasoning tokens are part of the completion's."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    gpu_us: int = 0
    """Microseconds of work on this box."""
    requests: int = 1
    cache_write_tokens: int = 0


def cost(price: Price, used: Consumption) -> int:
    """Nano-USD. More parts of a kind than there is of the whole (a target's mistake) are taken as the whole."""
    if price is FREE:
        return 0
    prompt, completion = max(0, used.prompt_tokens), max(0, used.completion_tokens)
    cached = min(max(0, used.cached_tokens), prompt)
    written = min(max(0, used.cache_write_tokens), prompt - cached)
    reasoning = min(max(0, used.reasoning_tokens), completion)
    written_price = price.input if price.cache_write is None else price.cache_write
    cached_price = price.input if price.cached is None else price.cached
    reasoning_price = price.output if price.reasoning is None else price.reasoning
    millionths = (
        (prompt - cached - written) * price.input
        + cached * cached_price
        + written * written_price
        + (completion - reasoning) * price.output
        + reasoning * reasoning_price
        + max(0, used.gpu_us) * price.gpu_second
    )
    return -(-millionths // MILLION) + max(0, used.requests) * price.request


def worst_cost(price: Price, prompt_tokens: int, completion_tokens: int, gpu_us: int = 0) -> int:
    """The most that one attempt can cost, whatever is cached and however much it reasons."""
    if price is FREE:
        return 0
    millionths = (
        max(0, prompt_tokens) * max(price.input, price.cached or 0, price.cache_write or 0)
        + max(0, completion_tokens) * max(price.output, price.reasoning or 0)
        + max(0, gpu_us) * price.gpu_second
    )
    return -(-millionths // MILLION) + price.request


class Prices:
    """The prices of all targets. Immutable; a reload makes new ones."""

    def __init__(self, prices: Iterable[PriceSettings] = ()) -> None:
        self._prices = {
            each.target: Price(
                each.input, each.output, each.cached, each.reasoning, each.gpu_second, each.request, each.cache_write
            )
            for each in prices
        }

    def of(self, target: str) -> Price:
        """What a target (a deployment's name, or provider/model) costs; FREE where nothing is said."""
        return self._prices.get(target, FREE)
