"""What a collector is told, by the conventions; and that one which is gone costs nothing but a count."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.schemas import Schemas

from appliance.records.rows import Attempt
from appliance.settings import from_mapping
from appliance.settings.telemetry import Otlp
from appliance.telemetry import semconv
from appliance.telemetry.semconv import Described, describe
from appliance.telemetry.trace import parse_traceparent
from appliance.telemetry.tracing import Tracing
from tests.telemetry.collector import Collector, collecting, plain
from tests.telemetry.rows import row

ROOT = Path(__file__).parents[2]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-00"
TARGETS = {
    "small": Described("outpost", "smollm2-135m-instruct"),
    "lab/large": Described("lab", "large", "models.example.org", 443),
}


def counting() -> Callable[[int], bytes]:
    """Ids that can be told apart: 1, 2, 3, …"""
    count = 0

    def random(size: int) -> bytes:
        nonlocal count
        count += 1
        return count.to_bytes(size)

    return random


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as opened:
        yield opened


@pytest.fixture
def open_tracing(collector: Collector) -> Iterator[Callable[..., Tracing]]:
    opened: list[Tracing] = []

    def make(headers: dict[str, str] | None = None, **options: Any) -> Tracing:
        given: dict[str, Any] = {"endpoint": collector.url, "interval": 0.05, "timeout": 5.0, **options}
        random = given.pop("random", counting())
        opened.append(
            Tracing.open(Otlp(**given), headers or {}, TARGETS, version="1.2.3", instance="box-1", random=random)
        )
        return opened[-1]

    yield make
    for tracing in opened:
        tracing.close(0.0)


def by_name(collector: Collector) -> dict[str, Any]:
    return {span.name: span for span in collector.spans}


def test_an_exchange_is_a_span_with_one_below_it_for_each_attempt(
    collector: Collector, open_tracing: Callable[..., Tracing]
) -> None:
    tracing = open_tracing(headers={"x-tenant": "blue"})
    trace = tracing.begin(TRACEPARENT)
    sent = [trace.attempt(), trace.attempt()]
    attempts = [
        Attempt("lab/large", 0.1, 0.5, "failed", "upstream_unreachable"),
        Attempt("small", 0.6, 1.4, "completed"),
    ]
    tracing.observe(row(attempts=attempts, usage_source="reported"), trace)
    collector.wait(lambda: len(collector.spans) == 3)
    spans = by_name(collector)
    whole, first, second = spans["chat chat"], spans["chat large"], spans["chat smollm2-135m-instruct"]
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert (whole.parent_span_id.hex(), whole.span_id.hex()) == (PARENT, trace.span_id)
    assert {first.parent_span_id.hex(), second.parent_span_id.hex()} == {trace.span_id}
    assert sent == [f"00-{TRACE}-{span.span_id.hex()}-01" for span in (first, second)]
    kinds = [span.kind for span in (whole, first, second)]
    assert kinds == [Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_CLIENT]
    assert whole.start_time_unix_nano == 1_700_000_000_000_000_000
    assert whole.end_time_unix_nano - whole.start_time_unix_nano == 2_000_000_000
    assert second.start_time_unix_nano - whole.start_time_unix_nano == 600_000_000
    assert plain(whole.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "outpost",
        "gen_ai.request.model": "chat",
        "gen_ai.response.model": "smollm2-135m-instruct",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.id": "0123456789ab",
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 21,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.reasoning.output_tokens": 5,
        "http.response.status_code": 200,
        "outpost.attempts": 2,
        "outpost.outcome": "completed",
        "outpost.queue.duration": 0.2,
    }
    assert plain(first.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "lab",
        "gen_ai.request.model": "large",
        "server.address": "models.example.org",
        "server.port": 443,
        "error.type": "upstream_unreachable",
    }
    codes = [span.status.code for span in (whole, first, second)]
    assert codes == [Status.STATUS_CODE_UNSET, Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET]
    resource = collector.resources[0]
    assert (resource["service.name"], resource["service.version"]) == ("outpost", "1.2.3")
    assert resource["service.instance.id"] == "box-1"
    assert collector.schema_urls == {semconv.SCHEMA_URL}
    assert collector.headers[0]["x-tenant"] == "blue"
    assert collector.headers[0]["content-type"] == "application/x-protobuf"


def test_failures_have_their_type_and_a_refusal_is_no_failure_of_the_server(
    collector: Collector, open_tracing: Callable[..., Tracing]
) -> None:
    tracing = open_tracing()
    for outcome, status, code in (("refused", 404, "model_not_found"), ("upstream_error", 502, "upstream_error")):
        failed = row(outcome=outcome, status=status, error_code=code, attempts=[], route=None, target=None)
        tracing.observe(failed)
    collector.wait(lambda: len(collector.spans) == 2)
    found = {plain(span.attributes)["error.type"]: span for span in collector.spans}
    assert found["model_not_found"].status.code == Status.STATUS_CODE_UNSET
    assert found["upstream_error"].status.code == Status.STATUS_CODE_ERROR
    assert {span.name for span in collector.spans} == {"chat"}


def test_metrics_follow_the_conventions(collector: Collector, open_tracing: Callable[..., Tracing]) -> None:
    tracing = open_tracing()
    for _ in range(3):
        tracing.observe(row())
    tracing.observe(row(kind="embeddings", stream=False, completion_tokens=0))
    collector.wait(lambda: "gen_ai.client.token.usage" in collector.metrics)
    assert set(collector.metrics) == set(semconv.UNITS)
    for name, metric in collector.metrics.items():
        assert metric.unit == semconv.UNITS[name]
        assert tuple(metric.histogram.data_points[0].explicit_bounds) == semconv.BUCKETS[name]
    usage = {
        (told["gen_ai.operation.name"], told["gen_ai.token.type"]): (point.count, point.sum)
        for point in collector.metrics["gen_ai.client.token.usage"].histogram.data_points
        for told in (plain(point.attributes),)
    }
    assert usage == {("chat", "input"): (3, 30), ("chat", "output"): (3, 63), ("embeddings", "input"): (1, 10)}
    (first_token,) = collector.metrics["gen_ai.server.time_to_first_token"].histogram.data_points
    assert (first_token.count, first_token.sum) == (3, 1.5)
    (pace,) = collector.metrics["gen_ai.server.time_per_output_token"].histogram.data_points
    assert pace.sum == pytest.approx(3 * 1.5 / 20)
    durations = collector.metrics["gen_ai.server.request.duration"].histogram.data_points
    assert sum(point.count for point in durations) == 4


def test_nothing_that_names_a_person_or_a_key_is_sent(
    collector: Collector, open_tracing: Callable[..., Tracing]
) -> None:
    tracing = open_tracing()
    canaries = {
        name: f"canary-{name}"
        for name in ("key_id", "key_name", "client", "organization_id", "team_id", "user_id", "service_account_id")
    }
    tracing.observe(row(**canaries, tags=["canary-tag"], content_digest="canary-digest"))
    collector.wait(lambda: collector.spans and collector.metrics)
    assert b"canary" not in collector.raw


def test_a_share_of_the_traces_is_sent_and_all_is_counted(
    collector: Collector, open_tracing: Callable[..., Tracing]
) -> None:
    drawn = iter(range(1000))

    def random(size: int) -> bytes:
        """The drawn share rises from 0 to 1."""
        return b"\1" * 16 + (next(drawn) % 100 * 2**64 // 100).to_bytes(8) if size == 24 else b"\2" * size

    tracing = open_tracing(sample=0.25, random=random)
    traces = [tracing.begin() for _ in range(100)]
    assert sum(trace.sampled for trace in traces) == 25
    assert [trace.attempt()[-2:] for trace in traces[74:76]] == ["00", "01"]
    for trace in traces:
        tracing.observe(row(attempts=[]), trace)
    tracing.close(5.0)
    assert len(collector.spans) == 25
    (point,) = collector.metrics["gen_ai.server.request.duration"].histogram.data_points
    assert point.count == 100
    assert not open_tracing(sample=0.0).begin(f"00-{TRACE}-{PARENT}-01").sampled


@pytest.mark.parametrize("how", ["gone", "silent", "refusing", "redirecting"])
def test_a_collector_that_takes_nothing_costs_only_a_count(
    collector: Collector, open_tracing: Callable[..., Tracing], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"timeout": 0.2, "queue": 50}
    with collecting() as elsewhere:
        if how == "gone":
            options["endpoint"] = "http://127.0.0.1:9"
        elif how == "silent":
            collector.gate.clear()
        elif how == "refusing":
            collector.status = 401
        else:
            collector.status, collector.location = 307, elsewhere.url
        with caplog.at_level(logging.INFO, "outpost.telemetry"):
            tracing = open_tracing({"authorization": "Bearer canary"}, **options)
            began = time.thread_time()
            for _ in range(2000):
                tracing.observe(row())
            assert time.thread_time() - began < 0.2
            if how != "gone":
                collector.wait(lambda: collector.sendings)
            began = time.monotonic()
            tracing.close(0.5)
            assert time.monotonic() - began < 2.0
        assert elsewhere.sendings == 0
    assert tracing.dropped()["metrics"] >= 1000
    assert tracing.dropped()["traces"] >= tracing.dropped()["metrics"]
    assert "canary" not in caplog.text


def test_a_proxy_and_passwords_that_the_environment_names_are_not_used(
    collector: Collector, open_tracing: Callable[..., Tracing], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1\nlogin somebody\npassword canary\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    tracing = open_tracing(interval=300.0)
    tracing.observe(row(attempts=[]))
    tracing.close(5.0)
    assert len(collector.spans) == 1
    assert collector.metrics
    assert not any("authorization" in headers for headers in collector.headers)


def test_what_a_collector_does_not_take_is_counted_by_what_was_to_be_sent(
    collector: Collector, open_tracing: Callable[..., Tracing]
) -> None:
    collector.status = 400
    tracing = open_tracing(interval=300.0)
    for number in range(10):
        trace = tracing.begin()
        trace.sampled = number % 5 == 0
        tracing.observe(row(attempts=[]), trace)
    tracing.close(5.0)
    assert tracing.dropped() == {"traces": 2, "metrics": 0}


def test_a_collector_that_comes_back_is_told_again_and_both_are_logged_once(
    collector: Collector, open_tracing: Callable[..., Tracing], caplog: pytest.LogCaptureFixture
) -> None:
    collector.status = 400
    with caplog.at_level(logging.INFO, "outpost.telemetry"):
        tracing = open_tracing()
        for count in range(1, 4):
            tracing.observe(row(attempts=[]))
            collector.wait(lambda count=count: collector.paths.count("/v1/traces") >= count)
        with collector.changed:
            collector.status = 200
        tracing.observe(row(attempts=[]))
        collector.wait(lambda: collector.spans and collector.metrics)
        tracing.close(5.0)
    events = [record.message for record in caplog.records if record.name == "outpost.telemetry"]
    assert events == ["collector_unreachable", "collector_reachable"]
    assert tracing.dropped() == {"traces": 3, "metrics": 0}


def test_what_waits_is_sent_at_the_end(collector: Collector, open_tracing: Callable[..., Tracing]) -> None:
    tracing = open_tracing(interval=300.0)
    for _ in range(10):
        tracing.observe(row())
    tracing.close(10.0)
    assert len(collector.spans) == 20
    assert collector.metrics
    tracing.observe(row())
    assert tracing.dropped() == {"traces": 1, "metrics": 1}


def test_observing_costs_little(open_tracing: Callable[..., Tracing]) -> None:
    tracing = open_tracing(interval=300.0, queue=1_000_000, random=lambda size: b"\1" * size)
    seen = row()
    best = 1.0
    for _ in range(10):
        began = time.thread_time()
        for _ in range(1000):
            tracing.observe(seen, tracing.begin(TRACEPARENT))
        best = min(best, (time.thread_time() - began) / 1000)
    assert best < 25e-6


# --- traceparent ----------------------------------------------------------------------------------


def test_a_callers_trace_is_joined_and_its_flags_are_not_trusted(open_tracing: Callable[..., Tracing]) -> None:
    tracing = open_tracing(sample=1.0)
    for flags in ("00", "01", "ff"):
        trace = tracing.begin(f"00-{TRACE}-{PARENT}-{flags}")
        assert (trace.trace_id, trace.parent, trace.sampled) == (TRACE, PARENT, True)
        assert trace.span_id != PARENT


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "00",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-01\r\nx: y",
        f"01-{TRACE}-{PARENT}-01-" + "a" * 1000,
    ],
)
def test_what_is_no_traceparent_begins_a_trace_of_its_own(header: str | None) -> None:
    assert parse_traceparent(header) is None


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(header: str) -> None:
    parsed = parse_traceparent(header)
    assert parsed is None or (len(parsed[0]), len(parsed[1])) == (32, 16)


def test_a_later_versions_traceparent_is_read_as_far_as_it_is_known() -> None:
    assert parse_traceparent(f"cc-{TRACE}-{PARENT}-01-what-comes-later") == (TRACE, PARENT)


# --- names ----------------------------------------------------------------------------------------


def test_the_pinned_names_are_those_of_the_conventions() -> None:
    known = {value for module in (gen_ai_attributes, gen_ai_metrics) for value in vars(module).values() if
             isinstance(value, str) and value.startswith("gen_ai.")}  # fmt: skip
    ours = {
        value
        for name, value in vars(semconv).items()
        if name.isupper() and isinstance(value, str) and value.startswith("gen_ai.")
    }
    assert len(ours) == 16
    assert ours <= known
    assert semconv.SCHEMA_URL in {schema.value for schema in Schemas}
    assert set(semconv.BUCKETS) == set(semconv.UNITS)


def test_targets_are_described_from_the_settings() -> None:
    settings = from_mapping(
        {
            "deployments": [{"name": "small", "model": "smollm2-135m-instruct"}],
            "providers": [
                {"name": "lab", "base_url": "http://10.0.0.5:8000/v1", "zone": "on_prem"},
                {"name": "cloud", "zone": "cloud"},
            ],
            "routes": [
                {
                    "model": "chat",
                    "targets": [
                        {"deployment": "small"},
                        {"provider": "lab", "model": "a/b"},
                        {"provider": "cloud", "model": "c"},
                    ],
                }
            ],
        }
    )
    described = describe(settings)
    assert described["small"] == Described("outpost", "smollm2-135m-instruct")
    assert described["lab/a/b"] == Described("lab", "a/b", "10.0.0.5", 8000)
    assert (described["cloud/c"].provider, described["cloud/c"].port) == ("openai", 443)


def test_nothing_of_the_sdk_is_imported_until_a_collector_is_named() -> None:
    script = (
        "import sys, appliance.app, appliance.commands.serve, appliance.telemetry.tracing, appliance.telemetry.metrics;"
        "print([name for name in sys.modules if name.split('.')[0] in ('opentelemetry', 'requests', 'google')])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.strip() == "[]"
