"""Prices that ship with the release stand in where the settings name none."""

from __future__ import annotations

from typing import Any

from appliance.pricing import FREE, Consumption, Price, Prices, cost
from appliance.providers.catalogue import nano, row
from appliance.providers.shipped import prices_of
from appliance.settings import Settings, from_mapping

KEY = {"env": "KEY"}


def house(prices: tuple[dict[str, Any], ...] = (), **provider: Any) -> Settings:
    targets = [{"provider": "p", "model": model} for model in ("gpt-4o-mini", "brand-new")]
    return from_mapping(
        {
            "deployments": [{"name": "small", "model": "smollm2-135m-instruct"}],
            "providers": [{"name": "p", **provider}],
            "routes": [{"model": "a", "targets": [{"deployment": "small"}, *targets]}],
            "prices": list(prices),
        }
    )


def test_a_listed_model_in_a_cloud_costs_what_its_row_says() -> None:
    found = Prices(prices_of(house(kind="openai", api_key=KEY)))
    listed = row("openai").facts("gpt-4o-mini").price
    assert listed is not None
    price = found.of("p/gpt-4o-mini")
    assert price == Price(input=nano(listed.input) or 0, output=nano(listed.output) or 0, cached=nano(listed.cached))
    assert cost(price, Consumption(prompt_tokens=1_000_000)) == nano(listed.input)
    assert found.of("p/brand-new") is FREE
    assert found.of("small") is FREE


def test_the_settings_go_before() -> None:
    own = {"target": "p/gpt-4o-mini", "request": "1"}
    (found,) = prices_of(house((own,), kind="openai", api_key=KEY))
    assert (found.request, found.input) == (10**9, 0)


def test_what_runs_on_the_premises_has_no_price_of_a_cloud() -> None:
    assert prices_of(house(kind="openai", base_url="http://127.0.0.1:1/v1", zone="on_prem")) == []
    assert prices_of(house(base_url="http://127.0.0.1:1/v1", zone="cloud")) == []
