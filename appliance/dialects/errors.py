"""The error tree in OpenAI's shape, for answers and inside streams."""

from __future__ import annotations

from appliance.dialects.sse import event
from appliance.dialects.wire import encode
from appliance.errors import OutpostError
from appliance.redact import redact_keys


def body(error: OutpostError) -> bytes:
    """{"error": {message, type, param, code}} as OpenAI's SDK expects it, without what looks like a credential: a
    message quotes what its caller wrote, and that may be a key in the wrong place."""
    param = error.param and redact_keys(error.param)
    message, code = redact_keys(error.message), redact_keys(error.code)
    return encode({"error": {"message": message, "type": error.type, "param": param, "code": code}})


def stream_event(error: OutpostError) -> bytes:
    """The last event of a stream that failed; no [DONE] follows it."""
    return event(body(error))
