"""Engine events to OpenAI's chat answers, whole and streamed. Sans-I/O: events in, bytes out.

OpenAI's form has no reasoning. What models think goes into `reasoning_content`, and in blocks, with what their makers
want back, into `reasoning_details`, as other compatible servers do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from appliance.dialects import errors
from appliance.dialects.answer import Frame
from appliance.dialects.sse import DONE_EVENT, Framer
from appliance.dialects.tally import Tally
from appliance.dialects.wire import encode
from appliance.errors import OutpostError
from runtimes.engine import Delta, Event, Finished, PositionLogprobs, TokenLogprob, ToolCallDelta, Usage

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not know."""


def logprob(value: float) -> float:
    return value if value > LOWEST_LOGPROB else LOWEST_LOGPROB


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": logprob(token.logprob), "bytes": token.bytes}


def _positions(positions: Sequence[PositionLogprobs]) -> list[dict[str, Any]]:
    return [{**_token(at.chosen), "top_logprobs": [_token(top) for top in at.top]} for at in positions]


class ChatStream:
    """The chunks of one streamed chat answer, without the final [DONE]."""

    def __init__(self, id: str, created: int, model: str, tally: Tally, *, usage: bool, logprobs: bool) -> None:
        self._tally = tally
        self._usage = usage
        self._logprobs = logprobs
        self._started: set[int] = set()
        self._counted = False
        self._blocks: dict[int, int] = {}
        """How many blocks of reasoning a choice has ended."""
        head = encode({"id": id, "object": "chat.completion.chunk", "created": created, "model": model})
        self._head = b"data: " + head[:-1]
        self._tail = (b',"usage":null' if usage else b"") + b"}\n\n"
        self._text_head = self._head + b',"choices":[{"index":'
        self._text_tail = b'},"logprobs":null,"finish_reason":null}]' + self._tail

    def feed(self, events: Sequence[Event]) -> bytes:
        """The chunks for events that became known together; may be empty."""
        out: list[bytes] = []
        for item in events:
            if isinstance(item, Delta):
                self._delta(item, out)
            elif isinstance(item, Finished):
                self._begin(item.index, out)
                self._tally.finish_reasons[item.index] = item.reason
                end = {"index": item.index, "delta": {}, "logprobs": None, "finish_reason": item.reason}
                out.append(self._chunk(end))
            elif isinstance(item, Usage):
                take_usage(self._tally, item)
                if self._usage:
                    out.append(self._used())
        return b"".join(out)

    def end(self) -> bytes:
        if self._usage and not self._counted:
            # The target has not said what it used; who wants to know gets the estimate.
            return self._used() + DONE_EVENT
        return DONE_EVENT

    def _used(self) -> bytes:
        self._counted = True
        return self._head + b',"choices":[],"usage":' + encode(self._tally.usage()) + b"}\n\n"

    def fail(self, error: OutpostError) -> bytes:
        return errors.stream_event(error)

    def _begin(self, index: int, out: list[bytes]) -> None:
        if index not in self._started:
            self._started.add(index)
            delta = {"role": "assistant", "content": "", "refusal": None}
            out.append(self._chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None}))

    def _delta(self, item: Delta, out: list[bytes]) -> None:
        self._begin(item.index, out)
        if item.reasoning or item.refusal or item.reasoning_signature or item.reasoning_data:
            out.append(
                self._chunk({"index": item.index, "delta": self._unsaid(item), "logprobs": None, "finish_reason": None})
            )
            if not item.text and not item.tool_calls:
                return
        if not item.tool_calls and not self._logprobs:
            if item.text:
                text = encode(item.text)
                out.append(b'%b%d,"delta":{"content":%b%b' % (self._text_head, item.index, text, self._text_tail))
            return
        delta: dict[str, Any] = {}
        if item.text or not item.tool_calls:
            delta["content"] = item.text
        if item.tool_calls:
            delta["tool_calls"] = [_call_piece(piece) for piece in _merged(item.tool_calls)]
        logprobs = {"content": _positions(item.logprobs), "refusal": None} if item.logprobs else None
        out.append(self._chunk({"index": item.index, "delta": delta, "logprobs": logprobs, "finish_reason": None}))

    def _unsaid(self, item: Delta) -> dict[str, Any]:
        """What is not the answer itself."""
        delta: dict[str, Any] = {"refusal": item.refusal} if item.refusal else {}
        at = self._blocks.get(item.index, 0)
        details: list[dict[str, Any]] = []
        if item.reasoning:
            delta["reasoning_content"] = item.reasoning
        if item.reasoning or item.reasoning_signature:
            details.append(reasoning_text(item.reasoning, item.reasoning_signature, at))
            self._blocks[item.index] = at = at + bool(item.reasoning_signature)
        if item.reasoning_data:
            details.append({"type": "reasoning.encrypted", "data": item.reasoning_data, "index": at})
            self._blocks[item.index] = at + 1
        if details:
            delta["reasoning_details"] = details
        return delta

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        return self._head + b',"choices":[' + encode(choice) + b"]" + self._tail


def reasoning_text(text: str, signature: str, at: int) -> dict[str, Any]:
    """A block of reasoning, or a piece of one, as `reasoning_details` has it."""
    return {"type": "reasoning.text", "text": text, **({"signature": signature} if signature else {}), "index": at}


def _merged(pieces: list[ToolCallDelta]) -> list[ToolCallDelta]:
    """Pieces of the same call in one: clients expect a call once in a delta."""
    if len(pieces) == 1:
        return pieces
    found: dict[int, ToolCallDelta] = {}
    for piece in pieces:
        first = found.get(piece.index)
        if first is not None:
            arguments = first.arguments + piece.arguments
            piece = ToolCallDelta(piece.index, first.id or piece.id, first.name or piece.name, arguments, piece.custom)
        found[piece.index] = piece
    return list(found.values())


