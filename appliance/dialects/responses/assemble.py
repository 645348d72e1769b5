"""What a streamed response said, as one whole response: for the record, after the stream has passed. Sans-I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from appliance.dialects import sse
from appliance.dialects.wire import encode

_decode = msgspec.json.Decoder(dict[str, Any]).decode

_SAID = {
    "response.function_call_arguments.delta": "arguments",
    "response.custom_tool_call_input.delta": "input",
}
"""Events with a piece of what a tool is called with, and the item's field."""
_DELTAS = {
    "response.output_text.delta": ("content", "output_text", "text"),
    "response.refusal.delta": ("content", "refusal", "refusal"),
    "response.reasoning_text.delta": ("content", "reasoning_text", "text"),
    "response.reasoning_summary_text.delta": ("summary", "summary_text", "text"),
}
"""Events with a piece of a text: the list of the item that it belongs to, the type of its part, and the field there."""


def assemble(pieces: Iterable[bytes]) -> bytes:
    """The response (JSON) that a stream adds up to.

    Takes the stream's bytes as they passed, however they are cut. What is not sound is left out: a record of a stream
    that broke is what had come. b"" when nothing had.
    """
    framer = sse.Framer()
    made = _Made()
    for piece in pieces:
        for data in framer.feed(piece)[0]:
            made.take(data)
    for data in framer.end():
        made.take(data)
    return made.body()


class _Made:
    def __init__(self) -> None:
        self._response: dict[str, Any] = {}
        self._final = False
        self._items: dict[int, dict[str, Any]] = {}
        self._finished: set[int] = set()
        self._error: dict[str, Any] | None = None

    def take(self, data: bytes) -> None:
        try:
            event = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        kind, response = event.get("type"), event.get("response")
        if isinstance(response, dict):
            self._response = response
            self._final = kind in ("response.completed", "response.incomplete")
        elif kind == "error":
            told = event.get("error")
            self._error = {
                name: event.get(name) or (told.get(name) if isinstance(told, dict) else None)
                for name in ("code", "message")
            }
        elif isinstance(kind, str) and isinstance(at := event.get("output_index"), int):
            self._grow(kind, at, event)

    def _grow(self, kind: str, at: int, event: dict[str, Any]) -> None:
        item, piece = event.get("item"), event.get("delta")
        if isinstance(item, dict):
            self._items[at] = item
            if kind == "response.output_item.done":
                self._finished.add(at)
        elif isinstance(piece, str) and at in self._items and at not in self._finished:
            self._add(kind, self._items[at], event, piece)

    def _add(self, kind: str, item: dict[str, Any], event: dict[str, Any], piece: str) -> None:
        if kind in _SAID:
            item.setdefault("_pieces", (_SAID[kind], []))[1].append(piece)
        elif kind in _DELTAS:
            where, type, field = _DELTAS[kind]
            index = event.get("summary_index" if where == "summary" else "content_index")
            item.setdefault("_parts", {}).setdefault((where, index, type, field), []).append(piece)

    def body(self) -> bytes:
        if not (self._response or self._items or self._error):
            return b""
        if self._final:
            return encode(self._response)
        items = [_whole(self._items[at]) for at in sorted(self._items)]
        error = {"error": self._error} if self._error is not None else {}
        return encode({**self._response, "output": items or self._response.get("output") or [], **error})


def _whole(item: dict[str, Any]) -> dict[str, Any]:
    """An item of which not all may have come."""
    pieces, parts = item.pop("_pieces", None), item.pop("_parts", None)
    if pieces is not None:
        item[pieces[0]] = "".join(pieces[1])
    for (where, _, type, field), texts in (parts or {}).items():
        found = item.get(where)
        item[where] = [*(found if isinstance(found, list) else ()), {"type": type, field: "".join(texts)}]
    return item
