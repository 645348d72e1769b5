"""Engine events to OpenAI's plain completions, whole and streamed. Sans-I/O: events in, bytes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from appliance.dialects import errors
from appliance.dialects.answer import Frame
from appliance.dialects.chat_answer import logprob, take_usage
from appliance.dialects.sse import DONE_EVENT
from appliance.dialects.tally import Tally
from appliance.dialects.wire import encode
from appliance.errors import OutpostError
from runtimes.engine import Delta, Event, Finished, PositionLogprobs, Usage


def _begun(data: Sequence[int]) -> int:
    """How many characters begin in these bytes of UTF-8."""
    return sum(byte & 0xC0 != 0x80 for byte in data)


def _logprobs(positions: Sequence[PositionLogprobs], begun: int) -> dict[str, Any]:
    """The legacy shape; `begun` characters of the choice's text begin before the first token.

    Offsets are counted on bytes: several tokens may make up one character, whose offset they share.
    """
    offsets: list[int] = []
    for at in positions:
        inside = bool(at.chosen.bytes) and not _begun(at.chosen.bytes[:1])
        offsets.append(max(begun - inside, 0))
        begun += _begun(at.chosen.bytes)
    return {
        "tokens": [at.chosen.token for at in positions],
        "token_logprobs": [logprob(at.chosen.logprob) for at in positions],
        # The chosen token is always among them, so there may be one more than was asked for.
        "top_logprobs": [{t.token: logprob(t.logprob) for t in (*at.top, at.chosen)} for at in positions],
        "text_offset": offsets,
    }


class CompletionStream:
    """The chunks of one streamed completion, without the final [DONE]."""

    def __init__(self, id: str, created: int, model: str, tally: Tally, *, usage: bool, logprobs: bool) -> None:
        self._tally = tally
        self._usage = usage
        self._logprobs = logprobs
        self._begun: dict[int, int] = {}
        head = encode({"id": id, "object": "text_completion", "created": created, "model": model})
        self._head = b"data: " + head[:-1]
        self._tail = (b',"usage":null' if usage else b"") + b"}\n\n"

    def feed(self, events: Sequence[Event]) -> bytes:
        """The chunks for events that became known together; may be empty."""
        out: list[bytes] = []
        for item in events:
            if isinstance(item, Delta):
                if item.text or item.logprobs:
                    out.append(self._chunk(item.index, item.text, item.logprobs, None))
            elif isinstance(item, Finished):
                self._tally.finish_reasons[item.index] = item.reason
                out.append(self._chunk(item.index, "", (), item.reason))
            elif isinstance(item, Usage):
                take_usage(self._tally, item)
                if self._usage:
                    out.append(self._head + b',"choices":[],"usage":' + encode(self._tally.usage()) + b"}\n\n")
        return b"".join(out)

    def end(self) -> bytes:
        return DONE_EVENT

    def fail(self, error: OutpostError) -> bytes:
        return errors.stream_event(error)

    def _chunk(self, index: int, text: str, positions: Sequence[PositionLogprobs], reason: str | None) -> bytes:
        logprobs = None
        if self._logprobs and positions:
            begun = self._begun.get(index, 0)
            self._begun[index] = begun + sum(_begun(at.chosen.bytes) for at in positions)
            logprobs = _logprobs(positions, begun)
        # A chunk in the middle has no finish reason; the field itself is always there.
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return self._head + b',"choices":[' + encode(choice) + b"]" + self._tail


class _Choice(msgspec.Struct):
    text: list[str] = []
    positions: list[PositionLogprobs] = []
    reason: str | None = None


class CompletionWhole:
    """One completion in one piece; choices of several prompts follow each other in the prompts' order."""

    def __init__(self, id: str, created: int, model: str, tally: Tally, *, choices: int, logprobs: bool) -> None:
        self._tally = tally
        self._logprobs = logprobs
        self._frame = {"id": id, "object": "text_completion", "created": created, "model": model}
        self._choices = [_Choice() for _ in range(choices)]

    def feed(self, events: Sequence[Event]) -> None:
        for item in events:
            if isinstance(item, Delta):
                self._choices[item.index].text.append(item.text)
                self._choices[item.index].positions.extend(item.logprobs)
            elif isinstance(item, Finished):
                self._choices[item.index].reason = item.reason
                self._tally.finish_reasons[item.index] = item.reason
            elif isinstance(item, Usage):
                take_usage(self._tally, item)

    def body(self) -> bytes:
        """The answer; call it after the last event."""
        choices = [
            {
                "index": i,
                "text": "".join(choice.text),
                "logprobs": _logprobs(choice.positions, 0) if self._logprobs else None,
                "finish_reason": choice.reason,
            }
            for i, choice in enumerate(self._choices)
        ]
        return encode({**self._frame, "choices": choices, "usage": self._tally.usage()})


def stream(frame: Frame, tally: Tally) -> CompletionStream:
    request = frame.request
    options = request.stream_options
    return CompletionStream(
        frame.id,
        frame.created,
        frame.model,
        tally,
        usage=bool(options and options.include_usage),
        logprobs=request.logprobs is not None,
    )


def whole(frame: Frame, tally: Tally) -> CompletionWhole:
    request = frame.request
    return CompletionWhole(
        frame.id, frame.created, frame.model, tally, choices=request.choices, logprobs=request.logprobs is not None
    )
