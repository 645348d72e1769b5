"""An Anthropic target's answer, streamed or whole, as events. Sans-I/O."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.dialects import sse
from appliance.dialects.messages.events import (
    BAD_JSON,
    BOUNDED,
    Counts,
    StopDetails,
    WireBlock,
    WireDelta,
    WireEvent,
    WireUsage,
    finish_reason,
    is_event,
    read_event,
)
from appliance.dialects.passing import decoded
from appliance.dialects.reported import empty
from appliance.dialects.sse import NamedFramer
from appliance.dialects.wire import encode
from appliance.errors import UpstreamFailed
from runtimes.engine import Delta, Event, Finished, ToolCallDelta, Usage


class _Call(msgspec.Struct):
    """A tool_use block that is open."""

    at: int
    """Which of the answer's calls it is."""
    whole: str
    """Its arguments where they come at once, with its beginning."""
    begun: bool = False
    """Pieces of its arguments have come."""


class MessagesReader:
    """One streamed answer, read; see `dialects.answer.Reader`."""

    def __init__(self, target: str) -> None:
        self.done = False
        self.complete = False
        """The reason for the end has come: all that may still come is the end marker."""
        self._target = target
        self._framer = NamedFramer()
        self._counts = Counts()
        self._calls: dict[int, _Call] = {}
        """Index of the block → call, of those that are open."""
        self._called = 0
        self._shown = False

    def feed(self, read: bytes) -> list[Event]:
        try:
            found = self._framer.feed(read)[0] if read else self._rest()
        except sse.EventTooLarge:
            raise UpstreamFailed(f"{self._target} sent an event that is too large.") from None
        out: list[Event] = []
        for data in found:
            if self.done:
                break
            self._take(read_event(data, self._target), out)
        if not read and not self.done:
            if not self.complete:
                raise UpstreamFailed(f"{self._target} ended its answer without saying that it was complete.")
            self._end(out)
        return out

    def _rest(self) -> list[bytes]:
        """What a connection that has ended left behind. Half an event does no harm to an answer that is complete."""
        return [data for data in self._framer.end() if not self.complete or is_event(data)]

    def _take(self, item: WireEvent, out: list[Event]) -> None:
        kind = item.type
        if kind == "content_block_delta":
            assert item.delta is not None
            self._delta(item.index, item.delta, out)
        elif kind == "content_block_start":
            assert item.content_block is not None
            self._start(item.index, item.content_block, out)
        elif kind == "content_block_stop":
            self._stop(item.index, out)
        elif kind == "message_start":
            assert item.message is not None
            self._counts.take(item.message.usage)
        elif kind == "message_delta":
            assert item.delta is not None
            self._counts.take(item.usage)
            self._finish(item.delta, out, counted=item.usage is not None)
        elif kind == "message_stop":
            if not self.complete:
                raise UpstreamFailed(f"{self._target} ended its answer without saying why.")
            self._end(out)

    def _start(self, index: int, block: WireBlock, out: list[Event]) -> None:
        if block.type == "tool_use":
            whole = encode(block.input).decode() if block.input else "{}"
            self._calls[index] = call = _Call(self._called, whole)
            self._called += 1
            out.append(Delta(tool_calls=[ToolCallDelta(call.at, block.id, block.name)]))
            self._shown = True
        elif (delta := _said(block, self._target)) is not None:
            out.append(delta)
            self._shown = True

    def _delta(self, index: int, delta: WireDelta, out: list[Event]) -> None:
        self._shown = True
        if delta.type == "text_delta":
            if delta.text:
                out.append(Delta(text=delta.text))
        elif delta.type == "input_json_delta":
            call = self._calls.get(index)
            if call is not None and delta.partial_json:
                call.begun = True
                out.append(Delta(tool_calls=[ToolCallDelta(call.at, arguments=delta.partial_json)]))
        elif delta.type == "thinking_delta":
            if delta.thinking:
                out.append(Delta(reasoning=delta.thinking))
        elif delta.type == "signature_delta" and delta.signature:
            out.append(Delta(reasoning_signature=delta.signature))

    def _stop(self, index: int, out: list[Event]) -> None:
        call = self._calls.pop(index, None)
        if call is not None and not call.begun:
            out.append(Delta(tool_calls=[ToolCallDelta(call.at, arguments=call.whole)]))

    def _finish(self, delta: WireDelta, out: list[Event], *, counted: bool) -> None:
        if delta.stop_reason is None or self.complete:
            return
        for index in list(self._calls):
            self._stop(index, out)
        self.complete = True
        out += _finish(delta)
        if not (self._shown or self._counts.output or delta.stop_reason in BOUNDED):
            raise empty(self._target)
        if counted:
            # Not with the end, which some targets never send. What is told at the beginning alone is no count of the
            # answer: nothing is told then, and an estimate stands.
            out.append(_usage(self._counts))

    def _end(self, out: list[Event]) -> None:
        self.done = True


