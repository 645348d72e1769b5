"""Upstreams as the settings would make them, for tests that have none."""

from __future__ import annotations

import aiohttp

from appliance.dialects.messages.betas import Betas
from appliance.providers import auth, catalogue
from appliance.providers.auth_base import Surroundings
from appliance.providers.credentials import Key, Keys
from appliance.providers.http import HttpUpstream
from appliance.providers.kinds import Connection, make_upstream


def upstream(
    name: str,
    *,
    model: str,
    base_url: str,
    api_key: str | None,
    session: aiohttp.ClientSession,
    kind: str = "openai_compatible",
    fetches_media: bool = False,
) -> HttpUpstream:
    """A model of a provider of a kind, at an address of the test's own."""
    row = catalogue.row(kind)
    connection = Connection(
        row=row,
        endpoint=catalogue.endpoint(kind, base_url, {}),
        auth=auth.make(row.auth, {}, Surroundings(name, session)),
        keys=Keys(name, [Key("test", api_key)] if api_key else []),
        betas=Betas(row.betas),
        fetches_media=fetches_media,
    )
    return make_upstream(name, model=model, connection=connection, session=session)
