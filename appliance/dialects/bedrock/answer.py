"""Converse's answers, streamed and whole, as events. Sans-I/O: bytes in, events out."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from appliance import errors
from appliance.dialects.bedrock.frames import BadFrame, Framer, Message
from appliance.dialects.translating import counted
from runtimes.engine import Delta, Event, Finished, FinishReason, ToolCallDelta, Usage

T = TypeVar("T")


class _Struct(msgspec.Struct, frozen=True, rename="camel"):
    pass


class _ToolUseStart(_Struct, frozen=True):
    tool_use_id: str = ""
    name: str = ""
    type: str | None = None


class _Start(_Struct, frozen=True):
    tool_use: _ToolUseStart | None = None


class _BlockStart(_Struct, frozen=True):
    content_block_index: int
    start: _Start


class _ToolInput(_Struct, frozen=True):
    input: str = ""


class _ReasoningPiece(_Struct, frozen=True):
    text: str | None = None
    signature: str | None = None
    redacted_content: str | None = None


class _Piece(_Struct, frozen=True):
    text: str | None = None
    tool_use: _ToolInput | None = None
    reasoning_content: _ReasoningPiece | None = None


class _BlockDelta(_Struct, frozen=True):
    content_block_index: int
    delta: _Piece


class _BlockStop(_Struct, frozen=True):
    content_block_index: int


class _Additional(msgspec.Struct, frozen=True):
    stop_sequence: str | None = None


class _Stop(_Struct, frozen=True):
    stop_reason: str
    additional_model_response_fields: _Additional | None = None


class _Tokens(_Struct, frozen=True):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_write_input_tokens: int | None = None


class _Metadata(_Struct, frozen=True):
    usage: _Tokens | None = None


class _ToolUse(_Struct, frozen=True):
    tool_use_id: str
    name: str
    input: msgspec.Raw = msgspec.Raw(b"{}")
    type: str | None = None


class _ReasoningText(_Struct, frozen=True):
    text: str = ""
    signature: str | None = None


class _Reasoning(_Struct, frozen=True):
    reasoning_text: _ReasoningText | None = None
    redacted_content: str | None = None


class _Block(_Struct, frozen=True):
    text: str | None = None
    tool_use: _ToolUse | None = None
    reasoning_content: _Reasoning | None = None


class _Message(_Struct, frozen=True):
    content: list[_Block]


class _Output(_Struct, frozen=True):
    message: _Message


class _Whole(_Struct, frozen=True):
    output: _Output
    stop_reason: str
    usage: _Tokens | None = None
    additional_model_response_fields: _Additional | None = None


class _Complaint(msgspec.Struct, frozen=True):
    message: str | None = None


_BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_REASONS: Mapping[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}
"""Any other reason is one to stop."""
_BROKEN = frozenset({"malformed_model_output", "malformed_tool_use"})

_CONTEXT = ("too long", "context window", "context length", "maximum number of tokens", "too many input tokens")

_FAILED = (errors.UpstreamFailed, "failed in the middle of its answer.", None)
_EXCEPTIONS: Mapping[str, tuple[type[errors.OutpostError], str, str | None]] = {
    "throttlingexception": (errors.TargetLimited, "limits the rate of requests; slow down.", None),
    "servicequotaexceededexception": (errors.TargetLimited, "has no quota left at the moment.", None),
    "serviceunavailableexception": (errors.UpstreamUnavailable, "is not available at the moment.", None),
    "modelnotreadyexception": (errors.UpstreamUnavailable, "is not available at the moment.", None),
    "modeltimeoutexception": (errors.UpstreamTimeout, "timed out by its own account.", None),
    "validationexception": (errors.BadRequest, "refused the request.", "invalid_request"),
    "accessdeniedexception": (
        errors.UpstreamError,
        "did not accept the gateway's credentials; the operator must correct them.",
        "upstream_credentials",
    ),
}
"""An exception's name in lower case → error, what is said of the target, code. The target's words stay here: they may
speak of its accounts."""

_decode_start = msgspec.json.Decoder(_BlockStart).decode
_decode_delta = msgspec.json.Decoder(_BlockDelta).decode
_decode_block_stop = msgspec.json.Decoder(_BlockStop).decode
_decode_stop = msgspec.json.Decoder(_Stop).decode
_decode_metadata = msgspec.json.Decoder(_Metadata).decode
_decode_whole = msgspec.json.Decoder(_Whole).decode
_decode_complaint = msgspec.json.Decoder(_Complaint).decode


def reported(target: str, name: str, words: str = "") -> errors.OutpostError:
    """The error for an exception that Bedrock reports inside a stream."""
    lowered = words.lower()
    name = name.lower()
    if name == "validationexception" and any(part in lowered for part in _CONTEXT):
        return errors.ContextLengthExceeded(f"The prompt is too long for {target}.", param="messages")
    kind, said, code = _EXCEPTIONS.get(name, _FAILED)
    return kind(f"{target} {said}", code=code)


def _usage(tokens: _Tokens) -> Usage:
    # `inputTokens` are those that neither came from the cache nor went there.
    read, written = counted(tokens.cache_read_input_tokens), counted(tokens.cache_write_input_tokens)
    return Usage(
        prompt_tokens=counted(tokens.input_tokens) + read + written,
        completion_tokens=counted(tokens.output_tokens),
        cached_tokens=read,
        cache_write_tokens=written,
    )


class _Ending:
    """What is known about an answer's end, and whether there was an answer at all."""

    __slots__ = ("_target", "calls", "finished", "shown")

    def __init__(self, target: str) -> None:
        self._target = target
        self.shown = False
        """Anything that a client can see."""
        self.calls = 0
        self.finished: Finished | None = None

    def finish(self, stop: _Stop | _Whole) -> Finished:
        reason = stop.stop_reason
        if reason in _BROKEN:
            raise errors.UpstreamFailed(f"{self._target} gave an answer that is not sound ({reason}).")
        mapped: FinishReason = _REASONS.get(reason, "stop")
        if mapped == "stop" and self.calls:
            mapped = "tool_calls"
        more = stop.additional_model_response_fields
        stopped_by = more.stop_sequence if more is not None and reason == "stop_sequence" else None
        self.finished = Finished(mapped, stop_sequence=stopped_by or "")
        return self.finished

    def check(self, completion_tokens: int) -> None:
        """A model may choose to say nothing, which takes it tokens all the same; nothing for nothing is a fault."""
        empty = not self.shown and not completion_tokens
        if empty and self.finished is not None and self.finished.reason == "stop":
            raise errors.UpstreamFailed(f"{self._target} gave an empty answer.")


