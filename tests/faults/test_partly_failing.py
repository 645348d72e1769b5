"""The running gateway with targets that fail now and then, and with targets that are full: what clients get."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest

from tests.fakes.replies import Reply, Seen
from tests.fakes.upstream import chat_whole
from tests.faults.failover import KEY
from tests.gateway import Gateway, UpstreamThread, open_gateway

pytestmark = pytest.mark.timeout(240)

REQUESTS = 600
AT_ONCE = 4
MODELS = ("a", "b", "c")


def flaky(share: float, seed: int) -> Callable[[Seen], Reply]:
    random = Random(seed)

    def reply(seen: Seen) -> Reply:
        if random.random() < share:
            return Reply(status=500, body=b'{"error": {"message": "a mistake"}}', content_type="application/json")
        return Reply(body=chat_whole())

    return reply


@pytest.fixture
def upstream() -> Iterator[UpstreamThread]:
    with UpstreamThread() as thread:
        yield thread


def settings_of(upstream: UpstreamThread, *routes: dict[str, Any], **provider: Any) -> dict[str, Any]:
    made = {"kind": "openai", "zone": "on_box", "base_url": upstream.url, "api_key": KEY}
    providers = [{"name": "lab", **made, **provider}, {"name": "spare", **made}]
    return {"deployments": [], "providers": providers, "routes": list(routes)}


async def ask(gateway: Gateway, session: aiohttp.ClientSession, route: str) -> tuple[int, str, int, float]:
    """Status, target, attempts and seconds."""
    began = time.monotonic()
    body = {"model": route, "messages": [{"role": "user", "content": "Hi"}]}
    async with session.post(f"{gateway.url}/v1/chat/completions", json=body, headers=gateway.headers) as answer:
        await answer.read()
    headers = answer.headers
    return answer.status, headers["x-outpost-target"], int(headers["x-outpost-attempts"]), time.monotonic() - began


@pytest.mark.parametrize(("count", "share", "success"), [(1, 0.3, 0.75), (3, 0.45, 0.78)])
async def test_targets_that_fail_now_and_then_are_asked_all_the_same(
    tmp_path: Path, upstream: UpstreamThread, count: int, share: float, success: float
) -> None:
    for number, model in enumerate(MODELS[:count]):
        upstream.fake.behave(model, flaky(share, number))
    targets = [{"provider": "lab", "model": model} for model in MODELS[:count]]
    route = {"model": "chat", "strategy": "least_busy", "targets": targets}
    room = asyncio.Semaphore(AT_ONCE)
    with open_gateway(tmp_path, settings_of(upstream, route)) as gateway:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:

            async def one() -> tuple[int, str, int, float]:
                async with room:
                    return await ask(gateway, session, "chat")

            answers = await asyncio.gather(*[one() for _ in range(REQUESTS)])
    statuses = Counter(status for status, *_ in answers)
    assert set(statuses) == {200, 502}, "nobody limits the rate of requests, and none is down"
    assert statuses[200] >= success * REQUESTS
    assert min(attempts for _, _, attempts, _ in answers) == 1, "each was asked of somebody"
    attempts = sum(attempts for _, _, attempts, _ in answers)
    assert attempts <= (1.25 if count == 1 else 1 + share + share**2 + 0.25) * REQUESTS


async def test_a_provider_that_is_full_is_passed_over_for_one_with_room(
    tmp_path: Path, upstream: UpstreamThread
) -> None:
    upstream.fake.behave("held", lambda seen: Reply(body=chat_whole(), hold=True))
    route = {"model": "chat", "targets": [{"provider": "lab", "model": "held"}, {"provider": "spare", "model": "ok"}]}
    alone = {"model": "alone", "targets": [{"provider": "lab", "model": "held"}]}
    with open_gateway(tmp_path, settings_of(upstream, route, alone, max_in_flight=2)) as gateway:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
            first = [asyncio.ensure_future(ask(gateway, session, "chat")) for _ in range(2)]
            for _ in first:
                await asyncio.wrap_future(upstream.begin(upstream.fake.sending.acquire))
            passing = await asyncio.gather(*[ask(gateway, session, "chat") for _ in range(20)])
            assert {each[:3] for each in passing} == {(200, "spare/ok", 1)}
            assert max(seconds for *_, seconds in passing) < 5.0
            waiting = asyncio.ensure_future(ask(gateway, session, "alone"))
            assert not any(each.done() for each in first)
            upstream.call(upstream.fake.release.set)
            assert [each[:3] for each in await asyncio.gather(*first, waiting)] == [(200, "lab/held", 1)] * 3


async def test_one_that_can_be_reached_but_does_not_answer_gets_one_request_at_a_time(
    tmp_path: Path, upstream: UpstreamThread
) -> None:
    """Its list of models is there at once, so the health check succeeds each time; what it is asked hangs."""
    targets = [{"provider": "lab", "model": "silent"}, {"provider": "spare", "model": "ok"}]
    route = {"model": "chat", "targets": targets, "deadlines": {"whole": "0.3s"}}
    cycles, at_once = 3, 8
    with open_gateway(tmp_path, settings_of(upstream, route)) as gateway:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:

            def checks() -> int:
                return len([seen for seen in upstream.fake.seen if seen.method == "GET"])

            async def client() -> None:
                while await asyncio.to_thread(upstream.call, checks) < cycles:
                    assert (await ask(gateway, session, "chat"))[:2] == (200, "spare/ok")

            async with asyncio.timeout(60):
                await asyncio.gather(*[client() for _ in range(at_once)])
    asked = len(upstream.fake.asked("silent"))
    assert cycles - 1 <= asked <= 5 + at_once + cycles
