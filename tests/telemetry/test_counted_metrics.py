"""What is counted, under which names, and that no caller can make more of them."""

from __future__ import annotations

import asyncio
import time
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text

from appliance.dialects.kinds import KINDS
from appliance.records.rows import SHADOW, Attempt
from appliance.settings.limiting import Scope
from appliance.telemetry.metrics import MAX_CODES, Known, LagMeter, Ledger, Metrics, Sources
from appliance.telemetry.series import OTHER, Counts, Histogram
from tests.telemetry.exposition import Values, check, value
from tests.telemetry.rows import row

TEXT, OPEN = "text/plain", "application/openmetrics-text; version=1.0.0"
KNOWN = Known(
    frozenset({"chat"}),
    frozenset({"small", "lab/large"}),
    frozenset({"day"}),
    frozenset({"small", "down"}),
    frozenset({"small", "lab/*"}),
)


def make(known: Known = KNOWN, **options: int) -> Metrics:
    return Metrics(
        Sources(
            in_flight=lambda: 3,
            ledger=lambda: Ledger(7, 0.25, True),
            queues=lambda: {
                ("small", "batch"): 2,
                ("gone", "batch"): 1,
                ("lost", "batch"): 1,
                ("small", "x"): 5,
                ("lab/*", "normal"): 6,
            },
            replicas=lambda: [("small", "ready"), ("small", "ready"), ("small", "failed"), ("down", "failed")],
            dropped=lambda: {"traces": 4},
        ),
        "1.2.3",
        known=known,
        **options,
    )


async def read(metrics: Metrics, accept: str = OPEN) -> Values:
    body, content_type = await metrics.render(accept)
    assert content_type.startswith(accept.partition(";")[0])
    return check(body.decode(), openmetrics=accept is OPEN)


@pytest.mark.parametrize("accept", [TEXT, OPEN])
async def test_one_exchange_is_told_in_every_family(accept: str) -> None:
    metrics = make()
    metrics.observe(row())
    metrics.refused("day", "team")
    metrics.lagged(0.003)
    values = await read(metrics, accept)
    place = {"route": "chat", "target": "small"}
    assert (
        value(values, "outpost_requests_total", **place, kind="chat.completions", status="2xx", outcome="completed")
        == 1
    )
    for direction, count in (("input", 10), ("cached", 4), ("output", 21), ("reasoning", 5)):
        assert value(values, "outpost_tokens_total", **place, direction=direction) == count
    assert value(values, "outpost_cost_usd_total", **place) == 0.0015
    assert value(values, "outpost_attempts_total", target="small", outcome="completed", code="none") == 1
    assert value(values, "outpost_request_duration_seconds_sum", **place) == 2.0
    assert value(values, "outpost_request_duration_seconds_bucket", **place, le="2.5") == 1
    assert value(values, "outpost_request_duration_seconds_bucket", **place, le="1.0") == 0
    assert value(values, "outpost_time_to_first_token_seconds_sum", **place) == 0.5
    assert value(values, "outpost_time_per_output_token_seconds_sum", **place) == pytest.approx(1.5 / 20)
    assert value(values, "outpost_queue_wait_seconds_sum", **place) == 0.2
    assert value(values, "outpost_limit_refusals_total", limit="day", scope="team") == 1
    assert value(values, "outpost_event_loop_lag_seconds_count") == 1
    assert value(values, "outpost_requests_in_flight") == 3
    assert value(values, "outpost_ledger_pending_records") == 7
    assert value(values, "outpost_ledger_lag_seconds") == 0.25
    assert value(values, "outpost_ledger_available") == 1
    assert value(values, "outpost_queue_depth", target="lab/*", priority="normal") == 6
    assert value(values, "outpost_replicas", deployment="small", state="ready") == 2
    assert value(values, "outpost_replicas", deployment="down", state="ready") == 0
    assert value(values, "outpost_queue_depth", target="small", priority="batch") == 2
    assert value(values, "outpost_queue_depth", target=OTHER, priority="batch") == 2
    assert value(values, "outpost_queue_depth", target="small", priority=OTHER) == 5
    assert value(values, "outpost_telemetry_dropped_total", signal="traces") == 4
    assert value(values, "process_resident_memory_bytes") > 0
    assert [labels for name, labels in values if name == "outpost_build_info" and ("version", "1.2.3") in labels]


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_request_is_told_by_its_name(kind: str) -> None:
    metrics = make()
    metrics.observe(row(kind=kind))
    assert value(
        await read(metrics),
        "outpost_requests_total",
        route="chat",
        target="small",
        kind=kind,
        status="2xx",
        outcome="completed",
    )


