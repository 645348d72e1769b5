"""The server-sent events of a streamed message, as they are read from a target, and the words that they use. Sans-I/O.

Each event has a name, which clients need, and data that repeats the name as its `type`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.dialects.reported import reported
from appliance.dialects.tally import Tally
from appliance.dialects.wire import encode
from appliance.errors import UpstreamFailed
from runtimes.engine import FinishReason

_MOST = (1 << 53) - 1


def event(name: str, fields: dict[str, Any]) -> bytes:
    """One event whose data is {type: name, **fields}."""
    return named(name, encode({"type": name, **fields}))


def named(name: str, data: bytes) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


# --- what is read of an event -----------------------------------------------------------------------


class OutputDetails(msgspec.Struct, frozen=True, gc=False):
    thinking_tokens: int | None = None


class WireUsage(msgspec.Struct, frozen=True, gc=False):
    """Anthropic's counts. `input_tokens` are neither read from a cache nor written to one."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    output_tokens_details: OutputDetails | None = None


class StopDetails(msgspec.Struct, frozen=True, gc=False):
    explanation: str | None = None


class WireDelta(msgspec.Struct, frozen=True, gc=False):
    """The `delta` of a content_block_delta or of a message_delta."""

    type: str | None = None
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: StopDetails | None = None


class WireBlock(msgspec.Struct, frozen=True):
    """A block of an answer, or its beginning."""

    type: str
    text: str = ""
    thinking: str = ""
    signature: str = ""
    data: str = ""
    id: str = ""
    name: str = ""
    input: Any = None


class WireMessage(msgspec.Struct, frozen=True, gc=False):
    usage: WireUsage | None = None


class WireEvent(msgspec.Struct, frozen=True):
    """An event, as far as it is looked at."""

    type: str
    index: int = 0
    delta: WireDelta | None = None
    content_block: WireBlock | None = None
    message: WireMessage | None = None
    usage: WireUsage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(WireEvent).decode
BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def read_event(data: bytes, target: str) -> WireEvent:
    """Raises UpstreamFailed for what is no event, and what the target reports as an error."""
    try:
        if not data.isascii():
            data.decode()  # what is only passed over is not looked at
        found = _decode(data)
    except BAD_JSON:
        raise UpstreamFailed(f"{target} sent an event that is not of the expected form.") from None
    if found.type == "error" or found.error is not None:
        raise reported(target, found.error)
    if found.type in _WHOLE and getattr(found, _WHOLE[found.type]) is None:
        raise UpstreamFailed(f"{target} sent an event that is not of the expected form.")
    return found


def is_event(data: bytes) -> bool:
    """Whether `read_event` can read it."""
    try:
        _decode(data)
    except BAD_JSON:
        return False
    return True


_WHOLE = {
    "message_start": "message",
    "content_block_start": "content_block",
    "content_block_delta": "delta",
    "message_delta": "delta",
}
"""What an event cannot be without."""


# --- counts and reasons -----------------------------------------------------------------------------


class Counts(msgspec.Struct):
    """What an answer has used so far, by its target's account. Each report replaces the numbers that it has."""

    input: int = 0
    output: int = 0
    read: int = 0
    written: int = 0
    thinking: int = 0

    def take(self, usage: WireUsage | None) -> None:
        if usage is None:
            return
        self.input = _count(usage.input_tokens, self.input)
        self.output = _count(usage.output_tokens, self.output)
        self.read = _count(usage.cache_read_input_tokens, self.read)
        self.written = _count(usage.cache_creation_input_tokens, self.written)
        if usage.output_tokens_details is not None:
            self.thinking = _count(usage.output_tokens_details.thinking_tokens, self.thinking)

    @property
    def prompt(self) -> int:
        """All of the prompt, however it was read."""
        return self.input + self.read + self.written

    def put_prompt(self, tally: Tally) -> None:
        tally.prompt_tokens = self.prompt
        tally.cached_tokens = self.read
        tally.cache_write_tokens = self.written

    def put(self, tally: Tally) -> None:
        """All of it, as what the target reported in the end. No tokens for what has been said are not believed."""
        self.put_prompt(tally)
        if not self.output and tally.source == "estimated":
            return
        tally.completion_tokens = self.output
        tally.reasoning_tokens = self.thinking
        tally.source = "reported"


def _count(reported: int | None, before: int) -> int:
    return before if reported is None else min(max(reported, 0), _MOST)


_REASONS: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


BOUNDED = frozenset({"max_tokens", "model_context_window_exceeded", "refusal"})
"""Reasons for which an answer may end before it has said anything."""


def finish_reason(stop_reason: str) -> FinishReason:
    """The canonical word. One that is new means that the model has ended its turn in some way."""
    return _REASONS.get(stop_reason, "stop")


_STOP_REASONS = {
    "stop": "end_turn",
    "cancelled": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


def stop_reason(reason: str, stop_sequence: str, *, called: bool, refused: bool = False) -> str:
    """Anthropic's word. `called`: the answer holds a call of a tool, which clients look for there alone; some targets
    say stop all the same where they were made to call. `refused`: it holds a refusal, which other dialects tell by a
    field of its own and Anthropic's by the reason alone."""
    if reason == "stop" and stop_sequence:
        return "stop_sequence"
    if reason == "stop" and called:
        return "tool_use"
    if reason == "stop" and refused:
        return "refusal"
    return _STOP_REASONS.get(reason, "end_turn")
