"""Providers: endpoints that somebody else runs. What the kinds are like stands in `providers.catalogue`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from appliance.settings.routing import Zone
from appliance.settings.secrets import SecretRef
from appliance.settings.section import Section
from appliance.settings.values import BaseUrl, Duration, Form, Integer, Name, Text, Word, read_text, refuse

Kind = Literal[
    "openai",
    "openai_compatible",
    "anthropic",
    "azure",
    "bedrock",
    "cohere",
    "deepseek",
    "fireworks",
    "gemini",
    "groq",
    "huggingface",
    "mistral",
    "nvidia_nim",
    "openrouter",
    "perplexity",
    "together",
    "vertex",
    "xai",
    "ai21",
]
KINDS: tuple[str, ...] = get_args(Kind)
OPENAI_BASE_URL = "https://api.openai.com/v1"
ANY = "openai_compatible"
"""The kind that is nowhere by itself."""

OPTIONS: dict[str, tuple[str, ...]] = {
    "azure": ("resource", "api_version"),
    "vertex": ("project", "location"),
    "bedrock": ("region",),
}
"""What a kind takes beside; the same as its row's options."""
FETCHES_NOTHING = ("bedrock", "cohere", "gemini", "vertex")
"""Kinds whose interfaces take media as data alone."""
TAKES_BETAS = ("anthropic",)
"""Kinds whose targets may be asked for betas; the same as the rows that have any."""
_PLACED_BY = {"azure": "resource", "vertex": "project"}
"""What says where a kind is, unless base_url does."""
_SIGNERS: dict[str, tuple[str, ...]] = {
    "vertex": ("service_account",),
    "bedrock": ("access_key", "secret_key", "session_token"),
}
"""Secrets that a kind takes instead of a key."""
_ALL_OPTIONS = tuple(name for names in (*OPTIONS.values(), *_SIGNERS.values()) for name in names)

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_OURS = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "te",
        "traceparent",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that the gateway sets by itself, or that would break a request."""
_SECRET = frozenset({"authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key"})
HEADERS = Form("a mapping of header names to texts", "{x-project: research}")


def _check_headers(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise refuse(f"expected {HEADERS.expected}", f"write e.g. {HEADERS.example}")
    found: dict[str, str] = {}
    for name, text in value.items():
        if not isinstance(name, str) or not _HEADER.fullmatch(name):
            raise refuse("holds a name that no header can have", "use letters, digits and '-'")
        if name.lower() in _SECRET:
            # What stands here may be the secret itself: it is not repeated.
            raise refuse(f"{name} is for a key", "remove it and use api_key: {env: NAME}")
        if name.lower() in _OURS:
            raise refuse(f"sets the header {name}, which the gateway sets by itself", "remove it")
        if name.lower() in {each.lower() for each in found}:
            raise refuse(f"sets the header {name} twice", "remove one")
        if not _HEADER_VALUE.fullmatch(read_text(text)):
            raise refuse(f"{name} holds what no header can carry", "use ASCII characters, without spaces around them")
        found[str(name)] = read_text(text)
    return found


class ProviderKey(Section):
    """One of several keys for a provider."""

    name: Name = Field(description="Name of the key, as logs show it.", examples=["first"])
    key: SecretRef = Field(description="Where the key is found.", examples=[{"env": "OPENAI_KEY_1"}])
    weight: Integer = Field(
        default=1,
        ge=1,
        le=1000,
        description="Share of the requests that go out with it.",
        json_schema_extra={"unit": "parts"},
    )


class Provider(Section):
    """An endpoint that somebody else runs."""

    name: Name = Field(description="Name of the provider, as targets refer to it.", examples=["lab"])
    kind: Annotated[Kind, Word] = Field(
        default="openai",
        description="Who it is, or what it speaks; left out, openai_compatible where base_url is given, else openai.",
    )
    base_url: BaseUrl | None = Field(
        default=None,
        description="Address of the API, up to and with its version part; left out, the kind's own, which "
        "openai_compatible has not.",
    )
    zone: Annotated[Zone, Word] = Field(
        default="cloud",
        description="Where the provider's machines are: on this box, elsewhere on the premises, or in a cloud; "
        "openai_compatible has to say.",
    )
    api_key: SecretRef | None = Field(
        default=None, description="Where the key for the provider is found.", examples=[{"env": "OPENAI_API_KEY"}]
    )
    keys: tuple[ProviderKey, ...] = Field(
        default=(),
        description="Several keys instead of api_key; one that is refused rests while the others go on.",
        examples=[
            [{"name": "first", "key": {"env": "OPENAI_KEY_1"}}, {"name": "second", "key": {"env": "OPENAI_KEY_2"}}]
        ],
    )
    cool_down: Duration = Field(
        default=60.0,
        ge=1.0,
        le=3600.0,
        description="Longest rest of one of several keys after a rate limit that names no time; the first is a second, "
        "and each further one twice as long.",
    )
    resource: Text | None = Field(
        default=None, description="azure: the resource, which is the first part of its address.", examples=["lab-east"]
    )
    api_version: Text | None = Field(
        default=None,
        description="azure: version of the older API, with an address for each deployment; left out, the API that has "
        "no versions.",
        examples=["2024-10-21"],
    )
    project: Text | None = Field(
        default=None, description="vertex: id of the Google Cloud project.", examples=["research-1"]
    )
    location: Text | None = Field(
        default=None, description="vertex: region; left out, global.", examples=["europe-west4"]
    )
    service_account: SecretRef | None = Field(
        default=None,
        description="vertex: where the JSON key of the service account is found; instead of api_key.",
        examples=[{"file": "/etc/outpost/google.json"}],
    )
    region: Text | None = Field(default=None, description="bedrock: region of AWS.", examples=["eu-central-1"])
    access_key: SecretRef | None = Field(
        default=None,
        description="bedrock: where the id of the access key is found; with secret_key, instead of api_key.",
        examples=[{"env": "AWS_ACCESS_KEY_ID"}],
    )
    secret_key: SecretRef | None = Field(
        default=None,
        description="bedrock: where the secret of the access key is found.",
        examples=[{"env": "AWS_SECRET_ACCESS_KEY"}],
    )
    session_token: SecretRef | None = Field(
        default=None,
        description="bedrock: where the token that goes with a temporary access key is found.",
        examples=[{"env": "AWS_SESSION_TOKEN"}],
    )
    headers: Annotated[dict[str, str], BeforeValidator(_check_headers), HEADERS] = Field(
        default_factory=dict,
        description="Further headers of each request, none of them secret.",
        examples=[{"x-project": "research"}],
    )
    betas: tuple[Text, ...] | None = Field(
        default=None,
        description="anthropic: the betas that clients may ask for (anthropic-beta), as patterns; default stands for "
        "those that reach nowhere and keep nothing there. Others are left out of the header. Left out, [default].",
        examples=[["default", "mcp-client-*"]],
    )
    fetches_media: bool = Field(
        default=False,
        description="Clients may send addresses (https://…) of images and documents, which the provider fetches by "
        "itself; nothing here does. With one on the premises, clients reach what that machine reaches.",
    )
    max_in_flight: Integer | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Most requests that the provider works on at a time; more go to the route's next target with room, "
        "or wait. Left out, no bound.",
        json_schema_extra={"unit": "requests"},
    )
    max_requests_per_minute: Integer | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Most requests that are sent in any minute; further ones go to other targets. Left out, no bound.",
        json_schema_extra={"unit": "requests"},
    )

    @property
    def gate(self) -> str:
        """What requests wait at, if it is bounded. No deployment can have this name."""
        return f"{self.name}/*"

    @property
    def options(self) -> dict[str, str]:
        """The options of its kind that are set, secrets apart."""
        return {name: value for name in OPTIONS.get(self.kind, ()) if (value := getattr(self, name)) is not None}

    @property
    def signers(self) -> dict[str, SecretRef]:
        """Where the secrets are found that stand instead of a key."""
        return {name: value for name in _SIGNERS.get(self.kind, ()) if (value := getattr(self, name)) is not None}

    @property
    def all_keys(self) -> tuple[ProviderKey, ...]:
        """Its keys, however they are written; none where it has none."""
        if self.api_key is not None:
            return (ProviderKey(name="api_key", key=self.api_key),)
        return self.keys

    @model_validator(mode="before")
    @classmethod
    def _of_any_kind(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "kind" not in data and data.get("base_url") is not None:
            return {**data, "kind": ANY}
        return data

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        self._check_place()
        taken = {*OPTIONS.get(self.kind, ()), *_SIGNERS.get(self.kind, ())}
        for name in _ALL_OPTIONS:
            if getattr(self, name) is not None and name not in taken:
                owner = next(kind for kind, names in (*OPTIONS.items(), *_SIGNERS.items()) if name in names)
                raise refuse(f"{name} has no use with kind {self.kind}", f"remove it, or write kind: {owner}")
        if self.betas is not None and self.kind not in TAKES_BETAS:
            raise refuse(f"betas has no use with kind {self.kind}", "remove it, or write kind: anthropic")
        if self.fetches_media and self.kind in FETCHES_NOTHING:
            raise refuse(f"kind {self.kind} fetches no media", "remove fetches_media")
        if self.kind == "bedrock" and self.region is None:
            raise refuse("kind bedrock needs region", "add e.g. region: eu-central-1")
        self._check_keys()
        return self

    def _check_place(self) -> None:
        if self.kind == ANY:
            if self.base_url is None:
                raise refuse(f"kind {ANY} needs base_url", "add e.g. base_url: http://10.0.0.5:8000/v1")
            if "zone" not in self.model_fields_set:
                raise refuse("zone is required", "add zone: on_box, on_prem or cloud, as the machine's place is")
        option = _PLACED_BY.get(self.kind)
        if option is not None and self.base_url is None and getattr(self, option) is None:
            raise refuse(f"kind {self.kind} needs {option}", f"add {option}, or base_url")

    def _check_keys(self) -> None:
        if self.api_key is not None and self.keys:
            raise refuse("both api_key and keys are given", "leave one of them")
        names = [each.name for each in self.keys]
        for name in names:
            if names.count(name) > 1:
                raise refuse(f"there are two keys {name!r}", "give one another name")
        signers = self.signers
        if signers and self.all_keys:
            raise refuse(f"both {next(iter(signers))} and a key are given", "leave one of them")
        if self.kind == "bedrock" and (signers or not self.all_keys):
            for name in ("access_key", "secret_key"):
                if name not in signers:
                    if not signers:
                        raise refuse("kind bedrock needs a key", "add api_key, or access_key and secret_key")
                    raise refuse(f"kind bedrock needs {name}", f"add {name}, or write api_key alone")
        if self.kind == "vertex" and not signers and not self.all_keys:
            raise refuse(
                "kind vertex needs service_account", "add e.g. service_account: {file: /etc/outpost/google.json}"
            )
