"""Events of the middle to responses, whole and streamed. Sans-I/O: events in, bytes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from appliance.dialects.answer import Frame
from appliance.dialects.responses import errors, reported, resource
from appliance.dialects.responses.errors import event
from appliance.dialects.responses.names import names_of
from appliance.dialects.responses.output import Output, Said
from appliance.dialects.responses.resource import ENCRYPTED, Response, asked_of
from appliance.dialects.responses.resuming import Resumed
from appliance.dialects.tally import Tally
from appliance.dialects.wire import encode
from appliance.errors import OutpostError
from runtimes.engine import Delta, Event, Finished, Usage


class _Answer:
    """What both forms have in common: the response, the items of its output, and how it ended."""

    def __init__(self, frame: Frame, tally: Tally, wall: Callable[[], float]) -> None:
        asked = asked_of(frame)
        self._tally = tally
        self._wall = wall
        self._skeleton = resource.skeleton(frame, "in_progress")
        self._include: Sequence[str] = asked.get("include") or ()
        self._shows_encrypted = ENCRYPTED in self._include
        self._output = Output(
            frame.id,
            summary=self._skeleton["reasoning"]["summary"] is not None,
            logprobs="message.output_text.logprobs" in self._include or bool(asked.get("top_logprobs")),
            names=names_of(asked.get("tools")),
        )
        self._reason: str | None = None
        self._final: Response | None = None

    def _take(self, item: Event, out: Said) -> None:
        """Only one answer is asked for, so that other choices are none of ours."""
        if isinstance(item, Delta):
            if item.index == 0:
                self._output.add(item, out)
        elif isinstance(item, Finished):
            if item.index == 0:
                self._reason = self._tally.finish_reasons[0] = item.reason
                self._output.end(resource.is_incomplete(item.reason), out)
        elif isinstance(item, Usage):
            reported.count(self._tally, item)

    def response(self) -> Response:
        """The response as it is now: the final one after the end, with all that its maker wants back."""
        if self._final is not None:
            return self._final
        return {**self._skeleton, "output": self._output.items()}

    def _late(self) -> Said:
        """Finish what was said after the reason to end, by a target that has told it early."""
        said: Said = []
        self._output.end(resource.is_incomplete(self._reason), said)
        return said

    def _end(self) -> Response:
        self._final = resource.ended(self._skeleton, self._output.items(), self._reason, self._tally, int(self._wall()))
        return resource.public(self._final, self._include)


class ResponsesStream(_Answer):
    """The events of one streamed response. See dialects.answer.StreamRenderer."""

    def __init__(self, frame: Frame, tally: Tally, *, wall: Callable[[], float] = time.time) -> None:
        """wall: unix seconds, for the time of completion."""
        super().__init__(frame, tally, wall)
        self._number = 0
        """Of the next event."""
        self._head: bytes | None = None
        """The beginning of an event with the next words of the text that is open."""
        self._begun = isinstance(frame, Resumed)
        """What comes next tells what was sent already."""
        if isinstance(frame, Resumed):
            self._number = frame.number
            self._skeleton |= {**frame.response, "output": []}
            self._output.restore(frame.begun)

    def feed(self, events: Sequence[Event]) -> bytes:
        if self._begun:
            self._begun = False
            self._open()
            return b""
        out: list[bytes] = []
        for item in events:
            if isinstance(item, Delta) and self._head is not None and _only_text(item):
                self._words(item.text, out)
                continue
            said: Said = []
            self._take(item, said)
            if said and not self._number:
                self._begin(out)
            for kind, fields in said:
                out.append(self._event(kind, fields))
            self._open()
        return b"".join(out)

    def _open(self) -> None:
        """Have the next words of an open text cost no more than their encoding."""
        text = self._output.text
        self._head = None
        if text is not None and text.kind == "output_text" and not text.logprobs:
            shape = encode({"type": "response.output_text.delta", **text.place(), "logprobs": []})
            self._head = b"event: response.output_text.delta\ndata: " + shape[:-1] + b',"delta":'

    def _words(self, words: str, out: list[bytes]) -> None:
        if words and self._head is not None and self._output.text is not None:
            self._output.text.pieces.append(words)
            out.append(b'%b%b,"sequence_number":%d}\n\n' % (self._head, encode(words), self._number))
            self._number += 1

    def _begin(self, out: list[bytes]) -> None:
        response = msgspec.Raw(encode(self._skeleton))
        for kind in ("response.created", "response.in_progress"):
            out.append(self._event(kind, {"response": response}))

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        if kind == "response.output_item.done" and not self._shows_encrypted:
            fields = {**fields, "item": resource.public_item(fields["item"])}
        number = self._number
        self._number += 1
        return event(kind, encode({"type": kind, **fields, "sequence_number": number}))

    def end(self) -> bytes:
        out: list[bytes] = []
        if not self._number:
            self._begin(out)
        for kind, fields in self._late():
            out.append(self._event(kind, fields))
        shown = self._end()
        out.append(self._event(f"response.{shown['status']}", {"response": shown}))
        return b"".join(out)

    def fail(self, error: OutpostError) -> bytes:
        if not self._number:
            return errors.stream_event(error)
        self._final = resource.failed(self.response(), error)
        return self._event("response.failed", {"response": resource.public(self._final, self._include)})


def _only_text(delta: Delta) -> bool:
    return (
        delta.index == 0
        and not delta.tool_calls
        and not delta.reasoning
        and not delta.refusal
        and not delta.reasoning_signature
        and not delta.reasoning_data
    )


class ResponsesWhole(_Answer):
    """One response in one piece. See dialects.answer.WholeRenderer."""

    def __init__(self, frame: Frame, tally: Tally, *, wall: Callable[[], float] = time.time) -> None:
        super().__init__(frame, tally, wall)

    def feed(self, events: Sequence[Event]) -> None:
        unsaid: Said = []
        for item in events:
            self._take(item, unsaid)
            unsaid.clear()

    def body(self) -> bytes:
        self._late()
        return encode(self._end())
