"""From a provider of the settings to the upstreams of its models: dialects by name, rows by kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import msgspec

from appliance.dialects.answer import Outbound
from appliance.dialects.bedrock.outbound import Bedrock
from appliance.dialects.cohere_outbound import COHERE
from appliance.dialects.gemini_outbound import GEMINI, VERTEX
from appliance.dialects.messages.betas import HEADER, NONE, Betas, patterns
from appliance.dialects.messages.outbound import AnthropicOutbound
from appliance.dialects.openai_outbound import OpenAIOutbound
from appliance.dialects.responses.outbound import ResponsesOutbound
from appliance.providers.auth_base import Auth
from appliance.providers.catalogue import Endpoint, Facts, Row, row
from appliance.providers.credentials import Keys
from appliance.providers.http import HttpUpstream
from appliance.providers.upstream import Capabilities
from appliance.settings import Provider

MOST_OUTPUT = 4096
"""Tokens of an answer, for a dialect that wants to know and a model of which nobody knows."""

KEPT = frozenset({"n", "tools"})
"""Fields that are never dropped: without them it is another question."""

IMPLIED: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "openai": (frozenset({"tools", "images"}), frozenset({"tool_images"})),
}
"""Dialect → what a model can do by what else it can: there images of tools' results follow in a message of the user."""

ADDRESSES: dict[str, frozenset[str]] = {
    "openai": frozenset({"image_addresses"}),
    "anthropic": frozenset({"image_addresses", "file_addresses"}),
    "responses": frozenset({"image_addresses", "file_addresses"}),
}
"""Dialect → what can be done in it by a provider that fetches media by itself."""

MakeOutbound = Callable[[Row, Mapping[str, str], Facts], Outbound]

OUTBOUNDS: dict[str, MakeOutbound] = {
    "openai": lambda row, paths, facts: OpenAIOutbound(
        row.quirks, paths, facts.efforts, custom_tools="custom_tools" in facts.features
    ),
    "responses": lambda row, paths, facts: ResponsesOutbound(),
    "anthropic": lambda row, paths, facts: AnthropicOutbound(min(facts.max_output or MOST_OUTPUT, 32_000)),
    "gemini": lambda row, paths, facts: VERTEX if row.auth_without_key == "google_service_account" else GEMINI,
    "bedrock": lambda row, paths, facts: Bedrock(),
    "cohere": lambda row, paths, facts: COHERE,
}
"""The dialects that rows may name."""


class Connection(msgspec.Struct, frozen=True):
    """One provider of the settings, ready to be asked. All its upstreams share it."""

    row: Row
    endpoint: Endpoint
    auth: Auth
    keys: Keys
    headers: Mapping[str, str] = {}
    """What the settings want every request to have."""
    betas: Betas = NONE
    """Those of Anthropic's that clients may ask for."""
    fetches_media: bool = False
    """Clients may send it addresses of images and documents."""


def make_upstream(
    name: str, *, model: str, connection: Connection, session: aiohttp.ClientSession, **options: Any
) -> HttpUpstream:
    """The upstream for one model of one provider; `name` is the target's."""
    found, endpoint = connection.row, connection.endpoint
    facts = found.facts(model)
    outbound = OUTBOUNDS[found.dialect](found, endpoint.paths, facts)
    return HttpUpstream(
        name,
        model=model,
        base_url=endpoint.base_url,
        outbound=outbound,
        native=found.native,
        auth=connection.auth,
        credentials=connection.keys.credentials(name),
        session=session,
        capabilities=capabilities_of(found, model, connection.betas, fetches_media=connection.fetches_media),
        headers={**endpoint.headers, **connection.headers},
        betas=connection.betas,
        stream_type=getattr(outbound, "stream_type", "text/event-stream"),
        health=endpoint.health,
        **options,
    )


def betas_of(row: Row, provider: Provider) -> Betas:
    """What clients may ask a provider of the settings for."""
    always = next((text for name, text in provider.headers.items() if name.lower() == HEADER), None)
    return Betas(patterns(row.betas, provider.betas), always)


def capabilities_of(row: Row, model: str, betas: Betas = NONE, *, fetches_media: bool = False) -> Capabilities:
    """What a model of a provider can do, as far as it is known."""
    facts = row.facts(model)
    outbound = OUTBOUNDS[row.dialect](row, row.paths, facts)
    fetched = ADDRESSES.get(row.dialect, frozenset()) if fetches_media else frozenset()
    return Capabilities(
        kinds=facts.operations,
        features=_with_implied(row, facts.features) | betas.features | fetched,
        refuses=outbound.unknown(model) - KEPT,
        context_length=facts.context_length,
        dimensions=facts.dimensions,
        betas=betas,
    )


def _with_implied(row: Row, features: frozenset[str]) -> frozenset[str]:
    given, implied = IMPLIED.get(row.dialect, (frozenset(), frozenset()))
    return features | implied if given <= features else features


def row_of(kind: str) -> Row:
    """Raises RowError for a kind that there is not."""
    return row(kind)
