"""Going on with a streamed answer that one target has begun and another one ends. Pure.

`Sent` is what the client has seen. A `Splice` stands before the renderer and lets through only what is new: what the
other target repeats is left out, and where it says something else instead, the answer cannot go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from appliance.dialects.answer import StreamRenderer
from appliance.dialects.chat_answer import take_usage
from appliance.dialects.tally import Tally
from appliance.errors import Diverged, OutpostError
from runtimes.engine import Delta, Event, Finished, ToolCallDelta, Usage

Way = Literal["again", "from_there", "perhaps", "told"]
"""How a target goes on. again: it was asked the same, and must say the same. from_there: it is known to begin with the
very next character. perhaps: it should, but may say from the beginning what it was told. told: the same for one that
was told so in words, and may say some of its own before it starts over."""
A_REPETITION = 16
"""Characters of which a text that stops within a repetition is one that broke off, and not new."""
A_RESTART = 32
"""Characters that nobody repeats who goes on: who says something else after them has started over in other words."""
WORDS_BEFORE = 48
"""Characters of a target's own before it starts over: "Sure! Here is the rest:"."""
UNMISTAKABLE = 64
"""Characters that nobody says again who goes on; what is as short as less may well come once more in a new text."""


class Sent(msgspec.Struct):
    """What of choice 0 has been sent."""

    text: str = ""
    pieces: int = 0
    """In which the text came."""
    reasoning: str = ""
    sealed: bool = False
    """It has what its maker wants back to trust its reasoning."""
    refusal: str = ""
    calls: dict[int, tuple[str, str]] = {}
    """Tool calls by their index: name and arguments."""
    others: bool = False
    """More than one choice, or logprobs: nothing to splice."""
    finished: str = ""
    """The reason, once it has been told."""

    @property
    def resumable(self) -> bool:
        return not self.others

    @property
    def only_text(self) -> bool:
        """Whether another model can be told where to go on."""
        return not self.text.isspace() and bool(self.text) and not self.calls and not self.refusal and not self.finished


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
            found.sealed |= bool(item.reasoning_signature or item.reasoning_data)
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


class Spent(msgspec.Struct, frozen=True):
    """What those before have used for what was sent. Tokens."""

    prompt_tokens: int = 0
    """0: nobody has said."""
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    told_tokens: int = 0
    """Of the next target's prompt, those that are not the caller's, about."""


NOTHING = Spent()


class _Cut:
    """Leaves out the beginning of a text, which must be what is known already."""

    __slots__ = ("_at", "_known")
    repeated = True

    def __init__(self, known: str) -> None:
        self._known = known
        self._at = 0

    @property
    def over(self) -> bool:
        return self._at >= len(self._known)

    def feed(self, text: str) -> str:
        """What of it is new. Raises Diverged."""
        at, known = self._at, self._known
        if at >= len(known):
            return text
        part = known[at : at + len(text)]
        if not text.startswith(part):
            raise _diverged()
        self._at = at + len(part)
        return text[len(part) :]

    def rest(self, *, cut: bool = False) -> str:
        """Raises Diverged where something is missing when nothing more comes."""
        if not self.over:
            raise _diverged()
        return ""


class _Perhaps:
    """Leaves out the beginning of a text where it is one of those that are known: what may become one is held until
    that is decided, from the first character on. Of two, the longer one is left out."""

    __slots__ = ("_at", "_found", "_held", "_left", "_open", "_same")

    def __init__(self, known: Iterable[str]) -> None:
        self._open = {each for each in known if each}
        """Those that it may still become."""
        self._held: list[str] = []
        self._at = 0
        self._found = 0
        self._same = 0
        """The most characters that were the same before something else came."""
        self._left = ""

    @property
    def over(self) -> bool:
        return not self._open

    @property
    def repeated(self) -> bool:
        return self._found > 0

    def feed(self, text: str) -> str:
        if not self._open:
            return text
        at, end = self._at, self._at + len(text)
        self._held.append(text)
        self._at = end
        for known in sorted(self._open, key=len):
            part = known[at:end]
            if not text.startswith(part):
                self._open.discard(known)
                self._same = max(self._same, at + _in_common(text, part))
            elif end >= len(known):
                self._open.discard(known)
                self._found = len(known)
        return "" if self._open else self.rest()

    def rest(self, *, cut: bool = False) -> str:
        """What was held when nothing more comes. cut: not because all was said. Raises Diverged for what is only the
        beginning of a repetition."""
        held, self._held = "".join(self._held), []
        if self._open and held and not self._found and (cut or len(held) >= A_REPETITION):
            raise _diverged()
        if not self._found and self._same >= A_RESTART:
            raise _diverged()
        self._open = set()
        return held[self._found :]


