"""POST /v1/completions: plain continuation of one or more prompts. Same rules as `chat`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from appliance.dialects import parameters as p
from appliance.dialects.wire import Wire
from appliance.errors import BadRequest, UnsupportedParameter

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
MAX_CHOICES = 128
DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""


class CompletionRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A completion request. `prompt` may hold one text, one list of token ids, or several of either."""

    model: p.ModelName
    prompt: str | Annotated[list[str | TokenId | Annotated[list[TokenId], Meta(min_length=1)]], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: p.StreamOptions | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    """0 computes nothing but the prompt, which `echo` gives back."""
    n: p.Choices | None = None
    best_of: p.Choices | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    temperature: p.Temperature | None = None
    top_p: p.Unit | None = None
    top_k: p.TopK | None = None
    min_p: p.Unit | None = None
    presence_penalty: p.Penalty | None = None
    frequency_penalty: p.Penalty | None = None
    repetition_penalty: p.RepetitionPenalty | None = None
    seed: p.Seed | None = None
    stop: p.Stop | None = None
    logit_bias: p.LogitBias | None = None
    # No-ops from here on; see parameters.ACCEPTED_NO_OPS.
    user: p.Label | None = None
    metadata: p.Metadata | None = None
    store: bool | None = None
    service_tier: p.ServiceTier | None = None

    @property
    def choices(self) -> int:
        return (self.n or 1) * len(self.prompts())

    @property
    def token_limit(self) -> int:
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def prompts(self) -> list[str | list[int]]:
        """The prompts in order, each a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]  # `check` has made sure that all are ids
        return self.prompt  # type: ignore[return-value]


REFUSED = {
    "max_completion_tokens": "this endpoint takes max_tokens.",
    "messages": "this endpoint takes prompt; POST /v1/chat/completions takes messages.",
    "tools": "tools need POST /v1/chat/completions.",
    "tool_choice": "tools need POST /v1/chat/completions.",
    "response_format": "it needs POST /v1/chat/completions.",
    "top_logprobs": "this endpoint takes logprobs: 0 to 5.",
}

HINTS = {
    **p.HINTS,
    "prompt": "Send a string, an array of strings, an array of token ids, or an array of such arrays.",
}

WIRE = Wire(CompletionRequest, refused=REFUSED, hints=HINTS)


def parse(body: bytes, max_depth: int = 64) -> CompletionRequest:
    """The request in `body`, fully checked. Raises BadRequest or UnsupportedParameter."""
    request: CompletionRequest = WIRE.read(body, max_depth)
    check(request)
    return request


def check(request: CompletionRequest) -> None:
    """What the types of the fields cannot say. Raises BadRequest or UnsupportedParameter."""
    p.check_stream_options(request.stream, request.stream_options)
    p.check_service(request.store, request.service_tier)
    if request.logit_bias:
        p.check_logit_bias(request.logit_bias)
    if not isinstance(request.prompt, str):
        kinds = {type(item) for item in request.prompt}
        if len(kinds) > 1:
            raise BadRequest(
                "prompt mixes strings, token ids and arrays; use one kind.", param="prompt", code="invalid_type"
            )
    if request.choices > MAX_CHOICES:
        raise BadRequest(f"prompt: prompts times n must be at most {MAX_CHOICES}.", param="prompt")
    if request.suffix:
        raise UnsupportedParameter("suffix is not supported: no model here fills in the middle.", param="suffix")
    if request.best_of is not None and request.best_of > (request.n or 1):
        raise UnsupportedParameter(
            "best_of larger than n is not supported; ask for n choices and choose.", param="best_of"
        )
    if request.best_of is not None and request.best_of < (request.n or 1):
        raise BadRequest("best_of must not be smaller than n.", param="best_of")
    if request.echo and request.logprobs is not None:
        raise UnsupportedParameter(
            "echo together with logprobs is not supported: prompts have no logprobs here.", param="echo"
        )


def needs(request: CompletionRequest) -> Iterator[tuple[str, str, bool]]:
    """Abilities that a target must have: (feature, field that asks for it, whether it may be dropped)."""
    if request.logprobs is not None:
        yield "logprobs", "logprobs", True
    for field in ("logit_bias", "top_k", "min_p", "repetition_penalty"):
        if getattr(request, field):
            yield field, field, True
    if not isinstance(request.prompt, str) and not isinstance(request.prompt[0], str):
        yield "token_prompts", "prompt", False
