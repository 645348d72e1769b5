"""The kinds of provider that a settings file may name: one entry each, in one table."""

from __future__ import annotations

from typing import Protocol

import aiohttp

from appliance.providers.openai import OpenAIUpstream
from appliance.providers.upstream import Upstream


class MakeUpstream(Protocol):
    """Makes the upstream for one model of one provider."""

    def __call__(
        self, name: str, *, model: str, base_url: str, api_key: str | None, session: aiohttp.ClientSession
    ) -> Upstream: ...


PROVIDER_KINDS: dict[str, MakeUpstream] = {"openai": OpenAIUpstream}
