"""Going on with a streamed answer that one target has begun and another one ends. Pure.

`Sent` is what the client has seen. A `Splice` stands before the renderer and lets through only what is new: what the
other target repeats is left out, and where it says something else instead, the answer cannot go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from appliance.dialects.answer import StreamRenderer
from appliance.errors import Diverged, OutpostError
from runtimes.engine import Delta, Event, Finished, ToolCallDelta, Usage


class Sent(msgspec.Struct):
    """What of choice 0 has been sent."""

    text: str = ""
    pieces: int = 0
    """In which the text came."""
    reasoning: str = ""
    refusal: str = ""
    calls: dict[int, tuple[str, str]] = {}
    """Tool calls by their index: name and arguments."""
    others: bool = False
    """More than one choice, logprobs, or reasoning that only its maker can go on with: nothing to splice."""
    finished: str = ""
    """The reason, once it has been told."""

    @property
    def resumable(self) -> bool:
        return not self.others

    @property
    def only_text(self) -> bool:
        """Whether another model can be told where to go on."""
        return bool(self.text) and not self.calls and not self.refusal and not self.finished


def sent(events: Iterable[Event]) -> Sent:
    """What the events said."""
    text: list[str] = []
    reasoning: list[str] = []
    refusal: list[str] = []
    found = Sent()
    for item in events:
        if isinstance(item, Delta):
            if item.index or item.logprobs:
                found.others = True
            found.pieces += bool(item.text)
            text.append(item.text)
            reasoning.append(item.reasoning)
            refusal.append(item.refusal)
            for piece in item.tool_calls:
                name, arguments = found.calls.get(piece.index, ("", ""))
                found.calls[piece.index] = (name or piece.name, arguments + piece.arguments)
        elif isinstance(item, Finished):
            found.finished = item.reason
    found.text, found.reasoning, found.refusal = "".join(text), "".join(reasoning), "".join(refusal)
    return found


class _Cut:
    """Leaves out the beginning of a text that is known. In two ways: what comes must `repeat` it, or it may be what
    comes after it; then what looks like a repetition is held until it is known whether it is one."""

    __slots__ = ("_at", "_known", "_must_repeat")

    def __init__(self, known: str, must_repeat: bool) -> None:
        self._known = known
        self._at = 0
        self._must_repeat = must_repeat

    @property
    def over(self) -> bool:
        return self._at >= len(self._known)

    def feed(self, text: str) -> str:
        """What of it is new. Raises Diverged."""
        at, known = self._at, self._known
        if at >= len(known):
            return text
        part = known[at : at + len(text)]
        if text.startswith(part):
            self._at = at + len(part)
            return text[len(part) :]
        if self._must_repeat:
            raise _diverged()
        self._at = len(known)
        return known[:at] + text

    def rest(self) -> str:
        """What was held when nothing more comes."""
        at, self._at = self._at, len(self._known)
        if at >= len(self._known):
            return ""
        if self._must_repeat:
            raise _diverged()
        return self._known[:at]


def _diverged() -> OutpostError:
    return Diverged("The answer broke off, and no other target could go on with it.")


class Splice:
    """A renderer that has written the beginning of an answer, for a target that does not know of it.

    repeats: the target was asked the same again and must say the same again; else it was told what has been said.
    """

    __slots__ = (
        "_calls",
        "_reasoning",
        "_refusal",
        "_renderer",
        "_repeats",
        "_sent",
        "_skip_space",
        "_text",
        "_unmade",
    )

    def __init__(self, renderer: StreamRenderer, sent: Sent, *, repeats: bool, skip_space: bool = False) -> None:
        """skip_space: the target was told the text without the white space at its end, and may begin with some."""
        self._renderer = renderer
        self._sent = sent
        self._repeats = repeats
        self._text = _Cut(sent.text, repeats)
        self._reasoning = _Cut(sent.reasoning, repeats)
        self._refusal = _Cut(sent.refusal, repeats)
        self._calls = {index: _Cut(arguments, repeats) for index, (_, arguments) in sent.calls.items()}
        self._skip_space = skip_space
        self._unmade = set(sent.calls) if repeats else set()
        """Calls that the client knows of and that were not repeated."""

    def feed(self, events: Sequence[Event]) -> bytes:
        """What is new of them, rendered. Raises Diverged."""
        new: list[Event] = []
        for item in events:
            if isinstance(item, Delta):
                self._delta(item, new)
            elif isinstance(item, Finished):
                self._finish(item, new)
            elif isinstance(item, Usage):
                new.append(item)
        return self._renderer.feed(new) if new else b""

    def end(self) -> bytes:
        return self._renderer.end()

    def fail(self, error: OutpostError) -> bytes:
        return self._renderer.fail(error)

    def response(self) -> Any:
        """See appliance.providers.upstream.Stream."""
        response = getattr(self._renderer, "response", None)
        return None if response is None else response()

    def _delta(self, item: Delta, new: list[Event]) -> None:
        if self._repeats and item.text and not self._reasoning.over:
            raise _diverged()
        # What another model thinks before it goes on is no part of this answer.
        reasoning = self._reasoning.feed(item.reasoning) if self._repeats and item.reasoning else ""
        text = self._text.feed(item.text) if item.text else ""
        if text and self._skip_space:
            text = text.lstrip()
            self._skip_space = not text
        refusal = self._refusal.feed(item.refusal) if item.refusal else ""
        if (text or refusal) and self._unmade:
            raise _diverged()  # what the client has seen after its text was a call
        if item.tool_calls and (held := self._text.rest()):
            text = held + text
        calls = [piece for each in item.tool_calls if (piece := self._call(each)) is not None]
        signature = item.reasoning_signature if reasoning else ""
        if text or reasoning or refusal or calls:
            new.append(
                Delta(text=text, reasoning=reasoning, refusal=refusal, tool_calls=calls, reasoning_signature=signature)
            )

    def _call(self, piece: ToolCallDelta) -> ToolCallDelta | None:
        if self._repeats and not self._text.over:
            raise _diverged()
        known = self._sent.calls.get(piece.index)
        self._unmade.discard(piece.index)
        if known is None:
            return piece
        if piece.name and piece.name != known[0]:
            raise _diverged()
        arguments = self._calls[piece.index].feed(piece.arguments)
        return ToolCallDelta(index=piece.index, arguments=arguments) if arguments else None

    def _finish(self, item: Finished, new: list[Event]) -> None:
        rest = self._text.rest()
        if rest:
            new.append(Delta(text=rest.lstrip() if self._skip_space else rest))
        if self._unmade:
            raise _diverged()
        if self._repeats:
            for cut in (self._reasoning, self._refusal, *self._calls.values()):
                cut.rest()
        if not self._sent.finished:
            new.append(item)
