"""From a provider of the settings to a connection: its row, its address, its keys, and how it is told who asks."""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp

from appliance.providers import auth, catalogue
from appliance.providers.auth_base import Surroundings
from appliance.providers.credentials import Key, Keys
from appliance.providers.kinds import Connection, betas_of
from appliance.settings import Provider, resolve


def connect(provider: Provider, env: Mapping[str, str], session: aiohttp.ClientSession) -> Connection:
    """Raises SecretMissing, and ValueError for options that do not fit."""
    row = catalogue.row(provider.kind)
    keys = [Key(each.name, resolve(each.key, env), each.weight) for each in provider.all_keys]
    secrets = {name: resolve(reference, env) for name, reference in provider.signers.items()}
    kind = row.auth if keys or not secrets else row.auth_without_key
    known = auth.kind_of(kind)
    options = {**provider.options, **secrets}
    taken = {name: value for name, value in options.items() if name in known.needs + known.takes}
    if secrets and not known.keyed:
        # Answers are looked through for the secret, as they are for keys.
        keys = [Key("signer", secrets.get("secret_key"))]
    return Connection(
        row=row,
        endpoint=catalogue.endpoint(provider.kind, provider.base_url, provider.options),
        auth=auth.make(kind, taken, Surroundings(provider.name, session)),
        keys=Keys(
            provider.name,
            keys,
            longest_rest_s=provider.cool_down,
            requests_per_minute=provider.max_requests_per_minute,
        ),
        headers=provider.headers,
        betas=betas_of(row, provider),
        fetches_media=provider.fetches_media,
    )
