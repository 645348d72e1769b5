"""What is counted, for Prometheus. Every name is declared here, every label value is one that the box knows.

`observe` is called once for each finished exchange, on the event loop; gauges are read when somebody scrapes. `cached`
tokens are a part of `input`, `reasoning` ones of `output`.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, get_args

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from appliance.errors import OutpostError
from appliance.records.rows import Attempt, ExchangeRow, Outcome
from appliance.records.rows import tries as tries_of
from appliance.settings.admission import PRIORITIES
from appliance.settings.limiting import Scope
from appliance.telemetry.series import (
    MAX_SERIES,
    NONE,
    OTHER,
    Bounded,
    Counts,
    Histogram,
    Histograms,
    Labels,
    Written,
    gauge,
)

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Bounds for whole requests, first tokens and waiting."""
PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LAG = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)

KINDS = ("chat.completions", "completions", "embeddings", "messages", "responses", "responses.compact")
SCOPES = frozenset(get_args(Scope))
STATUS = tuple(f"{hundred}xx" for hundred in range(10))
OUTCOMES = frozenset(get_args(Outcome))
ATTEMPT_OUTCOMES = frozenset({"completed", "failed", "cancelled"})
SHADOW_RESULTS = frozenset({"same", "different", "failed", "skipped", "dropped"})
MAX_CODES = 128
NANO = 1_000_000_000
_TARGET = ("route", "target")


class Ledger(NamedTuple):
    """The state of the recorder."""

    pending: int
    """Records that were submitted and are not durable yet."""
    oldest_s: float
    """Age of the oldest of these; 0 when none waits."""
    available: bool


class Sources(NamedTuple):
    """Where gauges are read from, at each scrape, on the event loop."""

    in_flight: Callable[[], int]
    ledger: Callable[[], Ledger]
    queues: Callable[[], Mapping[tuple[str, str], int]] = dict
    """(gate, priority) → requests that wait for admission."""
    replicas: Callable[[], Iterable[tuple[str, str]]] = tuple
    """(deployment, state) of each."""
    dropped: Callable[[], Mapping[str, int]] = dict
    """Signal → what was not sent to the collector: {"traces": 3}."""


class Known(NamedTuple):
    """The label values that the settings and tables allow."""

    routes: frozenset[str] = frozenset()
    targets: frozenset[str] = frozenset()
    limits: frozenset[str] = frozenset()
    deployments: frozenset[str] = frozenset()
    gates: frozenset[str] = frozenset()
    """What requests wait at: deployments, and `provider/*`, since the targets of a provider share its places."""


class _Places(NamedTuple):
    """What is added to for one route and target, found once."""

    labels: Labels
    tokens: tuple[Labels, Labels, Labels, Labels]
    duration: Histogram
    ttft: Histogram
    per_token: Histogram
    queue: Histogram


