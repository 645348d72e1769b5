"""Answers in OpenAI's dialect, whole and streamed, chats and completions, as engine events. Sans-I/O.

Takes what compatible servers make of the dialect: content in parts, calls without an index, reasoning under either
name. A target that reports no usage gives no `Usage` event; nor does one that reports no tokens for a prompt, or none
for what it has said. An answer with nothing in it is a failure of the target, unless it ended at its bound or by a
filter, or the target reports tokens that nobody sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from appliance.dialects import sse
from appliance.dialects.passing import BAD_JSON
from appliance.dialects.reported import empty, reported
from appliance.dialects.tally import WireUsage, uncounted
from appliance.dialects.thoughts import packed
from appliance.dialects.wire import encode
from appliance.errors import OutpostError, UpstreamFailed
from runtimes.engine import (
    Delta,
    Event,
    Finished,
    FinishReason,
    PositionLogprobs,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)


class _Function(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: Any = None


class _Custom(msgspec.Struct, frozen=True):
    name: str | None = None
    input: str | None = None


class _Call(msgspec.Struct, frozen=True):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None
    custom: _Custom | None = None


class _Message(msgspec.Struct, frozen=True):
    """A whole message, or what is new of one."""

    content: str | list[Any] | None = None
    refusal: str | None = None
    reasoning: Any = None
    reasoning_content: Any = None
    reasoning_details: Any = None
    tool_calls: list[_Call] | None = None
    function_call: _Function | None = None


class _Choice(msgspec.Struct, frozen=True):
    index: int | None = None
    """None: that of its place."""
    delta: _Message | None = None
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Any = None


class _Answer(msgspec.Struct, frozen=True):
    """A whole answer, or a chunk of one."""

    choices: list[_Choice] | None = None
    usage: WireUsage | None = None
    error: Any = None


_decode: Callable[[bytes], _Answer] = msgspec.json.Decoder(_Answer).decode

REASONS: dict[str, FinishReason] = {
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "safety": "content_filter",
}
"""What else ends an answer is taken for a stop."""
_BROKEN = frozenset({"error", "abort", "cancelled", "insufficient_system_resource"})
"""Reasons that say that the target has failed."""


class _Calls:
    """The tool calls of one choice: gives each piece its place, whatever the target counts by."""

    __slots__ = ("_by_index", "_ids", "_last")

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._by_index: dict[int, int] = {}
        self._last = 0

    def piece(self, call: _Call) -> ToolCallDelta:
        custom = call.custom is not None
        function = call.function or _Function()
        if call.custom is not None:
            function = _Function(call.custom.name, call.custom.input)
        place = self._place(call, function)
        self._last = place
        arguments = function.arguments
        if not isinstance(arguments, str):
            arguments = "" if arguments is None else encode(arguments).decode()
        if place < len(self._ids):
            return ToolCallDelta(index=place, arguments=arguments, custom=custom)
        self._ids.append(call.id or "")
        return ToolCallDelta(place, call.id or "", function.name or "", arguments, custom)

    def _place(self, call: _Call, function: _Function) -> int:
        known = self._by_index.get(call.index) if call.index is not None else None
        if call.index is None:
            if call.id and call.id in self._ids:
                return self._ids.index(call.id)
            return len(self._ids) if call.id or function.name or not self._ids else self._last
        # Some targets give each of several calls the same index.
        if known is None or (call.id and self._ids[known] and call.id != self._ids[known] and function.name):
            known = self._by_index[call.index] = len(self._ids)
        return known


class _Reading:
    """What of an answer has been read, whole or streamed."""

    def __init__(self, target: str, request: Any) -> None:
        self._target = target
        self._choices = getattr(request, "choices", 1)
        self._calls: dict[int, _Calls] = {}
        self._begun: set[int] = set()
        self._ended: set[int] = set()
        self._longer: set[int] = set()
        """Choices that have ended and gone on: what they end with next is the reason."""
        self._said = False
        self._waiting: list[Event] = []
        """Ends of choices, as long as nothing has been said."""
        self._usage: Usage | None = None

    @property
    def complete(self) -> bool:
        """Every choice has ended."""
        return len(self._ended) >= max(self._choices, len(self._begun))

    @property
    def counted(self) -> bool:
        """The target has told what it has used."""
        return self._usage is not None

    def take(self, data: bytes, out: list[Event]) -> None:
        """The events of one chunk, or of a whole answer. Raises an error of the tree."""
        try:
            answer = _decode(data)
        except msgspec.ValidationError:
            answer = self._uncounted(data)
        except BAD_JSON:
            raise self._unsound() from None
        if answer.error is not None:
            raise reported(self._target, answer.error)
        if answer.choices is None and answer.usage is None:
            raise self._unsound()
        for place, choice in enumerate(answer.choices or ()):
            self._choice(choice, place if choice.index is None else choice.index, out)
        if answer.usage is not None:
            counts = answer.usage.counts()
            self._usage = Usage(
                prompt_tokens=counts.prompt,
                completion_tokens=counts.completion,
                cached_tokens=counts.cached,
                reasoning_tokens=counts.reasoning,
                cache_write_tokens=counts.written,
            )

    def _uncounted(self, data: bytes) -> _Answer:
        try:
            return _decode(uncounted(data))
        except BAD_JSON:
            raise self._unsound() from None

    def finish(self, out: list[Event]) -> None:
        """The last events, once the target has said that it is done."""
        tokens = self._usage.completion_tokens if self._usage is not None else 0
        if not self._begun or (not self._said and not tokens and not self._bounded()):
            raise empty(self._target)
        out += self._waiting
        self._waiting = []
        # The target has said that its answer is complete, if not why.
        for index in sorted(self._begun - self._ended):
            out.append(Finished("tool_calls" if index in self._calls else "stop", index))
        if self._usage is not None and self._usage.prompt_tokens and (tokens or not self._said):
            out.append(self._usage)

    def _bounded(self) -> bool:
        return any(isinstance(each, Finished) and each.reason in ("length", "content_filter") for each in self._waiting)

    def _unsound(self) -> OutpostError:
        return UpstreamFailed(f"{self._target} sent a chunk that is not of the expected form.")

    def _choice(self, choice: _Choice, index: int, out: list[Event]) -> None:
        if not 0 <= index < max(self._choices, 128):
            raise self._unsound()
        self._begun.add(index)
        before = len(out)
        self._deltas(choice, index, out)
        if len(out) > before:
            self._said = True
            if index in self._ended:
                self._longer.add(index)
            out[before:before] = self._waiting
            self._waiting = []
        if choice.finish_reason and (index not in self._ended or index in self._longer):
            self._ended.add(index)
            self._longer.discard(index)
            finished = Finished(self._reason(choice, index), index)
            (out if self._said else self._waiting).append(finished)

    def _reason(self, choice: _Choice, index: int) -> FinishReason:
        reason = (choice.finish_reason or "").lower()
        if reason in _BROKEN:
            raise UpstreamFailed(f"{self._target} broke off its answer ({reason}).")
        found = REASONS.get(reason, "stop")
        # A call that was asked for by name ends with "stop" in this dialect; others tell calls by the reason.
        return "tool_calls" if found == "stop" and index in self._calls else found

    def _deltas(self, choice: _Choice, index: int, out: list[Event]) -> None:
        """What is new of a choice; nothing where it is nothing."""
        message = choice.delta or choice.message
        logprobs = _positions(choice.logprobs) if choice.logprobs else []
        if message is None:
            if choice.text or logprobs:
                out.append(Delta(index, choice.text or "", logprobs=logprobs))
            return
        text, reasoning = _parts(message.content)
        spelled = False
        for block in _list(message.reasoning_details):
            if (found := _block(index, block)) is not None:
                spelled = spelled or bool(found.reasoning)
                out.append(found)
        plain = message.reasoning_content or message.reasoning
        if isinstance(plain, str) and plain and not spelled:
            reasoning = plain + reasoning
        calls = self._pieces(index, message)
        refusal = message.refusal or ""
        if text or calls or reasoning or refusal or logprobs:
            out.append(Delta(index, text, calls, logprobs, reasoning, refusal=refusal))

    def _pieces(self, index: int, message: _Message) -> list[ToolCallDelta]:
        calls = message.tool_calls or ()
        if message.function_call is not None:
            # The way before tools: one call, which has no id.
            calls = [_Call(0, f"call_{index}", message.function_call)]
        if not calls:
            return []
        known = self._calls.setdefault(index, _Calls())
        return [known.piece(call) for call in calls]


def _parts(content: Any) -> tuple[str, str]:
    """Text and reasoning of a content, which may be a list of parts."""
    if isinstance(content, str):
        return content, ""
    text, thought = "", ""
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict):
            continue
        inner = part.get("thinking")
        if inner is not None:  # Mistral
            thought += _parts(inner)[0]
        elif isinstance(part.get("text"), str):
            text += part["text"]
    return text, thought


def _block(index: int, block: Any) -> Delta | None:
    """A block of `reasoning_details`, or a piece of one."""
    if not isinstance(block, dict):
        return None
    text = _string(block.get("text")) or _string(block.get("summary"))
    made_for, id = _string(block.get("format")), _string(block.get("id"))
    signature = packed(_string(block.get("signature")), made_for, id)
    data = packed(_string(block.get("data")), made_for, id)
    if not (text or signature or data):
        return None
    return Delta(index, reasoning=text, reasoning_signature=signature, reasoning_data=data)


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


# --- logprobs -------------------------------------------------------------------------------------


def _positions(logprobs: Any) -> list[PositionLogprobs]:
    if not isinstance(logprobs, dict):
        return []
    content = logprobs.get("content")
    if isinstance(content, list):
        return [
            PositionLogprobs(chosen, [top for each in _list(at.get("top_logprobs")) if (top := _token(each))])
            for at in content
            if isinstance(at, dict) and (chosen := _token(at))
        ]
    tokens, values = _list(logprobs.get("tokens")), _list(logprobs.get("token_logprobs"))
    tops = _list(logprobs.get("top_logprobs"))
    found = []
    for i, token in enumerate(tokens):
        value = values[i] if i < len(values) else None
        likely: Any = tops[i] if i < len(tops) else None
        named = likely.items() if isinstance(likely, dict) else ()
        ranked = [each for name, at in named if (each := _token({"token": name, "logprob": at}))]
        ranked.sort(key=lambda each: -each.logprob)
        if chosen := _token({"token": token, "logprob": 0.0 if value is None else value}):
            found.append(PositionLogprobs(chosen, ranked))
    return found


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _token(shape: Any) -> TokenLogprob | None:
    if not isinstance(shape, dict):
        return None
    token, value, raw = shape.get("token"), shape.get("logprob"), shape.get("bytes")
    if not isinstance(token, str) or isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    sound = isinstance(raw, list) and all(type(each) is int and 0 <= each < 256 for each in raw)
    return TokenLogprob(token, float(value), raw if sound and raw is not None else list(token.encode()))


# --- the two ways in which answers come -----------------------------------------------------------


class OpenAIReader:
    """One streamed answer."""

    def __init__(self, target: str, request: Any) -> None:
        """`request`: the canonical one."""
        self.done = False
        self._target = target
        self._reading = _Reading(target, request)
        self._framer = sse.Framer()

    @property
    def complete(self) -> bool:
        """Every choice has ended: all that may still come are counts and the end marker."""
        return self._reading.complete

    @property
    def counted(self) -> bool:
        return self._reading.counted

    def feed(self, read: bytes) -> list[Event]:
        """The events that `read` completes; b"" means that the connection has ended."""
        out: list[Event] = []
        if self.done:
            return out
        try:
            events = self._framer.feed(read)[0] if read else self._framer.end()
        except sse.EventTooLarge:
            raise UpstreamFailed(f"{self._target} sent an event that is too large.") from None
        for data in events:
            if data == sse.DONE:
                self.done = True
                break
            try:
                self._reading.take(data, out)
            except UpstreamFailed:
                # Half an event, with which a connection ends, does no harm to an answer that is complete.
                if read or not self._reading.complete:
                    raise
        if not read and not self.done:
            if not self._reading.complete:
                raise UpstreamFailed(f"{self._target} ended its answer without saying that it was complete.")
            self.done = True
        if self.done:
            self._reading.finish(out)
        return out


def read_whole(body: bytes, target: str, request: Any) -> list[Event]:
    """The events of a whole answer, `Usage` last. Raises UpstreamFailed."""
    out: list[Event] = []
    reading = _Reading(target, request)
    reading.take(body, out)
    reading.finish(out)
    return out
