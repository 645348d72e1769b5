"""Counters and histograms as plain numbers, made for one writer: the event loop.

prometheus-client's own take a lock and walk through the buckets for each number; these are added to in a fraction of
a microsecond, copied on the event loop, and turned into families from the copy, in whatever thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

OTHER = "other"
"""What a label says whose value is not one of those that are known."""
NONE = "none"
"""What a label says where there is nothing to say."""
MAX_SERIES = 2_000
"""Most label sets of one family."""

Labels = tuple[str, ...]


class Histogram:
    """How often a number fell into which bucket. `bounds`: upper bounds, rising; the last bucket has none."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def copy(self) -> Histogram:
        twin = Histogram(self.bounds)
        twin.counts, twin.total = self.counts.copy(), self.total
        return twin


class Bounded:
    """Which label sets a family may have: once it has `most`, every new one is told as the one that says "other"."""

    def __init__(self, most: int = MAX_SERIES) -> None:
        self._most = most
        self._seen: set[Labels] = set()

    def admit(self, labels: Labels) -> Labels:
        """The label set under which to count."""
        if labels in self._seen:
            return labels
        if len(self._seen) >= self._most:
            return (OTHER,) * len(labels)
        self._seen.add(labels)
        return labels


class Counts:
    """A counter with labels. `per`: how many of what is added make one unit of the family."""

    def __init__(
        self, name: str, help: str, labels: Labels, *, unit: str = "", per: int = 1, most: int = MAX_SERIES
    ) -> None:
        self._name, self._help, self._labels, self._unit, self._per = name, help, labels, unit, per
        self._values: dict[Labels, int] = {}
        self._bounded = Bounded(most)

    def add(self, labels: Labels, amount: int = 1) -> None:
        values = self._values
        if labels in values:
            values[labels] += amount
        else:
            labels = self._bounded.admit(labels)
            values[labels] = values.get(labels, 0) + amount

    def snapshot(self) -> Iterator[Metric]:
        """The family, from a copy that is taken at once."""
        return self._family(list(self._values.items()))

    def _family(self, values: list[tuple[Labels, int]]) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._help, labels=self._labels, unit=self._unit)
        for labels, value in values:
            family.add_metric(labels, value / self._per)
        yield family


class Histograms:
    """A histogram with labels."""

    def __init__(
        self, name: str, help: str, labels: Labels, bounds: Sequence[float], *, unit: str, most: int = MAX_SERIES
    ) -> None:
        self._name, self._help, self._labels, self._unit = name, help, labels, unit
        self._bounds = tuple(bounds)
        self._edges = [*(floatToGoString(bound) for bound in self._bounds), "+Inf"]
        self._children: dict[Labels, Histogram] = {}
        self._bounded = Bounded(most)

    def child(self, labels: Labels) -> Histogram:
        """The histogram of one label set; keep it."""
        found = self._children.get(labels)
        if found is None:
            labels = self._bounded.admit(labels)
            found = self._children.setdefault(labels, Histogram(self._bounds))
        return found

    def snapshot(self) -> Iterator[Metric]:
        """The family, from a copy that is taken at once."""
        return self._family([(labels, child.copy()) for labels, child in self._children.items()])

    def _family(self, children: list[tuple[Labels, Histogram]]) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels, unit=self._unit)
        for labels, child in children:
            if any(child.counts):
                buckets = list(zip(self._edges, map(float, accumulate(child.counts)), strict=True))
                family.add_metric(labels, buckets, sum_value=child.total)
        yield family


def gauge(name: str, help: str, values: dict[Labels, float], labels: Labels = (), unit: str = "") -> Metric:
    """A family of numbers as they are at the moment."""
    family = GaugeMetricFamily(name, help, labels=labels, unit=unit)
    for label_set, value in values.items():
        family.add_metric(label_set, value)
    return family
