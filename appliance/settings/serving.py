"""Deployments: models that this box runs. For providers see `providers`, for the routes to both `routing`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from appliance.settings.routing import DeploymentTarget, Route
from appliance.settings.section import Section
from appliance.settings.values import Duration, Integer, Name, Switch, Word


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


def default_deployments() -> tuple[Deployment, ...]:
    """The two small models that come with the package."""
    return (
        Deployment(name="smollm2-135m-instruct", model="smollm2-135m-instruct"),
        Deployment(name="all-minilm-l6-v2", model="all-minilm-l6-v2"),
    )


def routes_to(deployments: tuple[Deployment, ...]) -> tuple[Route, ...]:
    """One route a deployment, under the deployment's name."""
    return tuple(Route(model=each.name, targets=(DeploymentTarget(deployment=each.name),)) for each in deployments)
