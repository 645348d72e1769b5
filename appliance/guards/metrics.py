"""How good a detector is: pure functions over scores and labels, spans and spans."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

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


Span = tuple[int, int, str]
"""Characters begin to end (exclusive) of a text, and a type."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """What became of the wanted spans of one text, and the finds that are none of them."""

    found: list[Span]
    missed: list[Span]
    wrong: list[Entity]


class _Places:
    """Spans by where they are, so that those near one part are known without a look at all."""

    def __init__(self, spans: Iterable[tuple[int, int, int]]) -> None:
        """`spans`: (begin, end, number)."""
        self._spans = sorted(spans)
        self._starts = [start for start, _, _ in self._spans]
        # The furthest end of all spans up to each one: it never falls, so it can be searched as the starts can.
        self._ends = list(accumulate((end for _, end, _ in self._spans), max))

    def near(self, start: int, end: int) -> list[int]:
        """The numbers of the spans that share a character with `start` to `end`."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        return [number for _, stop, number in self._spans[first:last] if stop > start]


def aligned(
    found: Sequence[Entity],
    wanted: Sequence[Span],
    *,
    groups: Mapping[str, str],
    ignored: Iterable[tuple[int, int]] = (),
    strict: bool = False,
) -> Alignment:
    """Which wanted spans were found. A span counts if more than half of it is covered by finds of its group and those
    are not more than twice as long, or 12 characters longer; `strict` asks for the same ends. `groups` maps types to
    what is compared. A span that is wanted twice counts once; a find may cover several short ones that stand together,
    since all of them would be masked.

    A find that helped to find no wanted span is wrong, also where it lies on one, unless it touches an ignored part."""
    result = Alignment([], [], [])
    used: set[int] = set()
    places = _Places((one.start, one.end, number) for number, one in enumerate(found))
    kinds = [groups.get(one.type, one.type) for one in found]
    for start, end, kind in dict.fromkeys(wanted):
        group = groups.get(kind, kind)
        near = [number for number in places.near(start, end) if kinds[number] == group]
        if strict:
            near = [n for n in near if (found[n].start, found[n].end) == (start, end)]
            good = bool(near)
        else:
            covered = sum(min(found[n].end, end) - max(found[n].start, start) for n in near)
            length = sum(found[n].end - found[n].start for n in near)
            good = covered * 2 > end - start and length <= max(2 * (end - start), end - start + 12)
        (result.found if good else result.missed).append((start, end, kind))
        if good:
            used.update(near)
    skip = _Places((start, end, 0) for start, end in ignored)
    for number, one in enumerate(found):
        if number not in used and not skip.near(one.start, one.end):
            result.wrong.append(one)
    return result


def counted(alignment: Alignment, groups: Mapping[str, str]) -> SpanCounts:
    """How many spans of each group were found, missed and made up."""
    return SpanCounts(
        Counter(groups.get(kind, kind) for _, _, kind in alignment.found),
        Counter(groups.get(kind, kind) for _, _, kind in alignment.missed),
        Counter(groups.get(one.type, one.type) for one in alignment.wrong),
    )


def compared(
    found: Sequence[Entity],
    wanted: Sequence[Span],
    *,
    groups: Mapping[str, str],
    ignored: Iterable[tuple[int, int]] = (),
    strict: bool = False,
) -> SpanCounts:
    """The counts of `aligned`."""
    return counted(aligned(found, wanted, groups=groups, ignored=ignored, strict=strict), groups)
