"""The output items of a response while they grow: from events of the middle to items and their events. Sans-I/O.

Each method appends to `out` what it is told of as (type, fields); who writes the stream adds the sequence number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from appliance.dialects.chat_answer import logprob
from appliance.dialects.responses import reasoning
from appliance.dialects.responses.names import Name
from appliance.dialects.responses.resuming import Begun
from runtimes.engine import Delta, PositionLogprobs, TokenLogprob, ToolCallDelta

Said = list[tuple[str, dict[str, Any]]]
Fields = dict[str, Any]
CALLS = ("function_call", "custom_tool_call")
"""Types of items that are calls of a client's own tools."""


class Text:
    """A message under way: one part of it, text or refusal, is open."""

    def __init__(self, id: str, at: int, logprobs: bool) -> None:
        self.id = id
        self.at = at
        self.logprobs = logprobs
        self.kind = ""
        self.pieces: list[str] = []
        self.positions: list[Fields] = []
        self.annotations: list[Fields] = []
        self.content: list[Fields] = []

    def place(self) -> Fields:
        return {"item_id": self.id, "output_index": self.at, "content_index": len(self.content)}

    def item(self, status: str) -> Fields:
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": list(self.content)}

    def begin(self, kind: str, out: Said) -> None:
        """Open a part of this kind, unless it is the one that is open."""
        if self.kind == kind:
            return
        self.close(out)
        self.kind = kind
        out.append(("response.content_part.added", {**self.place(), "part": self._part("")}))

    def close(self, out: Said) -> None:
        if not self.kind:
            return
        text = "".join(self.pieces)
        place = self.place()
        if self.kind == "output_text":
            out.append(("response.output_text.done", {**place, "text": text, "logprobs": self.positions}))
        else:
            out.append(("response.refusal.done", {**place, "refusal": text}))
        part = self._part(text)
        out.append(("response.content_part.done", {**place, "part": part}))
        self.content.append(part)
        self.kind, self.pieces, self.positions, self.annotations = "", [], [], []

    def _part(self, text: str) -> Fields:
        if self.kind == "refusal":
            return {"type": "refusal", "refusal": text}
        return {"type": "output_text", "text": text, "annotations": self.annotations, "logprobs": self.positions}


class Thought:
    """A block of reasoning under way, as a summary or in full. All that is thought here goes into one part; what others
    have begun may have several."""

    def __init__(self, id: str, at: int, summary: bool) -> None:
        self.id = id
        self.at = at
        self.summary = summary
        self.parts: list[Fields] = []
        self.pieces: list[str] = []
        self.encrypted = ""

    def place(self) -> Fields:
        index = "summary_index" if self.summary else "content_index"
        return {"item_id": self.id, "output_index": self.at, index: len(self.parts)}

    def item(self) -> Fields:
        made: Fields = {"id": self.id, "type": "reasoning", "summary": []}
        if self.parts:
            made["summary" if self.summary else "content"] = list(self.parts)
        if self.encrypted:
            made["encrypted_content"] = self.encrypted
        return made

    def delta(self, text: str, out: Said) -> None:
        form = "reasoning_summary_text" if self.summary else "reasoning_text"
        if not self.pieces:
            added = "reasoning_summary_part" if self.summary else "content_part"
            out.append((f"response.{added}.added", {**self.place(), "part": self._part("")}))
        self.pieces.append(text)
        out.append((f"response.{form}.delta", {**self.place(), "delta": text}))

    def close(self, out: Said) -> None:
        if not self.pieces:
            return
        text = "".join(self.pieces)
        form, named = ("reasoning_summary_text", "reasoning_summary_part")
        if not self.summary:
            form, named = ("reasoning_text", "content_part")
        part = self._part(text)
        out.append((f"response.{form}.done", {**self.place(), "text": text}))
        out.append((f"response.{named}.done", {**self.place(), "part": part}))
        self.parts.append(part)
        self.pieces = []

    def _part(self, text: str) -> Fields:
        return {"type": "summary_text" if self.summary else "reasoning_text", "text": text}


