"""An engine that is killed, hangs or dies while it loads: its clients are told at once, and it comes back by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from tests.e2e.clients import Answer, chat, engine_of, post
from tests.gateway import CHAT, EMBEDDER, Gateway, GatewayFailed

pytestmark = pytest.mark.timeout(300)

TOLD_WITHIN_S = 2.0
SETTINGS = {
    "deployments": [
        {"name": CHAT, "model": CHAT, "engine": "llamacpp", "args": {"context": 1024}},
        {"name": EMBEDDER, "model": EMBEDDER, "engine": "llamacpp"},
    ]
}
NewGateway = Callable[..., Gateway]


def endless(number: int, **fields: Any) -> dict[str, Any]:
    # The tokens that would end it are banned. As many as there are slots, so that none waits at the gate.
    bias = {"0": -100, "2": -100}
    return chat(f"Tell me a very long story {number}", temperature=0, max_tokens=300, logit_bias=bias, **fields)


async def busy(gateway: Gateway, requests: int) -> None:
    """Until the engine has taken so many requests and every slot has said something."""
    async with engine_of(gateway) as engine:
        while (status := await engine.status()).open_requests < requests or status.waiting:
            await asyncio.sleep(0.01)
        # Counted from here: an engine that took over others' requests has many steps behind it.
        begun = status.steps
        while (await engine.status()).steps < begun + 16:
            await asyncio.sleep(0.01)


def engine_pid(gateway: Gateway, deployment: str = CHAT) -> int:
    pid = gateway.replicas(deployment)[0]["pid"]
    assert isinstance(pid, int)
    return pid


def check_told(answer: Answer, killed: float) -> None:
    """The client has had an error, as the end of what it was sent, in time."""
    assert answer.complete, "the connection was cut instead of ended"
    assert not (answer.streamed and answer.done), "a stream that broke off must not end as if it were whole"
    assert answer.error is not None, answer.body[-300:]
    assert answer.error["code"] == "engine_lost"
    assert answer.status == (200 if answer.streamed else 503)
    assert answer.ended_s - killed < TOLD_WITHIN_S


async def kill_under_load(gateway: Gateway) -> None:
    streams = [asyncio.ensure_future(post(gateway, endless(number))) for number in range(5)]
    wholes = [
        asyncio.ensure_future(post(gateway, {**endless(number, stream=False), "max_tokens": 100}))
        for number in range(3)
    ]
    await busy(gateway, 8)
    embedding = asyncio.ensure_future(
        post(gateway, {"model": EMBEDDER, "input": ["word " * 50] * 16}, "/v1/embeddings")
    )
    victim = engine_pid(gateway)
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    answers = await asyncio.gather(*streams)
    begun = [answer for answer in answers if answer.event_times and answer.event_times[0] <= killed]
    assert begun, "every slot was to have said something"
    for answer in begun:
        check_told(answer, killed)
    # Where the client has seen nothing yet, the answer comes from the engine that is started in the dead one's place.
    for answer in answers:
        assert answer in begun or (answer.done and answer.error is None), answer.body[-300:]
    for answer in await asyncio.gather(*wholes):
        assert (answer.status, answer.error) == (200, None), answer.body[-300:]
    assert (await embedding).status == 200, "the other engine's requests are none of its business"
    gateway.wait_ready()
    assert engine_pid(gateway) != victim
    answer = await post(gateway, chat("Hello", temperature=0, max_tokens=3))
    assert answer.done
    assert answer.error is None


async def test_a_killed_engine_tells_its_clients_and_comes_back(
    new_gateway: NewGateway,
) -> None:
    gateway = new_gateway(SETTINGS)
    embedder = engine_pid(gateway, EMBEDDER)
    for kills in (1, 2):
        await kill_under_load(gateway)
        assert gateway.replicas(CHAT)[0]["restarts"] == kills
    assert engine_pid(gateway, EMBEDDER) == embedder
    rows = gateway.rows()
    lost = [row for row in rows if row["error_code"] == "engine_lost"]
    assert len(lost) >= 2, "one of each kill at least"
    assert {row["outcome"] for row in lost} == {"upstream_error"}
    assert gateway.status()["running"] == 0
    # Nothing of the dead engines is left: no process, no descriptor of the gateway's.
    assert len(gateway.processes()) == len(psutil.Process(gateway.pid).children(recursive=True)) + 1
    assert psutil.Process(gateway.pid).num_fds() < 80


async def test_an_engine_that_dies_while_it_loads_is_started_again(new_gateway: NewGateway) -> None:
    gateway = new_gateway(SETTINGS, ready=False)
    starting = gateway.wait_for(
        lambda: [r for r in gateway.replicas(CHAT) if r["state"] == "starting" and r["pid"]], "the engine to start"
    )
    answer = await post(gateway, chat("Hello", stream=False, max_tokens=2))
    assert (answer.status, answer.json["error"]["code"]) == (503, "model_loading")
    assert int(answer.headers["retry-after"]) >= 1
    os.kill(starting[0]["pid"], signal.SIGKILL)
    gateway.wait_ready()
    assert gateway.replicas(CHAT)[0]["restarts"] == 1
    assert (await post(gateway, chat("Hello", stream=False, max_tokens=2))).status == 200


@pytest.mark.engine
@pytest.mark.timeout(600)
async def test_an_engine_that_hangs_is_replaced(new_gateway: NewGateway) -> None:
    """A stopped process keeps its connection open and says nothing: only the probes can tell."""
    gateway = new_gateway(SETTINGS)
    streams = [asyncio.ensure_future(post(gateway, endless(number), patience_s=300)) for number in range(3)]
    await busy(gateway, 3)
    victim = engine_pid(gateway)
    os.kill(victim, signal.SIGSTOP)
    replaced = lambda: gateway.replicas(CHAT)[0]["restarts"] == 1  # noqa: E731
    await asyncio.to_thread(gateway.wait_for, replaced, "a new engine", 120)
    await asyncio.to_thread(gateway.wait_ready)
    assert not psutil.pid_exists(victim)
    for answer in await asyncio.gather(*streams):
        assert answer.complete
        assert not (answer.streamed and answer.done), "a stream that broke off must not end as if it were whole"
        assert answer.error is not None
        # The deadline for the next token and the probes find it out at about the same time.
        assert answer.error["code"] in ("engine_lost", "upstream_timeout")
    assert (await post(gateway, chat("Hello", stream=False, max_tokens=2))).status == 200


def test_a_second_gateway_on_the_same_data_is_refused(new_gateway: NewGateway) -> None:
    first = new_gateway({"deployments": [], "routes": []}, ready=False)
    second = Gateway(first.folder / "second", {"deployments": [], "routes": [], "data_dir": str(first.data_dir)})
    with pytest.raises(GatewayFailed, match="the gateway ended with 1") as refused:
        second.start(ready=False)
    assert f"another gateway (process {first.pid}) is already running on {first.data_dir}" in str(refused.value)
    assert first.status()["pid"] == first.pid
    assert (first.data_dir / "run" / "control.sock").is_socket()
