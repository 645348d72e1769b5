"""All that is told of exchanges behind one small face, for the exchange and for who puts the parts together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Self

from appliance.records.rows import ExchangeRow
from appliance.settings.schema import Settings
from appliance.settings.secrets import resolve
from appliance.telemetry.metrics import Known, LagMeter, Metrics, Sources
from appliance.telemetry.semconv import describe
from appliance.telemetry.trace import Trace
from appliance.telemetry.tracing import Tracing

logger = logging.getLogger("outpost.telemetry")


def known(settings: Settings, limits: Iterable[str] = ()) -> Known:
    """The label values that settings allow. `limits`: names of all limits, those of the database too."""
    deployments = frozenset(each.name for each in settings.deployments)
    return Known(
        frozenset(route.model for route in settings.routes),
        frozenset(str(target) for route in settings.routes for target in route.own_targets),
        frozenset(limits),
        deployments,
        deployments | {each.gate for each in settings.providers if each.max_in_flight is not None},
    )


class Observer:
    """Counts exchanges and, where a collector is named, tells it of them. Whatever goes wrong in here, no exchange
    notices."""

    def __init__(self, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self.metrics = metrics
        self.tracing = tracing
        self._broken = False

    @classmethod
    def open(
        cls,
        settings: Settings,
        env: Mapping[str, str],
        sources: Sources,
        *,
        version: str,
        instance: str,
        random: Callable[[int], bytes],
        limits: Iterable[str] = (),
    ) -> Self:
        """What the settings ask for. Raises SecretMissing for a header whose secret is not there.

        sources: `dropped` is set here. instance: what tells this process from others, its listening address for one.
        """
        otlp, tracing = settings.telemetry.otlp, None
        if otlp is not None:
            headers = {name: resolve(reference, env) for name, reference in otlp.headers.items()}
            tracing = Tracing.open(otlp, headers, describe(settings), version=version, instance=instance, random=random)
            sources = sources._replace(dropped=tracing.dropped)
        return cls(Metrics(sources, version, known=known(settings, limits)), tracing)

    def begin(self, traceparent: str | None) -> Trace | None:
        """The trace of an exchange that begins; None where nobody is told of it."""
        return None if self.tracing is None else self.tracing.begin(traceparent)

    def outgoing(self, trace: Trace | None) -> str | None:
        """The `traceparent` that the next attempt carries, if providers are to have one. Ask once an attempt."""
        if trace is None or self.tracing is None:
            return None
        header = trace.attempt()
        return header if self.tracing.propagate else None

    def refused(self, limit: str, scope: str) -> None:
        """A limit did not allow an exchange."""
        self.metrics.refused(limit, scope)

    def shadowed(self, route: str, target: str, result: str, similarity: float | None, cost_nanousd: int) -> None:
        """A shadow has answered, or has not been asked after all."""
        self.metrics.shadowed(route, target, result, similarity, cost_nanousd)

    def checked(self, target: str, ok: bool) -> None:
        """A health check has ended."""
        self.metrics.checked(target, ok)

    def observe(self, row: ExchangeRow, trace: Trace | None = None) -> None:
        """One exchange has ended, and its row is what will be kept of it."""
        try:
            self.metrics.observe(row)
            if self.tracing is not None:
                self.tracing.observe(row, trace)
        except Exception:
            if not self._broken:  # once: it would be so for each request
                self._broken = True
                logger.exception("exchange_not_observed", extra={"request_id": row.id})

    def know(self, settings: Settings, limits: Iterable[str] = ()) -> None:
        """These settings are in force from now on."""
        self.metrics.known = known(settings, limits)
        if self.tracing is not None:
            self.tracing.know(describe(settings))

    def know_limits(self, limits: Iterable[str]) -> None:
        """These are the names of all limits from now on."""
        self.metrics.known = self.metrics.known._replace(limits=frozenset(limits))

    async def run(self, clock: Callable[[], float]) -> None:
        """Measure the event loop until cancelled. clock: monotonic seconds."""
        await LagMeter(self.metrics.lagged, clock, asyncio.sleep).run()

    async def close(self) -> None:
        """Tell the collector what it has not been told yet, as far as it takes that at once."""
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)
