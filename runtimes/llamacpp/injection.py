"""Keeps text that a caller wrote from becoming control tokens of the model.

A chat template only joins strings, so "<|im_end|>" inside a message would be read as the end of the
message once the prompt is tokenised. Before rendering, every such string in the caller's data is replaced
by digits that nobody can guess; after rendering the prompt is cut where those digits are, and the original
text is put back as a segment of its own that must be tokenised as plain text.

Why placeholders instead of marks around every text: templates trim, escape, compare and cut what they are
given. Marks around a text change what `trim` does and get lost; digits inside a text survive trimming,
JSON escaping and changes of case, and a text without control strings is not touched at all, so honest prompts
are tokenised exactly as they always were. What a template drops, it drops with its placeholder. If a template
tears a placeholder apart all the same, `split` says so and the caller renders again with `neutral` texts.

Also replaced: a fragment at the edge of a text ("…<|im_" or "end|>…") that could become a control string
together with what the template puts beside it. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

INDEX_DIGITS = 6
# Words of the messages' own structure. Templates compare them, and nothing can be smuggled in them, but a
# vocabulary with a token like "<|name" would make "name" look like the edge of a control string.
STRUCTURE = frozenset(
    {
        "role",
        "content",
        "name",
        "type",
        "function",
        "tool_calls",
        "tool_call_id",
        "id",
        "arguments",
        "parameters",
        "properties",
        "required",
        "description",
        "strict",
        "system",
        "user",
        "assistant",
        "tool",
        "developer",
        "object",
        "string",
        "number",
        "integer",
        "boolean",
        "array",
        "null",
    }
)


class Segment(msgspec.Struct, frozen=True):
    """A part of a prompt. Control strings count as control tokens only where `trusted`."""

    text: str
    trusted: bool = True


class ControlStrings:
    """The texts of a vocabulary's control and user-defined tokens, ready for searching.

    Runs of white space (which some vocabularies keep as user-defined tokens) are no control strings.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = sorted({t for t in texts if len(t) > 1 and t.strip()}, key=lambda t: (-len(t), t))
        self._any = re.compile("|".join(map(re.escape, self.texts))) if self.texts else None
        self._heads = {t[:n] for t in self.texts for n in range(1, len(t))}
        self._tails = {t[n:] for t in self.texts for n in range(1, len(t))}
        self._longest = max(map(len, self.texts), default=0)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where `text` holds a control string, or an edge fragment of one: (start, end), in order, disjoint."""
        if self._any is None:
            return []
        found = [match.span() for match in self._any.finditer(text)]
        body = text.strip()
        if not body:
            return found
        start = text.index(body)
        end = start + len(body)
        tail = self._edge(body, self._tails, from_start=True)
        if tail and (not found or found[0][0] >= start + tail):
            found.insert(0, (start, start + tail))
        head = self._edge(body, self._heads, from_start=False)
        if head and (not found or found[-1][1] <= end - head):
            found.append((end - head, end))
        return found

    def plain_pieces(self, text: str) -> list[str]:
        """Cut `text` so that no piece holds a control string.

        Tokenising without control tokens is not enough: llama.cpp still recognises user-defined ones.
        """
        pieces: list[str] = []
        while self._any is not None and (match := self._any.search(text)):
            pieces.append(text[: match.start() + 1])
            text = text[match.start() + 1 :]
        return [*pieces, text] if text else pieces

    def _edge(self, body: str, parts: set[str], *, from_start: bool) -> int:
        for size in range(min(self._longest, len(body)), 0, -1):
            if (body[:size] if from_start else body[-size:]) in parts:
                return size
        return 0


class Protection:
    """The placeholders of one rendering. `nonce`: 20 or more random decimal digits."""

    def __init__(self, control: ControlStrings, nonce: str) -> None:
        self._control = control
        self._nonce = nonce
        self._taken: list[str] = []
        self._pattern = re.compile(f"{nonce}([0-9]{{{INDEX_DIGITS}}})")

    def cover(self, value: Any) -> Any:
        """A copy of JSON-like data with placeholders for the control strings, in keys too."""
        return _map_strings(value, self._cover_text)

    def _cover_text(self, text: str) -> str:
        spans = self._control.spans(text)
        if not spans:
            return text
        out: list[str] = []
        at = 0
        for start, end in spans:
            out += [text[at:start], f"{self._nonce}{len(self._taken):0{INDEX_DIGITS}d}"]
            self._taken.append(text[start:end])
            at = end
        return "".join([*out, text[at:]])

    def split(self, rendered: str) -> list[Segment] | None:
        """The prompt in segments, or None when the template tore a placeholder apart."""
        if not self._taken:
            return [Segment(rendered)] if rendered else []
        segments: list[Segment] = []
        at = 0
        for match in self._pattern.finditer(rendered):
            index = int(match.group(1))
            if index >= len(self._taken):
                return None
            if not self._add_trusted(segments, rendered[at : match.start()]):
                return None
            segments += [Segment(piece, False) for piece in self._control.plain_pieces(self._taken[index])]
            at = match.end()
        return segments if self._add_trusted(segments, rendered[at:]) else None

    def _add_trusted(self, segments: list[Segment], text: str) -> bool:
        half = len(self._nonce) // 2
        if self._nonce[:half] in text or self._nonce[half:] in text:
            return False
        if text:
            segments.append(Segment(text))
        return True


def neutral(value: Any, control: ControlStrings) -> Any:
    """A copy of JSON-like data in which a space breaks every control string: the way out when
    placeholders do not survive a template."""

    def broken(text: str) -> str:
        for start, _ in reversed(control.spans(text)):
            text = f"{text[: start + 1]} {text[start + 1 :]}"
        return text

    return _map_strings(value, broken)


def _map_strings(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return value if value in STRUCTURE else change(value)
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    if isinstance(value, dict):
        return {_map_strings(key, change): _map_strings(item, change) for key, item in value.items()}
    return value
