"""A primary that is down, under load: callers do not notice, it is left alone, and it is used again once it is back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from tests.faults.failover import KEY
from tests.gateway import Gateway, UpstreamThread, open_gateway

pytestmark = pytest.mark.timeout(240)

REQUESTS = 1000
AT_ONCE = 32
MOST_FAILURES = 5
"""After which a target is left alone."""
BACK_S = 30.0
TOTAL_S = 5.0
DEADLINES = {"connect": "0.5s", "first_token": "2s", "idle": "2s", "total": f"{TOTAL_S:g}s"}
HANGS_S = 6.0
"""How long a target may hang: enough for others to be asked meanwhile, on a machine that has much else to do."""
LATE = {"connect": "0.5s", "first_token": f"{HANGS_S:g}s", "idle": "2s", "total": f"{2 * HANGS_S:g}s"}


def _refuse(primary: UpstreamThread) -> None:
    primary.call(primary.fake.shut)


def _listen(primary: UpstreamThread) -> None:
    primary.begin(primary.fake.open).result(10)


def _go_down(primary: UpstreamThread) -> None:
    primary.fake.down = True


def _come_up(primary: UpstreamThread) -> None:
    primary.fake.down = False


Turn = Callable[[UpstreamThread], None]
OUTAGES: dict[str, tuple[Turn, Turn]] = {"refused": (_refuse, _listen), "503": (_go_down, _come_up)}


@dataclass
class Site:
    """A gateway with a primary and a fallback for each outage."""

    gateway: Gateway
    primary: UpstreamThread
    took_s: list[float] = field(default_factory=list)

    async def ask(self, session: aiohttp.ClientSession, route: str, *, stream: bool = False) -> str:
        """The target that answered."""
        body = {"model": route, "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
        began = time.monotonic()
        url = f"{self.gateway.url}/v1/chat/completions"
        async with session.post(url, json=body, headers=self.gateway.headers) as answer:
            content = await answer.read()
        self.took_s.append(time.monotonic() - began)
        assert answer.status == 200, content
        assert b'"error"' not in content
        assert content.endswith(b"data: [DONE]\n\n") or not stream
        return answer.headers["x-outpost-target"]

    def failures(self, route: str) -> int:
        """Attempts at the primary of a route that failed."""
        found, after = 0, None
        while page := self.gateway.rows(after):
            after = page[-1]["seq"]
            for row in page:
                attempts = row["attempts"] if row["route"] == route else []
                found += sum(each["outcome"] == "failed" and each["target"].startswith("p-") for each in attempts)
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with UpstreamThread() as primary, UpstreamThread() as fallback:
        providers = [
            {"name": name, "kind": "openai", "zone": "on_box", "base_url": each.url, "api_key": KEY}
            for name, each in (("p-main", primary), ("f-main", fallback))
        ]
        targets = [{"provider": "p-main", "model": "ok"}, {"provider": "f-main", "model": "ok"}]
        hanging = [{"provider": "p-main", "model": "silent"}, targets[1]]
        routes = [
            {"model": model, "targets": each, "retries": 2, "deadlines": deadlines}
            for model, each, deadlines in (
                ("chat", targets, DEADLINES),
                ("hangs", hanging, LATE),
                ("other", targets[1:], DEADLINES),
            )
        ]
        settings = {"deployments": [], "providers": providers, "routes": routes}
        with open_gateway(tmp_path, settings) as gateway:
            yield Site(gateway, primary)


@pytest.mark.parametrize("outage", OUTAGES)
async def test_a_thousand_requests_at_a_primary_that_is_down(site: Site, outage: str) -> None:
    down, up = OUTAGES[outage]
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=AT_ONCE), timeout=aiohttp.ClientTimeout(total=60)
    ) as session:
        assert await site.ask(session, "chat") == "p-main/ok"
        await asyncio.to_thread(down, site.primary)
        for _ in range(3 * MOST_FAILURES):
            assert await site.ask(session, "chat") == "f-main/ok"
        assert 1 <= site.failures("chat") <= MOST_FAILURES
        seen = len([each for each in site.primary.fake.seen if each.method == "POST"])
        if outage == "503":
            assert 2 <= seen <= 1 + MOST_FAILURES

        site.took_s.clear()
        room = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> str:
            async with room:
                return await site.ask(session, "chat", stream=number % 2 == 0)

        began = time.monotonic()
        answered = await asyncio.gather(*map(one, range(REQUESTS)))
        took = time.monotonic() - began
        assert set(answered) == {"f-main/ok"}
        quantile = sorted(site.took_s)[int(0.99 * REQUESTS)]
        assert quantile < TOTAL_S
        # Its trials are the checks of its health, which cost nobody anything.
        assert len([each for each in site.primary.fake.seen if each.method == "POST"]) == seen
        assert site.failures("chat") <= MOST_FAILURES

        await asyncio.to_thread(up, site.primary)
        began = time.monotonic()
        while await site.ask(session, "chat") != "p-main/ok":
            assert time.monotonic() - began < BACK_S, f"not back after an outage of {took:.1f} s"
            await asyncio.sleep(0.25)
        assert {await site.ask(session, "chat") for _ in range(20)} == {"p-main/ok"}


async def test_a_target_that_hangs_does_not_slow_the_others(site: Site) -> None:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60)
    ) as session:
        hanging = [asyncio.ensure_future(site.ask(session, "hangs", stream=True)) for _ in range(50)]
        await asyncio.wrap_future(site.primary.begin(site.primary.fake.sending.acquire))
        site.took_s.clear()
        for _ in range(50):
            assert await site.ask(session, "other") == "f-main/ok"
        assert not any(each.done() for each in hanging), "they were to hang meanwhile"
        assert max(site.took_s) < HANGS_S / 3
        assert set(await asyncio.gather(*hanging)) == {"f-main/ok"}
    assert max(site.took_s) < 2 * HANGS_S
