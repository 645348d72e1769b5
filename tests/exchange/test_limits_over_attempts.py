"""Limits where it gets difficult: targets that count oddly or each in its own way, requests that wait for long."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from appliance.limits.admission import Opening
from appliance.limits.clock import Now
from appliance.limits.fair_queue import Rules
from appliance.providers.local import LocalUpstream
from appliance.providers.upstream import READY, Capabilities
from appliance.routing.routes import Target
from tests.exchange.test_limits_in_the_exchange import PATH, SAY, limit, nothing_is_left, standing
from tests.fakes.engine import FakeEngine
from tests.fakes.house import CHAT_MODEL, House, now
from tests.fakes.upstream import Reply, Seen, chat_whole


@pytest.mark.parametrize("count", [-1_000_000, 10**30])
async def test_a_target_that_counts_nonsense_gives_nothing_back(house: House, count: int) -> None:
    def nonsense(seen: Seen) -> Reply:
        answer = json.loads(chat_whole())
        answer["usage"] |= {"prompt_tokens": count, "completion_tokens": count}
        return Reply(body=json.dumps(answer).encode())

    house.upstream.behave("nonsense", nonsense)
    house.route("nonsense", "nonsense")
    limit(house, {"scope": "key", "tokens": "100000/hour"})
    assert (await house.post(PATH, SAY)).status == 200
    before = standing(house)["k-user:tokens"].used
    assert (await house.chat("nonsense")).status == 200
    row = await house.recorder.wait_for(2)
    assert 0 <= row.prompt_tokens < 1 << 53
    assert all(0 <= charge.amount < 1 << 54 for charge in row.charges)
    assert standing(house)["k-user:tokens"].used >= before


async def test_a_request_that_waits_for_hours_keeps_its_place(house: House) -> None:
    moved = 0.0

    def clock() -> Now:
        return Now(now().wall + moved, now().monotonic + moved)

    house.gateway.limits.clock = clock
    limit(house, {"scope": "key", "in_flight": 2})
    house.gateway.gates.apply(Rules(), [Opening("local", ("local",), 1)])
    hold = {**SAY, "messages": [{"role": "user", "content": "!hold"}]}
    first = asyncio.create_task(house.post(PATH, hold))
    await house.engine.holding.acquire()
    second = asyncio.create_task(house.post(PATH, SAY, **{"x-outpost-priority": "batch"}))
    async with asyncio.timeout(5):
        while house.gateway.gates.views()[0].waiting["batch"] == 0:
            await asyncio.sleep(0.001)
    moved = 7200.0
    [(*_, waiting)] = house.gateway.limits.book.under_way(clock())
    assert waiting == 1, "the one that waits; the other has been under way for longer than any request may"
    house.engine.release.set()
    assert (await first).status == (await second).status == 200
    nothing_is_left(house)


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_before_a_provider_answers_is_bound_by_limits(house: House, stream: bool) -> None:
    """The provider works, and is paid, all the same."""
    limit(house, {"scope": "key", "requests": "2/hour", "tokens": "1000/hour"})
    house.upstream.behave("slow", lambda seen: Reply(body=chat_whole(), hold=True))
    house.route("slow", "slow")
    for number in range(2):
        task = asyncio.create_task(house.chat("slow", stream=stream, max_tokens=9))
        async with asyncio.timeout(5):
            while len(house.upstream.seen) <= number:
                await asyncio.sleep(0.001)
        task.cancel()
        row = await house.recorder.wait_for(number + 1)
        assert (row.outcome, row.usage_source, row.prompt_tokens) == ("client_closed", "estimated", 64)
    assert standing(house)["k-user:tokens"].used == 128
    assert (await house.chat("slow", max_tokens=9)).status == 429
    nothing_is_left(house)


class Counting(FakeEngine):
    """Counts `tokens` a prompt; `counted` is how often it was asked."""

    def __init__(self, tokens: int = 7) -> None:
        super().__init__()
        self.tokens = tokens
        self.counted = 0

    async def count(self, request: Any) -> int:
        self.counted += 1
        return self.tokens


def target(engine: FakeEngine, name: str, capabilities: Capabilities = CHAT_MODEL) -> Target:
    return Target(LocalUpstream(name, engine.lease, capabilities, lambda: READY))


async def test_what_one_tokenizer_counts_says_nothing_of_another(house: House) -> None:
    small, other = Counting(7), Counting(60)
    limit(
        house,
        {"name": "small", "scope": "model", "match": {"model": "local"}, "input_tokens": "5/hour"},
        {"name": "other", "scope": "model", "match": {"model": "remote"}, "input_tokens": "50/hour"},
    )
    house.route("both", target(small, "local"), target(other, "remote"))
    answer = await house.chat("both")
    assert answer.status == 400, "60 tokens there, which are more than 50"
    assert (small.counted, other.counted) == (1, 1)
    assert standing(house) == {}


async def test_several_prompts_share_no_context(house: House) -> None:
    engine = Counting(3000)
    house.route("texts", target(engine, "local"))
    limit(house, {"scope": "key", "tokens": "20000/hour"})
    body = {"model": "texts", "prompt": ["!hold"] * 2, "max_tokens": 8000}
    # 6,000 tokens of prompts, and up to 5,192 of each answer.
    house.gateway.limits.estimate = lambda request: 100_000
    task = asyncio.create_task(house.post("/v1/completions", body))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await engine.holding.acquire()
        await engine.holding.acquire()
    assert standing(house)["k-user:tokens"].reserved >= 6000 + 2 * 5192
    engine.release.set()
    assert (await task).status == 200


async def test_who_has_nothing_left_costs_the_engine_no_counting(house: House) -> None:
    engine = Counting()
    house.route("counted", target(engine, "local"))
    limit(house, {"scope": "key", "tokens": "78/hour"})
    for _ in range(6):
        assert (await house.chat("counted", max_tokens=6)).status == 200
    assert standing(house)["k-user:tokens"].remaining == 0
    before = engine.counted
    assert before
    assert (await house.chat("counted", max_tokens=6)).status == 429
    assert engine.counted == before
