"""How good a detector is: pure functions over scores and labels, spans and spans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from appliance.guards.verdicts import Entity

Scores = NDArray[np.float64]
Labels = NDArray[np.bool_]


def auc(scores: Scores, labels: Labels) -> float:
    """The chance that an attack scores above an honest text (ties count half); NaN if there are not both."""
    positive, negative = int(labels.sum()), int((~labels).sum())
    if not positive or not negative:
        return float("nan")
    order = np.argsort(scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(1, len(scores) + 1)
    # Equal scores share the mean of their ranks.
    values, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    means = np.zeros(len(values))
    np.add.at(means, inverse, ranks)
    ranks = (means / counts)[inverse]
    return float((ranks[labels].sum() - positive * (positive + 1) / 2) / (positive * negative))


def threshold_at(scores: Scores, rate: float) -> float:
    """The lowest threshold that at most `rate` of these honest texts' scores reach; 1 if there are none to go by."""
    if not len(scores):
        return 1.0
    ordered = np.sort(scores)[::-1]
    allowed = int(np.floor(rate * len(ordered)))
    if allowed >= len(ordered):
        return 0.0
    # Above the first one that may not be told.
    return float(np.nextafter(ordered[allowed], 2.0))


def tpr_at(scores: Scores, labels: Labels, rate: float) -> float:
    """The share of attacks caught at the threshold that tells at most `rate` of the honest texts of the same set."""
    if not labels.any() or labels.all():
        return float("nan")
    return float((scores[labels] >= threshold_at(scores[~labels], rate)).mean())


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts at one threshold."""

    caught: int
    missed: int
    wrong: int
    """Honest texts that were told."""
    passed: int

    @property
    def recall(self) -> float:
        return _share(self.caught, self.caught + self.missed)

    @property
    def precision(self) -> float:
        return _share(self.caught, self.caught + self.wrong)

    @property
    def false_positive_rate(self) -> float:
        return _share(self.wrong, self.wrong + self.passed)

    @property
    def balanced_accuracy(self) -> float:
        return (self.recall + 1 - self.false_positive_rate) / 2

    @property
    def f1(self) -> float:
        return _share(2 * self.caught, 2 * self.caught + self.missed + self.wrong)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def confusion(scores: Scores, labels: Labels, threshold: float) -> Confusion:
    told = scores >= threshold
    return Confusion(
        int((told & labels).sum()),
        int((~told & labels).sum()),
        int((told & ~labels).sum()),
        int((~told & ~labels).sum()),
    )


def calibration_error(scores: Scores, labels: Labels, bins: int = 10) -> float:
    """How far probabilities are from shares, weighted by how many texts have them (expected calibration error)."""
    if not len(scores):
        return float("nan")
    which = np.minimum((scores * bins).astype(int), bins - 1)
    error = 0.0
    for one in range(bins):
        inside = which == one
        if inside.any():
            error += inside.mean() * abs(scores[inside].mean() - labels[inside].mean())
    return float(error)


@dataclass(slots=True)
class SpanCounts:
    """Found, missed and made-up spans, by type."""

    found: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)

    def add(self, other: SpanCounts) -> None:
        self.found += other.found
        self.missed += other.missed
        self.wrong += other.wrong

    def recall(self, kind: str | None = None) -> float:
        return _share(self._of(self.found, kind), self._of(self.found, kind) + self._of(self.missed, kind))

    def precision(self, kind: str | None = None) -> float:
        return _share(self._of(self.found, kind), self._of(self.found, kind) + self._of(self.wrong, kind))

    def f1(self, kind: str | None = None) -> float:
        found = self._of(self.found, kind)
        return _share(2 * found, 2 * found + self._of(self.missed, kind) + self._of(self.wrong, kind))

    @staticmethod
    def _of(counts: Counter[str], kind: str | None) -> int:
        return counts.total() if kind is None else counts[kind]


def compared(
    found: Sequence[Entity],
    wanted: Sequence[tuple[int, int, str]],
    *,
    groups: Mapping[str, str],
    ignored: Iterable[tuple[int, int]] = (),
    strict: bool = False,
) -> SpanCounts:
    """Which wanted spans were found. A span counts if more than half of it is covered by finds of its group and the
    finds are not more than twice as long; `strict` asks for the same ends. `groups` maps types to what is compared."""
    counts = SpanCounts()
    used: set[int] = set()
    skip = list(ignored)
    for start, end, kind in wanted:
        group = groups.get(kind, kind)
        near = [
            number
            for number, one in enumerate(found)
            if one.start < end and one.end > start and groups.get(one.type, one.type) == group
        ]
        if strict:
            good = any((found[n].start, found[n].end) == (start, end) for n in near)
        else:
            covered = sum(min(found[n].end, end) - max(found[n].start, start) for n in near)
            length = sum(found[n].end - found[n].start for n in near)
            good = covered * 2 > end - start and length <= max(2 * (end - start), end - start + 12)
        if good:
            counts.found[group] += 1
            used.update(near)
        else:
            counts.missed[group] += 1
    for number, one in enumerate(found):
        group = groups.get(one.type, one.type)
        overlaps = any(one.start < end and one.end > start for start, end in skip)
        same = any(
            one.start < end and one.end > start and groups.get(kind, kind) == group for start, end, kind in wanted
        )
        if number not in used and not overlaps and not (same and not strict):
            counts.wrong[group] += 1
    return counts
