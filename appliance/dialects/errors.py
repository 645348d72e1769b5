"""The error tree in OpenAI's shape, for answers and inside streams."""

from __future__ import annotations

from appliance.dialects.sse import event
from appliance.dialects.wire import encode
from appliance.errors import OutpostError


def body(error: OutpostError) -> bytes:
    """{"error": {message, type, param, code}} as OpenAI's SDK expects it."""
    return encode({"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}})


def stream_event(error: OutpostError) -> bytes:
    """The last event of a stream that failed; no [DONE] follows it."""
    return event(body(error))