class _Told:
    """Leaves out a beginning as `_Perhaps` does; or one behind some words of the target's own, together with these."""

    __slots__ = ("_before", "_known", "_looks", "_short", "_text")

    def __init__(self, known: Sequence[str]) -> None:
        self._known = [each for each in known if len(each) >= A_REPETITION]
        self._text: _Perhaps | _Cut = _Perhaps(known)
        self._looks = bool(self._known)
        """It may still start over."""
        self._before = ""
        """What was held because it may be words before that."""
        self._short = False

    @property
    def over(self) -> bool:
        return not self._looks and self._text.over

    @property
    def repeated(self) -> bool:
        return self._text.repeated

    def feed(self, text: str) -> str:
        new = self._text.feed(text)
        if not self._looks:
            return self._checked(new)
        if not self._text.over:
            return ""
        if self._text.repeated:
            self._looks = False
            return new
        self._before += new
        for known in self._known:
            at = self._before.find(known[:A_RESTART])
            if 0 < at <= WORDS_BEFORE:
                self._text, self._looks, self._short = _Cut(known), False, len(known) < UNMISTAKABLE
                return self._checked(self._text.feed(self._before[at:]))
        return "" if len(self._before) < WORDS_BEFORE + A_RESTART else self._all()

    def _checked(self, new: str) -> str:
        """Of a text so short it is not sure that it was started over: nothing is left out, nor said twice."""
        if self._short and self._text.over:
            raise _diverged()
        return new

    def _all(self) -> str:
        self._looks = False
        text, self._before = self._before, ""
        return text

    def rest(self, *, cut: bool = False) -> str:
        """See `_Perhaps`."""
        rest = self._text.rest(cut=cut)
        return self._all() + rest if self._looks else rest


