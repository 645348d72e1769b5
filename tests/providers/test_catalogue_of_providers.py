"""The rows of providers: that each is sound and says what it must, how models are found, and what is refused."""

from __future__ import annotations

from decimal import Decimal

import pytest
import yarl

from appliance.dialects.bedrock.outbound import FEATURES as BEDROCK
from appliance.dialects.chat import ChatRequest
from appliance.dialects.cohere_outbound import FEATURES as COHERE
from appliance.dialects.completions import CompletionRequest
from appliance.dialects.embeddings import EmbeddingRequest
from appliance.dialects.gemini_outbound import FEATURES as GEMINI
from appliance.dialects.messages.canonical import NATIVE_FEATURES as MESSAGES_NATIVE
from appliance.dialects.messages.outbound import FEATURES as ANTHROPIC
from appliance.dialects.parameters import ACCEPTED_NO_OPS
from appliance.dialects.responses.outbound import NATIVE_FEATURES as RESPONSES
from appliance.providers import auth
from appliance.providers.catalogue import ROWS, Cost, RowError, endpoint, kinds, parse, row

OPENAI = frozenset(
    [
        "tools",
        "json_object",
        "json_schema",
        "logprobs",
        "logit_bias",
        "top_k",
        "min_p",
        "repetition_penalty",
        "token_prompts",
        "images",
        "files",
        "audio_input",
        "reasoning",
        "verbosity",
        "prefill",
        "may_prefill",
        "tool_images",
        "custom_tools",
        "allowed_tools",
        "service_tiers",
    ]
)
FEATURES = {
    "openai": OPENAI | RESPONSES,
    "anthropic": ANTHROPIC | MESSAGES_NATIVE,
    "gemini": GEMINI,
    "bedrock": BEDROCK,
    "cohere": COHERE,
}
OPERATIONS = {"chat.completions", "completions", "embeddings"}
NATIVE = OPERATIONS | {"responses", "messages"}
FIELDS = frozenset(
    field for kind in (ChatRequest, CompletionRequest, EmbeddingRequest) for field in kind.__struct_fields__
)
FILLED = {"resource": "r", "region": "eu-central-1", "project": "p", "api_version": "2024-10-21"}


def test_the_issue_names_these() -> None:
    assert set(kinds()) == {
        "openai",
        "azure",
        "huggingface",
        "mistral",
        "groq",
        "together",
        "deepseek",
        "openrouter",
        "xai",
        "fireworks",
        "nvidia_nim",
        "perplexity",
        "ai21",
        "openai_compatible",
        "anthropic",
        "gemini",
        "vertex",
        "bedrock",
        "cohere",
    }


@pytest.mark.parametrize("kind", kinds())
def test_a_row_says_only_what_others_understand(kind: str) -> None:
    found = row(kind)
    assert found.features <= FEATURES[found.dialect]
    assert found.operations <= OPERATIONS
    assert found.native <= NATIVE
    for name in (found.auth, found.auth_without_key):
        assert auth.kind_of(name)
    assert auth.kind_of(found.auth).keyed
    quirks = found.quirks
    named = {*quirks.rename, *quirks.leave_out, *quirks.refuse, *quirks.values}
    assert named <= FIELDS
    assert quirks.pass_on <= set(ACCEPTED_NO_OPS)
    assert not quirks.refuse & found.features, "refused and offered"
    for name, model in found.models.items():
        assert model.can <= FEATURES[found.dialect], name
        assert model.cannot <= found.features, f"{name} cannot what the row does not say it can"
        assert not model.can & found.features, f"{name} can what the row says of all"
        assert model.operations is None or model.operations <= OPERATIONS
        assert (model.dimensions is not None) == (model.operations == {"embeddings"}), name


@pytest.mark.parametrize("kind", kinds())
def test_every_address_is_one(kind: str) -> None:
    found = row(kind)
    if found.base_url is None:
        with pytest.raises(ValueError, match="base_url"):
            endpoint(kind, None, FILLED)
        assert endpoint(kind, "http://lab/v1", {}).base_url == "http://lab/v1"
        return
    place = endpoint(kind, None, FILLED)
    url = yarl.URL(place.base_url)
    assert url.scheme == "https"
    assert url.host
    assert "{" not in place.base_url
    assert not place.base_url.endswith("/")
    assert endpoint(kind, "http://mine/x", FILLED).base_url == "http://mine/x"


def test_cached_tokens_never_cost_more_than_others_and_writing_a_cache_never_less() -> None:
    for kind in kinds():
        for name, model in row(kind).models.items():
            if (price := model.price) is not None:
                assert price.cached is None or price.cached <= price.input, f"{kind} {name}"
                assert price.cache_write is None or price.cache_write >= price.input, f"{kind} {name}"