class ConverseReader:
    """A streamed answer, read. See `dialects.answer.Reader`."""

    def __init__(self, target: str) -> None:
        self.done = False
        self._target = target
        self._framer = Framer()
        self._ending = _Ending(target)
        self._held: list[Event] = []
        """The end of an answer without any content, until it is known whether it was meant."""
        self._calls: dict[int, int] = {}
        """Index of a block → index of its tool call."""
        self._bare: set[int] = set()
        """Blocks of tool calls of which no arguments have come."""
        self._skipped: set[int] = set()
        """Blocks that are no part of the answer: what Bedrock's own tools do."""
        self._sealed: dict[int, bytes] = {}
        """Blocks of reasoning that only its maker can read, as far as they have come."""

    @property
    def complete(self) -> bool:
        """All that may still come are counts."""
        return self._ending.finished is not None and not self._held

    counted = False
    """Counts come last, and end the answer."""

    def feed(self, read: bytes) -> list[Event]:
        if self.done:
            return []
        if not read:
            return self._end()
        try:
            messages = self._framer.feed(read)
        except BadFrame:
            raise errors.UpstreamFailed(f"{self._target} sent an event stream that is damaged.") from None
        out: list[Event] = []
        for message in messages:
            if not self.done:
                self._message(message, out)
        return out

    def _end(self) -> list[Event]:
        ending = self._ending
        if ending.finished is None:
            raise errors.UpstreamFailed(f"{self._target} ended its answer without saying that it was complete.")
        # All that is missing is what it has used.
        ending.check(0)
        self.done = True
        return self._held

    def _message(self, message: Message, out: list[Event]) -> None:
        headers, payload = message
        kind = headers.get(":message-type")
        if kind == "event":
            take = _TAKE.get(str(headers.get(":event-type")))
            if take is not None:
                take(self, payload, out)
            return
        if kind == "exception":
            try:
                words = _decode_complaint(payload).message or ""
            except _BAD_JSON:
                words = ""
            raise reported(self._target, str(headers.get(":exception-type")), words)
        if kind == "error":
            raise reported(self._target, str(headers.get(":error-code")), str(headers.get(":error-message")))
        raise self._unsound()

    def _read(self, decode: Callable[[bytes], T], payload: bytes) -> T:
        try:
            return decode(payload)
        except _BAD_JSON:
            raise self._unsound() from None

    def _unsound(self) -> errors.OutpostError:
        return errors.UpstreamFailed(f"{self._target} sent an event that is not of the expected form.")

    def _block_start(self, payload: bytes, out: list[Event]) -> None:
        event = self._read(_decode_start, payload)
        at, use = event.content_block_index, event.start.tool_use
        if use is None or use.type is not None:
            self._skipped.add(at)
            return
        if not use.name or at in self._calls:
            raise self._unsound()
        index = self._calls[at] = self._ending.calls
        self._ending.calls += 1
        self._ending.shown = True
        self._bare.add(at)
        out.append(Delta(tool_calls=[ToolCallDelta(index, use.tool_use_id, use.name)]))

    def _block_delta(self, payload: bytes, out: list[Event]) -> None:
        event = self._read(_decode_delta, payload)
        at, piece = event.content_block_index, event.delta
        if at in self._skipped:
            return
        if piece.text:
            self._ending.shown = True
            out.append(Delta(text=piece.text))
        elif piece.tool_use is not None:
            if (index := self._calls.get(at)) is None:
                raise self._unsound()
            if piece.tool_use.input:
                self._bare.discard(at)
                out.append(Delta(tool_calls=[ToolCallDelta(index, arguments=piece.tool_use.input)]))
        elif piece.reasoning_content is not None:
            self._reasoning(at, piece.reasoning_content, out)

    def _reasoning(self, at: int, piece: _ReasoningPiece, out: list[Event]) -> None:
        self._ending.shown = True
        if piece.redacted_content:
            try:
                data = base64.b64decode(piece.redacted_content, validate=True)
            except (binascii.Error, ValueError):
                raise self._unsound() from None
            self._sealed[at] = self._sealed.get(at, b"") + data
        if piece.text or piece.signature:
            out.append(Delta(reasoning=piece.text or "", reasoning_signature=piece.signature or ""))

    def _block_stop(self, payload: bytes, out: list[Event]) -> None:
        self._close(self._read(_decode_block_stop, payload).content_block_index, out)

    def _close(self, at: int, out: list[Event]) -> None:
        if at in self._bare:
            self._bare.discard(at)
            # A tool without parameters: its arguments are an object all the same.
            out.append(Delta(tool_calls=[ToolCallDelta(self._calls[at], arguments="{}")]))
        if (sealed := self._sealed.pop(at, None)) is not None:
            out.append(Delta(reasoning_data=base64.b64encode(sealed).decode()))

    def _message_stop(self, payload: bytes, out: list[Event]) -> None:
        stop = self._read(_decode_stop, payload)
        if self._ending.finished is not None:
            raise self._unsound()
        for at in sorted(self._bare | set(self._sealed)):
            self._close(at, out)
        finished = self._ending.finish(stop)
        (out if self._ending.shown else self._held).append(finished)

    def _metadata(self, payload: bytes, out: list[Event]) -> None:
        tokens = self._read(_decode_metadata, payload).usage
        if tokens is None:
            return
        usage = _usage(tokens)
        if self._ending.finished is None:
            raise self._unsound()
        self._ending.check(usage.completion_tokens)
        out += [*self._held, usage]
        self.done = True


