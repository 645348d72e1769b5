"""Small running measures of a target: an average that believes bad news at once, and the quantiles of the latest."""

from __future__ import annotations

import math

AVERAGE_S = 10.0
"""How long a sample weighs on the average, about."""
STALE_S = 60.0
"""After this long without a sample nothing is known any more."""
KEPT = 128
FRESH = 8
"""So many new samples may come before quantiles are worked out again."""


class PeakAverage:
    """An exponentially weighted moving average over time, which a worse sample replaces at once (peak EWMA)."""

    __slots__ = ("_at", "_value")

    def __init__(self) -> None:
        self._value = 0.0
        self._at = float("-inf")

    def add(self, sample: float, now: float) -> None:
        since, self._at = now - self._at, now
        if sample >= self._value or since >= STALE_S:
            self._value = sample
        else:
            kept = math.exp(-max(since, 0.0) / AVERAGE_S)
            # Samples at the same moment count too, each a little.
            kept = min(kept, 0.95)
            self._value = self._value * kept + sample * (1.0 - kept)

    def read(self, now: float) -> float | None:
        """None: nothing is known, or nothing recent."""
        return self._value if now - self._at < STALE_S else None


class Recent:
    """The latest samples, and their quantiles."""

    __slots__ = ("_new", "_next", "_samples", "_sorted")

    def __init__(self) -> None:
        self._samples: list[float] = []
        self._next = 0
        self._sorted: list[float] = []
        self._new = 0

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sample: float) -> None:
        self._new += 1
        if len(self._samples) < KEPT:
            self._samples.append(sample)
            return
        self._samples[self._next] = sample
        self._next = (self._next + 1) % KEPT

    def quantile(self, percentile: float) -> float:
        """The smallest sample that at least `percentile` percent of them do not exceed. Needs samples."""
        if self._new >= FRESH or len(self._sorted) < min(len(self._samples), FRESH):
            self._sorted = sorted(self._samples)
            self._new = 0
        place = math.ceil(len(self._sorted) * percentile / 100.0) - 1
        return self._sorted[min(max(place, 0), len(self._sorted) - 1)]
