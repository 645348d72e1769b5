"""Gemini's thought signatures on their way to a client and back. Pure.

Gemini signs parts of its answer – a function call, a text, a thought – and wants each signature back on the same part
in the next request; the newest models refuse a function call without one. No other dialect signs anything but
reasoning, so a signature travels as a block of reasoning that only its maker can read (`Delta.reasoning_data`), which
every client's dialect can carry: `reasoning.encrypted` in chat, `redacted_thinking` in Messages, `encrypted_content`
in Responses. It is written

    gemini:KIND:CALL:SIGNATURE

KIND is call, text or thought, CALL the id of the call (empty for the others), SIGNATURE as Gemini wrote it (Base64,
hence without a colon). What does not begin with its mark never goes to Gemini; see dialects.thoughts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from appliance.dialects.thoughts import GEMINI as PREFIX

UNSIGNED = "skip_thought_signature_validator"
"""What Gemini documents to stand on a call that another model has made, or whose signature is lost."""


def pack(kind: Literal["call", "text", "thought"], signature: str, call_id: str = "") -> str:
    return f"{PREFIX}{kind}:{call_id}:{signature}"


class Signatures(msgspec.Struct):
    """The signatures of one message of the model."""

    calls: dict[str, str] = {}
    """Call id → signature."""
    text: str = ""
    thought: str = ""


def unpack(details: Sequence[dict[str, Any]] | None) -> Signatures:
    """Those among `reasoning_details`. What is not ours is left out."""
    found = Signatures()
    for detail in details or ():
        data = detail.get("data")
        if detail.get("type") != "reasoning.encrypted" or not isinstance(data, str) or not data.startswith(PREFIX):
            continue
        kind, _, rest = data[len(PREFIX) :].partition(":")
        call_id, _, signature = rest.rpartition(":")
        if kind == "call":
            found.calls[call_id] = signature
        elif kind == "text":
            found.text = signature
        elif kind == "thought":
            found.thought = signature
    return found
