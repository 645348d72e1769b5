"""A streamed response whose beginning was sent by others: which of its items stand at the client. Sans-I/O.

The beginning may be another target's own bytes, with items and parts that no event of the middle tells of. So it is
read from the bytes, and the stream that goes on takes up their numbers, ids and places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from appliance.dialects.answer import Frame
from appliance.dialects.sse import NamedFramer


class Begun(msgspec.Struct):
    """An item of the output, as far as it was sent."""

    item: dict[str, Any]
    finished: bool = False
    parts: list[dict[str, Any]] = []
    """Of its texts, those that have ended."""
    kind: str = ""
    """The type of the part that is open."""
    pieces: list[str] = []
    """Of that part, or of the arguments of a call."""
    positions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []


class Resumed(Frame, frozen=True):
    """The frame of a response that has begun. `ResponsesStream` takes what it is fed first for what was sent."""

    number: int = 0
    """Of the next event."""
    response: dict[str, Any] = {}
    """The response object as it was told."""
    begun: list[Begun] = []


class _Sent(msgspec.Struct, frozen=True):
    type: str = ""
    sequence_number: int | None = None
    output_index: int = -1
    response: dict[str, Any] | None = None
    item: dict[str, Any] | None = None
    part: dict[str, Any] | None = None
    delta: Any = None
    logprobs: list[dict[str, Any]] | None = None
    annotation: Any = None


_decode = msgspec.json.Decoder(_Sent).decode


def refit(frame: Frame, pieces: Iterable[bytes]) -> Frame:
    """The frame for going on after `pieces`, whole events that a client was sent."""
    number, response = 0, dict[str, Any]()
    begun: list[Begun] = []
    for data in NamedFramer().feed(b"".join(pieces))[0]:
        sent = _decode(data)
        number = number + 1 if sent.sequence_number is None else sent.sequence_number + 1
        if sent.response is not None:
            response = sent.response
        elif sent.type == "response.output_item.added" and sent.item is not None:
            begun.append(Begun(sent.item))
        elif 0 <= sent.output_index < len(begun) and (take := _TAKES.get(sent.type)) is not None:
            take(begun[sent.output_index], sent)
    return Resumed(frame.id, frame.created, frame.model, frame.request, frame.native, number, response, begun)


def _finished(item: Begun, sent: _Sent) -> None:
    item.item, item.finished = sent.item or item.item, True


def _part_added(item: Begun, sent: _Sent) -> None:
    item.kind = str((sent.part or {}).get("type", ""))


def _part_done(item: Begun, sent: _Sent) -> None:
    item.parts.append(sent.part or {})
    item.kind, item.pieces, item.positions, item.annotations = "", [], [], []


def _piece(item: Begun, sent: _Sent) -> None:
    item.pieces.append(str(sent.delta))
    item.positions += sent.logprobs or ()


def _annotated(item: Begun, sent: _Sent) -> None:
    item.annotations.append(sent.annotation)


_TAKES: dict[str, Callable[[Begun, _Sent], None]] = {
    "response.output_item.done": _finished,
    "response.content_part.added": _part_added,
    "response.reasoning_summary_part.added": _part_added,
    "response.content_part.done": _part_done,
    "response.reasoning_summary_part.done": _part_done,
    "response.output_text.delta": _piece,
    "response.refusal.delta": _piece,
    "response.reasoning_text.delta": _piece,
    "response.reasoning_summary_text.delta": _piece,
    "response.function_call_arguments.delta": _piece,
    "response.custom_tool_call_input.delta": _piece,
    "response.output_text.annotation.added": _annotated,
}
