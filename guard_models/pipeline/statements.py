"""Pairs of a document and an answer, for groundedness: written ones, and made ones.

Made pairs start from answers that a document supports: another number, another name, a negation, another document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from guard_models.pipeline.rows import BadBlock, blocks


@dataclass(frozen=True, slots=True)
class Statement:
    """An answer to a document, and whether the document supports it."""

    document: str
    answer: str
    supported: bool
    kind: str
    lang: str = "en"


def statements(path: Path) -> list[Statement]:
    """The pairs of a file of text blocks `doc`, `q`, `1` and `0`; raises BadBlock for an answer before any document."""
    found: list[Statement] = []
    document = ""
    for label, family, lang, text in blocks(path):
        if label == "doc":
            document = text
        elif label in ("0", "1"):
            if not document:
                raise BadBlock(f"{path.name}: an answer before any document: {text[:60]!r}")
            found.append(Statement(document, text, label == "1", family, lang))
        elif label != "q":
            raise BadBlock(f"{path.name}: unknown label {label!r}; known are doc, q, 1, 0")
    return found


_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][\w'-]+(?: [A-Z][\w'-]+)*")
_VERB = re.compile(r"\b(is|are|was|were|has|have|had|will|can|must|may|should|does|did)\b(?! not)")
_NOT = re.compile(r"\b(not|never|no longer) ")


def altered(answer: str, document: str, random: Random) -> str | None:
    """`answer` with one thing wrong, or None if nothing in it can be turned round."""
    ways: list[Callable[[], str]] = []
    if numbers := list(_NUMBER.finditer(answer)):
        one = random.choice(numbers)

        def other_number() -> str:
            theirs = [n for n in _NUMBER.findall(document) if n != one[0]]
            digits = re.sub(r"\D", "", one[0])
            new = (
                random.choice(theirs)
                if theirs and random.random() < 0.6
                else str(int(digits[:9]) + random.choice((-3, -1, 1, 2, 5, 10)))
            )
            return answer[: one.start()] + new.lstrip("-") + answer[one.end() :]

        ways += [other_number, other_number]
    if names := list(_NAME.finditer(answer)):
        name = random.choice(names)
        if others := [n for n in _NAME.findall(document) if n not in answer and name[0] not in n]:
            ways.append(lambda: answer[: name.start()] + random.choice(others) + answer[name.end() :])
    if removed := _NOT.search(answer):
        ways.append(lambda: answer[: removed.start()] + answer[removed.end() :])
    elif verbs := list(_VERB.finditer(answer)):
        verb = random.choice(verbs)
        ways.append(lambda: answer[: verb.end()] + " not" + answer[verb.end() :])
    return random.choice(ways)() if ways else None


def with_made(found: Sequence[Statement], random: Random) -> list[Statement]:
    """The written pairs `found`, and simple ones made of them: altered answers, sentences of the document, answers to
    other documents."""
    rows = list(found)
    for one in found:
        if not one.supported:
            continue
        if (wrong := altered(one.answer, one.document, random)) and wrong != one.answer and random.random() < 0.6:
            rows.append(Statement(one.document, wrong, False, "altered", one.lang))
        if random.random() < 0.12:
            rows.append(Statement(random.choice(found).document, one.answer, False, "other_document", one.lang))
        if random.random() < 0.25:
            sentences = [s for s in re.split(r"(?<=[.!?])\s+", one.document) if 30 < len(s) < 300]
            if sentences:
                copied = random.choice(sentences)
                rows.append(Statement(one.document, copied, True, "copied", one.lang))
                if wrong := altered(copied, one.document, random):
                    rows.append(Statement(one.document, wrong, False, "altered", one.lang))
    random.shuffle(rows)
    # An answer to another document that happens to be the same one says nothing.
    return [
        row
        for row in rows
        if row.kind != "other_document" or all(row.document != s.document or row.answer != s.answer for s in found)
    ]
