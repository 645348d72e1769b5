"""GET /metrics after real requests: who may read it, in which formats, and that strict readers take it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance.door.door import Door
from appliance.door.listen import Listener
from appliance.door.metrics import endpoints
from appliance.door.render import problem
from appliance.door.serve import CONTROL
from appliance.door.terms import Terms
from appliance.telemetry.metrics import Known, Ledger, Metrics, Sources
from tests.fakes.house import ADMIN_KEY, USER_KEY, House, open_house
from tests.telemetry.exposition import Values, check, value

PROMETHEUS_ACCEPT = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
"""What Prometheus 3 sends."""


@dataclass
class Scraped:
    house: House
    metrics: Metrics
    closed: str
    """Address of the page that asks for a key."""
    open: str

    async def get(self, url: str, *, accept: str = "", key: str | None = ADMIN_KEY) -> tuple[int, str, str]:
        headers = {"Accept": accept} | ({"Authorization": f"Bearer {key}"} if key else {})
        async with self.house.session.get(url + "/metrics", headers=headers) as response:
            return response.status, response.headers["Content-Type"], await response.text()

    async def read(self, *, openmetrics: bool = True) -> Values:
        """What the page tells of everything that is on record."""
        seen = len(self.house.recorder.rows)
        status, _, text = await self.get(self.closed, accept=PROMETHEUS_ACCEPT if openmetrics else "text/plain")
        assert status == 200
        assert seen == len(self.house.recorder.rows)
        return check(text, openmetrics=openmetrics)


@pytest.fixture
async def scraped(tmp_path: Path) -> AsyncIterator[Scraped]:
    async with open_house(tmp_path) as house:
        house.route("flaky", "500", "ok")
        gateway = house.gateway
        routes = gateway.router.routes
        metrics = Metrics(
            Sources(in_flight=lambda: len(gateway.running), ledger=lambda: Ledger(0, 0.0, gateway.recorder.available)),
            "0.0.0",
            known=Known(
                frozenset(route.model for route in routes),
                frozenset(target.name for route in routes for target in route.targets),
            ),
        )

        def door(*, open: bool = False, trusted: bool = False) -> Listener:
            terms = Terms()
            made = Door(
                endpoints(metrics, open=open),
                authenticator=house.gateway.authenticator,
                render=problem,
                clock=gateway.clock,
                new_id=gateway.new_id,
                terms=terms,
                trusted=CONTROL if trusted else None,
            )
            return Listener(made, terms)

        listeners = [door(), door(open=True)]
        closed, open_ = [f"http://127.0.0.1:{await each.tcp('127.0.0.1', 0)}" for each in listeners]
        yield Scraped(house, metrics, closed, open_)
        for each in listeners:
            each.stop_accepting()
            await each.close(1.0)


async def test_only_who_may_read_metrics_can(scraped: Scraped) -> None:
    for key, status in ((None, 401), ("op-wrong", 401), (USER_KEY, 403), (ADMIN_KEY, 200)):
        assert (await scraped.get(scraped.closed, key=key))[0] == status
    for key in (None, "op-wrong", ADMIN_KEY):
        assert (await scraped.get(scraped.open, key=key))[0] == 200


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "text/plain; version=0.0.4"),
        ("*/*", "text/plain; version=0.0.4"),
        ("text/plain", "text/plain; version=0.0.4"),
        ("text/html, nonsense;;q=x", "text/plain; version=0.0.4"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0"),
        (PROMETHEUS_ACCEPT, "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text; version=new", "text/plain; version=0.0.4"),
        ("text/plain; version=1.x", "text/plain; version=0.0.4"),
    ],
)
async def test_the_format_is_the_one_that_was_asked_for(scraped: Scraped, accept: str, expected: str) -> None:
    status, content_type, text = await scraped.get(scraped.open, accept=accept)
    assert status == 200
    assert content_type.startswith(expected)
    check(text, openmetrics=expected.startswith("application"))


@pytest.mark.parametrize("openmetrics", [False, True])
async def test_real_requests_are_counted(scraped: Scraped, openmetrics: bool) -> None:
    house = scraped.house
    assert (await house.chat("remote")).status == 200
    assert (await house.chat("remote", stream=True)).status == 200
    assert (await house.chat("local", stream=True)).status == 200
    assert (await house.chat("flaky")).status == 200
    for number in range(50):
        assert (await house.chat(f'no-such-model-{number}"\n')).status == 404
    assert (await house.post("/v1/chat/completions", b"{")).status == 400
    await house.recorder.wait_for(55)
    for row in house.recorder.rows:
        scraped.metrics.observe(row)
    values = await scraped.read(openmetrics=openmetrics)

    def requests(**labels: str) -> float:
        return value(values, "outpost_requests_total", kind="chat.completions", **labels)

    assert requests(route="remote", target="fake/ok", status="2xx", outcome="completed") == 2
    assert requests(route="local", target="local", status="2xx", outcome="completed") == 1
    assert requests(route="flaky", target="fake/ok", status="2xx", outcome="completed") == 1
    assert requests(route="none", target="none", status="4xx", outcome="refused") == 51
    assert value(values, "outpost_attempts_total", target="fake/ok", outcome="completed", code="none") == 3
    failed = [
        (dict(labels)["code"], count)
        for (name, labels), count in values.items()
        if name == "outpost_attempts_total" and dict(labels)["target"] == "fake/500"
    ]
    assert [count for _, count in failed] == [1]
    for place in ({"route": "remote", "target": "fake/ok"}, {"route": "local", "target": "local"}):
        assert value(values, "outpost_time_to_first_token_seconds_count", **place) == 1
        assert value(values, "outpost_tokens_total", **place, direction="output") > 0
    assert "no-such-model" not in str(values)
    assert value(values, "outpost_ledger_available") == 1


async def test_the_page_tells_no_key(scraped: Scraped) -> None:
    await scraped.house.chat(USER_KEY)
    await scraped.house.post("/v1/chat/completions", {"model": ADMIN_KEY, "messages": [], USER_KEY: 1})
    await scraped.house.recorder.wait_for(2)
    for row in scraped.house.recorder.rows:
        scraped.metrics.observe(row)
    text = (await scraped.get(scraped.closed))[2]
    assert USER_KEY not in text
    assert ADMIN_KEY not in text
