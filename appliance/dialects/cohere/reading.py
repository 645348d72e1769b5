"""Cohere's chat answers (API v2), streamed and whole, read into events. Sans-I/O."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from appliance.dialects.event_reader import EventReader
from appliance.dialects.passing import BAD_JSON
from appliance.dialects.reported import empty
from appliance.dialects.translating import counted
from appliance.errors import UpstreamFailed
from runtimes.engine import Delta, Event, Finished, FinishReason, PositionLogprobs, TokenLogprob, ToolCallDelta, Usage


class _Function(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct, frozen=True):
    id: str | None = None
    function: _Function | None = None


class _Content(msgspec.Struct, frozen=True):
    text: str | None = None
    thinking: str | None = None


class _Message(msgspec.Struct, frozen=True):
    """What an event adds. At the start of a message both fields are empty lists."""

    content: _Content | list[Any] | None = None
    tool_calls: _Call | list[Any] | None = None
    tool_plan: str | None = None


class _Tokens(msgspec.Struct, frozen=True):
    input_tokens: float | None = None
    output_tokens: float | None = None


class _Usage(msgspec.Struct, frozen=True):
    tokens: _Tokens | None = None
    billed_units: _Tokens | None = None
    cached_tokens: float | None = None


class _Delta(msgspec.Struct, frozen=True):
    message: _Message | None = None
    finish_reason: str | None = None
    error: Any = None
    usage: _Usage | None = None


class _Logprobs(msgspec.Struct, frozen=True):
    text: str = ""
    logprobs: list[float] = []


class _Event(msgspec.Struct, frozen=True):
    type: str
    delta: _Delta | None = None
    index: int = 0
    logprobs: _Logprobs | None = None


class _Kind(msgspec.Struct, frozen=True):
    type: str


class _WholeMessage(msgspec.Struct, frozen=True):
    content: list[_Content] | None = None
    tool_calls: list[_Call] | None = None
    tool_plan: str | None = None


class _Whole(msgspec.Struct, frozen=True):
    message: _WholeMessage
    finish_reason: str
    usage: _Usage | None = None
    logprobs: list[_Logprobs] | None = None


_decode = msgspec.json.Decoder(_Event).decode
_decode_kind = msgspec.json.Decoder(_Kind).decode
_decode_whole = msgspec.json.Decoder(_Whole).decode

_REASONS: dict[str, FinishReason] = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "MAX_TOKENS": "length",
    "TOOL_CALL": "tool_calls",
}
"""Every other reason (ERROR, TIMEOUT) says that the answer came to no end of its own."""
_WORD = re.compile(r"[A-Z_]{1,40}")


class CohereReader(EventReader):
    """One streamed answer. `thoughts`: whether reasoning is wanted."""

    __slots__ = ("_calls", "_logprobs", "_made", "_said", "_thoughts")

    def __init__(self, target: str, *, thoughts: bool, logprobs: bool) -> None:
        super().__init__(target)
        self._thoughts = thoughts
        self._logprobs = logprobs
        self._calls: dict[int, int] = {}
        """Their index of a call → ours: it may count content and calls in one row."""
        self._made = 0
        """Calls so far."""
        self._said = False
        """Whether a client has been told anything but thoughts."""

    def whole(self, body: bytes) -> list[Event]:
        """The events of an answer in one piece."""
        try:
            answer = _decode_whole(body)
        except BAD_JSON:
            raise UpstreamFailed(f"{self._target} gave an answer that is not of the expected form.") from None
        out: list[Event] = []
        message = answer.message
        if message.tool_plan and self._thoughts:
            out.append(Delta(reasoning=message.tool_plan))
        for content in message.content or ():
            self._content(content, out)
        for call in message.tool_calls or ():
            self._call(call, out)
        if self._logprobs and answer.logprobs:
            out.append(Delta(logprobs=[_position(item) for item in answer.logprobs]))
        self._end(answer.finish_reason, None, answer.usage, out)
        return out

    def _take(self, data: bytes, out: list[Event]) -> None:
        try:
            event = _decode(data)
        except BAD_JSON:
            if self._kind(data) in _TAKERS:
                raise self._unsound() from None
            return
        if (take := _TAKERS.get(event.type)) is not None:
            if event.delta is None:
                raise self._unsound() from None
            take(self, event, event.delta, out)

    def _kind(self, data: bytes) -> str:
        """Which event it is. The start and the end of things (and citations) say nothing that an event of ours could,
        whatever they hold; kinds that come new are no fault."""
        try:
            return _decode_kind(data).type
        except BAD_JSON:
            raise self._unsound() from None

    def _take_content(self, event: _Event, delta: _Delta, out: list[Event]) -> None:
        content = delta.message.content if delta.message is not None else None
        if not isinstance(content, _Content):
            raise self._unsound() from None
        self._content(content, out)
        if self._logprobs and event.logprobs is not None:
            out.append(Delta(logprobs=[_position(event.logprobs)]))

    def _take_plan(self, _: _Event, delta: _Delta, out: list[Event]) -> None:
        if delta.message is None or delta.message.tool_plan is None:
            raise self._unsound() from None
        if delta.message.tool_plan and self._thoughts:
            out.append(Delta(reasoning=delta.message.tool_plan))

    def _take_call(self, event: _Event, delta: _Delta, out: list[Event]) -> None:
        call = delta.message.tool_calls if delta.message is not None else None
        if not isinstance(call, _Call):
            raise self._unsound() from None
        self._calls[event.index] = self._made
        self._call(call, out)

    def _take_more(self, event: _Event, delta: _Delta, out: list[Event]) -> None:
        call = delta.message.tool_calls if delta.message is not None else None
        if not isinstance(call, _Call) or call.function is None or event.index not in self._calls:
            raise self._unsound() from None
        if call.function.arguments:
            piece = ToolCallDelta(index=self._calls[event.index], arguments=call.function.arguments)
            out.append(Delta(tool_calls=[piece]))

    def _take_end(self, _: _Event, delta: _Delta, out: list[Event]) -> None:
        self._end(delta.finish_reason, delta.error, delta.usage, out)

    def _content(self, content: _Content, out: list[Event]) -> None:
        if content.thinking and self._thoughts:
            out.append(Delta(reasoning=content.thinking))
        if content.text:
            self._said = True
            out.append(Delta(text=content.text))

    def _call(self, call: _Call, out: list[Event]) -> None:
        """The beginning of a call, or the whole of it."""
        function = call.function
        if not call.id or function is None or not function.name:
            raise self._unsound() from None
        piece = ToolCallDelta(index=self._made, id=call.id, name=function.name, arguments=function.arguments or "")
        self._made += 1
        self._said = True
        out.append(Delta(tool_calls=[piece]))

    def _end(self, said: str | None, error: Any, usage: _Usage | None, out: list[Event]) -> None:
        reason = _REASONS.get(said or "")
        if reason is None or error:
            # The target's own words stay here: they may speak of its accounts and machines.
            shown = f" ({said})" if said and _WORD.fullmatch(said) else ""
            raise UpstreamFailed(f"{self._target} broke off its answer{shown}.")
        tokens = _Tokens()
        if usage is not None:
            tokens = usage.tokens or usage.billed_units or tokens
        if reason == "stop" and not self._said and not counted(tokens.output_tokens):
            raise empty(self._target)
        self.done = True
        out.append(Finished(reason="tool_calls" if reason == "stop" and self._made else reason))
        if usage is None or (usage.tokens is None and usage.billed_units is None):
            return  # who tells nothing is not taken at its word that it was nothing
        out.append(
            Usage(
                prompt_tokens=counted(tokens.input_tokens),
                completion_tokens=counted(tokens.output_tokens),
                cached_tokens=counted(usage.cached_tokens),
            )
        )


_TAKERS = {
    "content-start": CohereReader._take_content,
    "content-delta": CohereReader._take_content,
    "tool-plan-delta": CohereReader._take_plan,
    "tool-call-start": CohereReader._take_call,
    "tool-call-delta": CohereReader._take_more,
    "message-end": CohereReader._take_end,
}


def _position(item: _Logprobs) -> PositionLogprobs:
    """A piece of text that may be of several tokens: how likely it was is the sum then."""
    return PositionLogprobs(TokenLogprob(item.text, sum(item.logprobs), list(item.text.encode())), [])
