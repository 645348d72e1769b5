"""The prices that ship with the release, for the targets of which the settings name none. Pure."""

from __future__ import annotations

from appliance.providers.catalogue import nano, row
from appliance.settings import ProviderTarget, Settings
from appliance.settings.limiting import Price


def prices_of(settings: Settings) -> list[Price]:
    """The settings' prices, and after them those of the makers' models in clouds; what runs on the premises costs what
    its site says. The row of a kind tells the day of its prices (`prices_as_of`)."""
    own = {price.target for price in settings.prices}
    clouds = {each.name: each.kind for each in settings.providers if each.zone == "cloud"}
    found = list(settings.prices)
    for route in settings.routes:
        for target in route.own_targets:
            name = str(target)
            if not isinstance(target, ProviderTarget) or name in own or target.provider not in clouds:
                continue
            own.add(name)
            cost = row(clouds[target.provider]).facts(target.model).price
            if cost is not None:
                found.append(
                    Price(
                        target=name,
                        input=nano(cost.input) or 0,
                        output=nano(cost.output) or 0,
                        cached=nano(cost.cached),
                        cache_write=nano(cost.cache_write),
                    )
                )
    return found
