"""What serves requests: deployments on this box, providers elsewhere, and the routes to both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from appliance.settings.secrets import SecretRef
from appliance.settings.section import Section
from appliance.settings.units import quote
from appliance.settings.values import (
    BaseUrl,
    Duration,
    FreeMapping,
    Integer,
    ModelName,
    Name,
    Switch,
    Text,
    Word,
    refuse,
)

OPENAI_BASE_URL = "https://api.openai.com/v1"

Zone = Literal["on_box", "on_prem", "cloud"]


class Replicas(Section):
    """How many engine processes."""

    min: Integer = Field(
        default=1,
        ge=1,
        le=64,
        description="Engine processes that are kept running.",
        json_schema_extra={"unit": "processes"},
    )


class LlamaCppArgs(Section):
    """What the llama.cpp engine is started with."""

    context: Integer | None = Field(
        default=None,
        ge=64,
        le=16_777_216,
        description="Most tokens (prompt and answer) of one request; left out, the manifest's value.",
        json_schema_extra={"unit": "tokens"},
    )
    slots: Integer = Field(
        default=8,
        ge=1,
        le=256,
        description="Requests that are worked on at the same time; each takes its own share of memory.",
        json_schema_extra={"unit": "requests"},
    )
    threads: Integer | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Processor threads of one replica; left out, as many as suit the machine.",
        json_schema_extra={"unit": "threads"},
    )
    prefill_chunk: Integer = Field(
        default=256,
        ge=1,
        le=8192,
        description="Most prompt tokens computed in one step; beside running answers the engine takes fewer by itself.",
        json_schema_extra={"unit": "tokens"},
    )
    max_waiting: Integer = Field(
        default=256,
        ge=0,
        le=100_000,
        description="Most requests that may wait inside the engine; the gateway's own queue is before it (admission).",
        json_schema_extra={"unit": "requests"},
    )
    gpu_layers: Integer = Field(
        default=0,
        ge=0,
        le=1000,
        description="Layers of the model that are put on the GPU; 0 is none, 1000 is all.",
        json_schema_extra={"unit": "layers"},
    )
    flash_attention: Switch = Field(
        default=False,
        description="On a processor: a tenth faster for chats of up to some hundred tokens, slower for long ones; the "
        "values of the cache are then kept as bfloat16.",
    )


class Deployment(Section):
    """A model that this box runs on an engine."""

    name: Name = Field(description="Name of the deployment; without routes, also the model name that clients ask for.")
    model: Name = Field(
        description="Manifest in the catalogue (`outpost models list`).", examples=["smollm2-135m-instruct"]
    )
    engine: Annotated[Literal["llamacpp"], Word] = Field(default="llamacpp", description="Engine that runs the model.")
    replicas: Replicas = Field(default_factory=Replicas, description="How many engine processes.")
    args: LlamaCppArgs = Field(default_factory=LlamaCppArgs, description="What the engine is started with.")
    start_timeout: Duration = Field(
        default=120.0,
        ge=1.0,
        le=86400.0,
        description="Longest time from the start of a replica to its answer to the warm-up prompt.",
    )
    drain_timeout: Duration = Field(
        default=30.0,
        ge=0.0,
        le=3600.0,
        description="Longest time that running requests get to finish before a replica is stopped.",
    )


class Provider(Section):
    """An endpoint that somebody else runs."""

    name: Name = Field(description="Name of the provider, as targets refer to it.", examples=["lab"])
    kind: Annotated[Literal["openai"], Word] = Field(
        default="openai", description="API that the provider speaks; openai is for anything compatible."
    )
    base_url: BaseUrl = Field(
        default=OPENAI_BASE_URL, description="Address of the API, up to and with its version part."
    )
    zone: Annotated[Zone, Word] = Field(
        description="Where the provider's machines are: on this box, elsewhere on the premises, or in a cloud."
    )
    api_key: SecretRef | None = Field(
        default=None, description="Where the key for the provider is found.", examples=[{"env": "OPENAI_API_KEY"}]
    )
    max_in_flight: Integer | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Most requests that the provider works on at a time; more wait. Left out, no bound.",
        json_schema_extra={"unit": "requests"},
    )

    @property
    def gate(self) -> str:
        """What requests wait at, if it is bounded. No deployment can have this name."""
        return f"{self.name}/*"


class DeploymentTarget(Section):
    """A target on this box."""

    deployment: Name = Field(description="Deployment that answers (instead of provider and model).")

    def __str__(self) -> str:
        return self.deployment


class ProviderTarget(Section):
    """A provider's model as a target."""

    provider: Name = Field(description="Provider that answers (instead of deployment).", examples=["lab"])
    model: Text = Field(
        min_length=1, max_length=256, description="The provider's own name for the model.", examples=["gpt-4o-mini"]
    )
    overrides: FreeMapping = Field(
        default_factory=dict, description="Request fields that are set to these values, whatever the client sent."
    )

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


