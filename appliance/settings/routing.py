"""Routes: the model names that clients ask for, and how one of several targets is chosen for a request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from appliance.settings.section import Section
from appliance.settings.units import quote
from appliance.settings.values import (
    Duration,
    FreeMapping,
    Integer,
    ModelName,
    Name,
    Percent,
    Switch,
    Text,
    Word,
    refuse,
)

Zone = Literal["on_box", "on_prem", "cloud"]
Strategy = Literal["priority", "weighted", "least_busy", "latency", "cost", "prefix"]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

REQUEST_FEATURES: tuple[str, ...] = (
    "tools",
    "images",
    "tool_images",
    "image_addresses",
    "audio_input",
    "files",
    "file_ids",
    "file_addresses",
    "json_schema",
    "json_object",
    "reasoning",
    "verbosity",
    "logprobs",
    "logit_bias",
    "top_k",
    "min_p",
    "repetition_penalty",
    "token_prompts",
    "stored_chats",
    "service_tiers",
    "citations",
    "truncation",
    "responses_tools",
    "responses_items",
    "anthropic_tools",
    "anthropic_content",
    "context_management",
    "task_budget",
    "mcp_servers",
    "container",
)
"""What a request may use that not every target has; what the dialects call it."""


class When(Section):
    """Which requests a target is for. All that is given must hold; of a list, one entry is enough."""

    min_prompt_tokens: Integer | None = Field(
        default=None,
        ge=0,
        le=1_000_000_000,
        description="Fewest tokens of the prompt, about.",
        json_schema_extra={"unit": "tokens"},
    )
    max_prompt_tokens: Integer | None = Field(
        default=None,
        ge=0,
        le=1_000_000_000,
        description="Most tokens of the prompt, about.",
        json_schema_extra={"unit": "tokens"},
    )
    capability: tuple[Text, ...] = Field(
        default=(),
        description="What the request uses: tools, images, json_schema, reasoning, logprobs, ….",
        examples=[["images"]],
    )
    tags: tuple[Text, ...] = Field(default=(), description="Cost centres that the request names (x-outpost-tags).")
    teams: tuple[Text, ...] = Field(default=(), description="Teams of those who ask, by id.")
    organizations: tuple[Text, ...] = Field(default=(), description="Organizations of those who ask, by id.")
    keys: tuple[Text, ...] = Field(default=(), description="Keys that ask, by name or id.")
    zones: tuple[Annotated[Zone, Word], ...] = Field(
        default=(), description="How far the data of the request may go: on_box, on_prem, or cloud for anywhere."
    )
    hours: Text | None = Field(
        default=None, description="Time of day, in which past midnight is allowed.", examples=["22:00-06:00"]
    )
    weekdays: tuple[Annotated[Weekday, Word], ...] = Field(
        default=(), description="Days on which the hours begin; left out, all.", examples=[["mon", "tue"]]
    )
    timezone: Text = Field(default="UTC", description="Whose clocks the hours go by.", examples=["Europe/Berlin"])
    min_complexity: Integer | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Least score of how hard the prompt is.",
        json_schema_extra={"unit": "score"},
    )
    max_complexity: Integer | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Highest score of how hard the prompt is.",
        json_schema_extra={"unit": "score"},
    )


class _Target(Section):
    """What every target may say."""

    weight: Integer = Field(
        default=1,
        ge=1,
        le=1000,
        description="Share of the requests beside the other targets, with strategy weighted.",
        json_schema_extra={"unit": "parts"},
    )
    canary: Percent | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of all requests that go here first, whatever the others weigh; strategy weighted.",
        examples=["5%"],
    )
    when: When | None = Field(default=None, description="Requests that the target is for; left out, all.")
    overrides: FreeMapping = Field(
        default_factory=dict, description="Request fields that are set to these values, whatever the client sent."
    )


class _Deployment(Section):
    deployment: Name = Field(description="Deployment that answers (instead of provider and model, or route).")


class DeploymentTarget(_Target, _Deployment):
    """A target on this box."""

    def __str__(self) -> str:
        return self.deployment


class _ProviderModel(Section):
    provider: Name = Field(description="Provider that answers (instead of deployment or route).", examples=["lab"])
    model: Text = Field(
        min_length=1, max_length=256, description="The provider's own name for the model.", examples=["gpt-4o-mini"]
    )
    prefill: Switch | None = Field(
        default=None,
        description="Whether the model goes on with an answer that it is given the beginning of, for rescue: resume; "
        "left out, what is known of it.",
    )


class ProviderTarget(_Target, _ProviderModel):
    """A provider's model as a target."""

    def __str__(self) -> str:
        return f"{self.provider}/{self.model}"


class _Route(Section):
    route: ModelName = Field(description="Route whose targets stand here (instead of deployment or provider).")


class RouteTarget(_Target, _Route):
    """Another route in the place of a target: its own strategy orders its targets."""

    def __str__(self) -> str:
        return self.route


LeafTarget = DeploymentTarget | ProviderTarget

ON_BOX_TAG, PROVIDER_TAG, ROUTE_TAG = "<on box>", "<provider>", "<route>"
"""Never a key, so that they can be told apart from keys in the place of an error."""
_KINDS: tuple[tuple[str, str, type], ...] = (
    ("deployment", ON_BOX_TAG, DeploymentTarget),
    ("provider", PROVIDER_TAG, ProviderTarget),
    ("route", ROUTE_TAG, RouteTarget),
)


