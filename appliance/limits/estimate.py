"""How many tokens a prompt has at most, where the target's own tokenizer is not at hand. Pure.

The bound that never errs is one token a byte: every token of a byte-level BPE, WordPiece or byte-fallback
SentencePiece vocabulary stands for at least one byte of UTF-8, but for the space that some put before a text.

`likely_most_tokens` is a third lower for prose and code, and holds for all but texts that are made to defeat it. It
counts two thirds of a token for each of the lower-case letters that form pairs in every vocabulary, and one for each
other byte: a vocabulary that has most pairs of these letters leaves no two of them apart, so that at least every
third is part of a longer token. Real prose has a quarter of a token a byte. A text of rare pairs only (gdgdgd) has
more than it says; what a target reports beyond a reservation is charged in full, and makes later requests wait.
"""

from __future__ import annotations

from collections.abc import Iterable

_OTHER = bytes(set(range(256)) - set(b"abcdefghilmnoprstuy"))
_A_TEXT = 2
"""For the space before a text, and a last letter that stands alone."""
A_MESSAGE = 8
"""What chat templates put around a message: role, markers, line ends."""
A_PROMPT = 16
"""What they put around all of it."""


def likely_most_tokens(texts: Iterable[str], *, messages: int = 0) -> int:
    """The bound for `texts` in `messages` messages (0: no chat); runs at the speed of memory."""
    total = A_PROMPT + A_MESSAGE * messages if messages else 0
    for text in texts:
        # Half a surrogate pair is no character; what a target makes of it has three bytes.
        data = text.encode("utf-8", "surrogatepass")
        letters = len(data.translate(None, _OTHER))
        total += len(data) - letters // 3 + _A_TEXT
    return total