ON_BOX_TAG, PROVIDER_TAG = "<on box>", "<provider>"
"""Never a key, so that they can be told apart from keys in the place of an error."""


def _check_target(value: Any) -> Any:
    if isinstance(value, (DeploymentTarget, ProviderTarget)):
        return value
    cure = "write {deployment: NAME} or {provider: NAME, model: NAME}"
    if not isinstance(value, Mapping):
        found = f", found {quote(value)}" if isinstance(value, str) else ""
        raise refuse(f"expected a target{found}", cure)
    if "deployment" in value and "provider" in value:
        raise refuse("a target is a deployment or a provider's model, not both", cure)
    if "deployment" not in value and "provider" not in value:
        raise refuse("names neither a deployment nor a provider", cure)
    return value


def _target_tag(value: Any) -> str:
    if isinstance(value, Mapping):
        return ON_BOX_TAG if "deployment" in value else PROVIDER_TAG
    return ON_BOX_TAG if isinstance(value, DeploymentTarget) else PROVIDER_TAG


Target = Annotated[
    Annotated[DeploymentTarget, Tag(ON_BOX_TAG)] | Annotated[ProviderTarget, Tag(PROVIDER_TAG)],
    Discriminator(_target_tag),
    BeforeValidator(_check_target),
]


class Deadlines(Section):
    """Bounds on one request. `total` bounds all attempts together."""

    connect: Duration = Field(
        default=2.0, ge=0.01, le=300.0, description="Longest time until a target accepts the connection."
    )
    first_token: Duration = Field(
        default=60.0,
        ge=0.01,
        le=3600.0,
        description="Longest time until a stream's first piece; waiting and reading a prompt on this box do not count.",
    )
    idle: Duration = Field(
        default=30.0, ge=0.01, le=3600.0, description="Longest silence between two pieces of an answer."
    )
    total: Duration = Field(
        default=600.0, ge=0.01, le=86400.0, description="Longest time for the request with all its attempts."
    )


class Route(Section):
    """A model name that clients ask for, and what may answer it."""

    model: ModelName = Field(description="The model name that clients send.")
    aliases: tuple[ModelName, ...] = Field(
        default=(), description="Further model names for the same route.", examples=[["gpt-4o-mini"]]
    )
    strategy: Annotated[Literal["priority"], Word] = Field(
        default="priority", description="How targets are ordered; priority is the order in which they are written."
    )
    targets: tuple[Target, ...] = Field(
        min_length=1,
        description="What may answer, the preferred one first.",
        examples=[[{"deployment": "small"}, {"provider": "lab", "model": "llama-3.3-70b"}]],
    )
    deadlines: Deadlines = Field(default_factory=Deadlines, description="Bounds on one request.")
    retries: Integer = Field(
        default=2,
        ge=0,
        le=10,
        description="Further attempts after the first one failed, as long as the client has seen nothing.",
        json_schema_extra={"unit": "attempts"},
    )
    drop_unsupported: Switch = Field(
        default=False,
        description="Drop request fields that a target cannot honour, rather than refuse the request.",
    )


def default_deployments() -> tuple[Deployment, ...]:
    """The two small models that come with the package."""
    return (
        Deployment(name="smollm2-135m-instruct", model="smollm2-135m-instruct"),
        Deployment(name="all-minilm-l6-v2", model="all-minilm-l6-v2"),
    )


def routes_to(deployments: tuple[Deployment, ...]) -> tuple[Route, ...]:
    """One route a deployment, under the deployment's name."""
    return tuple(Route(model=each.name, targets=(DeploymentTarget(deployment=each.name),)) for each in deployments)
