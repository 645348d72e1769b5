"""What a hedged request leaves behind: nothing that nobody takes; and each attempt is on the account of its target."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from appliance.hedged import Heat
from appliance.routing.routes import Deadlines
from tests.exchange.test_hedging_requests import hedged
from tests.exchange.test_limits_in_the_exchange import limit, nothing_is_left, standing
from tests.exchange.test_nothing_is_left import nothing_left
from tests.fakes.answers import events_of
from tests.fakes.house import House
from tests.fakes.upstream import Reply, Seen, chat_whole


async def _race(
    first: Awaitable[str], second: Callable[[], Awaitable[str]], dropped: list[str], *, at_s: float = 0.0
) -> str:
    async def drop(answer: str) -> None:
        dropped.append(answer)

    return await Heat[str](lambda: None).run(first, second, at_s, lambda: True, drop)


async def test_of_two_answers_at_the_same_moment_one_is_dropped() -> None:
    go, dropped = asyncio.Event(), list[str]()

    async def answer(word: str) -> str:
        await go.wait()
        return word

    race = asyncio.ensure_future(_race(answer("first"), lambda: answer("second"), dropped))
    await asyncio.sleep(0.02)  # until both wait: nothing tells
    go.set()
    assert await race == "first"
    assert dropped == ["second"]


@pytest.mark.parametrize("at_s", [0.0, 10.0])
async def test_an_answer_that_comes_as_the_client_leaves_is_dropped(at_s: float) -> None:
    go, dropped = asyncio.Event(), list[str]()

    async def answer() -> str:
        await go.wait()
        return "late"

    async def never() -> str:
        await asyncio.Event().wait()
        return "never"

    race = asyncio.ensure_future(_race(answer(), never, dropped, at_s=at_s))
    await asyncio.sleep(0.02)
    go.set()
    await asyncio.sleep(0)  # the answer is there; nobody has learnt of it
    race.cancel()
    with pytest.raises(asyncio.CancelledError):
        await race
    assert dropped == ["late"]


async def test_a_client_that_leaves_while_the_loser_ends_has_the_winner_dropped() -> None:
    ending, dropped = asyncio.Event(), list[str]()

    async def slow_to_end() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await asyncio.sleep(0.01)
        return "never"

    async def quick() -> str:
        return "quick"

    race = asyncio.ensure_future(_race(slow_to_end(), quick, dropped))
    await ending.wait()
    race.cancel()
    with pytest.raises(asyncio.CancelledError):
        await race
    assert dropped == ["quick"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("targets", [("silent", "ok"), ("silent", "500", "ok")])
async def test_nothing_is_left_of_a_race(house: House, stream: bool, targets: tuple[str, ...]) -> None:
    hedged(house, *targets, deadlines=Deadlines(connect=0.2, first_token=0.2, idle=0.2, whole=0.2, total=5.0))
    limit(house, {"scope": "key", "tokens": "100000/hour", "in_flight": 1})
    async with nothing_left(house):
        response = await house.chat("m", stream=stream)
        assert response.status == 200
        await (events_of(response) if stream else response.read())
    nothing_is_left(house)


async def test_a_target_with_nothing_left_is_not_raced(house: House) -> None:
    hedged(house, "silent", "ok", deadlines=Deadlines(first_token=0.2), retries=0)
    limit(house, {"name": "other", "scope": "model", "match": {"model": "fake/ok"}, "tokens": "5/hour"})
    response = await house.chat("m", stream=True)
    assert response.status == 504
    assert [seen.body["model"] for seen in house.upstream.seen] == ["silent"]
    nothing_is_left(house)


@pytest.mark.parametrize("stream", [True, False])
async def test_each_runner_is_on_the_account_of_its_target(house: House, stream: bool) -> None:
    hedged(house, "silent", "ok")
    limit(
        house,
        {"name": "a", "scope": "model", "match": {"model": "fake/silent"}, "input_tokens": "100000/hour"},
        {"name": "b", "scope": "model", "match": {"model": "fake/ok"}, "input_tokens": "100000/hour"},
        {"name": "all", "scope": "key", "input_tokens": "100000/hour"},
    )
    response = await house.chat("m", stream=stream)
    assert response.status == 200
    row = await house.recorder.wait_for(1)
    lost, won = (each.prompt_tokens for each in row.attempts)
    used = {name: each.used for name, each in standing(house).items() if each.used}
    assert lost > 0 and won > 0
    assert used == {"fake/silent:input_tokens": lost, "fake/ok:input_tokens": won, "k-user:input_tokens": lost + won}
    nothing_is_left(house)


async def test_whoever_leaves_a_race_pays_for_both(house: House) -> None:
    hedged(house, "silent", "silent")
    limit(house, {"scope": "key", "input_tokens": "100000/hour"})
    asking = asyncio.create_task(house.chat("m", stream=True))
    async with asyncio.timeout(5):
        for _ in range(2):
            await house.upstream.sending.acquire()
        asking.cancel()
        row = await house.recorder.wait_for(1)
    assert standing(house)["k-user:input_tokens"].used == sum(each.prompt_tokens for each in row.attempts) == 128
    nothing_is_left(house)


async def test_who_comes_second_takes_no_deadline_from_the_first(house: House) -> None:
    """Its breaker has opened since the plan was made: nothing begins there that would have a deadline of its own."""
    health = house.gateway.health

    def silent(seen: Seen) -> Reply:
        while (flight := health.board.began("fake/ok", 1, health.clock())) is not None:
            flight.ended("failed", health.clock())
        return Reply(body=chat_whole(), hold=True)

    house.upstream.behave("hangs", silent)
    hedged(house, "hangs", "ok", deadlines=Deadlines(first_token=0.3, total=60.0), retries=0)
    async with asyncio.timeout(5):
        response = await house.chat("m", stream=True)
    assert (response.status, (await response.json())["error"]["code"]) == (504, "upstream_timeout")


async def test_deadlines_of_a_lost_race_are_over_with_it(house: House) -> None:
    """Both fail; the pause before the next attempt is nobody's silence."""
    hedged(house, "503", "503", "ok", deadlines=Deadlines(first_token=0.1), retries=5)
    waits: list[float] = []

    async def pause(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0.2)

    house.gateway.pause = pause
    response = await house.chat("m", stream=True)
    assert response.status == 200
