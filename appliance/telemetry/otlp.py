"""The thread that tells a collector of finished exchanges, over OTLP. The only place that imports the SDK.

    observe ──deque──▶ thread: rows → spans and metrics ▶ POST /v1/traces, every tenth time /v1/metrics

The deque is bounded: a collector that is slow or gone costs what does not fit, and a counter tells how much.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import requests
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from appliance.records.rows import Attempt, ExchangeRow, tries
from appliance.settings.telemetry import Otlp
from appliance.telemetry import semconv
from appliance.telemetry.semconv import Described
from appliance.telemetry.trace import Trace

logger = logging.getLogger("outpost.telemetry")

BATCH = 256
"""Exchanges in one sending of traces."""
METRICS_EVERY = 10
"""Intervals between two sendings of metrics."""
_FAILURES = ("upstream_error", "internal_error")


class _Ids(IdGenerator):
    """Hands out the ids that were drawn when the exchange began."""

    def __init__(self) -> None:
        self.trace_id = 0
        self.span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class _Ended(SpanProcessor):
    """Gathers spans until they are sent."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return True


class _MetricExporter(OTLPMetricExporter):
    """Notes whether the last sending worked."""

    worked = True

    def export(
        self, metrics_data: MetricsData, timeout_millis: float | None = 10_000, **kwargs: object
    ) -> MetricExportResult:
        result = super().export(metrics_data, timeout_millis, **kwargs)
        self.worked = result is MetricExportResult.SUCCESS
        return result


