"""Texts as the guard models read them: word pieces, how each word is written, and windows over long texts.

The models were trained on exactly what this module returns (`guard_models/pipeline` imports it), so a change here asks
for a new training, unless it touches only what the vocabulary does not know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, pre_tokenizers

from appliance.errors import GuardModelError

# How a word is written. The vocabulary of the encoder is lower case; names live by their capitals.
LOWER, TITLE, UPPER, INITIAL, MIXED, ALNUM, DIGITS, FIRST = range(8)
"""Lower case or no letters; Capital; ALL CAPITALS; one capital; mIxed; letters with digits; digits; Capital that a
sentence begins with."""
SHAPES = FIRST + 1
"""How many ways of writing a word there are."""

_SENTENCE_ENDS = frozenset(".!?:;\n\r\"'“”«»„([{-–—•*|>#")


@dataclass(frozen=True, slots=True)
class Pieces:
    """The word pieces of one text, without special tokens; all lists are of one length, `offsets` in characters."""

    ids: list[int]
    shapes: list[int]
    offsets: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a text that the model reads at once: pieces `start` to `end` (exclusive)."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Model inputs, each [rows, tokens] int64; `mask` is 0 where a row is padded."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    shapes: NDArray[np.int64]


class PieceTokenizer:
    """Cuts texts into word pieces. One per process; safe to use from several threads."""

    def __init__(self, path: Path, data: bytes | None = None) -> None:
        """`path` is a tokenizer.json, `data` its bytes where they are at hand, so that nothing is read once more;
        raises GuardModelError if it is none or lacks BERT's special tokens."""
        try:
            self._tokenizer = Tokenizer.from_file(str(path)) if data is None else Tokenizer.from_buffer(data)
        except Exception as failure:
            raise GuardModelError(f"{path}: not a tokenizer.json: {failure}") from failure
        # The file may fix both; long texts are windowed here, never cut.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        apart = pre_tokenizers.Split(Regex(_read_whole(self._tokenizer.get_vocab(with_added_tokens=False))), "isolated")
        inner = self._tokenizer.pre_tokenizer
        self._tokenizer.pre_tokenizer = apart if inner is None else pre_tokenizers.Sequence([apart, inner])
        self.begin, self.end, self.pad = (self._special(path, name) for name in ("[CLS]", "[SEP]", "[PAD]"))

    def highest(self) -> int:
        """The highest number that a piece can have."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    def _special(self, path: Path, name: str) -> int:
        number = self._tokenizer.token_to_id(name)
        if number is None:
            raise GuardModelError(f"{path}: the vocabulary has no {name}")
        return int(number)

    def pieces(self, text: str) -> Pieces:
        """The pieces of any text, also an empty one; lone surrogates are read as U+FFFD."""
        text = text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() and _has_surrogates(text) else text
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return Pieces(encoding.ids, shapes_of(text, encoding.offsets), encoding.offsets)


LONGEST_WORD = 100
"""Letters of a word that are cut into pieces at once; WordPiece's time grows with their square, or faster."""


def _read_whole(vocabulary: Mapping[str, int]) -> str:
    """A pattern of what is cut into pieces by itself: a run of letters that the vocabulary knows, or one character that
    it does not know (a smiley, a letter of another script). WordPiece calls a whole word unknown for one such."""
    known = [one for one in vocabulary if len(one) == 1 and f"##{one}" in vocabulary and not one.isspace()]
    letters = "".join(re.escape(one) for one in sorted(known)) or "a-z"
    return rf"[{letters}]{{1,{LONGEST_WORD}}}|[^{letters}\s\p{{P}}]"


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def shape_of(word: str, *, first: bool) -> int:
    """How `word` is written; `first` tells that a sentence may begin with it."""
    letters = [letter for letter in word if letter.isalpha()]
    if not letters:
        return DIGITS if any(letter.isdigit() for letter in word) else LOWER
    if len(letters) < len(word) and any(letter.isdigit() for letter in word):
        return ALNUM
    upper = sum(letter.isupper() for letter in letters)
    if not upper:
        return LOWER
    if upper == len(letters):
        return UPPER if upper > 1 else INITIAL
    if upper == 1 and letters[0].isupper():
        return FIRST if first else TITLE
    return MIXED


def shapes_of(text: str, offsets: list[tuple[int, int]]) -> list[int]:
    """One shape a piece: pieces that touch without a space and are letters or digits on both sides are one word."""
    shapes: list[int] = []
    begin = 0
    total = len(offsets)
    while begin < total:
        end = begin + 1
        start, stop = offsets[begin]
        while end < total and offsets[end][0] == stop and text[stop - 1 : stop].isalnum() and text[stop].isalnum():
            stop = offsets[end][1]
            end += 1
        word = text[start:stop]
        if word.islower() and word.isalpha():
            shape = LOWER
        else:
            before = text[max(0, start - 3) : start].rstrip(" \t")
            shape = shape_of(word, first=start == 0 or not before or before[-1] in _SENTENCE_ENDS)
        shapes.extend([shape] * (end - begin))
        begin = end
    return shapes


def windows(pieces: int, *, size: int, overlap: int) -> list[Window]:
    """Windows of at most `size` pieces that cover a text of `pieces`, neighbours sharing at least `overlap`.

    An empty text has one empty window. The last window is moved back so that it is as long as the others: a verdict on
    a few leftover words would know nothing of what they belong to.
    """
    if not 0 <= overlap < size:
        raise ValueError(f"overlap {overlap} does not fit into windows of {size}")
    if pieces <= size:
        return [Window(0, pieces)]
    starts = [*range(0, pieces - size, size - overlap), pieces - size]
    return [Window(start, start + size) for start in starts]


def batch_of(tokenizer: PieceTokenizer, parts: list[tuple[Pieces, Window]]) -> Batch:
    """Model inputs for some windows, each between the two special tokens, padded to the longest."""
    longest = max(part.end - part.start for _, part in parts) + 2
    ids = np.full((len(parts), longest), tokenizer.pad, np.int64)
    mask = np.zeros((len(parts), longest), np.int64)
    shapes = np.zeros((len(parts), longest), np.int64)
    for row, (pieces, part) in enumerate(parts):
        count = part.end - part.start
        ids[row, 0], ids[row, count + 1] = tokenizer.begin, tokenizer.end
        ids[row, 1 : count + 1] = pieces.ids[part.start : part.end]
        mask[row, : count + 2] = 1
        shapes[row, 1 : count + 1] = pieces.shapes[part.start : part.end]
    return Batch(ids, mask, shapes)
