"""The response object: what was asked, as it is told again with every answer. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from appliance.dialects.answer import Frame
from appliance.dialects.tally import Tally
from appliance.errors import OutpostError
from appliance.redact import redact_keys

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
Response = dict[str, Any]

ENCRYPTED = "reasoning.encrypted_content"


def asked_of(frame: Frame) -> Mapping[str, Any]:
    """The client's own body as plain data, without its input."""
    native: Any = frame.native
    if not isinstance(native, msgspec.Struct):
        return native or {}
    asked = msgspec.structs.asdict(native)
    asked.pop("input", None)
    for name in ("text", "reasoning"):
        if asked.get(name) is not None:
            asked[name] = msgspec.to_builtins(asked[name])
    return asked


def skeleton(frame: Frame, status: Status) -> Response:
    """A response without any output yet."""
    asked = asked_of(frame)

    def sent(name: str, default: Any) -> Any:
        value = asked.get(name)
        return default if value is None else value

    reasoning = sent("reasoning", {})
    tier = getattr(frame.request, "service_tier", None) or "default"  # not what was left out for the target
    return {
        "id": frame.id,
        "object": "response",
        "created_at": frame.created,
        "completed_at": None,
        "status": status,
        "background": sent("background", False),
        "error": None,
        "incomplete_details": None,
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "max_tool_calls": asked.get("max_tool_calls"),
        "model": frame.model,
        "output": [],
        "parallel_tool_calls": sent("parallel_tool_calls", True),
        "previous_response_id": asked.get("previous_response_id"),
        "prompt_cache_key": asked.get("prompt_cache_key"),
        "prompt_cache_retention": asked.get("prompt_cache_retention"),
        "reasoning": {
            "effort": reasoning.get("effort"),
            "summary": reasoning.get("summary") or reasoning.get("generate_summary"),
        },
        "safety_identifier": asked.get("safety_identifier"),
        "service_tier": "default" if tier == "auto" else tier,
        "store": sent("store", True),
        "temperature": sent("temperature", 1.0),
        "text": _text(sent("text", {})),
        "tool_choice": sent("tool_choice", "auto"),
        "tools": [_tool(tool) for tool in sent("tools", ())],
        "top_logprobs": sent("top_logprobs", 0),
        "top_p": sent("top_p", 1.0),
        "presence_penalty": sent("presence_penalty", 0.0),
        "frequency_penalty": sent("frequency_penalty", 0.0),
        "truncation": sent("truncation", "disabled"),
        "usage": None,
        "user": asked.get("user"),
        "metadata": sent("metadata", {}),
    }


def _text(text: Mapping[str, Any]) -> dict[str, Any]:
    form = text.get("format") or {"type": "text"}
    if form["type"] == "json_schema":
        form = {"description": None, **form, "strict": bool(form.get("strict"))}
    return {"format": form, "verbosity": text.get("verbosity") or "medium"}


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    if tool.get("type") != "function":
        return tool
    return {"description": None, "parameters": None, "strict": None, **tool}


def usage_of(tally: Tally) -> dict[str, Any]:
    return {
        "input_tokens": tally.prompt_tokens,
        "input_tokens_details": {"cached_tokens": tally.cached_tokens},
        "output_tokens": tally.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": tally.reasoning_tokens},
        "total_tokens": tally.prompt_tokens + tally.completion_tokens,
    }


def ended(response: Response, output: list[dict[str, Any]], reason: str | None, tally: Tally, at: int) -> Response:
    """The response once its answer is complete. reason: the canonical one; at: unix seconds."""
    details = _INCOMPLETE.get(reason or "")
    return {
        **response,
        "status": "incomplete" if details else "completed",
        "completed_at": None if details else at,
        "incomplete_details": {"reason": details} if details else None,
        "output": output,
        "usage": usage_of(tally),
    }


_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Reasons that leave an answer incomplete, as they are called here."""


def is_incomplete(reason: str | None) -> bool:
    return reason in _INCOMPLETE


def failed(response: Response, error: OutpostError, status: Status = "failed") -> Response:
    """The response once it is known that there will be no whole answer."""
    told = {"code": redact_keys(error.code), "message": redact_keys(error.message)}
    return {**response, "status": status, "completed_at": None, "error": told}


def public(response: Response, include: Sequence[str] | None) -> Response:
    """The response as the client is told it: reasoning that only its maker can read goes to who asked for it."""
    if ENCRYPTED in (include or ()) or not any("encrypted_content" in item for item in response["output"]):
        return response
    return {**response, "output": [public_item(item) for item in response["output"]]}


def public_item(item: dict[str, Any]) -> dict[str, Any]:
    """An item of the output without what only its maker can read."""
    if item.get("type") != "reasoning" or "encrypted_content" not in item:
        return item
    return {name: value for name, value in item.items() if name != "encrypted_content"}