class Exporter:
    """The queue and its thread. `put` never blocks and never fails."""

    def __init__(
        self,
        otlp: Otlp,
        headers: Mapping[str, str],
        targets: Mapping[str, Described],
        *,
        version: str,
        instance: str,
    ) -> None:
        self.targets = dict(targets)
        # One writer each: the event loop, and the thread.
        self._overflow = {"traces": 0, "metrics": 0}
        self._failed = 0
        self._otlp = otlp
        self._waiting: deque[tuple[ExchangeRow, Trace]] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._reachable = True
        # Neither a proxy nor a password file that the environment names, and no other host that an answer names.
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.max_redirects = 0
        ca = str(otlp.ca) if otlp.ca is not None else None
        common: dict[str, Any] = {
            "certificate_file": ca,
            "headers": dict(headers),
            "timeout": otlp.timeout,
            "compression": Compression.Gzip,
            "session": self._session,
        }
        self._spans = OTLPSpanExporter(endpoint=f"{otlp.endpoint}/v1/traces", **common)
        self._metrics = _MetricExporter(endpoint=f"{otlp.endpoint}/v1/metrics", **common)
        # No interval: the thread that records collects as well.
        self._reader = PeriodicExportingMetricReader(
            self._metrics, export_interval_millis=math.inf, export_timeout_millis=otlp.timeout * 1000
        )
        resource = Resource.create(
            {"service.name": "outpost", "service.version": version, "service.instance.id": instance}
        )
        meters = MeterProvider([self._reader], resource, shutdown_on_exit=False)
        meter = meters.get_meter("outpost", version, semconv.SCHEMA_URL)
        self._instruments: dict[str, Histogram] = {
            name: meter.create_histogram(  # type: ignore[misc]
                name, unit, explicit_bucket_boundaries_advisory=semconv.BUCKETS[name]
            )
            for name, unit in semconv.UNITS.items()
        }
        self._ids, self._ended = _Ids(), _Ended()
        tracers = TracerProvider(
            ALWAYS_ON,
            resource,
            shutdown_on_exit=False,
            id_generator=self._ids,
            span_limits=SpanLimits(max_attribute_length=1024),
        )
        tracers.add_span_processor(self._ended)
        self._tracer = tracers.get_tracer("outpost", version, schema_url=semconv.SCHEMA_URL)
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)

    @property
    def dropped(self) -> dict[str, int]:
        """Signal → exchanges that the collector was not told of."""
        return {"traces": self._overflow["traces"] + self._failed, "metrics": self._overflow["metrics"]}

    def start(self) -> None:
        self._thread.start()

    def put(self, row: ExchangeRow, trace: Trace) -> None:
        """Queue one exchange, or count it as dropped."""
        if len(self._waiting) >= self._otlp.queue or self._closing:
            self._overflow["metrics"] += 1
            self._overflow["traces"] += trace.sampled
            return
        self._waiting.append((row, trace))
        if len(self._waiting) == BATCH:
            self._wake.set()

    def close(self, timeout_s: float) -> None:
        """Send what waits, for at most this time."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s)
        # Ends what still tries to reach the collector.
        with suppress(Exception):
            self._spans.shutdown()  # type: ignore[no-untyped-call]
        with suppress(Exception):
            self._metrics.shutdown()
        self._session.close()

    # --- in the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        rounds = 0
        while True:
            self._wake.wait(self._otlp.interval)
            self._wake.clear()
            closing = self._closing
            rounds += 1
            try:
                worked = self._send_traces()
                if closing or rounds % METRICS_EVERY == 0:
                    worked = self._send_metrics() and worked
            except Exception:
                logger.exception("telemetry_not_sent")
                worked = self._reachable
            if worked is not self._reachable:
                self._reachable = worked
                logger.log(
                    logging.INFO if worked else logging.WARNING,
                    "collector_reachable" if worked else "collector_unreachable",
                    extra={"endpoint": self._otlp.endpoint},
                )
            if closing:
                return

    def _send_traces(self) -> bool:
        """Send all that waits, in batches; False when the collector did not take one of them."""
        worked = True
        for _ in range(-(-self._otlp.queue // BATCH) + 1):
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            if not batch:
                break
            for row, trace in batch:
                self._record(row)
                if trace.sampled:
                    self._tell(row, trace)
            spans, self._ended.spans = self._ended.spans, []
            if spans and self._spans.export(spans) is not SpanExportResult.SUCCESS:
                self._failed += sum(trace.sampled for _, trace in batch)
                worked = False
                break  # it may be better at the next interval
        return worked

    def _send_metrics(self) -> bool:
        self._reader.collect(self._otlp.timeout * 1000)
        return self._metrics.worked

    def _record(self, row: ExchangeRow) -> None:
        """One exchange in the metrics."""
        target = self.targets.get(row.target) if row.target is not None else None
        told = semconv.common(row, target)
        record = self._instruments
        record[semconv.REQUEST_DURATION].record(row.duration_s, told)
        for attempt in tries(row):
            about = semconv.of_attempt(row, attempt, self.targets.get(attempt.target))
            record[semconv.CLIENT_DURATION].record(attempt.duration_s, about)
        for kind, tokens in (("input", row.prompt_tokens), ("output", row.completion_tokens)):
            if tokens:
                about = {name: value for name, value in told.items() if name != semconv.ERROR_TYPE}
                record[semconv.TOKEN_USAGE].record(tokens, {**about, semconv.TOKEN_TYPE: kind})
        if row.stream and row.ttft_s is not None:
            record[semconv.FIRST_TOKEN].record(row.ttft_s, told)
            if row.outcome == "completed" and row.completion_tokens > 1:
                pace = max(0.0, row.duration_s - row.ttft_s) / (row.completion_tokens - 1)
                record[semconv.PER_TOKEN].record(pace, told)

    def _tell(self, row: ExchangeRow, trace: Trace) -> None:
        """One exchange as a span with one below it for each attempt."""
        target = self.targets.get(row.target) if row.target is not None else None
        ids = self._ids
        ids.trace_id, ids.span_id = int(trace.trace_id, 16), int(trace.span_id, 16)
        begin = _nanoseconds(row.started_at)
        name = " ".join(filter(None, (semconv.operation(row), row.route)))
        span = self._tracer.start_span(
            name,
            _below(trace.trace_id, trace.parent, remote=True) if trace.parent else Context(),
            SpanKind.SERVER,
            semconv.of_exchange(row, target),
            start_time=begin,
        )
        if row.outcome in _FAILURES:
            span.set_status(Status(StatusCode.ERROR))
        above = _below(trace.trace_id, trace.span_id, remote=False)
        for index, attempt in enumerate(tries(row)):
            self._tell_attempt(row, attempt, above, _attempt_id(trace, index))
        span.end(begin + _nanoseconds(row.duration_s))

    def _tell_attempt(self, row: ExchangeRow, attempt: Attempt, above: Context, span_id: int) -> None:
        target = self.targets.get(attempt.target)
        self._ids.span_id = span_id
        begin = _nanoseconds(row.started_at) + _nanoseconds(attempt.started_s)
        span = self._tracer.start_span(
            f"{semconv.operation(row)} {target.model if target else attempt.target}",
            above,
            SpanKind.CLIENT,
            semconv.of_attempt(row, attempt, target),
            start_time=begin,
        )
        if attempt.outcome == "failed":
            span.set_status(Status(StatusCode.ERROR))
        span.end(begin + _nanoseconds(attempt.duration_s))


def _attempt_id(trace: Trace, index: int) -> int:
    """The id that the attempt was given, or one that follows from the exchange's."""
    if index < len(trace.attempts):
        return int(trace.attempts[index], 16)
    return (int(trace.span_id, 16) + index + 1) % 2**64 or 1


def _below(trace_id: str, span_id: str, *, remote: bool) -> Context:
    context = SpanContext(int(trace_id, 16), int(span_id, 16), remote, TraceFlags(TraceFlags.SAMPLED))
    return set_span_in_context(NonRecordingSpan(context), Context())


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
