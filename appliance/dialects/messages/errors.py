"""The error tree in Anthropic's shape, for answers and inside streams."""

from __future__ import annotations

from typing import Any

from appliance.dialects.messages.events import event
from appliance.dialects.wire import encode
from appliance.errors import ContextLengthExceeded, OutpostError, UnsupportedParameter
from appliance.redact import redact_keys

_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}

_DETAILS: dict[str | None, dict[str, Any]] = {
    "thread": {"error_code": "thread_unsupported_request", "unsupported": ["thread"]},
}
"""Field that is refused → what Anthropic's SDK wants to read of it. Its runner of tools asks for a thread by itself,
and sends the whole conversation instead where it is told this."""


def error_type(status: int) -> str:
    """Anthropic's type of error for one of our statuses."""
    return _TYPES.get(status, "invalid_request_error" if 400 <= status < 500 else "api_error")


def _error(error: OutpostError) -> dict[str, Any]:
    # A message quotes what its caller wrote, and that may be a key in the wrong place.
    shape: dict[str, Any] = {"type": error_type(error.status), "message": redact_keys(_worded(error))}
    if isinstance(error, UnsupportedParameter) and error.param in _DETAILS:
        shape["details"] = _DETAILS[error.param]
    return shape


_KNOWN = ("prompt is too long", "input length and `max_tokens` exceed context limit")


def _worded(error: OutpostError) -> str:
    """Clients of the dialect have no code to go by: agents that make a conversation shorter when it has become too
    long, such as Claude Code, know that by Anthropic's words."""
    if not isinstance(error, ContextLengthExceeded) or error.message.lower().startswith(_KNOWN):
        return error.message
    return f"prompt is too long: {error.message}"


def body(error: OutpostError, request_id: str = "") -> bytes:
    """{"type": "error", "error": {type, message}, "request_id"} as Anthropic's SDK expects it."""
    return encode({"type": "error", "error": _error(error), "request_id": request_id or None})


def stream_event(error: OutpostError) -> bytes:
    """The last event of a stream that failed; no message_stop follows it."""
    return event("error", {"error": _error(error)})