class Metrics:
    """All metrics of one process; nothing of it is global."""

    def __init__(
        self, sources: Sources, version: str, *, known: Known | None = None, max_series: int = MAX_SERIES
    ) -> None:
        self._sources = sources
        self._version = version
        self.known = known or Known()
        """Replace it when settings change; what was counted under earlier names stays."""
        self._codes = Bounded(MAX_CODES)
        for code in _codes(OutpostError):
            self._codes.admit((code,))
        self._places: dict[tuple[str | None, str | None], _Places] = {}
        self._requests: dict[tuple[str | None, str | None, str, int, str], Labels] = {}
        self._attempts: dict[tuple[str, str, str | None], Labels] = {}
        self._known_at = self.known
        self.requests = Counts(
            "outpost_requests",
            "Exchanges that ended.",
            ("route", "target", "kind", "status", "outcome"),
            most=max_series,
        )
        self.tokens = Counts(
            "outpost_tokens",
            "Tokens; cached ones are a part of input, reasoning ones of output.",
            ("route", "target", "direction"),
            most=max_series,
        )
        self.cost = Counts("outpost_cost_usd", "Cost in US dollars.", _TARGET, unit="usd", per=NANO, most=max_series)
        self.attempts = Counts(
            "outpost_attempts",
            "Tries at targets, by outcome and error code.",
            ("target", "outcome", "code"),
            most=max_series,
        )
        self.limits = Counts(
            "outpost_limit_refusals",
            "Requests that a limit refused, by its name and scope.",
            ("limit", "scope"),
            most=max_series,
        )
        self.duration = Histograms(
            "outpost_request_duration_seconds",
            "Time of whole exchanges.",
            _TARGET,
            SECONDS,
            unit="seconds",
            most=max_series,
        )
        self.ttft = Histograms(
            "outpost_time_to_first_token_seconds",
            "Time from the start of a streamed exchange to its first token.",
            _TARGET,
            SECONDS,
            unit="seconds",
            most=max_series,
        )
        self.per_token = Histograms(
            "outpost_time_per_output_token_seconds",
            "Mean time between the tokens of a streamed answer, after the first.",
            _TARGET,
            PER_TOKEN,
            unit="seconds",
            most=max_series,
        )
        self.queue = Histograms(
            "outpost_queue_wait_seconds",
            "Time that exchanges waited for a target.",
            _TARGET,
            SECONDS,
            unit="seconds",
            most=max_series,
        )
        self.lag = Histograms(
            "outpost_event_loop_lag_seconds",
            "How much later than due the event loop got to a timer.",
            (),
            LAG,
            unit="seconds",
        )
        self.shadows = Counts(
            "outpost_shadow_requests",
            "Requests that a shadow was to have too, by what became of them.",
            (*_TARGET, "result"),
            most=max_series,
        )
        self.shadow_cost = Counts(
            "outpost_shadow_cost_usd",
            "Cost of shadows' answers in US dollars, which nobody is charged for.",
            _TARGET,
            unit="usd",
            per=NANO,
            most=max_series,
        )
        self.similarity = Histograms(
            "outpost_shadow_similarity_ratio",
            "What a shadow's answer has in common with the one that was given.",
            _TARGET,
            TENTHS,
            unit="ratio",
            most=max_series,
        )
        self.checks = Counts(
            "outpost_health_checks",
            "Health checks of targets that had failed.",
            ("target", "result"),
            most=max_series,
        )
        self._process = ProcessCollector(registry=None)

    # --- what happens ---------------------------------------------------------------------------

    def observe(self, row: ExchangeRow) -> None:
        """Count one finished exchange."""
        if self.known is not self._known_at:
            self._forget()
        requests = self._requests
        key = (row.route, row.target, row.kind, row.status // 100, row.outcome)
        labels = requests.get(key)
        if labels is None:
            labels = self._request_labels(*key)
            if len(requests) < 4096:
                requests[key] = labels
        self.requests.add(labels)
        places = self._places.get((row.route, row.target)) or self._find(row.route, row.target)
        places.duration.observe(row.duration_s)
        if row.queue_s is not None:
            places.queue.observe(row.queue_s)
        add = self.tokens.add
        tries, cost, prompt, output = tries_of(row), row.cost_nanousd, row.prompt_tokens, row.completion_tokens
        if len(tries) > 1:
            others = self._others(row, tries)
            prompt, output, cost = prompt - others[0], output - others[1], cost - others[2]
        if prompt > 0:
            add(places.tokens[0], prompt)
            if row.cached_tokens:
                add(places.tokens[1], row.cached_tokens)
        if output > 0:
            add(places.tokens[2], output)
            if row.reasoning_tokens:
                add(places.tokens[3], row.reasoning_tokens)
        if row.stream and row.ttft_s is not None:
            places.ttft.observe(row.ttft_s)
            if output > 1 and row.outcome == "completed":
                places.per_token.observe(max(0.0, row.duration_s - row.ttft_s) / (output - 1))
        if cost > 0:
            self.cost.add(places.labels, cost)
        for attempt in tries:
            found = self._attempts.get((attempt.target, attempt.outcome, attempt.error_code))
            self.attempts.add(self._attempt_labels(attempt) if found is None else found)

    def refused(self, limit: str, scope: str) -> None:
        """Count a request that a limit refused."""
        self.limits.add(
            (limit if limit in self.known.limits else OTHER, scope if scope in SCOPES else OTHER),
        )

    def shadowed(self, route: str, target: str, result: str, similarity: float | None, cost_nanousd: int) -> None:
        """Count what became of a request that a shadow was to have too. similarity: None where nothing was compared."""
        labels = self._names(route, target)
        self.shadows.add((*labels, result if result in SHADOW_RESULTS else OTHER))
        if cost_nanousd > 0:
            self.shadow_cost.add(labels, cost_nanousd)
        if similarity is not None:
            self.similarity.child(labels).observe(similarity)

    def checked(self, target: str, ok: bool) -> None:
        """Count a health check."""
        self.checks.add((self._names(None, target)[1], "ok" if ok else "failed"))

    def lagged(self, seconds: float) -> None:
        """Note how late the event loop was."""
        self.lag.child(()).observe(seconds)

    # --- what is told ---------------------------------------------------------------------------

    async def render(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type, in the format that `accept` (the header) asks for."""
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is no number; whoever asks like that gets the plain format
            encode, content_type = choose_encoder("")
        # Copied on the event loop, in one piece; written elsewhere.
        families, now = self._snapshot(), _Ready([*self._now(), *self._process.collect()])
        registry = CollectorRegistry()
        registry.register(now)
        openmetrics = content_type.startswith("application/openmetrics-text")

        def write() -> bytes:
            page = "".join(line for family in families for line in family(openmetrics)).encode()
            return page + encode(registry)

        return await asyncio.to_thread(write), content_type

    def _snapshot(self) -> list[Written]:
        families = (
            self.requests,
            self.tokens,
            self.cost,
            self.attempts,
            self.limits,
            self.duration,
            self.ttft,
            self.per_token,
            self.queue,
            self.lag,
            self.shadows,
            self.shadow_cost,
            self.similarity,
            self.checks,
        )
        return [family.snapshot() for family in families]

    def _now(self) -> Iterator[Metric]:
        sources, known = self._sources, self.known
        yield gauge("outpost_requests_in_flight", "Exchanges under way.", {(): sources.in_flight()})
        depths: dict[Labels, float] = {}
        for (gate, priority), waiting in sources.queues().items():
            labels = (gate if gate in known.gates else OTHER, priority if priority in PRIORITIES else OTHER)
            depths[labels] = depths.get(labels, 0) + waiting
        yield gauge("outpost_queue_depth", "Requests that wait for a target.", depths, ("target", "priority"))
        ledger = sources.ledger()
        yield gauge("outpost_ledger_pending_records", "Records submitted and not durable yet.", {(): ledger.pending})
        yield gauge(
            "outpost_ledger_lag_seconds",
            "Age of the oldest record that is not durable yet.",
            {(): ledger.oldest_s},
            unit="seconds",
        )
        yield gauge("outpost_ledger_available", "Whether records can be written.", {(): float(ledger.available)})
        # Also where none is ready, so that an alarm has something to compare.
        replicas: dict[Labels, float] = {(each, "ready"): 0 for each in sorted(known.deployments)}
        for deployment, state in sources.replicas():
            replicas[(deployment, state)] = replicas.get((deployment, state), 0) + 1
        yield gauge("outpost_replicas", "Engine processes by state.", replicas, ("deployment", "state"))
        dropped = CounterMetricFamily(
            "outpost_telemetry_dropped", "Signals that did not reach the collector.", labels=("signal",)
        )
        for signal, count in sources.dropped().items():
            dropped.add_metric((signal,), count)
        yield dropped
        yield InfoMetricFamily(
            "outpost_build",
            "What this process was made from.",
            value={"version": self._version, "python": platform.python_version()},
        )

    # --- label sets -----------------------------------------------------------------------------

    def _forget(self) -> None:
        """Other names are known now: look every label set up again."""
        self._known_at = self.known
        self._requests.clear()
        self._attempts.clear()
        self._places.clear()

    def _names(self, route: str | None, target: str | None) -> tuple[str, str]:
        known = self.known
        return (
            NONE if route is None else route if route in known.routes else OTHER,
            NONE if target is None else target if target in known.targets else OTHER,
        )

    def _request_labels(self, route: str | None, target: str | None, kind: str, hundreds: int, outcome: str) -> Labels:
        status = STATUS[hundreds] if 1 <= hundreds <= 5 else OTHER
        return (
            *self._names(route, target),
            kind if kind in KINDS else OTHER,
            status,
            outcome if outcome in OUTCOMES else OTHER,
        )

    def _find(self, route: str | None, target: str | None) -> _Places:
        labels = self._names(route, target)
        found = _Places(
            labels,
            ((*labels, "input"), (*labels, "cached"), (*labels, "output"), (*labels, "reasoning")),
            self.duration.child(labels),
            self.ttft.child(labels),
            self.per_token.child(labels),
            self.queue.child(labels),
        )
        if len(self._places) < 4096:
            self._places[(route, target)] = found
        return found

    def _attempt_labels(self, attempt: Attempt) -> Labels:
        code = NONE if attempt.error_code is None else self._codes.admit((attempt.error_code,))[0]
        outcome = attempt.outcome if attempt.outcome in ATTEMPT_OUTCOMES else OTHER
        labels = (self._names(None, attempt.target)[1], outcome, code)
        if len(self._attempts) < 4096:
            self._attempts[(attempt.target, attempt.outcome, attempt.error_code)] = labels
        return labels

    def _others(self, row: ExchangeRow, tries: list[Attempt]) -> tuple[int, int, int]:
        """Account what other attempts used to the targets that did the work; gives their tokens of prompts and answers
        and their cost. What is left is of the last attempt at the exchange's own target: where two have raced, that
        need not be the last of all."""
        prompt = output = spent = 0
        last = max((at for at, attempt in enumerate(tries) if attempt.target == row.target), default=len(tries) - 1)
        for at, attempt in enumerate(tries):
            if at == last or not (attempt.prompt_tokens or attempt.completion_tokens or attempt.cost_nanousd):
                continue
            places = self._places.get((row.route, attempt.target)) or self._find(row.route, attempt.target)
            if attempt.prompt_tokens:
                self.tokens.add(places.tokens[0], attempt.prompt_tokens)
                prompt += attempt.prompt_tokens
            if attempt.completion_tokens:
                self.tokens.add(places.tokens[2], attempt.completion_tokens)
                output += attempt.completion_tokens
            if attempt.cost_nanousd > 0:
                self.cost.add(places.labels, attempt.cost_nanousd)
                spent += attempt.cost_nanousd
        return prompt, output, spent


class _Ready(Collector):
    """Families as an encoder reads them."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _codes(root: type[OutpostError]) -> Iterator[str]:
    yield root.code
    for child in root.__subclasses__():
        yield from _codes(child)


class LagMeter:
    """Measures how late the event loop gets to its timers."""

    def __init__(
        self,
        note: Callable[[float], None],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        interval_s: float = 0.1,
    ) -> None:
        self._note = note
        self._clock = clock
        self._sleep = sleep
        self._interval_s = interval_s

    async def run(self) -> None:
        """Measure until it is cancelled."""
        while True:
            due = self._clock() + self._interval_s
            await self._sleep(self._interval_s)
            self._note(max(0.0, self._clock() - due))
