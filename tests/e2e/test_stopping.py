"""The end of a gateway under load: what runs may finish, nothing new is taken, and no process stays."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from tests.conftest import fake_routes
from tests.e2e.clients import Answer, chat, client, post
from tests.fakes.upstream import Reply, chat_events
from tests.gateway import CHAT, Gateway, UpstreamThread

pytestmark = pytest.mark.timeout(240)

NewGateway = Callable[..., Gateway]


@pytest.fixture
def upstream() -> Iterator[UpstreamThread]:
    """One of the test's own: what it holds back and releases is no other test's business."""
    with UpstreamThread() as upstream:
        yield upstream


def with_held_streams(upstream: UpstreamThread, **server: Any) -> dict[str, Any]:
    """Settings with routes whose streams wait in their middle until `upstream` is released."""
    upstream.call(
        lambda: upstream.fake.behave("held", lambda seen: Reply(events=chat_events(["x"] * 20), hold_after=5))
    )
    settings = {**fake_routes(upstream, "ok", "held", "silent"), "deployments": [], "server": server}
    settings["routes"] = [route for route in settings["routes"] if route["model"].startswith("fake-")]
    return settings


async def until_held(upstream: UpstreamThread, count: int) -> None:
    for _ in range(count):
        await asyncio.wait_for(asyncio.wrap_future(upstream.begin(upstream.fake.sending.acquire)), 60)


def release(upstream: UpstreamThread) -> None:
    upstream.call(upstream.fake.release.set)


async def ended(gateway: Gateway, timeout: float = 60.0) -> int:
    """The exit status."""
    status: int = await asyncio.to_thread(gateway.wait, timeout)
    return status


async def refused(gateway: Gateway) -> bool:
    try:
        async with client(gateway):
            return False
    except OSError:
        return True


async def test_running_exchanges_finish_and_new_ones_are_refused(
    new_gateway: NewGateway, upstream: UpstreamThread
) -> None:
    gateway = new_gateway(with_held_streams(upstream, drain_timeout="60s"))
    bodies = [chat("Hi", model="fake-held") for _ in range(20)]
    bodies += [chat("Hi", model="fake-silent", stream=False) for _ in range(10)]
    async with client(gateway) as idle, client(gateway) as busy:
        await idle.send("/readyz", {}, method="GET")
        await idle.head()
        assert (await idle.rest()).complete
        running = [asyncio.ensure_future(post(gateway, body)) for body in bodies]
        await busy.send("/v1/chat/completions", chat("Hi", model="fake-held"))
        await until_held(upstream, 31)
        os.kill(gateway.pid, signal.SIGTERM)
        # A connection that nobody uses is closed; that is also the sign that the end has begun.
        assert await asyncio.wait_for(idle.reader.read(), 30) == b""
        assert await refused(gateway)
        assert psutil.Process(gateway.pid).is_running()
        release(upstream)
        answers = await asyncio.gather(*running)
        await busy.head()
        assert (await busy.rest()).done
    assert all(answer.done and answer.error is None for answer in answers)
    assert await ended(gateway) == 0
    assert '"level":"error"' not in gateway.log()


async def test_what_does_not_finish_in_time_is_ended_with_an_error(
    new_gateway: NewGateway, upstream: UpstreamThread
) -> None:
    gateway = new_gateway(with_held_streams(upstream, drain_timeout="1s"))
    running = [
        asyncio.ensure_future(post(gateway, body))
        for body in (chat("Hi", model="fake-held"), chat("Hi", model="fake-silent", stream=False))
    ]
    await until_held(upstream, 2)
    os.kill(gateway.pid, signal.SIGTERM)
    stream, whole = await asyncio.gather(*running)
    assert await ended(gateway) == 0
    assert (stream.status, stream.done, stream.complete) == (200, False, True)
    assert (whole.status, whole.complete) == (503, True)
    for answer in (stream, whole):
        assert answer.error is not None
        assert answer.error["code"] == "shutting_down"


async def test_asked_twice_it_ends_at_once(new_gateway: NewGateway, upstream: UpstreamThread) -> None:
    gateway = new_gateway(
        {"deployments": [{"name": CHAT, "model": CHAT, "engine": "llamacpp", "args": {"context": 1024}}]}
    )
    running = asyncio.ensure_future(post(gateway, chat("A long story", max_tokens=900, temperature=0)))
    await asyncio.to_thread(gateway.wait_for, lambda: gateway.status()["running"], "the stream to begin")
    family = gateway.processes()
    assert len(family) > 1
    os.kill(gateway.pid, signal.SIGTERM)
    await asyncio.to_thread(gateway.wait_for, lambda: "outpost: stopping" in gateway.log(), "the end to begin")
    os.kill(gateway.pid, signal.SIGTERM)
    began = time.monotonic()
    assert await ended(gateway) == 130
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, 2.0)
    assert not alive
    assert time.monotonic() - began < 10
    answer: Answer = await running
    assert not answer.done


async def test_answers_of_a_real_engine_finish(new_gateway: NewGateway) -> None:
    gateway = new_gateway(
        {"deployments": [{"name": CHAT, "model": CHAT, "engine": "llamacpp", "args": {"context": 1024}}]}
    )
    bodies = [
        chat(f"Tell me about {number}", max_tokens=30, temperature=0, stream=number % 2 > 0) for number in range(12)
    ]
    running = [asyncio.ensure_future(post(gateway, body)) for body in bodies]
    await asyncio.to_thread(gateway.wait_for, lambda: gateway.status()["running"] == 12, "all to be under way")
    family = gateway.processes()
    os.kill(gateway.pid, signal.SIGTERM)
    answers = await asyncio.gather(*running)
    assert all(answer.done and answer.error is None for answer in answers)
    assert await ended(gateway) == 0
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, 5.0)
    assert not alive
