"""Everything behind one face: what the settings ask for, and that nothing in it can hurt an exchange."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

from appliance.limits.openings import openings
from appliance.settings import SecretMissing, Settings, from_mapping
from appliance.telemetry.metrics import Known, Ledger, Sources
from appliance.telemetry.observer import Observer, known
from tests.telemetry.collector import collecting
from tests.telemetry.exposition import check, value
from tests.telemetry.rows import row

SOURCES = Sources(lambda: 0, lambda: Ledger(0, 0.0, True))


def build(**telemetry: Any) -> Settings:
    return from_mapping(
        {
            "deployments": [{"name": "small", "model": "smollm2-135m-instruct"}],
            "providers": [
                {"name": "lab", "base_url": "http://127.0.0.1:1/v1", "zone": "on_box", "max_in_flight": 4},
                {"name": "free", "zone": "cloud"},
            ],
            "routes": [{"model": "chat", "targets": [{"deployment": "small"}, {"provider": "lab", "model": "x/y"}]}],
            "telemetry": telemetry,
        }
    )


def make(settings: Settings, env: dict[str, str] | None = None) -> Observer:
    return Observer.open(
        settings, env or {}, SOURCES, version="1", instance="i", random=lambda size: b"\1" * size, limits=["day"]
    )


async def page(observer: Observer) -> dict[Any, float]:
    return check((await observer.metrics.render(""))[0].decode(), openmetrics=False)


def test_the_labels_that_settings_allow() -> None:
    settings = build()
    assert known(settings, ["day"]) == Known(
        frozenset({"chat"}),
        frozenset({"small", "lab/x/y"}),
        frozenset({"day"}),
        frozenset({"small"}),
        frozenset(each.name for each in openings(settings, {"small": "generate"})),
    )


async def test_without_a_collector_exchanges_are_counted_and_nothing_else() -> None:
    observer = make(build())
    trace = observer.begin(f"00-{'1' * 32}-{'2' * 16}-01")
    assert trace is None
    assert observer.outgoing(trace) is None
    observer.observe(row(), trace)
    await observer.close()
    assert value(await page(observer), "outpost_cost_usd_total", route="chat", target="small") == 0.0015


@pytest.mark.parametrize("propagate", [False, True])
async def test_with_a_collector_it_is_told_and_providers_hear_of_it_only_if_wanted(propagate: bool) -> None:
    with collecting() as collector:
        otlp = {"endpoint": collector.url, "propagate": propagate, "headers": {"authorization": {"env": "AUTH"}}}
        observer = make(build(otlp=otlp), {"AUTH": "Bearer for-the-collector"})
        trace = observer.begin(f"00-{'1' * 32}-{'2' * 16}-00")
        assert trace is not None
        assert observer.outgoing(trace) == (f"00-{'1' * 32}-{trace.attempts[0]}-01" if propagate else None)
        observer.observe(row(), trace)
        await observer.close()
        assert {span.trace_id.hex() for span in collector.spans} == {"1" * 32}
        assert trace.attempts[0] in {span.span_id.hex() for span in collector.spans}
        assert {headers["authorization"] for headers in collector.headers} == {"Bearer for-the-collector"}


async def test_what_the_collector_was_not_told_is_on_the_page() -> None:
    observer = make(build(otlp={"endpoint": "http://127.0.0.1:9", "timeout": 0.1, "queue": 1, "interval": 300}))
    for _ in range(4):
        observer.observe(row())
    values = await page(observer)
    assert value(values, "outpost_telemetry_dropped_total", signal="traces") == 3
    await observer.close()


def test_a_header_without_its_secret_stops_the_start() -> None:
    with pytest.raises(SecretMissing, match="AUTH"):
        make(build(otlp={"endpoint": "http://127.0.0.1:9", "headers": {"a": {"env": "AUTH"}}}))


async def test_a_mistake_in_here_is_logged_once_and_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    observer = make(build())
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            observer.observe(row(duration_s="not a number"))
    assert [record.message for record in caplog.records] == ["exchange_not_observed"]


async def test_a_reload_brings_names() -> None:
    observer = make(Settings(routes=()))
    observer.know(build(), ["day"])
    observer.observe(row())
    observer.metrics.refused("day", "team")
    values = await page(observer)
    assert value(values, "outpost_cost_usd_total", route="chat", target="small") > 0
    assert value(values, "outpost_limit_refusals_total", limit="day", scope="team") == 1


async def test_a_loop_that_was_held_up_shows() -> None:
    observer = make(build())
    measuring = asyncio.create_task(observer.run(time.monotonic))
    await asyncio.sleep(0)
    time.sleep(0.25)  # noqa: ASYNC251 - what must never happen to an event loop
    while not any(observer.metrics.lag.child(()).counts):
        await asyncio.sleep(0.01)
    measuring.cancel()
    assert observer.metrics.lag.child(()).total >= 0.1