def _said(block: WireBlock, target: str) -> Delta | None:
    """What a block that is no call says by itself; None for nothing. Raises UpstreamFailed for a block that has no form
    in other dialects, which is lost without a word otherwise."""
    if block.type == "text" and block.text:
        return Delta(text=block.text)
    if block.type == "thinking" and (block.thinking or block.signature):
        return Delta(reasoning=block.thinking, reasoning_signature=block.signature)
    if block.type == "redacted_thinking" and block.data:
        return Delta(reasoning_data=block.data)
    if block.type not in ("text", "thinking", "redacted_thinking"):
        raise UpstreamFailed(f"{target} sent a block of a type that cannot be translated.")
    return None


def _finish(delta: WireDelta) -> list[Event]:
    assert delta.stop_reason is not None
    reason = finish_reason(delta.stop_reason)
    out: list[Event] = []
    if reason == "content_filter" and delta.stop_details is not None and delta.stop_details.explanation:
        out.append(Delta(refusal=delta.stop_details.explanation))
    out.append(Finished(reason, stop_sequence=delta.stop_sequence or ""))
    return out


def _usage(counts: Counts) -> Usage:
    return Usage(
        counts.prompt,
        counts.output,
        counts.read,
        reasoning_tokens=counts.thinking,
        cache_write_tokens=counts.written,
    )


class WholeMessage(msgspec.Struct, frozen=True):
    """A whole answer, as far as it is looked at."""

    type: str
    content: list[WireBlock]
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: StopDetails | None = None
    usage: WireUsage | None = None

    def shows(self) -> bool:
        """Whether a client would see anything of it, or may see nothing for a good reason."""
        return self.stop_reason in BOUNDED or self.says()

    def says(self) -> bool:
        """Whether a client would see anything of it."""
        return any(block.type != "text" or block.text for block in self.content)


_decode = msgspec.json.Decoder(WholeMessage).decode


def decode_whole(body: bytes, target: str) -> WholeMessage:
    """Raises UpstreamFailed for anything that is no complete message."""
    try:
        answer = decoded(_decode, body)
    except BAD_JSON:
        raise UpstreamFailed(f"{target} gave an answer that is not of the expected form.") from None
    if answer.type != "message" or answer.stop_reason is None:
        raise UpstreamFailed(f"{target} gave an answer that is not of the expected form.")
    if not answer.shows() and not (answer.usage and answer.usage.output_tokens):
        raise empty(target)
    return answer


def make_reader(target: str, request: Any) -> MessagesReader:
    return MessagesReader(target)


def read_whole(body: bytes, target: str) -> list[Event]:
    """The events of a whole answer, `Usage` last. Raises UpstreamFailed."""
    answer = decode_whole(body, target)
    out: list[Event] = []
    called = 0
    for block in answer.content:
        if block.type == "tool_use":
            arguments = encode(block.input or {}).decode()
            out.append(Delta(tool_calls=[ToolCallDelta(called, block.id, block.name, arguments)]))
            called += 1
        elif (said := _said(block, target)) is not None:
            out.append(said)
    delta = WireDelta(
        stop_reason=answer.stop_reason, stop_sequence=answer.stop_sequence, stop_details=answer.stop_details
    )
    out += _finish(delta)
    if answer.usage is not None:
        counts = Counts()
        counts.take(answer.usage)
        out.append(_usage(counts))
    return out