async def test_a_whole_answer_has_no_first_token_and_a_short_or_broken_one_no_pace() -> None:
    metrics = make()
    metrics.observe(row(stream=False))
    metrics.observe(row(completion_tokens=1))
    metrics.observe(row(outcome="upstream_error", error_code="engine_lost"))
    values = await read(metrics)
    assert value(values, "outpost_request_duration_seconds_count", route="chat", target="small") == 3
    assert value(values, "outpost_time_to_first_token_seconds_count", route="chat", target="small") == 2
    assert value(values, "outpost_time_per_output_token_seconds_count", route="chat", target="small") == 0


async def test_the_loser_of_a_race_is_accounted_to_itself() -> None:
    """The first to be asked has won; the last attempt is not the one that answered."""
    metrics = make()
    tries = [
        Attempt("small", 0.0, 1.0, "completed", None, 10, 21, 1_000_000_000),
        Attempt("lab/large", 0.5, 0.5, "cancelled", None, 33, 0, 500_000_000),
    ]
    metrics.observe(row(attempts=tries, prompt_tokens=43, cost_nanousd=1_500_000_000))
    values = await read(metrics)
    assert value(values, "outpost_cost_usd_total", route="chat", target="lab/large") == 0.5
    assert value(values, "outpost_cost_usd_total", route="chat", target="small") == 1.0
    assert value(values, "outpost_tokens_total", route="chat", target="lab/large", direction="input") == 33
    assert value(values, "outpost_tokens_total", route="chat", target="small", direction="input") == 10
    assert value(values, "outpost_tokens_total", route="chat", target="small", direction="output") == 21


async def test_every_attempt_is_accounted_to_the_target_that_did_the_work() -> None:
    metrics = make()
    tries = [
        Attempt("lab/large", 0.0, 1.0, "failed", "engine_lost", 10, 7, 900_000_000),
        Attempt("small", 1.0, 1.0, "completed", None, 10, 21, 600_000_000),
    ]
    metrics.observe(row(attempts=tries, prompt_tokens=20, completion_tokens=28, cost_nanousd=1_500_000_000))
    values = await read(metrics)
    assert value(values, "outpost_cost_usd_total", route="chat", target="lab/large") == 0.9
    assert value(values, "outpost_cost_usd_total", route="chat", target="small") == 0.6
    assert value(values, "outpost_tokens_total", route="chat", target="lab/large", direction="output") == 7
    assert value(values, "outpost_tokens_total", route="chat", target="small", direction="output") == 21
    assert value(values, "outpost_attempts_total", target="lab/large", outcome="failed", code="engine_lost") == 1


async def test_a_shadow_is_no_attempt_of_its_target() -> None:
    """Also where it is the same target with other settings."""
    metrics = make()
    tries = [Attempt("small", 0.0, 1.0, "completed", None, 10, 21), Attempt("small", 1.0, 0.0, SHADOW)]
    metrics.observe(row(attempts=tries))
    values = await read(metrics)
    attempts = {labels: count for (name, labels), count in values.items() if name == "outpost_attempts_total" and count}
    assert [dict(labels)["outcome"] for labels in attempts] == ["completed"]
    assert sum(attempts.values()) == 1
    assert value(values, "outpost_tokens_total", route="chat", target="small", direction="output") == 21


async def test_hostile_names_make_no_series() -> None:
    metrics = make()
    for number in range(10_000):
        name = f'model-{number}"\n\\'
        attempts = [Attempt(name, 0.0, 1.0, name, name)]
        metrics.observe(row(route=name, target=name, kind=name, outcome=name, status=number, attempts=attempts))
        metrics.refused(name, name)
    values = await read(metrics)
    requests = {labels: count for (name, labels), count in values.items() if name == "outpost_requests_total"}
    assert len(requests) <= 6
    assert sum(requests.values()) == 10_000
    assert value(values, "outpost_limit_refusals_total", limit=OTHER, scope=OTHER) == 10_000
    attempts_made = [count for (name, _), count in values.items() if name == "outpost_attempts_total"]
    assert len(attempts_made) <= MAX_CODES + 1
    assert sum(attempts_made) == 10_000
    assert len(values) < 600


