"""How hard a prompt is, from 0 to 100, and why: so that easy ones can go to a small model. Pure.

The score is a sum of parts with names, each with an upper bound: anybody can see where it comes from, and say what to
change. Nothing is asked of a model for it. A prompt below EASY hardly needs a big one; one above HARD does.

It takes time in proportion to the number of messages and to the beginnings and ends of the last question's texts.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from appliance.dialects.chat import (
    AssistantMessage,
    ChatRequest,
    JsonSchemaFormat,
    TextPart,
    ToolMessage,
    UserMessage,
)
from appliance.dialects.wire import encode
from appliance.routing import complexity_words as words

EASY = 30
HARD = 60
MOST = 100
EDGE = 3072
"""Characters at the beginning and at the end of a question that are read: what is asked is there, and not in the middle
of what it is asked about."""


class Complexity(msgspec.Struct, frozen=True):
    score: int
    parts: tuple[tuple[str, int], ...]
    """(name, points), the most first, those without points left out. The score is their sum, but no more than 100."""


MOST_OF: dict[str, int] = {
    "task": 64,
    "limits": 26,
    "code": 22,
    "maths": 22,
    "length": 18,
    "steps": 6,
    "questions": 16,
    "structure": 6,
    "context": 8,
    "turns": 6,
    "tools": 10,
    "schema": 8,
    "media": 8,
    "effort": 20,
}
"""The most points that each part may have."""

_SCALES = {"task": 13.0, "limits": 9.0, "code": 9.0, "maths": 8.0}
"""What the tables of words weigh when a part has two thirds of its points: each further word says less."""
_EFFORTS = {"medium": 5, "high": 12, "xhigh": 16, "max": 20}
_FENCE = re.compile(r"```|~~~")
_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"[0-9]+(?:[.,][0-9]+)*")
_ITEM = re.compile(r"^\s*(?:[-*•]|[0-9]{1,3}[.)])\s", re.MULTILINE)
_SIGNS = re.compile(r"[=^∑∏∫√≤≥≠∈∀∃∂∇±×÷]|\\[a-z]+")
_CODE = re.compile(r"[{}();\[\]]|=>|->|::|==|&&")
_QUESTION = re.compile(r"[?？؟]")
_FIRST_WIDE = "⺀"
"""From here on a character is a word or half of one."""


def assess(request: ChatRequest) -> Complexity:
    """How hard the last question of a chat is, with what surrounds it."""
    question, files = _question(request)
    points = _of_text(question)
    before = sum([_size(message.content) for message in request.messages]) - len(question)
    tools = len(request.tools or ())
    answers = sum([isinstance(message, AssistantMessage | ToolMessage) for message in request.messages])
    form = request.response_format
    effort = request.reasoning_effort or (request.reasoning or {}).get("effort")
    points["context"] = _logarithm(before, 2000, 2)
    points["turns"] = _logarithm(answers, 1, 2)
    points["tools"] = 4 + tools // 2 if tools else 0
    points["schema"] = 3 + len(encode(form)) // 400 if isinstance(form, JsonSchemaFormat) else 0
    points["media"] = 5 + files if files else 0
    points["effort"] = _EFFORTS.get(effort, 0) if isinstance(effort, str) else 0
    return _summed(points)


def assess_text(text: str) -> Complexity:
    """How hard a prompt is by its text alone."""
    return _summed(_of_text(text))


def _summed(points: Mapping[str, int]) -> Complexity:
    parts = [(name, min(most, max(0, points.get(name, 0)))) for name, most in MOST_OF.items()]
    parts = sorted([(name, each) for name, each in parts if each], key=lambda part: -part[1])
    return Complexity(min(MOST, sum([each for _, each in parts])), tuple(parts))


def _of_text(text: str) -> dict[str, int]:
    size = len(text)
    if size > 2 * EDGE:
        text = f"{text[:EDGE]}\n{text[-EDGE:]}"
    prose, code = _apart(text)
    plain = _plain(prose)
    found = _WORD.findall(plain)
    points = _weigh(found)
    if not plain.isascii():
        for name, pieces in _PIECES.items():
            points[name] += sum([weight for piece, weight in pieces if piece in plain])
    wide = 0 if plain.isascii() else sum([character >= _FIRST_WIDE for character in plain])
    length = len(found) + wide // 2
    points["task"] += 5 * sum([phrase in plain for phrase in _PHRASES])
    points["maths"] += min(8, len(_SIGNS.findall(prose)))
    points["code"] += min(8, len(_CODE.findall(prose)) // 6)
    if code.strip():
        points["code"] += 6 + min(6, code.count("\n"))
    points["limits"] += min(8, len(_NUMBER.findall(prose)))
    points["length"] = _logarithm(length * max(1, size // (2 * EDGE)), 12, 5)
    points["steps"] = 6 if any(phrase in plain for phrase in _STEPS) else 0
    asked = sum([word in _ASKING for word in found]) + sum([prose.count(piece) for piece in words.ASKING_PIECES])
    points["questions"] = 4 * (max(asked, len(_QUESTION.findall(prose))) - 1)
    points["structure"] = len(_ITEM.findall(prose))
    for name, scale in _SCALES.items():
        points[name] = int(MOST_OF[name] * (1.0 - math.exp(-points[name] / scale)))
    return points


def _question(request: ChatRequest) -> tuple[str, int]:
    """The text of the last message of the user, and how many files the chat has."""
    files = 0
    question = ""
    for message in request.messages:
        if isinstance(message, UserMessage):
            if isinstance(message.content, str):
                question = message.content
                continue
            texts = [part.text for part in message.content if isinstance(part, TextPart)]
            files += len(message.content) - len(texts)
            question = "\n".join(texts)
    return question, files


def _size(content: Any) -> int:
    """Characters of a message's texts."""
    if isinstance(content, str):
        return len(content)
    return sum([len(getattr(part, "text", None) or "") for part in content or ()])


