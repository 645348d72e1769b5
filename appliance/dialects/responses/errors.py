"""The error tree as the Responses API tells it: whole answers as everywhere at OpenAI, in streams as an event."""

from __future__ import annotations

from typing import Any

from appliance.dialects.errors import body as body
from appliance.dialects.wire import encode
from appliance.errors import OutpostError
from appliance.redact import redact_keys

STREAM_ERROR = "error"


def event(kind: str, data: bytes) -> bytes:
    """One server-sent event as this API writes them: its type stands before it as well as in it."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def stream_event(error: OutpostError, sequence_number: int = 0) -> bytes:
    """The last event of a stream that failed before it said anything.

    OpenAI has the fields side by side, Open Responses in an object; clients of either find what they look for.
    """
    told: dict[str, Any] = {
        "code": redact_keys(error.code),
        "message": redact_keys(error.message),
        "param": error.param and redact_keys(error.param),
    }
    shape = {"type": STREAM_ERROR, "sequence_number": sequence_number, **told, "error": {"type": error.type, **told}}
    return event(STREAM_ERROR, encode(shape))