def _check_target(value: Any) -> Any:
    if isinstance(value, _Target):
        return value
    cure = "write {deployment: NAME}, {provider: NAME, model: NAME} or {route: NAME}"
    if not isinstance(value, Mapping):
        found = f", found {quote(value)}" if isinstance(value, str) else ""
        raise refuse(f"expected a target{found}", cure)
    named = [key for key, _, _ in _KINDS if key in value]
    if not named:
        raise refuse("names neither a deployment nor a provider nor a route", cure)
    if len(named) > 1:
        raise refuse("a target is a deployment, a provider's model or a route, only one of them", cure)
    return value


def _target_tag(value: Any) -> str:
    for key, tag, kind in _KINDS:
        if isinstance(value, kind) or (isinstance(value, Mapping) and key in value):
            return tag
    return PROVIDER_TAG


Target = Annotated[
    Annotated[DeploymentTarget, Tag(ON_BOX_TAG)]
    | Annotated[ProviderTarget, Tag(PROVIDER_TAG)]
    | Annotated[RouteTarget, Tag(ROUTE_TAG)],
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
    whole: Duration | None = Field(
        default=None,
        ge=0.01,
        le=86400.0,
        description="Longest time for one attempt at an answer that is not streamed, while another target could "
        "answer; left out, half of what is left of total.",
    )


class Hedge(Section):
    """A second target is asked too when the first lets wait for longer than it mostly does; the first token wins."""

    percentile: Integer = Field(
        default=95,
        ge=50,
        le=99,
        description="Of the target's latest times to a first token: who is slower is hedged.",
        json_schema_extra={"unit": "percent"},
    )
    share: Percent = Field(default=0.05, gt=0, le=1, description="Most requests that are hedged.", examples=["5%"])


class Shadow(Section):
    """A target that gets a share of the requests too; its answers are compared, recorded and dropped."""

    deployment: Name | None = Field(
        default=None, description="Deployment that is tried out (instead of provider and model)."
    )
    provider: Name | None = Field(default=None, description="Provider that is tried out.", examples=["lab"])
    model: Text | None = Field(
        default=None, min_length=1, max_length=256, description="The provider's own name for the model."
    )
    overrides: FreeMapping = Field(
        default_factory=dict, description="Request fields that are set to these values, whatever the client sent."
    )
    share: Percent = Field(default=1.0, gt=0, le=1, description="Of the requests.", examples=["10%"])

    @property
    def target(self) -> LeafTarget:
        if self.deployment is not None:
            return DeploymentTarget(deployment=self.deployment, overrides=self.overrides)
        return ProviderTarget(provider=self.provider or "", model=self.model or "", overrides=self.overrides)

    @model_validator(mode="after")
    def _one(self) -> Self:
        named = (self.deployment is not None, self.provider is not None and self.model is not None)
        if sum(named) != 1 or (named[0] and (self.provider or self.model)):
            raise refuse(
                "a shadow is a deployment or a provider's model",
                "write {deployment: NAME} or {provider: NAME, model: NAME}",
            )
        return self


class Route(Section):
    """A model name that clients ask for, and what may answer it."""

    model: ModelName = Field(description="The model name that clients send.")
    aliases: tuple[ModelName, ...] = Field(
        default=(), description="Further model names for the same route.", examples=[["gpt-4o-mini"]]
    )
    strategy: Annotated[Strategy, Word] = Field(
        default="priority",
        description="How targets are ordered: as written (priority), by weight, the least busy, the quickest (latency) "
        "or the cheapest (cost) first, or the one that had the same beginning of a conversation (prefix).",
    )
    sticky: Switch = Field(
        default=True,
        description="With strategy weighted: requests of a session (x-outpost-session, else a key) stay together.",
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
        description="Further attempts after the first one failed.",
        json_schema_extra={"unit": "attempts"},
    )
    rescue: Annotated[Literal["off", "buffer", "resume"], Word] = Field(
        default="off",
        description="A stream that breaks after its beginning: ends with an error (off), breaks unseen while its first "
        "tokens are held back (buffer), or is gone on with by the next target (resume).",
    )
    buffer_tokens: Integer = Field(
        default=16,
        ge=1,
        le=100_000,
        description="Tokens that rescue: buffer holds back.",
        json_schema_extra={"unit": "tokens"},
    )
    fallback_on_content_filter: Switch = Field(
        default=False, description="Ask the next target when one refuses a request for what it says."
    )
    hedge: Hedge | None = Field(default=None, description="Ask a second target when the first is slow; else never.")
    shadow: tuple[Shadow, ...] = Field(default=(), description="Targets whose answers are only compared.")
    residency: Annotated[Literal["any", "on_prem", "on_box"], Word] = Field(
        default="any", description="Where the data of its requests must stay; targets farther away are left out."
    )
    drop_unsupported: Switch = Field(
        default=False,
        description="Drop request fields that a target cannot honour, or not with their value, rather than refuse the "
        "request.",
    )

    @property
    def own_targets(self) -> tuple[LeafTarget, ...]:
        """Without routes inside it; shadows too, since they are asked all the same."""
        listed = [*self.targets, *(each.target for each in self.shadow)]
        return tuple(each for each in listed if not isinstance(each, RouteTarget))


def leaf_targets(route: Route, routes: Sequence[Route]) -> Iterator[LeafTarget]:
    """A route's own targets and those of the routes inside it, however deep; each route once."""
    known = {each.model: each for each in routes}
    seen: set[str] = set()
    waiting = [route]
    while waiting:
        each = waiting.pop()
        if each.model in seen:
            continue
        seen.add(each.model)
        yield from each.own_targets
        inner = (target.route for target in each.targets if isinstance(target, RouteTarget))
        waiting += [known[name] for name in inner if name in known]