def test_options_and_variants_make_the_address() -> None:
    assert endpoint("azure", None, {"resource": "r"}).base_url == "https://r.openai.azure.com/openai/v1"
    older = endpoint("azure", None, {"resource": "r", "api_version": "2024-10-21"})
    assert older.base_url == "https://r.openai.azure.com/openai"
    assert older.paths["embeddings"] == "deployments/{model}/embeddings?api-version=2024-10-21"
    older = endpoint("azure", "https://mine/openai", {"api_version": "1"})
    assert older.paths["chat.completions"] == "deployments/{model}/chat/completions?api-version=1"
    with pytest.raises(ValueError, match="resource is missing"):
        endpoint("azure", None, {})
    assert endpoint("bedrock", None, {"region": "x"}).base_url == "https://bedrock-runtime.x.amazonaws.com"
    world = "https://aiplatform.googleapis.com/v1/projects/p/locations/global/publishers/google"
    assert endpoint("vertex", None, {"project": "p"}).base_url == world
    place = endpoint("vertex", None, {"project": "p", "location": "europe-west4"}).base_url
    assert place == (
        "https://europe-west4-aiplatform.googleapis.com/v1/projects/p/locations/europe-west4/publishers/google"
    )
    assert endpoint("cohere", None, {}).health == "https://api.cohere.com/v1/models"
    assert endpoint("groq", None, {}).health == "https://api.groq.com/openai/v1/models"
    assert endpoint("openai_compatible", "http://lab:1/v1/", {}).health == "http://lab:1/v1/models"
    assert endpoint("perplexity", None, {}).health is None
    assert endpoint("azure", None, {"resource": "r", "api_version": "1"}).health is None
    assert endpoint("anthropic", None, {}).headers == {"anthropic-version": "2023-06-01"}


@pytest.mark.parametrize(
    ("kind", "model", "same"),
    [
        ("openai", "gpt-4o-2024-08-06", "gpt-4o"),
        ("openai", "gpt-5-mini-2025-08-07", "gpt-5-mini"),
        ("anthropic", "claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("anthropic", "claude-3-5-haiku-latest", "claude-3-5-haiku"),
        ("bedrock", "eu.anthropic.claude-sonnet-4-5-20250929-v1:0", "anthropic.claude-sonnet-4-5"),
        ("bedrock", "global.anthropic.claude-sonnet-4-5-20250929-v1:0", "global.anthropic.claude-sonnet-4-5"),
        ("bedrock", "amazon.nova-pro-v1:0", "amazon.nova-pro"),
        ("fireworks", "accounts/fireworks/models/kimi-k3", "kimi-k3"),
    ],
)
def test_what_vendors_add_to_a_name_is_looked_through(kind: str, model: str, same: str) -> None:
    assert model not in row(kind).models
    assert row(kind).find(model) is row(kind).models[same]


@pytest.mark.parametrize("model", ["gpt-4o-mini-tts", "gpt-4", "gpt-4o-2024-05-13"])
def test_another_model_is_another(model: str) -> None:
    assert row("openai").find(model) is row("openai").models.get(model)


def test_a_model_that_is_not_listed_works_with_what_is_said_of_all() -> None:
    facts = row("openai").facts("brand-new")
    assert facts.features == row("openai").features
    assert (facts.context_length, facts.price, facts.operations) == (None, None, row("openai").operations)


def test_a_listed_model_has_its_own() -> None:
    facts = row("openai").facts("gpt-4o-mini")
    assert "reasoning" not in facts.features
    assert "tools" in facts.features
    assert (facts.context_length, facts.max_output) == (128_000, 16_384)
    assert facts.price == Cost(Decimal("0.15"), Decimal("0.6"), Decimal("0.075"))
    assert row("openai").facts("text-embedding-3-small").operations == {"embeddings"}
    assert "prefill" in row("anthropic").facts("claude-sonnet-4-5").features
    assert "prefill" not in row("anthropic").facts("claude-opus-4-6").features


def test_models_of_another_row() -> None:
    assert row("azure").facts("gpt-4o-mini").price == row("openai").facts("gpt-4o-mini").price
    assert row("azure").find("my-deployment") is None
    assert row("vertex").facts("gemini-2.5-pro").context_length == 1_048_576


GOOD = "title: T\ndialect: openai\nbase_url: https://x\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title: T\n", "dialect"),
        (GOOD + "dialekt: x\n", "dialekt"),
        (GOOD + "title: U\n", "written twice"),
        (GOOD + "models: {a: {context: 5, output: 6}}\n", "more than the context"),
        (GOOD + "models: {a: {price: {input: 1}}}\n", "prices_as_of"),
        (GOOD + "prices_as_of: 2026-01-01\nmodels: {a: {price: {input: -1}}}\n", "not a price"),
        (GOOD + "models: {a: {price: {inputs: 1}}}\n", "inputs"),
        (GOOD.replace("https://x", "https://{region}.x"), "region is used and not declared"),
        (GOOD + "variants: [{when: {region: x}}]\n", "not an option"),
        (GOOD.replace("dialect: openai", "dialect: cohere") + "quirks: {names: false}\n", "quirks"),
        (GOOD + "quirks: {tool_image: true}\n", "tool_image"),
        ("[", "x.yaml"),
    ],
)
def test_a_row_that_is_not_sound_is_refused_with_its_place(text: str, says: str) -> None:
    assert parse(GOOD, "x.yaml").title == "T"
    with pytest.raises(RowError, match=says) as caught:
        parse(text, "x.yaml")
    assert str(caught.value).startswith("x.yaml")


def test_prices_are_exact() -> None:
    text = GOOD + "prices_as_of: 2026-01-01\nmodels: {a: {price: {input: 0.1, cached: 0.0375, output: 3}}}\n"
    assert parse(text, "x").models["a"].price == Cost(Decimal("0.1"), Decimal(3), Decimal("0.0375"))


def test_an_unknown_kind_names_those_that_there_are() -> None:
    with pytest.raises(RowError, match="there is ai21, anthropic"):
        row("openia")


def test_rows_ship_with_the_package() -> None:
    assert (ROWS.parent / "catalogue.py").exists()
    assert ROWS.is_relative_to(ROWS.parents[2] / "appliance")
