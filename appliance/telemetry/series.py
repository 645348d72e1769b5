"""Counters and histograms as plain numbers, made for one writer: the event loop.

prometheus-client's own take a lock and walk through the buckets for each number, and its encoders take twenty
microseconds a line, during which the event loop gets its turn only now and then. These are added to in a fraction of a
microsecond, copied on the event loop, and written out from the copy in whatever thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

OTHER = "other"
"""What a label says whose value is not one of those that are known."""
NONE = "none"
"""What a label says where there is nothing to say."""
MAX_SERIES = 2_000
"""Most label sets of one family."""

Labels = tuple[str, ...]
Written = Callable[[bool], Iterable[str]]
"""A family's text, from a copy of its numbers; True: as OpenMetrics, else in Prometheus' text format."""
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def _text(names: Labels, values: Labels) -> str:
    """`route="chat",target="small"`."""
    return ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in zip(names, values, strict=True))


def _head(name: str, kind: str, help: str, unit: str, openmetrics: bool) -> Iterable[str]:
    # OpenMetrics names a family of counters without the suffix that its samples have.
    family = name if openmetrics or kind != "counter" else f"{name}_total"
    yield f"# HELP {family} {help}\n# TYPE {family} {kind}\n"
    if unit and openmetrics:
        yield f"# UNIT {family} {unit}\n"


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

    def snapshot(self) -> Written:
        """The family, from a copy that is taken at once."""
        values = list(self._values.items())
        return lambda openmetrics: self._write(values, openmetrics)

    def _write(self, values: list[tuple[Labels, int]], openmetrics: bool) -> Iterable[str]:
        yield from _head(self._name, "counter", self._help, self._unit, openmetrics)
        for labels, value in values:
            shown = value if self._per == 1 else repr(value / self._per)
            yield f"{self._name}_total{{{_text(self._labels, labels)}}} {shown}\n"


class Histograms:
    """A histogram with labels."""

    def __init__(
        self, name: str, help: str, labels: Labels, bounds: Sequence[float], *, unit: str, most: int = MAX_SERIES
    ) -> None:
        self._name, self._help, self._labels, self._unit = name, help, labels, unit
        self._bounds = tuple(bounds)
        self._edges = [*(floatToGoString(bound) for bound in self._bounds), "+Inf"]  # type: ignore[no-untyped-call]
        self._children: dict[Labels, Histogram] = {}
        self._bounded = Bounded(most)

    def child(self, labels: Labels) -> Histogram:
        """The histogram of one label set; keep it."""
        found = self._children.get(labels)
        if found is None:
            labels = self._bounded.admit(labels)
            found = self._children.setdefault(labels, Histogram(self._bounds))
        return found

    def snapshot(self) -> Written:
        """The family, from a copy that is taken at once."""
        children = [(labels, child.copy()) for labels, child in self._children.items()]
        return lambda openmetrics: self._write(children, openmetrics)

    def _write(self, children: list[tuple[Labels, Histogram]], openmetrics: bool) -> Iterable[str]:
        name = self._name
        yield from _head(name, "histogram", self._help, self._unit, openmetrics)
        for labels, child in children:
            running = list(accumulate(child.counts))
            if not running[-1]:
                continue
            text = _text(self._labels, labels)
            before, own = (f"{text},", f"{{{text}}}") if text else ("", "")
            for edge, count in zip(self._edges, running, strict=True):
                yield f'{name}_bucket{{{before}le="{edge}"}} {count}\n'
            yield f"{name}_sum{own} {child.total!r}\n{name}_count{own} {running[-1]}\n"


def gauge(name: str, help: str, values: dict[Labels, float], labels: Labels = (), unit: str = "") -> Metric:
    """A family of numbers as they are at the moment."""
    family = GaugeMetricFamily(name, help, labels=labels, unit=unit)
    for label_set, value in values.items():
        family.add_metric(label_set, value)
    return family
