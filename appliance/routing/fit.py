"""Whether a target can honour a request, and the request as it gets it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from appliance.dialects import chat
from appliance.dialects.asked import Asked
from appliance.dialects.embeddings import EmbeddingRequest
from appliance.dialects.kinds import Kind, Request
from appliance.errors import BadRequest, UnsupportedParameter
from appliance.providers.upstream import Capabilities

WORDS = {
    "images": "cannot take images",
    "image_addresses": "takes images only as data: URLs, because its settings let it fetch no addresses",
    "file_addresses": "takes files only as data, because its settings let it fetch no addresses",
    "audio_input": "cannot take audio",
    "files": "cannot take files",
    "tool_images": "cannot take images or files in the results of tools",
    "verbosity": "cannot be told how much to say",
    "reasoning": "does not reason",
    "anthropic_tools": "cannot use what only Anthropic's own models know",
    "citations": "gives no citations",
    "context_management": "cannot be told what to leave out of a conversation",
    "task_budget": "cannot be told of a budget for a task",
    "mcp_servers": "connects to no servers that a request names: call them yourself and pass tools",
    "container": "runs no code",
    "responses_tools": "cannot use what only OpenAI's Responses API knows",
    "tools": "cannot call tools",
    "json_schema": "cannot be held to a JSON schema",
    "json_object": "cannot be held to JSON",
    "logprobs": "gives no logprobs",
    "token_prompts": "takes text, not token ids",
    "stored_chats": "has its chats not stored; POST /v1/responses stores, on the premises",
    "service_tiers": "has no tiers but auto and default",
}

CURES = {
    "image_addresses": "send the image itself (data:image/png;base64,…), or have the operator set fetches_media",
    "file_addresses": "send the file itself, or have the operator set fetches_media",
}
"""What to do, where it is not to leave the field out."""


def fit(asked: Asked, kind: Kind, capabilities: Capabilities, *, drop: bool, model: str) -> Request:
    """The request as a target with these capabilities can honour it.

    With `drop`, fields that only shape the answer are left out instead of refused; content never is.
    Raises UnsupportedParameter or BadRequest, naming the first field at fault.
    """
    request: Request = asked.request
    if kind.operation not in capabilities.kinds:
        raise BadRequest(
            f"The model {model} cannot {kind.verb}; it offers: {', '.join(sorted(capabilities.kinds))}.",
            param="model",
            code="unsupported_operation",
        )
    dropped: dict[str, Any] = {}
    for feature, field, droppable in kind.needs(asked):
        if feature in capabilities.features:
            continue
        if drop and droppable:
            # A client of another dialect knows the field by another name.
            dropped |= dict.fromkeys(_canonical(request, feature, field))
            continue
        what = WORDS.get(feature, f"does not know {field}")
        cure = CURES.get(feature, "leave it out")
        raise UnsupportedParameter(f"{field}: the model {model} {what}; {cure}.", param=field)
    if drop:
        refused = [field for field in capabilities.refuses if getattr(request, field, None) is not None]
        dropped |= dict.fromkeys(refused)
    if isinstance(request, EmbeddingRequest):
        _check_dimensions(request, capabilities, model)
    elif isinstance(request, chat.ChatRequest) and _is_choice(request.tool_choice, capabilities):
        request = chat.restricted(request)
    if "logprobs" in dropped and hasattr(request, "top_logprobs"):
        dropped["top_logprobs"] = None
    return msgspec.structs.replace(request, **dropped) if dropped else request


def _is_choice(choice: chat.Choice | None, capabilities: Capabilities) -> bool:
    """Whether it may name several tools, which the target knows nothing of."""
    return type(choice) is chat.ToolChoice and "allowed_tools" not in capabilities.features


def _canonical(request: Request, feature: str, field: str) -> list[str]:
    """The fields of the canonical request that ask for a feature. None: only the client's own body does, which a target
    that lacks the feature never sees."""
    if not isinstance(request, chat.ChatRequest) or field in request.__struct_fields__:
        return [field] if field in request.__struct_fields__ else []
    return [asking for asked_for, asking, _ in chat.needs(request) if asked_for == feature]


def _check_dimensions(request: EmbeddingRequest, capabilities: Capabilities, model: str) -> None:
    wanted, has = request.dimensions, capabilities.dimensions
    if wanted is not None and has is not None and wanted != has:
        raise UnsupportedParameter(
            f"dimensions: the vectors of {model} have {has} dimensions and cannot be cut to {wanted}.",
            param="dimensions",
        )


def override(request: Request, overrides: Mapping[str, Any]) -> Request:
    """The request with a route's fixed fields; those that this kind of request does not have are passed over."""
    if not overrides:
        return request
    changes = {field: value for field, value in overrides.items() if field in request.__struct_fields__}
    if "max_tokens" in changes and getattr(request, "max_completion_tokens", None) is not None:
        changes["max_completion_tokens"] = None
    return msgspec.structs.replace(request, **changes) if changes else request
