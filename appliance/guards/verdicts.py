"""From logits to verdicts: probabilities, spans, and what a whole text is said to be."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from appliance.guards.features import Pieces, Window
from appliance.guards.manifest import Detector
from appliance.guards.views import Level

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Entity:
    """Personal data: characters `start` to `end` (exclusive) of the text, its type, and how sure its finder is."""

    start: int
    end: int
    type: str
    score: float
    source: str = "model"


@dataclass(slots=True)
class Verdict:
    """What is said of one text."""

    scores: dict[str, float] = field(default_factory=dict)
    """The probability of each label of the text detectors, the highest of any window and reading."""
    entities: list[Entity] = field(default_factory=list)
    readings: dict[str, str] = field(default_factory=dict)
    """For each detector with readings the kind of the one in which its highest score was found."""


def logit(chance: float) -> float:
    """The logit of a probability, finite also for 0 and 1."""
    chance = min(max(chance, 1e-9), 1 - 1e-9)
    return float(np.log(chance / (1 - chance)))


def probability(logit: float, detector: Detector, label: str) -> float:
    """The calibrated probability of a logit."""
    scale = detector.scales.get(label)
    value = logit if scale is None else scale.slope * logit + scale.offset
    return float(1.0 / (1.0 + np.exp(-np.clip(value, -60.0, 60.0))))


def stitched(parts: Sequence[tuple[Window, Array]], pieces: int) -> Array:
    """Logits [pieces, tags] of a whole text from those of its windows: each piece as seen from the window in whose
    inside it lies deepest."""
    if len(parts) == 1:
        return parts[0][1]
    tags = parts[0][1].shape[1]
    whole = np.zeros((pieces, tags), np.float32)
    depth = np.full(pieces, -1)
    for window, logits in parts:
        size = window.end - window.start
        inside = np.minimum(np.arange(size), np.arange(size)[::-1])
        if window.start == 0:
            inside = np.arange(size)[::-1]
        elif window.end == pieces:
            inside = np.arange(size)
        better = inside > depth[window.start : window.end]
        whole[window.start : window.end][better] = logits[better]
        depth[window.start : window.end][better] = inside[better]
    return whole


@cache
def _allowed(labels: tuple[str, ...]) -> NDArray[np.bool_]:
    """[from, to]: whether tag `to` may follow tag `from`; I-X follows B-X and I-X only."""
    size = len(labels)
    allowed = np.ones((size, size), bool)
    for to, name in enumerate(labels):
        if name.startswith("I-"):
            allowed[:, to] = [before[2:] == name[2:] and before != "O" for before in labels]
    return allowed


def best_path(logits: Array, labels: Sequence[str]) -> list[int]:
    """The most probable sequence of tags that is a sequence of spans (Viterbi); [pieces, tags] logits."""
    if not len(logits):
        return []
    allowed = _allowed(tuple(labels))
    likeliest = logits.argmax(axis=1)
    if not labels[likeliest[0]].startswith("I-") and allowed[likeliest[:-1], likeliest[1:]].all():
        # The best tag of every piece: no sequence can be better.
        return [int(tag) for tag in likeliest]
    penalty = np.where(allowed, 0.0, -1e4)
    start = np.array([-1e4 if name.startswith("I-") else 0.0 for name in labels])
    scores = logits[0] + start
    back = np.zeros(logits.shape, np.int32)
    for at in range(1, len(logits)):
        ways = scores[:, None] + penalty
        back[at] = ways.argmax(0)
        scores = ways.max(0) + logits[at]
    path = [int(scores.argmax())]
    for at in range(len(logits) - 1, 0, -1):
        path.append(int(back[at][path[-1]]))
    return path[::-1]


def entities_of(text: str, pieces: Pieces, logits: Array, detector: Detector) -> list[Entity]:
    """The spans of a token classifier that are at least `detector.threshold` sure; whole words, trimmed of spaces."""
    path = best_path(logits, detector.labels)
    shifted = logits - logits.max(axis=1, keepdims=True)
    chances = np.exp(shifted)
    chances /= chances.sum(axis=1, keepdims=True)
    found: list[Entity] = []
    at = 0
    while at < len(path):
        name = detector.labels[path[at]]
        if name == "O":
            at += 1
            continue
        kind, end = name[2:], at + 1
        while end < len(path) and detector.labels[path[end]] == f"I-{kind}":
            end += 1
        columns = [column for column, label in enumerate(detector.labels) if label[2:] == kind and label != "O"]
        score = float(chances[at:end, columns].sum(axis=1).mean())
        if f"B-{kind}" in detector.scales:
            score = probability(logit(score), detector, f"B-{kind}")
        if score >= detector.threshold:
            start, stop = pieces.offsets[at][0], pieces.offsets[end - 1][1]
            last = found[-1] if found else None
            # Where the span before was widened over this one, no letter is looked at twice.
            start, stop = _whole_words(text, start, stop, last.end if last else 0)
            if last and last.end > start:
                found.pop()
                start, stop = min(start, last.start), max(stop, last.end)
                kind, score = (kind, score) if score > last.score else (last.type, last.score)
            if stop > start:
                found.append(Entity(start, stop, kind, round(score, 4)))
        at = end
    return found


# Scripts that put no spaces between words: Thai, Lao, Tibetan, Burmese, Khmer and Tai letters, kana, Han characters.
_UNSPACED = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uaa60-\uaadf\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U0003ffff]"
)


def _in_word(letter: str) -> bool:
    """Whether `letter` belongs to a word that ends at a space or a mark, not just anywhere in a sentence."""
    return (letter.isalnum() or unicodedata.category(letter)[0] == "M") and not _UNSPACED.match(letter)


def _whole_words(text: str, start: int, stop: int, done: int) -> tuple[int, int]:
    """A span widened to the words that it cuts, trimmed of spaces. `done`: up to there words have been widened, so that
    a span which begins before it is one with the span there and is not widened to the left."""
    while done < start < len(text) and _in_word(text[start - 1]) and _in_word(text[start]):
        start -= 1
    stop = max(stop, done) if start < done else stop
    while 0 < stop < len(text) and stop != done and _in_word(text[stop - 1]) and _in_word(text[stop]):
        stop += 1
    while start < stop and text[start].isspace():
        start += 1
    while stop > start and text[stop - 1].isspace():
        stop -= 1
    return start, stop


def placed(entity: Entity, level: Level) -> Entity:
    """An entity of a level text at its place in the raw one."""
    start, end = level.raw(entity.start, entity.end)
    return replace(entity, start=start, end=end)


def apart(entities: Iterable[Entity]) -> list[Entity]:
    """Those of `entities` that overlap none before them, by their place in the text."""
    kept: list[Entity] = []
    taken = bytearray()
    for one in entities:
        if len(taken) < one.end:
            taken.extend(bytes(max(one.end, 2 * len(taken)) - len(taken)))
        if taken.find(1, one.start, one.end) < 0:
            taken[one.start : one.end] = b"\1" * (one.end - one.start)
            kept.append(one)
    return sorted(kept, key=lambda one: one.start)


def merged(*groups: Iterable[Entity]) -> list[Entity]:
    """Entities of several finders without overlaps: those of earlier groups, longer ones and surer ones come first."""
    return apart(
        one for group in groups for one in sorted(group, key=lambda entity: (entity.start - entity.end, -entity.score))
    )
