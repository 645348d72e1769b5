"""Cost: exact, monotone, and never more than the worst case."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.pricing import FREE, Consumption, Price, Prices, cost, worst_cost
from appliance.settings.limiting import Price as PriceSettings

nano = st.integers(0, 10**12)
counts = st.integers(0, 10**7)
prices = st.builds(Price, nano, nano, st.none() | nano, st.none() | nano, nano, nano, st.none() | nano)
uses = st.builds(Consumption, counts, counts, counts, counts, st.integers(0, 10**9), st.integers(0, 5), counts)


@given(price=prices, used=uses)
def test_it_is_the_exact_sum_rounded_up_once(price: Price, used: Consumption) -> None:
    cached = min(used.cached_tokens, used.prompt_tokens)
    written = min(used.cache_write_tokens, used.prompt_tokens - cached)
    reasoning = min(used.reasoning_tokens, used.completion_tokens)
    exact = Fraction(
        (used.prompt_tokens - cached - written) * price.input
        + written * (price.input if price.cache_write is None else price.cache_write)
        + cached * (price.input if price.cached is None else price.cached)
        + (used.completion_tokens - reasoning) * price.output
        + reasoning * (price.output if price.reasoning is None else price.reasoning)
        + used.gpu_us * price.gpu_second,
        10**6,
    )
    assert cost(price, used) == ceil(exact + used.requests * price.request)


@given(price=prices, used=uses, more=st.sampled_from(["prompt_tokens", "completion_tokens", "gpu_us", "requests"]))
def test_more_never_costs_less(price: Price, used: Consumption, more: str) -> None:
    # With what is cached or reasoned fixed, and inside the whole.
    used = msgspec.structs.replace(
        used,
        cached_tokens=min(used.cached_tokens, used.prompt_tokens),
        reasoning_tokens=min(used.reasoning_tokens, used.completion_tokens),
    )
    greater = msgspec.structs.replace(used, **{more: getattr(used, more) + 1})
    assert cost(price, greater) >= cost(price, used)


@given(price=prices, used=uses)
def test_the_worst_case_is_the_worst(price: Price, used: Consumption) -> None:
    used = msgspec.structs.replace(used, requests=1)
    assert worst_cost(price, used.prompt_tokens, used.completion_tokens, used.gpu_us) >= cost(price, used)


def test_an_example_by_hand() -> None:
    (settings,) = [
        PriceSettings.model_validate(
            {"target": "lab/x", "input": "0.15", "output": "0.60", "cached": "0.075", "reasoning": "1.2"}
        )
    ]
    found = Prices([settings])
    used = Consumption(prompt_tokens=1000, cached_tokens=400, completion_tokens=500, reasoning_tokens=100)
    # 600 × 150 + 400 × 75 + 400 × 600 + 100 × 1200 nano-USD
    assert cost(found.of("lab/x"), used) == 480_000
    assert found.of("lab/y") is FREE
    assert cost(FREE, used) == worst_cost(FREE, 1, 1, 1) == 0


def test_a_prompt_that_is_put_into_a_cache_by_hand() -> None:
    price = Price(input=3_000, output=15_000, cached=300, cache_write=3_750)
    used = Consumption(prompt_tokens=1_000_000, cached_tokens=400_000, cache_write_tokens=100_000)
    assert cost(price, used) == (500_000 * 3_000 + 400_000 * 300 + 100_000 * 3_750) // 10**6
    assert worst_cost(price, 1_000_000, 0) == 3_750


def test_a_box_that_is_priced_by_the_second() -> None:
    price = Prices([PriceSettings.model_validate({"target": "small", "gpu_second": "0.0005", "request": "0.001"})])
    assert cost(price.of("small"), Consumption(gpu_us=1_500_000)) == 750_000 + 1_000_000


@pytest.mark.parametrize("used", [Consumption(-5, -5, -5, -5, -5, -5), Consumption(0, 99, 0, 99)])
def test_nonsense_of_a_target_costs_nothing(used: Consumption) -> None:
    assert cost(Price(10**6, 10**6, 10**6, 10**6, 10**6), used) == 0
