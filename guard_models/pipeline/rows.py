"""What a model learns from and is judged by: one text with everything that is known about it."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

TOXICITY = ("toxic", "severe", "insult", "threat", "identity_attack", "sexual", "self_harm", "profanity")
ENTITIES = (
    "PERSON",
    "ADDRESS",
    "LOCATION",
    "ORGANISATION",
    "DATE_OF_BIRTH",
    "MEDICAL_ID",
    "ACCOUNT",
    "ID_NUMBER",
    "USERNAME",
    "PASSWORD",
    "PHONE",
    "PLATE",
)
TAGS = ("O", *(f"{place}-{name}" for name in ENTITIES for place in "BI"))
"""The classes of the token head, in the order of its outputs."""

Span = tuple[int, int, str]
"""Begin and end (exclusive) in characters, and a type."""


@dataclass(slots=True)
class Row:
    """A text and what is known about it. None means unknown: that head learns nothing from this row."""

    text: str
    set: str
    """The set that it comes from."""
    slice: str = ""
    """What reports group by: an attack family, an identity, a kind of document."""
    lang: str = "en"
    injection: float | None = None
    """1 for an attack, 0 for none; between them where the source is unsure."""
    planted: list[tuple[int, int]] | None = None
    """Where the attack is, if it is known to be just there; an empty list says that it is nowhere."""
    toxicity: dict[str, float] | None = None
    """Labels of TOXICITY that are known, each 0 to 1."""
    entities: list[Span] | None = None
    """Personal data, with types of ENTITIES."""
    ignored: list[tuple[int, int]] = field(default_factory=list)
    """Where `entities` says nothing."""

    def teaches(self, head: str) -> bool:
        """Whether a head (injection, toxicity, pii) learns from this row."""
        known = {"injection": self.injection, "toxicity": self.toxicity, "pii": self.entities}
        return known[head] is not None


class BadBlock(ValueError):
    """A file of text blocks that cannot be read; says which line and why."""


def blocks(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """(label, family, language, text) of a file of blocks: a line `=== label | family | language`, then the text."""
    header: tuple[str, str, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.startswith("=== "):
            lines.append(line)
            continue
        if header and (text := "\n".join(lines).strip()):
            yield *header, text
        parts = [part.strip() for part in line[4:].split("|")]
        if len(parts) != 3 or not all(parts):
            raise BadBlock(f"{path.name}:{number}: expected `=== label | family | language`, found {line[:80]!r}")
        header, lines = (parts[0], parts[1], parts[2]), []
    if header and (text := "\n".join(lines).strip()):
        yield *header, text


_MARKED = re.compile(r"\[([^\[\]]+)\]\(([A-Z_]+)\)")


def unmarked(text: str, types: Mapping[str, str]) -> tuple[str, list[Span]]:
    """A text with `[words](TYPE)` without its marks, and where they were; raises KeyError for a type not in `types`."""
    plain: list[str] = []
    spans: list[Span] = []
    at = last = 0
    for match in _MARKED.finditer(text):
        plain.append(text[last : match.start()])
        at += match.start() - last
        spans.append((at, at + len(match[1]), types[match[2]]))
        plain.append(match[1])
        at += len(match[1])
        last = match.end()
    plain.append(text[last:])
    return "".join(plain), spans


def without_brackets(text: str) -> tuple[str, list[tuple[int, int]]]:
    """A text with ⟦planted⟧ parts without its brackets, and where they were."""
    plain: list[str] = []
    spans: list[tuple[int, int]] = []
    at = 0
    begin: int | None = None
    for piece in re.split(r"([⟦⟧])", text):
        if piece == "⟦":
            begin = at
        elif piece == "⟧":
            if begin is not None:
                spans.append((begin, at))
            begin = None
        else:
            plain.append(piece)
            at += len(piece)
    return "".join(plain), spans


class _Kept(dict[int, str]):
    """Characters that make a text what it is as they are, all others as `instead`; decided once for each, when
    `str.translate` asks for it."""

    def __init__(self, instead: str) -> None:
        self._instead = instead

    def __missing__(self, number: int) -> str:
        letter = chr(number)
        if "\u0300" <= letter <= "\u036f":
            self[number] = ""
        else:
            self[number] = letter if unicodedata.category(letter)[0] in "LNMS" else self._instead
        return self[number]


_TOGETHER, _APART = _Kept(""), _Kept(" ")


def _folded(text: str, kept: _Kept = _TOGETHER) -> str:
    """Letters, numbers, vowel signs and symbols of `text`, without case and accents: "crème" is "creme", but a smiley
    stays, and so does a sign that makes another word of an Indian one."""
    return unicodedata.normalize("NFKD", text).casefold().translate(kept)


def same_text(text: str) -> bytes:
    """A key that is equal for texts that differ only in case, accents, spaces and punctuation."""
    return hashlib.blake2b(_folded(text).encode("utf-8", "replace"), digest_size=12).digest()


def _runs(text: str, size: int = 5) -> set[int]:
    """Runs of five words, of which equal ones have equal numbers."""
    words = _folded(text, _APART).split()
    if len(words) <= size:
        return {hash(tuple(words))}
    return set(map(hash, zip(*(words[at:] for at in range(size)), strict=False)))


def _grams(folded: str, size: int = 5) -> set[int]:
    """Runs of five letters."""
    return {hash(folded[at : at + size]) for at in range(max(1, len(folded) - size + 1))}


SHORT = 200
"""Letters up to which a text is compared by runs of letters too: one other word leaves it hardly a run of words."""


class Seen:
    """Texts that were met, to tell equal and nearly equal ones."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._keys: set[bytes] = set()
        # By run, the numbers of the texts that have it; of each text, how many runs of words and which of letters.
        self._of_words: dict[int, list[int]] = {}
        self._of_letters: dict[int, list[int]] = {}
        self._words: list[int] = []
        self._letters: list[set[int]] = []
        for row in rows:
            self.add(row.text)

    def add(self, text: str) -> None:
        self._keys.add(same_text(text))
        for run in (runs := _runs(text)):
            self._of_words.setdefault(run, []).append(len(self._words))
        self._words.append(len(runs))
        if len(folded := _folded(text)) <= SHORT:
            for gram in (grams := _grams(folded)):
                self._of_letters.setdefault(gram, []).append(len(self._letters))
            self._letters.append(grams)

    def has(self, text: str, *, words: float = 0.6, letters: float = 0.7) -> bool:
        """Whether `text` is there; or one with which it shares most runs of words (`words` of those of the shorter one,
        so that a text in a longer one is found); or, if both are short, one with which it shares most runs of letters
        (`letters` of those of the longer one)."""
        if same_text(text) in self._keys:
            return True
        runs = _runs(text)
        common: Counter[int] = Counter()
        for run in runs:
            common.update(self._of_words.get(run, ()))
        if any(count >= words * min(len(runs), self._words[number]) for number, count in common.items()):
            return True
        folded = _folded(text)
        return len(folded) <= SHORT and self._shares_letters(_grams(folded), letters)

    def _shares_letters(self, grams: set[int], share: float) -> bool:
        # A text that shares so many of these has one of any few of them: the rarest ones have the fewest texts.
        rarest = sorted(grams, key=lambda gram: len(self._of_letters.get(gram, ())))
        few = rarest[: len(grams) - math.ceil(share * len(grams)) + 1]
        maybe = {number for gram in few for number in self._of_letters.get(gram, ())}
        return any(
            len(grams & self._letters[number]) >= share * max(len(grams), len(self._letters[number]))
            for number in maybe
        )
