"""Events to Anthropic's messages, whole and streamed. Sans-I/O: events in, bytes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from appliance.dialects.answer import Frame
from appliance.dialects.chat_answer import take_usage
from appliance.dialects.messages import errors
from appliance.dialects.messages.blocks import Block, Blocks, as_object
from appliance.dialects.messages.events import event, stop_reason
from appliance.dialects.messages.resuming import Resumed
from appliance.dialects.tally import Tally
from appliance.dialects.wire import encode
from appliance.errors import OutpostError, UpstreamFailed
from runtimes.engine import Delta, Event, Finished, Started, Usage

ID_PREFIX = "msg_"


def usage(tally: Tally) -> dict[str, Any]:
    """Anthropic's usage object, as a message_delta has it: `input_tokens` are only those that met no cache."""
    details = {"thinking_tokens": tally.reasoning_tokens} if tally.reasoning_tokens else None
    return {
        "input_tokens": max(tally.prompt_tokens - tally.cached_tokens - tally.cache_write_tokens, 0),
        "cache_creation_input_tokens": tally.cache_write_tokens,
        "cache_read_input_tokens": tally.cached_tokens,
        "output_tokens": tally.completion_tokens,
        "output_tokens_details": details,
        "server_tool_use": None,
    }


def _whole_usage(tally: Tally) -> dict[str, Any]:
    return {**usage(tally), "cache_creation": None, "inference_geo": None, "service_tier": None}


def _message(frame: Frame, content: list[dict[str, Any]], tally: Tally) -> dict[str, Any]:
    """A message that nothing has stopped yet."""
    return {
        "id": frame.id,
        "type": "message",
        "role": "assistant",
        "model": frame.model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
        "usage": _whole_usage(tally),
    }


def _stopped(end: Finished | None, blocks: Blocks) -> dict[str, Any]:
    """The fields that say why a message ended."""
    if end is None:
        return {"stop_reason": None, "stop_sequence": None, "stop_details": None}
    reason = stop_reason(end.reason, end.stop_sequence, called=blocks.called, refused=blocks.refused)
    details = {"type": "refusal", "category": None, "explanation": None} if reason == "refusal" else None
    return {
        "stop_reason": reason,
        "stop_sequence": end.stop_sequence if reason == "stop_sequence" else None,
        "stop_details": details,
    }


def _call_id(frame: Frame, block: Block) -> str:
    """A call's id. Where its maker gave none, one that is the same each time this answer is written."""
    return block.id or f"toolu_{frame.id.removeprefix(ID_PREFIX)}_{block.call}"


def _tool_use(frame: Frame, block: Block, arguments: dict[str, Any]) -> dict[str, Any]:
    caller = {"type": "direct"}
    return {"type": "tool_use", "id": _call_id(frame, block), "name": block.name, "input": arguments, "caller": caller}


