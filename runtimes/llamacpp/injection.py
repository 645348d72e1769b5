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

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

INDEX_DIGITS = 7
"""Enough for every placeholder of the longest data that is rendered (`templates.MAX_OUTPUT`)."""
WINDOW = 1 << 16
"""Characters that are searched in one go. The search holds the interpreter, and others must run in between."""
MAX_BRANCHING = 32
"""How deep the search pattern may nest; vocabularies need less than ten levels."""
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
        self._any = re.compile(_longest_of(self.texts)) if self.texts else None
        self._heads = {t[:n] for t in self.texts for n in range(1, len(t))}
        self._tails = {t[n:] for t in self.texts for n in range(1, len(t))}
        self._longest = max(map(len, self.texts), default=0)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where `text` holds a control string, or an edge fragment of one: (start, end), in order, disjoint."""
        found = list(self._whole(text))
        body = text.strip()
        if not body:
            return found
        start = len(text) - len(text.lstrip())
        end = start + len(body)
        tail = self._edge(body, self._tails, from_start=True)
        if tail and (not found or found[0][0] >= start + tail):
            found.insert(0, (start, start + tail))
        head = self._edge(body, self._heads, from_start=False)
        if head and (not found or found[-1][1] <= end - head):
            found.append((end - head, end))
        return found

    def _whole(self, text: str) -> Iterator[tuple[int, int]]:
        """Where `text` holds a whole control string, the longest one at each place."""
        at = 0
        while self._any is not None and at < len(text):
            stop = at + WINDOW
            # What begins in the window may end behind it; what begins behind it is for the next window to find.
            match = self._any.search(text, at, stop + self._longest)
            if match is None or match.start() >= stop:
                at = stop
            else:
                yield match.span()
                at = match.end()

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
        cuts = [0, *(start + 1 for start, _ in control.spans(text)), len(text)]
        return " ".join(text[a:b] for a, b in itertools.pairwise(cuts))

    return _map_strings(value, broken)


def measure(value: Any, most: int) -> tuple[int, int]:
    """How large JSON-like data is and how many levels deep: a text counts its characters, all else 1.

    Looks at no text, and gives up as soon as the size is beyond `most`.
    """
    size = depth = 0
    level = [value]
    while level:
        depth += 1
        below: list[Any] = []
        for item in level:
            size += len(item) if isinstance(item, str) else 1
            if size > most:
                return size, depth
            if isinstance(item, list):
                below += item
            elif isinstance(item, dict):
                below += item.keys()
                below += item.values()
        level = below
    return size, depth


def _longest_of(texts: Iterable[str], level: int = 0) -> str:
    """A regular expression for the longest of `texts` that stands at a place.

    What several begin with is looked at once: with each text by itself, every "<|" that a caller writes would be
    compared with all of hundreds of texts.
    """
    texts = sorted(texts, key=len, reverse=True)
    if level == MAX_BRANCHING:
        return f"(?:{'|'.join(map(re.escape, texts))})"
    groups: dict[str, list[str]] = {}
    for text in texts:
        groups.setdefault(text[:1], []).append(text)
    branches = []
    for first, group in groups.items():
        shared = _common_start(group) if first else ""
        rests = [text[len(shared) :] for text in group]
        branches.append(re.escape(shared) + (_longest_of(rests, level + 1) if any(rests) else ""))
    # The empty text is the shortest, so its branch comes last: nothing more need follow.
    return f"(?:{'|'.join(branches)})"


def _common_start(texts: list[str]) -> str:
    low, high = min(texts), max(texts)
    return low[: next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))]


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A copy with every text changed but those of `STRUCTURE`. Recursive: for data that has been measured."""
    if isinstance(value, str):
        return value if value in STRUCTURE else change(value)
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    if isinstance(value, dict):
        return {_map_strings(key, change): _map_strings(item, change) for key, item in value.items()}
    return value
