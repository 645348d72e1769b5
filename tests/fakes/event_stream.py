"""Messages of an AWS event stream, written: what Bedrock's Converse streams."""

from __future__ import annotations

import json
import struct
from binascii import crc32
from typing import Any


def message(headers: dict[str, str], payload: bytes) -> bytes:
    """One message whose headers are all strings."""
    packed = b"".join(
        struct.pack("!B", len(name.encode()))
        + name.encode()
        + struct.pack("!BH", 7, len(value.encode()))
        + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack("!II", 12 + len(packed) + len(payload) + 4, len(packed))
    body = prelude + struct.pack("!I", crc32(prelude)) + packed + payload
    return body + struct.pack("!I", crc32(body))


def event(kind: str, payload: Any) -> bytes:
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    return message(headers, data)


def exception(kind: str, words: str = "") -> bytes:
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return message(headers, json.dumps({"message": words}).encode())


def start(at: int, id: str, name: str) -> bytes:
    tool = {"toolUse": {"toolUseId": id, "name": name}}
    return event("contentBlockStart", {"start": tool, "contentBlockIndex": at, "p": "abc"})


def piece(at: int, delta: dict[str, Any]) -> bytes:
    return event("contentBlockDelta", {"contentBlockIndex": at, "delta": delta, "p": "abcdefgh"})


def stop(at: int) -> bytes:
    return event("contentBlockStop", {"contentBlockIndex": at, "p": "ab"})


def end(reason: str = "end_turn", **more: Any) -> list[bytes]:
    """The last two messages."""
    return [event("messageStop", {"stopReason": reason, "p": "a", **more}), usage()]


def usage(**changes: int) -> bytes:
    counts = {"inputTokens": 11, "outputTokens": 7, "totalTokens": 18, **changes}
    return event("metadata", {"usage": counts, "metrics": {"latencyMs": 300}, "p": "abcd"})


BEGIN = event("messageStart", {"role": "assistant", "p": "abcdef"})


def answer(text: str) -> bytes:
    """A whole stream that says one text."""
    return b"".join([BEGIN, piece(0, {"text": text}), stop(0), *end()])