class MessagesStream:
    """The events of one streamed message. Nothing is written before the first delta."""

    def __init__(self, frame: Frame, tally: Tally) -> None:
        self._frame = frame
        self._tally = tally
        self._blocks = Blocks()
        self._index = -1
        """Of the block that is open, or was last."""
        self._open: Block | None = None
        self._begun = False
        self._end: Finished | None = None
        self._prompt = 0
        self._resumed = frame if isinstance(frame, Resumed) else None

    def feed(self, events: Sequence[Event]) -> bytes:
        out: list[bytes] = []
        for item in events:
            if isinstance(item, Delta):
                if item.index == 0:
                    self._begin(out)
                    self._blocks.take(item)
                    self._write(out)
            elif isinstance(item, Finished):
                self._tally.finish_reasons[item.index] = item.reason
                if item.index == 0:
                    self._begin(out)
                    self._end = item
                    self._drain(out)
            elif isinstance(item, Started):
                self._prompt = item.prompt_tokens
            elif isinstance(item, Usage):
                take_usage(self._tally, item)
        if self._resumed is not None:
            self._settle(self._resumed)
            self._resumed = None
        return b"".join(out)

    def _settle(self, sent: Resumed) -> None:
        """Go on from what the client really has, whatever it would have been here."""
        self._begun = True
        self._index = sent.index
        self._open = self._blocks.settle(sent.open, empty=sent.empty)

    def end(self) -> bytes:
        """message_delta, which tells why the message ended and what was used, and message_stop."""
        out: list[bytes] = []
        self._begin(out)
        self._drain(out)
        delta = {**_stopped(self._end, self._blocks), "container": None}
        out.append(event("message_delta", {"delta": delta, "usage": usage(self._tally)}))
        out.append(event("message_stop", {}))
        return b"".join(out)

    def fail(self, error: OutpostError) -> bytes:
        return errors.stream_event(error)

    def _begin(self, out: list[bytes]) -> None:
        if self._begun:
            return
        self._begun = True
        # Mostly only the end tells what was used; a target on the box has counted its prompt before it begins.
        message = _message(self._frame, [], Tally(prompt_tokens=self._prompt))
        out.append(event("message_start", {"message": message}))

    def _write(self, out: list[bytes]) -> None:
        """What is known by now of the blocks that can be written."""
        waiting = self._blocks.waiting
        if not waiting:
            return
        self._pieces(out)
        while self._blocks.next():
            self._close(out)
            self._pieces(out)

    def _drain(self, out: list[bytes]) -> None:
        while self._blocks.waiting:
            self._pieces(out)
            self._close(out)

    def _pieces(self, out: list[bytes]) -> None:
        """What has come of the first block and was not written yet."""
        block = self._blocks.waiting[0]
        if self._open is not block:
            self._open = block
            self._index += 1
            out.append(event("content_block_start", {"index": self._index, "content_block": self._start(block)}))
        if block.sent < len(block.pieces):
            pieces = block.pieces
            text = pieces[block.sent] if block.sent + 1 == len(pieces) else "".join(pieces[block.sent :])
            block.sent = len(pieces)
            if block.kind != "redacted_thinking":
                out.append(_DELTAS[block.kind] % (self._index, encode(text)))
            if block.kind != "tool_use":
                # Only a call's pieces are looked at again.
                pieces.clear()
                block.sent = 0

    def _start(self, block: Block) -> dict[str, Any]:
        if block.kind == "tool_use":
            return _tool_use(self._frame, block, {})
        if block.kind == "redacted_thinking":
            return {"type": "redacted_thinking", "data": block.text()}
        if block.kind == "thinking":
            return {"type": "thinking", "thinking": "", "signature": ""}
        return {"type": "text", "text": "", "citations": None}

    def _close(self, out: list[bytes]) -> None:
        block = self._blocks.waiting.popleft()
        block.closed = True
        if block.signature:
            delta = {"type": "signature_delta", "signature": block.signature}
            out.append(event("content_block_delta", {"index": self._index, "delta": delta}))
        out.append(_STOP % self._index)


_HEAD = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":'
_DELTAS = {
    "text": _HEAD + b'"text_delta","text":%b}}\n\n',
    "thinking": _HEAD + b'"thinking_delta","thinking":%b}}\n\n',
    "tool_use": _HEAD + b'"input_json_delta","partial_json":%b}}\n\n',
}
_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'


class MessagesWhole:
    """One message in one piece."""

    def __init__(self, frame: Frame, tally: Tally) -> None:
        self._frame = frame
        self._tally = tally
        self._blocks = Blocks()
        self._end: Finished | None = None

    def feed(self, events: Sequence[Event]) -> None:
        for item in events:
            if isinstance(item, Delta):
                if item.index == 0:
                    self._blocks.take(item)
            elif isinstance(item, Finished):
                self._tally.finish_reasons[item.index] = item.reason
                if item.index == 0:
                    self._end = item
            elif isinstance(item, Usage):
                take_usage(self._tally, item)

    def body(self) -> bytes:
        """The message; call it after the last event. Raises UpstreamFailed for a call whose arguments are no object,
        unless the answer was cut off within it."""
        message = _message(self._frame, [self._shape(block) for block in self._blocks.waiting], self._tally)
        return encode({**message, **_stopped(self._end, self._blocks)})

    def _shape(self, block: Block) -> dict[str, Any]:
        if block.kind == "tool_use":
            return _tool_use(self._frame, block, self._arguments(block))
        if block.kind == "redacted_thinking":
            return {"type": "redacted_thinking", "data": block.text()}
        if block.kind == "thinking":
            return {"type": "thinking", "thinking": block.text(), "signature": block.signature}
        return {"type": "text", "text": block.text(), "citations": None}

    def _arguments(self, block: Block) -> dict[str, Any]:
        arguments = as_object(block.text())
        if arguments is not None:
            return arguments
        if self._end is not None and self._end.reason == "length":
            return {}
        raise UpstreamFailed(f"{self._frame.model} called {block.name} with arguments that are no JSON object.")