def _apart(text: str) -> tuple[str, str]:
    """Prose and fenced code. What is in a fence is asked about; it does not ask."""
    pieces = _FENCE.split(text)
    return "\n".join(pieces[::2]), "\n".join(pieces[1::2])


def _plain(text: str) -> str:
    """Lower case without accents, so that both ways of writing them are one."""
    text = text.casefold()
    if text.isascii():
        return text
    return "".join([c for c in unicodedata.normalize("NFD", text) if not "\u0300" <= c <= "\u036f"])


def _logarithm(count: int, first: int, points: int) -> int:
    """`points` for each doubling beyond `first`."""
    return int(points * math.log2(count / first)) if count > first else 0


# --- tables of words, made once ---------------------------------------------------------------------

_Stems = dict[str, list[tuple[str, int, int]]]


def _stems(tables: Mapping[str, tuple[Mapping[int, str], int]]) -> _Stems:
    """Beginnings of words → for each table that has them: its name, the weight, how often it counts."""
    stems: _Stems = {}
    for name, (table, times) in tables.items():
        heaviest: dict[str, int] = {}
        for weight, text in table.items():
            for stem in _plain(text).split():
                heaviest[stem] = max(weight, heaviest.get(stem, 0))
        for stem, weight in heaviest.items():
            stems.setdefault(stem, []).append((name, weight, times))
    return stems


def _weigh(found: list[str]) -> dict[str, int]:
    """The weights of the words that begin like an entry of a table, the longest that does; each so many times at
    most."""
    points = dict.fromkeys(_TABLES, 0)
    met: dict[tuple[str, str], int] = {}
    for word, count in Counter(found).items():
        done: tuple[str, ...] = ()
        for length in range(min(len(word), _LONGEST), 2, -1):
            stem = word[:length]
            for name, weight, times in _STEMS.get(stem, ()):
                if name in done:
                    continue
                done += (name,)
                before = met.get((name, stem), 0)
                points[name] += weight * (min(before + count, times) - min(before, times))
                met[name, stem] = before + count
    return points


_TABLES: dict[str, tuple[Mapping[int, str], int]] = {
    "task": (words.TASKS, 1),
    "maths": (words.MATHS, 1),
    "code": (words.CODE, 1),
    "limits": (words.LIMITS, 3),
}
_STEMS = _stems(_TABLES)
_LONGEST = max(map(len, _STEMS))
_PIECES: dict[str, list[tuple[str, int]]] = {
    name: [(_plain(piece), weight) for weight, pieces in table.items() for piece in pieces]
    for name, table in words.PIECES.items()
}
_PHRASES = tuple([_plain(phrase) for phrase in words.PHRASES])
_ASKING = frozenset(_plain(words.ASKING).split())
_STEPS = tuple([_plain(phrase) for phrase in words.STEPS])
