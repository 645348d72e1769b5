"""Traces of exchanges, made from the finished row: while an exchange runs, nothing is done but to draw its ids.

The SDK and the exporter are imported when a collector is named, and work in a thread of their own (otlp.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Self

from appliance.records.rows import ExchangeRow
from appliance.settings.telemetry import Otlp
from appliance.telemetry.semconv import Described
from appliance.telemetry.trace import Trace, parse_traceparent

if TYPE_CHECKING:
    from appliance.telemetry.otlp import Exporter


class Tracing:
    """What a gateway tells a collector. Made by `open` when the settings name one; there is none otherwise."""

    def __init__(self, otlp: Otlp, exporter: Exporter, random: Callable[[int], bytes]) -> None:
        self._exporter = exporter
        self._random = random
        self._least = round((1.0 - otlp.sample) * 2**64)
        self.propagate = otlp.propagate
        """Whether attempts carry `Trace.attempt()` to providers."""

    @classmethod
    def open(
        cls,
        otlp: Otlp,
        headers: Mapping[str, str],
        targets: Mapping[str, Described],
        *,
        version: str,
        instance: str,
        random: Callable[[int], bytes],
    ) -> Self:
        """Begin to send. `headers`: with their secrets. `instance`: tells this process from others of its kind."""
        from appliance.telemetry.otlp import Exporter

        exporter = Exporter(otlp, headers, targets, version=version, instance=instance)
        exporter.start()
        return cls(otlp, exporter, random)

    def begin(self, traceparent: str | None = None) -> Trace:
        """The ids for one exchange. A caller's trace is joined."""
        drawn = self._random(24)
        parent = parse_traceparent(traceparent)
        # Drawn by us: a caller who chooses the trace's id must not choose what is sent as well.
        sampled = int.from_bytes(drawn[16:]) >= self._least
        trace_id = parent[0] if parent else drawn[:16].hex()
        return Trace(trace_id, self._random(8).hex(), parent[1] if parent else None, sampled, self._random)

    def observe(self, row: ExchangeRow, trace: Trace | None = None) -> None:
        """Tell of one finished exchange: put it into the queue, or count it as dropped."""
        self._exporter.put(row, trace if trace is not None else self.begin())

    def know(self, targets: Mapping[str, Described]) -> None:
        """Targets are these from now on."""
        self._exporter.targets = dict(targets)

    def dropped(self) -> Mapping[str, int]:
        """Signal → how many exchanges the collector was not told of."""
        return self._exporter.dropped

    def close(self, timeout_s: float = 2.0) -> None:
        """Send what waits, as far as the collector takes it in this time. Blocks: call it in a thread."""
        self._exporter.close(timeout_s)
