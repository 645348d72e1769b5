"""From token bytes to text that may be shown: whole code points only, and never a stop string.

Sans-I/O. What comes out does not depend on how the bytes were cut into pieces.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from runtimes.engine import PositionLogprobs, TokenLogprob


def held_back(text: str, wanted: Sequence[str]) -> int:
    """Length in characters of the longest end of `text` that one of `wanted` could still grow out of."""
    longest = 0
    for word in wanted:
        for size in range(min(len(word) - 1, len(text)), longest, -1):
            if text.endswith(word[:size]):
                longest = size
                break
    return longest


class StopFilter:
    """Lets text through, but nothing of a stop string or after it.

    When two stop strings overlap, the one that is complete first counts, which is the only choice that
    no cutting of the input can change.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.released = 0
        """Characters given out so far."""
        self.stopped = False
        """A stop string was found: nothing more comes out."""

    def feed(self, text: str) -> tuple[str, bool]:
        """Return the text that may be shown now, and whether a stop string was found."""
        return self._advance(text, final=False)

    def flush(self) -> str:
        """Return what was held back: the answer ended without a stop string."""
        return self._advance("", final=True)[0]

    def _advance(self, text: str, *, final: bool) -> tuple[str, bool]:
        if self.stopped:
            return "", True
        if not self._stops:
            self.released += len(text)
            return text, False
        text = self._held + text
        cut = self._first_stop(text)
        if cut is not None:
            self.stopped = True
            out, self._held = text[:cut], ""
        else:
            keep = 0 if final else held_back(text, self._stops)
            out, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self.released += len(out)
        return out, self.stopped

    def _first_stop(self, text: str) -> int | None:
        found: tuple[int, int] | None = None
        for stop in self._stops:
            start = text.find(stop)
            if start >= 0 and (found is None or (start + len(stop), start) < found):
                found = (start + len(stop), start)
        return None if found is None else found[1]


class TextStream:
    """UTF-8 bytes in any pieces → text without stop strings. Bytes that are no UTF-8 become U+FFFD."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._filter = StopFilter(stops)

    @property
    def stopped(self) -> bool:
        return self._filter.stopped

    def feed(self, data: bytes) -> tuple[str, bool]:
        """Return the text that may be shown now, and whether a stop string was found."""
        return self._filter.feed(self._decoder.decode(data))

    def flush(self) -> str:
        """Return all that was held back: the answer ended without a stop string."""
        return self._filter.feed(self._decoder.decode(b"", final=True))[0] + self._filter.flush()


def token_logprob(piece: bytes, logprob: float) -> TokenLogprob:
    """A token as logprobs show it: its own text (U+FFFD where it is no whole character) and its bytes."""
    return TokenLogprob(token=piece.decode("utf-8", "replace"), logprob=logprob, bytes=list(piece))


class LogprobQueue:
    """Keeps each position's logprobs until the text of its token is shown, and drops those of a stop string.

    A token counts as shown when the character that it begins (or continues) has been released.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[int, PositionLogprobs]] = []

    def add(self, start: int, entry: PositionLogprobs) -> None:
        """`start`: how many characters had been decoded before the token."""
        self._waiting.append((start, entry))

    def take(self, released: int) -> list[PositionLogprobs]:
        """Entries of the tokens that begin before character `released`, in order."""
        count = 0
        while count < len(self._waiting) and self._waiting[count][0] < released:
            count += 1
        out = [entry for _, entry in self._waiting[:count]]
        del self._waiting[:count]
        return out

    def clear(self) -> None:
        """Forget what is waiting: it turned out to be no text."""
        self._waiting.clear()

    def take_all(self) -> list[PositionLogprobs]:
        """Everything left: for an answer that ended without a stop string."""
        out = [entry for _, entry in self._waiting]
        self._waiting.clear()
        return out