def _call_piece(piece: ToolCallDelta) -> dict[str, Any]:
    shape: dict[str, Any] = {"index": piece.index}
    kind, said = ("custom", "input") if piece.custom else ("function", "arguments")
    if piece.id:
        shape |= {"id": piece.id, "type": kind}
    named = {"name": piece.name} if piece.name else {}
    shape[kind] = {**named, said: piece.arguments}
    return shape


def take_usage(tally: Tally, item: Any) -> None:
    """An engine's `Usage` event into the tally. No tokens for what has been said are not believed: the estimate of that
    stands."""
    tally.prompt_tokens = item.prompt_tokens
    tally.cached_tokens = item.cached_tokens
    tally.cache_write_tokens = item.cache_write_tokens
    tally.queue_s = item.queue_s
    if tally.source == "estimated" and tally.completion_tokens and not item.completion_tokens:
        return
    tally.completion_tokens = item.completion_tokens
    tally.reasoning_tokens = item.reasoning_tokens
    tally.source = "reported"


class _Choice(msgspec.Struct):
    text: list[str] = []
    calls: dict[int, list[ToolCallDelta]] = {}
    positions: list[PositionLogprobs] = []
    reason: str | None = None
    refusal: list[str] = []
    thought: list[str] = []
    """All that was thought."""
    block: list[str] = []
    """Of it, what no signature has ended yet."""
    blocks: list[dict[str, Any]] = []

    def think(self, item: Delta) -> None:
        if item.reasoning:
            self.thought.append(item.reasoning)
            self.block.append(item.reasoning)
        if item.reasoning_signature:
            self.close(item.reasoning_signature)
        if item.reasoning_data:
            self.close("")
            self.blocks.append({"type": "reasoning.encrypted", "data": item.reasoning_data, "index": len(self.blocks)})

    def close(self, signature: str) -> None:
        if self.block or signature:
            self.blocks.append(reasoning_text("".join(self.block), signature, len(self.blocks)))
            self.block = []


class ChatWhole:
    """One chat answer in one piece."""

    def __init__(self, id: str, created: int, model: str, tally: Tally, *, choices: int, logprobs: bool) -> None:
        self._tally = tally
        self._logprobs = logprobs
        self._frame = {"id": id, "object": "chat.completion", "created": created, "model": model}
        self._choices = [_Choice() for _ in range(choices)]

    def feed(self, events: Sequence[Event]) -> None:
        for item in events:
            if isinstance(item, Delta):
                choice = self._choices[item.index]
                choice.text.append(item.text)
                choice.positions.extend(item.logprobs)
                if item.refusal:
                    choice.refusal.append(item.refusal)
                choice.think(item)
                for piece in item.tool_calls:
                    choice.calls.setdefault(piece.index, []).append(piece)
            elif isinstance(item, Finished):
                self._choices[item.index].reason = item.reason
                self._tally.finish_reasons[item.index] = item.reason
            elif isinstance(item, Usage):
                take_usage(self._tally, item)

    def body(self) -> bytes:
        """The answer; call it after the last event."""
        choices = [self._shape(i, choice) for i, choice in enumerate(self._choices)]
        return encode({**self._frame, "choices": choices, "usage": self._tally.usage()})

    def _shape(self, index: int, choice: _Choice) -> dict[str, Any]:
        text = "".join(choice.text)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
        if choice.calls:
            message["content"] = text or None
            message["tool_calls"] = [_whole_call(choice.calls[i]) for i in sorted(choice.calls)]
        if choice.refusal:
            message["refusal"], message["content"] = "".join(choice.refusal), text or None
        choice.close("")
        if choice.thought:
            message["reasoning_content"] = "".join(choice.thought)
        if choice.blocks:
            message["reasoning_details"] = choice.blocks
        logprobs = {"content": _positions(choice.positions), "refusal": None} if self._logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.reason}


def _whole_call(pieces: list[ToolCallDelta]) -> dict[str, Any]:
    kind, said = ("custom", "input") if pieces[0].custom else ("function", "arguments")
    return {
        "id": next((piece.id for piece in pieces if piece.id), ""),
        "type": kind,
        kind: {
            "name": next((piece.name for piece in pieces if piece.name), ""),
            said: "".join([piece.arguments for piece in pieces]),
        },
    }


def stream(frame: Frame, tally: Tally) -> ChatStream:
    request = frame.request
    options = request.stream_options
    return ChatStream(
        frame.id,
        frame.created,
        frame.model,
        tally,
        usage=bool(options and options.include_usage),
        logprobs=bool(request.logprobs),
    )


def whole(frame: Frame, tally: Tally) -> ChatWhole:
    request = frame.request
    return ChatWhole(
        frame.id, frame.created, frame.model, tally, choices=request.choices, logprobs=bool(request.logprobs)
    )


class _Head(msgspec.Struct, frozen=True):
    """What all chunks of an answer have in common."""

    id: str
    created: int
    model: str


_decode_head = msgspec.json.Decoder(_Head).decode


def refit(frame: Frame, pieces: list[bytes]) -> Frame:
    """The frame of a streamed answer of which `pieces` have been sent: they may have been written elsewhere."""
    framer = Framer()
    for piece in pieces:
        for data in framer.feed(piece)[0]:
            try:
                head = _decode_head(data)
            except msgspec.DecodeError:
                continue
            return msgspec.structs.replace(frame, id=head.id, created=head.created, model=head.model)
    return frame
