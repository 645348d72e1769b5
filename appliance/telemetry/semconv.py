"""OpenTelemetry's GenAI names, pinned in one table, and exchanges in these words. Pure; knows nothing of the SDK.

The conventions are still in development and have changed names before: what is sent is what stands here, whatever the
installed SDK knows. Only what describes work is told: no content, no credential, nothing that names a person.
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from appliance.records.rows import Attempt, ExchangeRow, tries
from appliance.settings.providers import ANY, OPENAI_BASE_URL, Provider
from appliance.settings.routing import DeploymentTarget
from appliance.settings.schema import Settings

SEMCONV = "1.44.0"
SCHEMA_URL = f"https://opentelemetry.io/schemas/{SEMCONV}"

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
RESPONSE_MODEL = "gen_ai.response.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
RESPONSE_ID = "gen_ai.response.id"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
TOKEN_TYPE = "gen_ai.token.type"
ERROR_TYPE = "error.type"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
HTTP_STATUS = "http.response.status_code"
ATTEMPTS = "outpost.attempts"
OUTCOME = "outpost.outcome"
QUEUE_S = "outpost.queue.duration"
"""Seconds that the exchange waited for a target."""

REQUEST_DURATION = "gen_ai.server.request.duration"
FIRST_TOKEN = "gen_ai.server.time_to_first_token"
PER_TOKEN = "gen_ai.server.time_per_output_token"
CLIENT_DURATION = "gen_ai.client.operation.duration"
TOKEN_USAGE = "gen_ai.client.token.usage"

OPERATIONS = {
    "chat.completions": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
    "messages": "chat",
    "responses": "chat",
    "responses.compact": "chat",
}

BUCKETS: dict[str, tuple[float, ...]] = {
    REQUEST_DURATION: tuple(0.01 * 2**power for power in range(14)),
    CLIENT_DURATION: tuple(0.01 * 2**power for power in range(14)),
    FIRST_TOKEN: (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    PER_TOKEN: (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
    TOKEN_USAGE: tuple(float(4**power) for power in range(14)),
}
"""The bounds that the conventions advise."""
UNITS = {REQUEST_DURATION: "s", CLIENT_DURATION: "s", FIRST_TOKEN: "s", PER_TOKEN: "s", TOKEN_USAGE: "{token}"}

Attributes = dict[str, str | int | float | list[str]]


class Described(NamedTuple):
    """A target in the conventions' words."""

    provider: str
    model: str
    address: str | None = None
    port: int | None = None


def describe(settings: Settings) -> dict[str, Described]:
    """Every target of the settings, by its name."""
    models = {deployment.name: deployment.model for deployment in settings.deployments}
    providers = {provider.name: provider for provider in settings.providers}
    found: dict[str, Described] = {}
    for route in settings.routes:
        for target in route.own_targets:
            if isinstance(target, DeploymentTarget):
                found[str(target)] = Described("outpost", models.get(target.deployment, target.deployment))
                continue
            provider = providers.get(target.provider)
            url = urlsplit(_address(provider))
            found[str(target)] = Described(
                _maker(provider) or target.provider,
                target.model,
                url.hostname,
                url.port or {"https": 443, "http": 80}.get(url.scheme),
            )
    return found


_NAMES = {
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex": "gcp.vertex_ai",
    "xai": "x_ai",
}
"""What the conventions call some kinds of provider."""


def _maker(provider: Provider | None) -> str | None:
    """Who a provider is; None where only the settings' own name for it is known."""
    return None if provider is None or provider.kind == ANY else _NAMES.get(provider.kind, provider.kind)


def _address(provider: Provider | None) -> str:
    """Where a provider is, as far as the settings say it."""
    if provider is None:
        return ""
    return provider.base_url or (OPENAI_BASE_URL if provider.kind == "openai" else "")


def operation(row: ExchangeRow) -> str:
    """What was done; the endpoint's own name where the conventions have none."""
    return OPERATIONS.get(row.kind, row.kind)


def common(row: ExchangeRow, target: Described | None) -> Attributes:
    """What spans and metrics have in common; each with few values, which the settings decide."""
    told: Attributes = {OPERATION: operation(row), PROVIDER: target.provider if target else "outpost"}
    if row.route is not None:
        told[REQUEST_MODEL] = row.route
    if target is not None:
        told[RESPONSE_MODEL] = target.model
        told |= _place(target)
    if row.error_code is not None:
        told[ERROR_TYPE] = row.error_code
    return told


def of_exchange(row: ExchangeRow, target: Described | None) -> Attributes:
    """The attributes of an exchange's span."""
    told = common(row, target)
    told |= {HTTP_STATUS: row.status, RESPONSE_ID: row.id, ATTEMPTS: len(tries(row)), OUTCOME: row.outcome}
    if row.usage_source != "none" or row.prompt_tokens or row.completion_tokens:
        told |= {INPUT_TOKENS: row.prompt_tokens, OUTPUT_TOKENS: row.completion_tokens}
    if row.cached_tokens:
        told[CACHED_TOKENS] = row.cached_tokens
    if row.reasoning_tokens:
        told[REASONING_TOKENS] = row.reasoning_tokens
    if row.finish_reasons:
        told[FINISH_REASONS] = list(row.finish_reasons)
    if row.queue_s is not None:
        told[QUEUE_S] = row.queue_s
    return told


def of_attempt(row: ExchangeRow, attempt: Attempt, target: Described | None) -> Attributes:
    """The attributes of an attempt: of its span, and of how long it took."""
    told: Attributes = {OPERATION: operation(row), PROVIDER: target.provider if target else "outpost"}
    if target is not None:
        told[REQUEST_MODEL] = target.model
        told |= _place(target)
    if attempt.error_code is not None:
        told[ERROR_TYPE] = attempt.error_code
    return told


def _place(target: Described) -> Attributes:
    told: Attributes = {}
    if target.address is not None:
        told[SERVER_ADDRESS] = target.address
        if target.port is not None:
            told[SERVER_PORT] = target.port
    return told