def _in_common(a: str, b: str) -> int:
    """How many characters at their beginnings are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


class _FromThere:
    """Leaves nothing out."""

    over = True
    repeated = False

    def feed(self, text: str) -> str:
        return text

    def rest(self, *, cut: bool = False) -> str:
        return ""


def _diverged() -> OutpostError:
    return Diverged("The answer broke off, and no other target could go on with it.")


class Splice:
    """A renderer that has written the beginning of an answer, for a target that does not know of it.

    What the attempt uses goes into its own `tally`; the renderer's has what the client is told: the whole answer once.
    """

    __slots__ = (
        "_calls",
        "_counted",
        "_foreign",
        "_own",
        "_reasoning",
        "_refusal",
        "_renderer",
        "_repeats",
        "_sent",
        "_space",
        "_spent",
        "_tally",
        "_text",
        "_told",
        "_unmade",
    )

    def __init__(
        self,
        renderer: StreamRenderer,
        sent: Sent,
        tally: Tally,
        told: Tally,
        *,
        way: Way = "again",
        before: str = "",
        spent: Spent = NOTHING,
    ) -> None:
        """told: the renderer's. before: what stands before the answer in the message that the target goes on with, and
        may be repeated too. A target that is told what was sent is told it without the white space at its end."""
        self._renderer = renderer
        self._sent = sent
        self._tally = tally
        self._told = told
        self._spent = spent
        self._counted = False
        self._repeats = repeats = way == "again"
        text = sent.text.rstrip()
        self._text: _Cut | _Perhaps | _Told | _FromThere
        if repeats:
            self._text = _Cut(sent.text)
        elif way == "from_there":
            self._text = _FromThere()
        else:
            self._text = (_Told if way == "told" else _Perhaps)((text, before + text))
        self._space = "" if repeats else sent.text[len(text) :]
        """White space that the client has and the target may begin with."""
        self._reasoning = _Cut(sent.reasoning)
        self._refusal = _Cut(sent.refusal if repeats else "")
        self._calls = {index: _Cut(arguments) for index, (_, arguments) in sent.calls.items()}
        self._unmade = set(sent.calls) if repeats else set()
        """Calls that the client knows of and that were not repeated."""
        self._foreign = False
        """Of the block of reasoning that is open, the client has some from elsewhere, or lacks some."""
        self._own = not sent.sealed
        """The block is this target's own and new to the client; an empty one only if none was signed yet."""

    @property
    def repeats(self) -> bool:
        """Whether the target says the whole answer, and not only what is missing."""
        return self._repeats or self._text.repeated

    def feed(self, events: Sequence[Event]) -> bytes:
        """What is new of them, rendered. Raises Diverged."""
        new: list[Event] = []
        for item in events:
            if isinstance(item, Delta):
                self._delta(item, new)
            elif isinstance(item, Finished):
                self._finish(item, new)
            elif isinstance(item, Usage):
                new.append(self._used(item))
        return self._renderer.feed(new) if new else b""

    def end(self) -> bytes:
        if not self._counted:
            # The target has not said; the client may want to know the estimate.
            take_usage(self._told, self._told_usage(self._tally))
            self._told.source = "estimated"
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
        reasoning, signature, data = self._think(item)
        text = self._say(item.text) if item.text else ""
        refusal = self._refusal.feed(item.refusal) if item.refusal else ""
        if (text or refusal) and self._unmade:
            raise _diverged()  # what the client has seen after its text was a call
        if item.tool_calls and (held := self._rest()):
            text = held + text
        calls = [piece for each in item.tool_calls if (piece := self._call(each)) is not None]
        if text or reasoning or refusal or calls or signature or data:
            new.append(
                Delta(
                    text=text,
                    reasoning=reasoning,
                    refusal=refusal,
                    tool_calls=calls,
                    reasoning_signature=signature,
                    reasoning_data=data,
                )
            )

    def _think(self, item: Delta) -> tuple[str, str, str]:
        """What is new of the reasoning: text, signature, and what only its maker can read."""
        if not self._repeats:
            return "", "", ""  # what another model thinks before it goes on is no part of this answer
        reasoning = self._reasoning.feed(item.reasoning) if item.reasoning else ""
        if reasoning and not self._text.over:
            reasoning = ""  # it thinks longer before the same text, which the client has
        self._own |= bool(reasoning)
        self._foreign |= len(reasoning) < len(item.reasoning)
        signature = data = ""
        if item.reasoning_signature:
            # It vouches for the whole block, as its maker thought it. Where some of that is another's, the maker would
            # refuse the conversation when it comes back; without the signature it is only a text.
            if self._own and not self._foreign and self._caught_up:
                signature = item.reasoning_signature
            self._foreign, self._own = False, not self._sent.sealed
        if item.reasoning_data and not self._sent.sealed and self._caught_up:
            data = item.reasoning_data
        return reasoning, signature, data

    @property
    def _caught_up(self) -> bool:
        """All that the client has has been repeated, so that what comes now is new."""
        return self._reasoning.over and self._text.over and not self._unmade

    def _say(self, text: str) -> str:
        """What is new of a text."""
        text = self._text.feed(text)
        return self._without_space(text) if self._space and text else text

    def _without_space(self, text: str) -> str:
        known, most = 0, min(len(text), len(self._space))
        while known < most and text[known] == self._space[known]:
            known += 1
        self._space = self._space[known:] if known == len(text) else ""
        return text[known:]

    def _rest(self, *, cut: bool = False) -> str:
        """What was held of the text when no more of it comes."""
        text = self._text.rest(cut=cut)
        return self._without_space(text) if self._space and text else text

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
        return ToolCallDelta(index=piece.index, arguments=arguments, custom=piece.custom) if arguments else None

    def _finish(self, item: Finished, new: list[Event]) -> None:
        self._tally.finish_reasons[item.index] = item.reason
        if rest := self._rest(cut=item.reason == "length"):
            new.append(Delta(text=rest))
        if self._unmade:
            raise _diverged()
        if self._repeats:
            for cut in (self._reasoning, self._refusal, *self._calls.values()):
                cut.rest()
        if not self._sent.finished:
            new.append(item)

    def _used(self, item: Usage) -> Usage:
        """What the attempt has used, into its tally; gives what the client is told."""
        take_usage(self._tally, item)
        self._counted = True
        return item if self._repeats else self._told_usage(item)

    def _told_usage(self, used: Usage | Tally) -> Usage:
        """The caller's prompt and the whole answer, each once, whoever has said which part of it."""
        spent = self._spent
        prompt = spent.prompt_tokens or max(0, used.prompt_tokens - spent.told_tokens)
        completion, reasoning = used.completion_tokens, used.reasoning_tokens
        if not self.repeats:
            # What it thought before it went on was not sent.
            completion = spent.completion_tokens + max(0, completion - reasoning)
            reasoning = spent.reasoning_tokens
        cached = min(used.cached_tokens, prompt)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            cached_tokens=cached,
            queue_s=used.queue_s or 0.0,
            reasoning_tokens=min(reasoning, completion),
            cache_write_tokens=min(used.cache_write_tokens, prompt - cached),
        )