_TAKE: Mapping[str, Callable[[ConverseReader, bytes, list[Event]], None]] = {
    "contentBlockStart": ConverseReader._block_start,
    "contentBlockDelta": ConverseReader._block_delta,
    "contentBlockStop": ConverseReader._block_stop,
    "messageStop": ConverseReader._message_stop,
    "metadata": ConverseReader._metadata,
}
"""Type of event → what is done with its payload. `messageStart` says nothing; other types are none of ours."""


def read_whole(body: bytes, target: str) -> list[Event]:
    """The events of a whole answer, `Usage` last if it tells what it used. Raises UpstreamFailed."""
    try:
        answer = _decode_whole(body)
    except _BAD_JSON:
        raise errors.UpstreamFailed(f"{target} gave an answer that is not of the expected form.") from None
    ending = _Ending(target)
    out: list[Event] = []
    for block in answer.output.message.content:
        use, thought = block.tool_use, block.reasoning_content
        if block.text:
            out.append(Delta(text=block.text))
        elif use is not None and use.type is None:
            call = ToolCallDelta(ending.calls, use.tool_use_id, use.name, _compact(use.input))
            ending.calls += 1
            out.append(Delta(tool_calls=[call]))
        elif thought is not None and thought.reasoning_text is not None:
            said = thought.reasoning_text
            out.append(Delta(reasoning=said.text, reasoning_signature=said.signature or ""))
        elif thought is not None and thought.redacted_content:
            out.append(Delta(reasoning_data=thought.redacted_content))
    ending.shown = bool(out)
    out.append(ending.finish(answer))
    usage = None if answer.usage is None else _usage(answer.usage)
    ending.check(0 if usage is None else usage.completion_tokens)
    if usage is not None:
        out.append(usage)
    return out


def _compact(arguments: msgspec.Raw) -> str:
    text = bytes(arguments).decode()
    return "{}" if text in ("null", '""') else text
