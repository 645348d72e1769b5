"""From logits to verdicts: probabilities, spans, and what a whole text is said to be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from appliance.guards.features import Pieces, Window
from appliance.guards.manifest import Detector

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
    reading: str = "clean"
    """The reading of the text in which the highest score of a detector with readings was found."""


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


def _allowed(labels: Sequence[str]) -> NDArray[np.bool_]:
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
    penalty = np.where(_allowed(labels), 0.0, -1e4)
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
        start, stop = _whole_words(text, pieces.offsets[at][0], pieces.offsets[end - 1][1])
        if score >= detector.threshold and stop > start:
            if found and found[-1].end > start:
                last = found.pop()
                start, stop = min(start, last.start), max(stop, last.end)
                kind, score = (kind, score) if score > last.score else (last.type, last.score)
            found.append(Entity(start, stop, kind, round(score, 4)))
        at = end
    return found


def _whole_words(text: str, start: int, stop: int) -> tuple[int, int]:
    """A span widened to the words that it cuts."""
    while start > 0 and text[start - 1].isalnum() and text[start].isalnum():
        start -= 1
    while stop < len(text) and text[stop - 1].isalnum() and text[stop].isalnum():
        stop += 1
    while start < stop and text[start].isspace():
        start += 1
    while stop > start and text[stop - 1].isspace():
        stop -= 1
    return start, stop


def merged(*groups: Iterable[Entity]) -> list[Entity]:
    """Entities of several finders without overlaps: those of earlier groups, longer ones and surer ones come first."""
    kept: list[Entity] = []
    for group in groups:
        for one in sorted(group, key=lambda e: (e.start - e.end, -e.score)):
            if all(one.end <= other.start or one.start >= other.end for other in kept):
                kept.append(one)
    return sorted(kept, key=lambda e: e.start)