async def test_a_family_is_capped_even_when_every_name_is_known() -> None:
    names = frozenset(f"t{number}" for number in range(150))
    metrics = make(Known(frozenset({"chat"}), names), max_series=100)
    for name in names:
        metrics.observe(row(target=name, attempts=[]))
    values = await read(metrics)
    requests = [count for (name, _), count in values.items() if name == "outpost_requests_total"]
    assert len(requests) == 101
    assert sum(requests) == 150
    assert value(values, "outpost_request_duration_seconds_count", route=OTHER, target=OTHER) == 50


async def test_names_that_a_reload_brings_are_known_at_once_and_counts_go_on() -> None:
    metrics = make()
    metrics.observe(row(route="new"))
    metrics.observe(row())
    metrics.known = KNOWN._replace(routes=frozenset({"new", "chat"}))
    metrics.observe(row(route="new"))
    metrics.observe(row())
    values = await read(metrics)
    for route, count in ((OTHER, 1), ("new", 1), ("chat", 2)):
        assert value(values, "outpost_cost_usd_total", route=route, target="small") == pytest.approx(count * 0.0015)


@given(st.lists(st.floats(0, 1e6)))
@settings(max_examples=100)
def test_a_histogram_counts_each_number_in_the_first_bucket_that_holds_it(numbers: list[float]) -> None:
    bounds = (0.1, 1.0, 10.0)
    histogram = Histogram(bounds)
    for number in numbers:
        histogram.observe(number)
    running = 0
    for bound, count in zip(bounds, histogram.counts, strict=False):
        running += count
        assert running == sum(number <= bound for number in numbers)
    assert sum(histogram.counts) == len(numbers)
    assert histogram.total == pytest.approx(sum(numbers))


@given(st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(1, 5))))
def test_a_counter_loses_nothing_to_its_cap(added: list[tuple[str, int]]) -> None:
    counts = Counts("x", "X.", ("name",), most=3)
    for name, amount in added:
        counts.add((name,), amount)
    samples = check("".join(counts.snapshot()(False)), openmetrics=False)
    assert sum(samples.values()) == sum(amount for _, amount in added)
    assert len(samples) <= 4


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=20), st.booleans())
def test_a_label_is_read_back_as_it_was(name: str, openmetrics: bool) -> None:
    counts = Counts("x", "X.", ("name",))
    counts.add((name,))
    page = "".join(counts.snapshot()(openmetrics)) + ("# EOF\n" if openmetrics else "")
    parse = parse_open if openmetrics else parse_text
    (family,) = parse(page)
    assert [sample.labels for sample in family.samples] == [{"name": name}]


async def test_a_snapshot_does_not_see_what_comes_after_it() -> None:
    metrics = make()
    metrics.observe(row())
    taken = metrics._snapshot()
    metrics.observe(row())
    values = check("".join(line for family in taken for line in family(False)), openmetrics=False)
    place = {"route": "chat", "target": "small"}
    assert value(values, "outpost_tokens_total", **place, direction="input") == 10
    assert value(values, "outpost_request_duration_seconds_count", **place) == 1


async def test_the_lag_is_how_late_the_loop_was() -> None:
    now, lags = 100.0, []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds + (0.05 if not lags else 0.0)
        if len(lags) == 2:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await LagMeter(lags.append, lambda: now, sleep, 0.1).run()
    assert lags == [pytest.approx(0.05), pytest.approx(0.0)]


def test_observing_costs_little() -> None:
    metrics = make()
    seen = row()
    best = 1.0
    for _ in range(10):
        began = time.thread_time()
        for _ in range(1000):
            metrics.observe(seen)
        best = min(best, (time.thread_time() - began) / 1000)
    assert best < 12e-6


@pytest.mark.parametrize("scope", get_args(Scope))
async def test_every_scope_of_a_limit_is_told(scope: str) -> None:
    metrics = make()
    metrics.refused("day", scope)
    assert value(await read(metrics), "outpost_limit_refusals_total", limit="day", scope=scope) == 1