class Call:
    """A call under way, of a function or of a custom tool."""

    def __init__(self, id: str, at: int, call_id: str, name: Name) -> None:
        self.id = id
        self.at = at
        self.call_id = call_id
        self.name = name
        self.pieces: list[str] = []

    def item(self, status: str) -> Fields:
        type, said = ("custom_tool_call", "input") if self.name.custom else ("function_call", "arguments")
        return {
            "id": self.id,
            "type": type,
            "status": status,
            said: "".join(self.pieces) if status != "in_progress" else "",
            "call_id": self.call_id,
            **self.name.fields(),
        }

    def piece(self, said: str, out: Said) -> None:
        self.pieces.append(said)
        kind = "custom_tool_call_input" if self.name.custom else "function_call_arguments"
        out.append((f"response.{kind}.delta", {"item_id": self.id, "output_index": self.at, "delta": said}))

    def close(self, out: Said) -> None:
        fields: Fields = {"item_id": self.id, "output_index": self.at}
        said = "".join(self.pieces)
        if self.name.custom:
            out.append(("response.custom_tool_call_input.done", {**fields, "input": said}))
        else:
            fields = {**fields, "name": self.name.name, "arguments": said}
            out.append(("response.function_call_arguments.done", fields))


class Output:
    """All items of one response. Calls may grow side by side; a message or a thought ends where another thing begins.

    Ids are made of the response's own, so that the same answer has the same ones wherever it is put together.
    """

    def __init__(self, id: str, *, summary: bool, logprobs: bool, names: Mapping[str, Name] = {}) -> None:
        """id: the response's. summary: thoughts are told as summaries. names: of tools that the client calls otherwise
        than the target does."""
        self._id = id.partition("_")[2] or id
        self._summary = summary
        self._logprobs = logprobs
        self._names = names
        self._items: list[Fields | None] = []
        """Finished items; None for those under way."""
        self.text: Text | None = None
        self._thought: Thought | None = None
        self._calls: dict[int, Call] = {}
        self._others: list[tuple[int, Fields]] = []
        """Items that others have begun, and nobody can go on with."""
        self._status = "completed"

    def restore(self, begun: Sequence[Begun]) -> None:
        """Take up what others have sent. Call it before anything is added."""
        calls = 0
        for at, sent in enumerate(begun):
            kind = sent.item.get("type")
            self._items.append(sent.item if sent.finished else None)
            if not sent.finished:
                self._take_up(at, str(kind), str(sent.item.get("id", "")), sent, calls)
            calls += kind in CALLS

    def _take_up(self, at: int, kind: str, id: str, sent: Begun, calls: int) -> None:
        if kind == "message":
            text = self.text = Text(id, at, self._logprobs)
            text.content, text.kind, text.pieces = sent.parts, sent.kind, sent.pieces
            text.positions, text.annotations = sent.positions, sent.annotations
        elif kind == "reasoning":
            types = {sent.kind, *(part.get("type") for part in sent.parts)}
            summary = self._summary if types == {""} else "summary_text" in types
            thought = self._thought = Thought(id, at, summary)
            thought.parts, thought.pieces = sent.parts, sent.pieces
        elif kind in CALLS:
            name = Name(str(sent.item.get("name", "")), sent.item.get("namespace"), kind == "custom_tool_call")
            call = self._calls[calls] = Call(id, at, str(sent.item.get("call_id", "")), name)
            call.pieces = sent.pieces
        else:
            self._others.append((at, {**sent.item, "status": "incomplete"}))

    def items(self) -> list[Fields]:
        """The items that are finished, in their order."""
        return [item for item in self._items if item is not None]

    def _open(self, prefix: str) -> tuple[str, int]:
        at = len(self._items)
        self._items.append(None)
        return f"{prefix}_{self._id}_{at}", at

    def _added(self, at: int, item: Fields, out: Said) -> None:
        out.append(("response.output_item.added", {"output_index": at, "item": item}))

    def _finish(self, at: int, item: Fields, out: Said) -> None:
        self._items[at] = item
        out.append(("response.output_item.done", {"output_index": at, "item": item}))

    def add(self, delta: Delta, out: Said) -> None:
        """Take what is new."""
        if delta.reasoning:
            self._think(out).delta(delta.reasoning, out)
        if delta.reasoning_signature:
            self._think(out).encrypted = reasoning.of_signature(delta.reasoning_signature)
            self._end_thought(out)
        if delta.reasoning_data:
            self._data(delta.reasoning_data, out)
        if delta.text:
            self.say(delta.text, delta.logprobs, out)
        if delta.refusal:
            self._speak("refusal", out).pieces.append(delta.refusal)
            place = self.text.place() if self.text is not None else {}
            out.append(("response.refusal.delta", {**place, "delta": delta.refusal}))
        for piece in delta.tool_calls:
            self._call(piece, out)

    def _speak(self, kind: str, out: Said) -> Text:
        self._end_thought(out)
        text = self.text
        if text is None:
            text = self.text = Text(*self._open("msg"), self._logprobs)
            self._added(text.at, text.item("in_progress"), out)
        text.begin(kind, out)
        return text

    def say(self, words: str, logprobs: Sequence[PositionLogprobs], out: Said) -> None:
        text = self._speak("output_text", out)
        text.pieces.append(words)
        positions = [_position(at) for at in logprobs] if self._logprobs else []
        text.positions += positions
        out.append(("response.output_text.delta", {**text.place(), "delta": words, "logprobs": positions}))

    def _end_text(self, out: Said) -> None:
        text, self.text = self.text, None
        if text is not None:
            text.close(out)
            self._finish(text.at, text.item(self._status), out)

    def _think(self, out: Said) -> Thought:
        self._end_text(out)
        thought = self._thought
        if thought is None:
            thought = self._thought = Thought(*self._open("rs"), self._summary)
            self._added(thought.at, thought.item(), out)
        return thought

    def _end_thought(self, out: Said) -> None:
        thought, self._thought = self._thought, None
        if thought is not None:
            thought.close(out)
            self._finish(thought.at, thought.item(), out)

    def _data(self, data: str, out: Said) -> None:
        """A block that only its maker can read. One of a target that speaks this dialect keeps its id, which it is
        bound to."""
        self._end_thought(out)
        self._end_text(out)
        id, at = self._open("rs")
        own_id, encrypted = reasoning.unpack(data) or (id, reasoning.of_data(data))
        item: Fields = {"id": own_id, "type": "reasoning", "summary": []}
        self._added(at, item, out)
        self._finish(at, {**item, "encrypted_content": encrypted}, out)

    def _call(self, piece: ToolCallDelta, out: Said) -> None:
        call = self._calls.get(piece.index)
        if call is None:
            self._end_thought(out)
            self._end_text(out)
            name = self._names.get(piece.name) or Name(piece.name, custom=piece.custom)
            id, at = self._open("ctc" if name.custom else "fc")
            call = self._calls[piece.index] = Call(id, at, piece.id or f"call_{self._id}_{at}", name)
            self._added(at, call.item("in_progress"), out)
        if piece.arguments:
            call.piece(piece.arguments, out)

    def end(self, incomplete: bool, out: Said) -> None:
        """Finish what is under way. An answer that was cut off leaves its last items incomplete."""
        self._status = "incomplete" if incomplete else "completed"
        self._end_thought(out)
        self._end_text(out)
        for call in self._calls.values():
            call.close(out)
            self._finish(call.at, call.item(self._status), out)
        self._calls.clear()
        for at, item in self._others:
            self._finish(at, item, out)
        self._others.clear()


def _token(token: TokenLogprob) -> Fields:
    return {"token": token.token, "logprob": logprob(token.logprob), "bytes": token.bytes}


def _position(at: PositionLogprobs) -> Fields:
    return {**_token(at.chosen), "top_logprobs": [_token(top) for top in at.top]}
