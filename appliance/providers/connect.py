"""From a provider of the settings to a connection: its row, its address, its keys, and how it is told who asks."""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp

from appliance.providers import auth, catalogue
from appliance.providers.credentials import Key, Keys
from appliance.providers.kinds import Connection
from appliance.settings import Provider, resolve
from appliance.settings.serving import OPENAI_BASE_URL


def connect(provider: Provider, env: Mapping[str, str], session: aiohttp.ClientSession) -> Connection:
    """Raises SecretMissing, and ValueError for options that do not fit."""
    kind = "openai" if provider.base_url == OPENAI_BASE_URL else "openai_compatible"
    row = catalogue.row(kind)
    key = resolve(provider.api_key, env) if provider.api_key else None
    return Connection(
        row=row,
        endpoint=catalogue.endpoint(kind, provider.base_url, {}),
        auth=auth.make(row.auth, {}, auth.Surroundings(provider.name, session)),
        keys=Keys(provider.name, [Key("api_key", key)] if key else []),
    )
