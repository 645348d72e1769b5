"""Custom tools, whose input is plain text, as functions with one string: for targets that know functions alone. Pure.

In the middle a custom tool is a function with a mark (`chat.Tool.custom`), and a call of one has its input as JSON,
`{"input": "…"}`. The events of an answer have it as plain text, marked (`ToolCallDelta.custom`): what a target says as
a function's arguments is read again by `Inputs` before a client's renderer sees it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from appliance.dialects.wire import encode
from runtimes.engine import Delta, Event, Finished, ToolCallDelta

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "All of the input, as plain text."}},
    "required": ["input"],
    "additionalProperties": False,
}


def description_of(description: str | None, grammar: tuple[str, str] | None) -> str | None:
    """What a function says of itself that stands for a custom tool. grammar: its syntax (lark or regex) and definition,
    which nobody enforces there: the model has to know it."""
    if grammar is None:
        return description
    told = _GRAMMAR.format(syntax=_SYNTAX.get(grammar[0], grammar[0]), definition=grammar[1])
    return f"{description}\n\n{told}" if description else told


_GRAMMAR = "The input must be a text that this {syntax} allows, and nothing else:\n\n{definition}"
_SYNTAX = {"lark": "Lark grammar", "regex": "regular expression"}


def arguments_of(text: str) -> str:
    """A custom tool's input as a function's arguments."""
    return encode({"input": text}).decode()


def input_of(arguments: str) -> str:
    """The other way. What is no such arguments stands for itself: the tool may know what to make of it."""
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    text = found.get("input") if isinstance(found, dict) else found
    if isinstance(text, str):
        return text
    return arguments if text is None else encode(text).decode()


_HEAD = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_MOST_HEAD = 64
"""Characters in which the head comes if it comes at all."""
_TOKEN = re.compile(r'[^"\\]+|\\u[0-9a-fA-F]{4}|\\[^u]|\\u(?=.{4})', re.DOTALL)
"""What of a JSON string can be read by itself; the last two also take what JSON does not know."""
_ESCAPE = 6
"""Characters of one by its number."""


class Input:
    """The plain text of one call, from pieces of its arguments however they are cut."""

    __slots__ = ("_ended", "_held", "_open")

    def __init__(self) -> None:
        self._held = ""
        """What cannot be read yet."""
        self._open = False
        """The head has come."""
        self._ended = False

    def feed(self, arguments: str) -> str:
        """What is known of the text by now, and was not before."""
        if self._ended:
            return ""
        self._held += arguments
        if not self._open:
            found = _HEAD.match(self._held[:_MOST_HEAD])
            if found is None:
                return ""
            self._open = True
            self._held = self._held[found.end() :]
        return self._read()

    def _read(self) -> str:
        held, at, out = self._held, 0, list[str]()
        while found := _TOKEN.match(held, at):
            token, end = found[0], found.end()
            if _first_half(token):
                rest = held[end : end + _ESCAPE]
                if len(rest) < _ESCAPE and rest[:1] in ("", "\\"):
                    break  # the other half may follow
                if _second_half(rest):
                    token, end = token + rest, end + _ESCAPE
            out.append(_meant(token) if token[0] == "\\" else token)
            at = end
        self._ended = held[at : at + 1] == '"'
        self._held = held[at:]
        return "".join(out)

    def end(self) -> str:
        """The rest, when nothing more comes: arguments of another form are known only now."""
        if self._ended:
            return ""
        self._ended = True
        return "" if self._open else input_of(self._held)


def _first_half(token: str) -> bool:
    return token[:2] == "\\u" and token[2:4].lower() in ("d8", "d9", "da", "db")


def _second_half(text: str) -> bool:
    return _TOKEN.fullmatch(text) is not None and text[:2] == "\\u" and text[2:4].lower() in ("dc", "dd", "de", "df")


def _meant(escape: str) -> str:
    try:
        text: str = json.loads(f'"{escape}"')
    except ValueError:
        return escape
    return "\ufffd" if "\ud800" <= text <= "\udfff" else text


class Inputs:
    """Reads the calls of custom tools in an answer's events."""

    __slots__ = ("_calls", "_names")

    def __init__(self, names: Collection[str]) -> None:
        """names: of the custom tools."""
        self._names = names
        self._calls: dict[tuple[int, int], Input] = {}
        """(choice, call) → its text."""

    def read(self, events: Sequence[Event]) -> list[Event]:
        """The events with the calls of custom tools as plain text."""
        out: list[Event] = []
        for item in events:
            if isinstance(item, Delta) and item.tool_calls:
                pieces = [self._piece(item.index, piece) for piece in item.tool_calls]
                item = _with_calls(item, [piece for piece in pieces if piece != _nothing_of(piece)])
                if item == Delta(item.index):
                    continue
            elif isinstance(item, Finished):
                self._end(item.index, out)
            out.append(item)
        return out

    def _piece(self, choice: int, piece: ToolCallDelta) -> ToolCallDelta:
        known = self._calls.get((choice, piece.index))
        if known is None:
            if piece.custom or piece.name not in self._names:
                return piece
            known = self._calls[choice, piece.index] = Input()
        return ToolCallDelta(piece.index, piece.id, piece.name, known.feed(piece.arguments), True)

    def _end(self, choice: int, out: list[Event]) -> None:
        for (of, index), known in self._calls.items():
            if of == choice and (rest := known.end()):
                out.append(Delta(choice, tool_calls=[ToolCallDelta(index, arguments=rest, custom=True)]))


def first_calls(events: Sequence[Event]) -> list[Event]:
    """The events with no more than the first call of each choice: for who asked for one at a time, of a target that may
    not be told so."""
    out: list[Event] = []
    for item in events:
        if isinstance(item, Delta) and any(piece.index for piece in item.tool_calls):
            item = _with_calls(item, [piece for piece in item.tool_calls if not piece.index])
            if item == Delta(item.index):
                continue
        out.append(item)
    return out


def _nothing_of(piece: ToolCallDelta) -> ToolCallDelta:
    return ToolCallDelta(piece.index, custom=piece.custom)


def _with_calls(item: Delta, calls: list[ToolCallDelta]) -> Delta:
    return Delta(
        item.index,
        item.text,
        calls,
        item.logprobs,
        item.reasoning,
        item.reasoning_signature,
        item.reasoning_data,
        item.refusal,
    )
