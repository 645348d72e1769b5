"""A target's answer in the Responses dialect, read into events. Sans-I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from appliance.dialects import sse
from appliance.dialects.reported import empty
from appliance.dialects.responses import reported
from appliance.dialects.responses.names import flat
from appliance.dialects.responses.reasoning import carried, pack
from appliance.dialects.responses.reported import BAD_JSON
from appliance.dialects.sse import NamedFramer
from appliance.errors import UpstreamFailed
from runtimes.engine import Delta, Event, Finished, PositionLogprobs, TokenLogprob, ToolCallDelta


class _Top(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _Position(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[_Top] | None = None


class _Part(msgspec.Struct, frozen=True):
    type: str = ""
    text: str | None = None
    refusal: str | None = None
    logprobs: list[_Position] | None = None


class _Item(msgspec.Struct, frozen=True):
    """An item of the output; fields of other types of items are not looked at."""

    type: str = ""
    id: str | None = None
    content: list[_Part] | None = None
    summary: list[_Part] | None = None
    encrypted_content: str | None = None
    call_id: str | None = None
    name: str | None = None
    namespace: str | None = None
    arguments: str | None = None
    input: str | None = None

    @property
    def custom(self) -> bool:
        return self.type == "custom_tool_call"


class _RawItem(msgspec.Struct, frozen=True):
    type: str = ""


class _Response(msgspec.Struct, frozen=True):
    status: str | None = None
    output: list[msgspec.Raw] | None = None
    usage: reported.WireUsage | None = None
    incomplete_details: reported.WireDetails | None = None
    error: reported.WireError | None = None


class _Event(msgspec.Struct, frozen=True):
    type: str = ""
    output_index: int = 0
    content_index: int = 0
    summary_index: int = 0
    delta: Any = None
    text: str | None = None
    refusal: str | None = None
    arguments: str | None = None
    input: str | None = None
    logprobs: list[_Position] | None = None
    item: msgspec.Raw = msgspec.Raw()
    response: _Response | None = None
    error: reported.WireError | None = None
    code: str | None = None


_decode = msgspec.json.Decoder(_Event).decode
_decode_item = msgspec.json.Decoder(_Item).decode
_decode_kind = msgspec.json.Decoder(_RawItem).decode
_decode_whole = msgspec.json.Decoder(_Response).decode

_CALLS = frozenset(("function_call", "custom_tool_call"))
_READ = frozenset(("message", "reasoning")) | _CALLS


class ResponsesReader:
    """See dialects.answer.Reader. Items that only a client of the same dialect could use are passed over."""

    def __init__(self, target: str) -> None:
        self.done = False
        self._target = target
        self._framer = NamedFramer()
        self._calls: dict[int, int] = {}
        """Place in the output → index of the call."""
        self._custom: set[int] = set()
        """Of these places, those of calls of custom tools."""
        self._given: set[tuple[int, str, int]] = set()
        """(place in the output, what, place in it) of which something was given: what is told again at the end of a
        part is news only if it was not told before."""
        self._thinking: dict[int, tuple[str, int]] = {}
        """Place in the output → in which form its thoughts come, and which part of them was the last."""
        self._any = False

    def feed(self, read: bytes) -> list[Event]:
        out: list[Event] = []
        try:
            events = self._framer.feed(read)[0] if read else self._framer.end()
        except sse.EventTooLarge:
            raise UpstreamFailed(f"{self._target} sent an event that is too large.") from None
        for data in events:
            if self.done:
                break
            if data == sse.DONE:
                raise reported.unended(self._target)
            self._take(data, out)
        if not read and not self.done:
            raise reported.unended(self._target)
        return out

    def _take(self, data: bytes, out: list[Event]) -> None:
        try:
            event = _decode(data)
        except BAD_JSON:
            raise reported.unsound(self._target) from None
        if not event.type:
            raise reported.unsound(self._target)
        take = _TAKES.get(event.type)
        if take is not None:
            take(self, event, out)

    def _delta(self, event: _Event) -> str:
        if not isinstance(event.delta, str):
            raise reported.unsound(self._target)
        return event.delta

    def _text(self, event: _Event, out: list[Event]) -> None:
        self._say(event.output_index, event.content_index, self._delta(event), event.logprobs, out)

    def _text_done(self, event: _Event, out: list[Event]) -> None:
        if (event.output_index, "text", event.content_index) not in self._given:
            self._say(event.output_index, event.content_index, event.text or "", event.logprobs, out)

    def _say(self, at: int, part: int, text: str, logprobs: list[_Position] | None, out: list[Event]) -> None:
        if text:
            self._given.add((at, "text", part))
            self._any = True
            out.append(Delta(text=text, logprobs=_logprobs(logprobs)))

    def _refusal(self, event: _Event, out: list[Event]) -> None:
        self._refuse(event.output_index, event.content_index, self._delta(event), out)

    def _refusal_done(self, event: _Event, out: list[Event]) -> None:
        if (event.output_index, "refusal", event.content_index) not in self._given:
            self._refuse(event.output_index, event.content_index, event.refusal or "", out)

    def _refuse(self, at: int, part: int, text: str, out: list[Event]) -> None:
        if text:
            self._given.add((at, "refusal", part))
            self._any = True
            out.append(Delta(refusal=text))

    def _thought(self, event: _Event, out: list[Event]) -> None:
        self._think(event.output_index, "text", event.content_index, self._delta(event), out)

    def _summary(self, event: _Event, out: list[Event]) -> None:
        self._think(event.output_index, "summary", event.summary_index, self._delta(event), out)

    def _think(self, at: int, form: str, part: int, text: str, out: list[Event]) -> None:
        """A piece of what is thought. A target may give it in full and in short; the first form that comes counts."""
        known, last = self._thinking.get(at, (form, part))
        if known != form or not text:
            return
        self._thinking[at] = (form, part)
        self._any = True
        out.append(Delta(reasoning=text if part == last else "\n\n" + text))

    def _added(self, event: _Event, out: list[Event]) -> None:
        item = self._item(event.item)
        if item is not None and item.type in _CALLS:
            self._call(event.output_index, item, out)

    def _call(self, at: int, item: _Item, out: list[Event]) -> int:
        index = self._calls.get(at)
        if index is None:
            if not item.name:
                raise reported.unsound(self._target)
            index = self._calls[at] = len(self._calls)
            self._any = True
            if item.custom:
                self._custom.add(at)
            id, name = item.call_id or item.id or "", flat(item.namespace, item.name)
            out.append(Delta(tool_calls=[ToolCallDelta(index, id, name, custom=item.custom)]))
        return index

    def _arguments(self, event: _Event, out: list[Event]) -> None:
        self._argue(event.output_index, self._delta(event), out)

    def _arguments_done(self, event: _Event, out: list[Event]) -> None:
        if (event.output_index, "arguments", 0) not in self._given:
            self._argue(event.output_index, event.arguments or event.input or "", out)

    def _argue(self, at: int, text: str, out: list[Event]) -> None:
        index = self._calls.get(at)
        if index is None:
            raise reported.unsound(self._target)
        if text:
            self._given.add((at, "arguments", 0))
            out.append(Delta(tool_calls=[ToolCallDelta(index, arguments=text, custom=at in self._custom)]))

    def _item_done(self, event: _Event, out: list[Event]) -> None:
        item = self._item(event.item)
        if item is not None:
            self._whole_item(event.output_index, item, out)

    def _whole_item(self, at: int, item: _Item, out: list[Event]) -> None:
        """An item that is complete: what of it was not told yet."""
        if item.type in _CALLS:
            self._call(at, item, out)
            if (at, "arguments", 0) not in self._given:
                self._argue(at, item.arguments or item.input or "", out)
        elif item.type == "reasoning":
            self._whole_thought(at, item, out)
        else:
            for k, part in enumerate(item.content or ()):
                if part.text and (at, "text", k) not in self._given:
                    self._say(at, k, part.text, part.logprobs, out)
                if part.refusal and (at, "refusal", k) not in self._given:
                    self._refuse(at, k, part.refusal, out)

    def _whole_thought(self, at: int, item: _Item, out: list[Event]) -> None:
        if at not in self._thinking:
            form, parts = ("text", item.content) if item.content else ("summary", item.summary)
            for k, part in enumerate(parts or ()):
                self._think(at, form, k, part.text or "", out)
        if (at, "encrypted", 0) in self._given:
            return
        signature, data = carried(item.encrypted_content or "")
        if item.encrypted_content and item.id and not signature and not data:
            data = pack(item.id, item.encrypted_content)
        if signature or data:
            self._given.add((at, "encrypted", 0))
            out.append(Delta(reasoning_signature=signature, reasoning_data=data))

    def _item(self, raw: msgspec.Raw) -> _Item | None:
        """The item, if it is of a type that is read."""
        try:
            return _decode_item(raw) if _decode_kind(raw).type in _READ else None
        except BAD_JSON:
            raise reported.unsound(self._target) from None

    def _ended(self, event: _Event, out: list[Event]) -> None:
        if event.response is None:
            raise reported.unsound(self._target)
        status = "incomplete" if event.type == "response.incomplete" else event.response.status
        self.end(event.response, status, out)

    def end(self, response: _Response, status: str | None, out: list[Event]) -> None:
        """The answer is complete: what of it was not told yet, and how it ended."""
        for at, raw in enumerate(response.output or ()):
            item = self._item(raw)
            if item is not None and not self._told(at):
                self._whole_item(at, item, out)
        usage = None if response.usage is None else reported.usage_of(response.usage)
        if not self._any and status != "incomplete" and (usage is None or not usage.completion_tokens):
            raise empty(self._target)
        self.done = True
        out.append(Finished(reported.reason_of(status, response.incomplete_details, called=bool(self._calls))))
        if usage is not None:
            out.append(usage)

    def _told(self, at: int) -> bool:
        return at in self._calls or at in self._thinking or any(place == at for place, _, _ in self._given)

    def _failed(self, event: _Event, out: list[Event]) -> None:
        error = event.response.error if event.response is not None else event.error
        raise reported.failure(self._target, error or reported.WireError(event.code))


_Take = Callable[[ResponsesReader, _Event, list[Event]], None]
_TAKES: dict[str, _Take] = {
    "response.output_text.delta": ResponsesReader._text,
    "response.output_text.done": ResponsesReader._text_done,
    "response.refusal.delta": ResponsesReader._refusal,
    "response.refusal.done": ResponsesReader._refusal_done,
    "response.reasoning_text.delta": ResponsesReader._thought,
    "response.reasoning.delta": ResponsesReader._thought,
    "response.reasoning_summary_text.delta": ResponsesReader._summary,
    "response.reasoning_summary.delta": ResponsesReader._summary,
    "response.output_item.added": ResponsesReader._added,
    "response.output_item.done": ResponsesReader._item_done,
    "response.function_call_arguments.delta": ResponsesReader._arguments,
    "response.function_call_arguments.done": ResponsesReader._arguments_done,
    "response.custom_tool_call_input.delta": ResponsesReader._arguments,
    "response.custom_tool_call_input.done": ResponsesReader._arguments_done,
    "response.completed": ResponsesReader._ended,
    "response.incomplete": ResponsesReader._ended,
    "response.failed": ResponsesReader._failed,
    "response.cancelled": ResponsesReader._failed,
    "error": ResponsesReader._failed,
}
"""Events that say something; all others are passed over."""


def _logprobs(positions: list[_Position] | None) -> list[PositionLogprobs]:
    return [
        PositionLogprobs(
            TokenLogprob(at.token, at.logprob, _bytes(at)),
            [TokenLogprob(top.token, top.logprob, _bytes(top)) for top in at.top_logprobs or ()],
        )
        for at in positions or ()
    ]


def _bytes(token: _Position | _Top) -> list[int]:
    return list(token.token.encode()) if token.bytes is None else token.bytes


def make_reader(target: str, request: Any) -> ResponsesReader:
    """For answers to clients of this dialect: what they were sent, and what a target sends that speaks it too."""
    return ResponsesReader(target)


def read_events(body: bytes, target: str) -> list[Event]:
    """The events of a whole answer. Raises UpstreamFailed, and what the target itself reports as an error."""
    try:
        response = _decode_whole(body)
    except BAD_JSON:
        raise reported.unsound(target, "answer") from None
    if response.status in ("failed", "cancelled") or response.error is not None:
        raise reported.failure(target, response.error)
    if response.output is None or response.status not in ("completed", "incomplete", None):
        raise reported.unsound(target, "answer")
    out: list[Event] = []
    ResponsesReader(target).end(response, response.status, out)
    return out
