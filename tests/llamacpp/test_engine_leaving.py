"""Requests that are given up: the slot is free after the step that runs, and nothing is left of them."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator

import pytest

from runtimes.catalogue import Catalogue
from runtimes.engine import GenerateRequest
from runtimes.llamacpp.client import LlamaClient
from tests.gateway import CHAT
from tests.llamacpp.engine_process import GREEDY, EngineProcess, ask, idle, leave_after, status_when

pytestmark = [pytest.mark.engine, pytest.mark.timeout(3600)]

LEAVING = int(os.environ.get("OUTPOST_TEST_LEAVING", "150"))
"""How many requests are given up; 1,000 takes some minutes."""
LONG = GenerateRequest(prompt="Once upon a time", max_tokens=400, sampling=GREEDY)


@pytest.fixture(scope="module")
def process(catalogue: Catalogue) -> Iterator[EngineProcess]:
    with EngineProcess(catalogue.resolve(CHAT).main, context=512, slots=8, max_waiting=64) as process:
        yield process


@pytest.fixture
async def engine(process: EngineProcess) -> AsyncIterator[LlamaClient]:
    async with process.client() as engine:
        yield engine
        await status_when(engine, idle, "the engine to be idle")


async def cancelled_midway(engine: LlamaClient, request: GenerateRequest, deliveries: int) -> tuple[int, int]:
    """Decode steps and prompt tokens that were computed after the engine had taken the cancel."""
    events = engine.generate(request)
    for _ in range(deliveries):
        await anext(events)
    await events.aclose()  # type: ignore[attr-defined]  # the protocol says only that it is an iterator
    # On the same connection, so the answer is from after the cancel.
    told = await engine.status()
    over = await status_when(engine, idle, "the slot to be free")
    return over.steps - told.steps, over.tokens_prefilled - told.tokens_prefilled


@pytest.mark.parametrize("deliveries", [1, 2, 5, 20])
async def test_one_decode_step_at_most_runs_for_nobody(engine: LlamaClient, deliveries: int) -> None:
    for _ in range(5):
        steps, _ = await cancelled_midway(engine, LONG, deliveries)
        assert steps <= 1


async def test_a_prefill_for_nobody_ends_with_its_chunk(engine: LlamaClient, process: EngineProcess) -> None:
    for number in range(5):
        prompt = [1000 + number, *range(2000, 2450)]
        asking = asyncio.ensure_future(ask(engine, GenerateRequest(prompt=prompt, max_tokens=50, sampling=GREEDY)))
        before = await status_when(engine, lambda status: status.busy > 0, "the prefill to begin")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        over = await status_when(engine, idle, "the slot to be free")
        assert over.tokens_prefilled - before.tokens_prefilled <= 3 * process.settings.prefill_chunk
        assert over.steps == before.steps, "nothing was decoded for a prompt that nobody waits for"


async def test_the_others_go_on(engine: LlamaClient) -> None:
    expected = await ask(engine, GenerateRequest(prompt="One two three", max_tokens=40, sampling=GREEDY, logprobs=0))
    request = GenerateRequest(prompt="One two three", max_tokens=40, sampling=GREEDY, logprobs=0)
    staying = [asyncio.ensure_future(ask(engine, request)) for _ in range(4)]
    await asyncio.gather(*(leave_after(engine, LONG, number % 4) for number in range(40)))
    for answer in await asyncio.gather(*staying):
        assert answer.content == expected.content


async def test_a_connection_that_breaks_takes_its_requests_along(engine: LlamaClient, process: EngineProcess) -> None:
    for _ in range(5):
        async with process.client() as other:
            streams = [other.generate(LONG) for _ in range(12)]
            await asyncio.gather(*(anext(stream) for stream in streams[:8]))
            waiting = [asyncio.ensure_future(anext(stream)) for stream in streams[8:]]
            await status_when(engine, lambda status: status.open_requests == 12, "twelve requests")
        before = await engine.status()
        over = await status_when(engine, idle, "all twelve to be given up")
        assert over.steps - before.steps <= 3
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_many_that_leave_leave_nothing(engine: LlamaClient, process: EngineProcess) -> None:
    dice = random.Random(11)

    def request() -> GenerateRequest:
        size = dice.choice((1, 3, 60))
        return GenerateRequest(
            prompt="wizard " * size,
            max_tokens=dice.choice((1, 3, 200)),
            n=dice.choice((1, 1, 3)),
            sampling=GREEDY,
            response_format={"type": "json_object"} if dice.random() < 0.1 else None,
        )

    async def visits(count: int) -> None:
        for start in range(0, count, 24):
            await asyncio.gather(
                *(leave_after(engine, request(), dice.choice((0, 0, 1, 2, 4))) for _ in range(min(24, count - start)))
            )

    await visits(24)
    before = await status_when(engine, idle, "the engine to be idle")
    children, resident = process.children(), process.resident()
    await visits(LEAVING)
    after = await status_when(engine, idle, "the engine to be idle")
    assert after.descriptors == before.descriptors
    assert process.children() == children
    assert process.resident() - resident < 32 << 20
    # All slots can be used at once, so none is lost.
    answers = await asyncio.gather(*(ask(engine, LONG_ENOUGH) for _ in range(8)))
    assert all(answer.reasons == {0: "length"} for answer in answers)


LONG_ENOUGH = GenerateRequest(prompt="Count: 1 2 3 4", max_tokens=4, sampling=GREEDY)
