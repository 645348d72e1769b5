"""What a model learns from and is judged by: one text with everything that is known about it."""

from __future__ import annotations

import hashlib
import re
import unicodedata
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
    weight: float = 1.0

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


def same_text(text: str) -> bytes:
    """A key that is equal for texts that differ only in case, accents, spaces and punctuation."""
    folded = unicodedata.normalize("NFKD", text).casefold()
    return hashlib.blake2b(re.sub(r"[\W_]+", "", folded).encode("utf-8", "replace"), digest_size=12).digest()


def _shingles(text: str, size: int = 5) -> set[int]:
    words = re.findall(r"\w+", text.casefold())
    if len(words) <= size:
        return {hash(tuple(words))}
    return set(map(hash, zip(*(words[at:] for at in range(size)), strict=False)))


class Seen:
    """Texts that were met, to tell equal and nearly equal ones (most runs of five words shared)."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._keys: set[bytes] = set()
        self._index: dict[int, list[int]] = {}
        self._sizes: list[int] = []
        for row in rows:
            self.add(row.text)

    def add(self, text: str) -> None:
        self._keys.add(same_text(text))
        parts = _shingles(text)
        for part in parts:
            self._index.setdefault(part, []).append(len(self._sizes))
        self._sizes.append(len(parts))

    def has(self, text: str, *, share: float = 0.6) -> bool:
        """Whether `text` is there, or one of which it has at least `share` of the runs of five words, or the other way
        round: a text in a longer one is found as well."""
        if same_text(text) in self._keys:
            return True
        parts = _shingles(text)
        common: dict[int, int] = {}
        for part in parts:
            for number in self._index.get(part, ()):
                common[number] = common.get(number, 0) + 1
        return any(count >= share * min(len(parts), self._sizes[number]) for number, count in common.items())
