"""Clients that leave a real gateway with a real engine: the work ends, and nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import random

import psutil
import pytest

from tests.e2e.clients import Client, Cut, Leaving, chat, client, engine_of, post, settled
from tests.gateway import CHAT, EMBEDDER, Gateway

LEAVING = int(os.environ.get("OUTPOST_TEST_LEAVING", "96"))
"""How many clients leave; 1,000 takes some minutes."""

pytestmark = pytest.mark.timeout(300 + LEAVING)

LONG = chat("Tell me a very long story.", temperature=0, max_tokens=1000)


async def stream_until(one: Client, pieces: int) -> None:
    """Read so many pieces of a streamed answer."""
    await one.head()
    parts = one.parts()
    for _ in range(pieces):
        await anext(parts)


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("moment", ["before the first token", "in the stream", "waiting for the whole answer"])
async def test_a_client_that_leaves_frees_its_slot(gateway: Gateway, moment: str, how: Leaving) -> None:
    async with engine_of(gateway) as engine:
        for number in range(3):
            await settled(engine)
            async with client(gateway) as one:
                if number:  # a connection that has served a request before
                    await one.send("/healthz", {}, method="GET")
                    await one.head()
                    await one.rest()
                body = LONG if moment != "waiting for the whole answer" else {**LONG, "stream": False}
                if moment == "before the first token":
                    body = {**LONG, "messages": [{"role": "user", "content": f"{number} wizard " * 500}]}
                await one.send("/v1/chat/completions", body)
                if moment == "in the stream":
                    await stream_until(one, 3)
                else:
                    while not (await engine.status()).busy:
                        await asyncio.sleep(0.002)
                before = await engine.status()
                one.leave(how)
                after = await settled(engine)
            # The step that runs, and those that run until a busy machine lets the gateway see the end.
            assert after.steps - before.steps <= 10
            if moment == "before the first token":
                assert after.tokens_prefilled - before.tokens_prefilled < 500
    row = gateway.wait_for(lambda: gateway.rows()[-1:], "the exchange on record")[0]
    assert (row["outcome"], row["attempts"][0]["outcome"]) == ("client_closed", "cancelled")


async def visit(gateway: Gateway, dice: random.Random) -> None:
    """Ask for something and leave at some moment, or stay."""
    kind = dice.choice(("stream", "stream", "whole", "many", "completion", "embedding"))
    path, body = "/v1/chat/completions", {**LONG, "max_tokens": dice.choice((2, 20))}
    if kind == "whole":
        body["stream"] = False
    elif kind == "many":
        body["n"] = 3
    elif kind == "completion":
        path, body = "/v1/completions", {"model": CHAT, "prompt": ["a", "b"], "max_tokens": 20, "stream": True}
    elif kind == "embedding":
        path, body = "/v1/embeddings", {"model": EMBEDDER, "input": ["word " * 50] * 4}
    how: Leaving = dice.choice(("close", "reset"))
    async with client(gateway) as one:
        await one.send(path, body)
        if dice.random() < 0.3:
            await asyncio.sleep(dice.uniform(0, 0.05))
            one.leave(how)
            return
        await one.head()
        left = dice.choice((0, 1, 3, 10, 1000))
        try:
            async for _ in one.parts():
                left -= 1
                if left <= 0:
                    break
        except Cut as error:
            raise AssertionError(f"{kind} was cut {error}") from error
        if left <= 0:
            one.leave(how)


async def test_many_that_leave_leave_nothing(gateway: Gateway) -> None:
    dice = random.Random(5)

    async def visits(count: int) -> None:
        for start in range(0, count, 24):
            await asyncio.gather(*(visit(gateway, dice) for _ in range(min(24, count - start))))

    def descriptors() -> dict[int, int]:
        return {process.pid: process.num_fds() for process in gateway.processes() if process.is_running()}

    def resident() -> dict[int, int]:
        return {process.pid: process.memory_info().rss for process in gateway.processes()}

    async with engine_of(gateway) as engine, engine_of(gateway, EMBEDDER) as embedder:
        await visits(48)
        await settled(engine)
        await settled(embedder)
        gateway.wait_for(lambda: gateway.status()["running"] == 0, "all exchanges to end")
        open_before, resident_before = descriptors(), resident()
        await visits(LEAVING)
        await settled(engine)
        await settled(embedder)
        gateway.wait_for(lambda: gateway.status()["running"] == 0, "all exchanges to end")
        gateway.wait_for(lambda: descriptors().keys() == open_before.keys(), "no new process")
        # Asking for the status takes a descriptor of its own for a moment.
        gateway.wait_for(
            lambda: all(count <= open_before[pid] for pid, count in descriptors().items()),
            f"the descriptors {open_before} to be back",
        )
        grown = {pid: size - resident_before[pid] for pid, size in resident().items()}
        assert max(grown.values()) < 48 << 20, grown
        assert gateway.pid in {process.pid for process in psutil.process_iter()}
    for replica in gateway.replicas():
        assert (replica["state"], replica["in_flight"], replica["restarts"]) == ("ready", 0, 0)
    assert (await post(gateway, chat("Hi", stream=False, max_tokens=2))).status == 200
    assert '"level":"error"' not in gateway.log()
