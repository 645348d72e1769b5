"""Field types, checks and no-ops that the text endpoints share. Pure."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance.errors import BadRequest, UnsupportedParameter

Unit = Annotated[float, Meta(ge=0.0, le=1.0)]
Temperature = Annotated[float, Meta(ge=0.0, le=2.0)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
Choices = Annotated[int, Meta(ge=1, le=128)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
MaxTokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TopK = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
RepetitionPenalty = Annotated[float, Meta(gt=0.0, le=10.0)]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
StopText = Annotated[str, Meta(min_length=1, max_length=1024)]
Stop = StopText | Annotated[list[StopText], Meta(max_length=4)]
LogitBias = Annotated[dict[str, float], Meta(max_length=1024)]
Metadata = Annotated[dict[str, str], Meta(max_length=16)]
Label = Annotated[str, Meta(max_length=512)]
ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "standard", "fast"]


class CacheOptions(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Of OpenAI's cache of prompts. To fill it without an answer (`prewarm`) is no chat, and is not taken."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Annotated[str, Meta(max_length=16)] | None = None


class CacheBreakpoint(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """OpenAI's mark that a prompt is worth keeping up to here; targets without the notion never see it."""

    mode: Literal["explicit"]
    ttl: Annotated[str, Meta(max_length=16)] | None = None


class StreamOptions(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """A no-op: padding against traffic analysis is not added, and the answer is the same without."""


ACCEPTED_NO_OPS = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "modalities",
)
"""Fields that are read and checked but change nothing about the answer. Only targets that are known to take one get it:
those of OpenAI's family by their rows (openai_outbound.Quirks.pass_on), Responses what is its own, and Anthropic
`user`, for which its metadata.user_id is made."""

HINTS = {
    "service_tier": "Use auto or default.",
    "model": "Name a model; GET /v1/models lists them.",
}


def check_stream_options(stream: bool | None, options: StreamOptions | None) -> None:
    if options is not None and not stream:
        raise BadRequest("stream_options is only allowed together with stream: true.", param="stream_options")


def check_service(store: bool | None, tier: str | None) -> None:
    if store:
        raise UnsupportedParameter(
            "store: true is not supported: answers are not stored. Leave it out or send false.", param="store"
        )
    if tier is not None and tier not in ("auto", "default"):
        raise UnsupportedParameter(f"service_tier: {tier} is not supported; use auto or default.", param="service_tier")


_TOKEN_ID = re.compile(r"[0-9]{1,9}\Z")


def check_logit_bias(bias: dict[str, float] | None) -> None:
    for token, value in (bias or {}).items():
        if not _TOKEN_ID.match(token):
            raise BadRequest(
                f"logit_bias: {token[:40]!r} is not a token id; keys are whole numbers from 0.", param="logit_bias"
            )
        if not -100.0 <= value <= 100.0:
            raise BadRequest(
                f"logit_bias: the value of token {token} must lie between -100 and 100.", param="logit_bias"
            )


def is_address(url: str, field: str) -> bool:
    """Whether an image is at an address, and not in the URL itself. Raises BadRequest for what is no image's URL."""
    start = url[:8].lower()
    if start.startswith("data:"):
        return False
    if start.startswith(("https://", "http://")):
        return True
    raise BadRequest(f"{field} must be a data: URL, or an address that begins with https://.", param=field)


def as_stop_list(stop: str | list[str] | None) -> list[str]:
    return [stop] if isinstance(stop, str) else list(stop or ())


def check_schema(schema: dict[str, Any], path: str, *, max_bytes: int = 65_536) -> None:
    """A first look at a JSON Schema: shape and size, so that nothing huge or absurd reaches an engine."""
    kind = schema.get("type")
    if kind is not None and not isinstance(kind, (str, list)):
        raise BadRequest(f"{path}.type must be a string or an array of strings.", param=f"{path}.type")
    properties = schema.get("properties")
    if properties is not None and not isinstance(properties, dict):
        raise BadRequest(f"{path}.properties must be an object.", param=f"{path}.properties")
    required = schema.get("required")
    if required is not None and not (isinstance(required, list) and all(isinstance(r, str) for r in required)):
        raise BadRequest(f"{path}.required must be an array of strings.", param=f"{path}.required")
    try:
        msgspec.msgpack.encode(schema)
    except OverflowError:
        raise BadRequest(f"{path} holds a whole number of more than 64 bits.", param=path) from None
    size = len(msgspec.json.encode(schema))
    if size > max_bytes:
        raise BadRequest(f"{path} is {size} bytes of JSON; the most is {max_bytes}.", param=path)
