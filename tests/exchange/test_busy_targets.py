"""A target with no room is passed over for the next one that has some; where none has, the first is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec
import pytest

from appliance.limits.admission import Opening, Visit
from appliance.limits.fair_queue import Rules
from appliance.settings.admission import PRIORITIES
from tests.exchange.test_hedging_requests import hedged
from tests.exchange.test_limits_in_the_exchange import limit, nothing_is_left, standing
from tests.fakes.answers import events_of
from tests.fakes.house import House
from tests.fakes.replies import Reply, Seen
from tests.fakes.tongue_openai import chunk
from tests.fakes.upstream import chat_whole

FIRST, SECOND = "fake/ok", "fake/ok~2"


def held(seen: Seen) -> Reply:
    """It answers once it is released."""
    if seen.body.get("stream"):
        return Reply(events=[chunk({"content": "Hi"}), chunk({}, "stop")], hold=True)
    return Reply(body=chat_whole(), hold=True)


async def full(house: House, *names: str, **rules: Any) -> list[Visit]:
    """These targets have one place each, and somebody has it."""
    gates = house.gateway.gates
    gates.apply(Rules(**rules), [Opening(name, (name,), 1) for name in names])
    visits = [gates.enter(name, "normal", "somebody else") for name in names]
    assert all(visit.enter_at_once() for visit in visits)
    return visits


def waiting(house: House) -> dict[str, int]:
    return {view.name: sum(view.waiting.values()) for view in house.gateway.gates.views()}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


def target_of(response: aiohttp.ClientResponse) -> tuple[int, str, str]:
    return response.status, response.headers["x-outpost-target"], response.headers["x-outpost-attempts"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("retries", [0, 2])
async def test_a_full_target_is_passed_over_at_once(house: House, stream: bool, retries: int) -> None:
    house.route("m", "ok", "ok~2", retries=retries)
    limit(
        house, {"scope": "key", "requests": "10/hour"}, {"scope": "model", "match": {"model": [SECOND]}, "in_flight": 5}
    )
    [place] = await full(house, FIRST)
    responses = await asyncio.gather(*[house.chat("m", stream=stream) for _ in range(5)])
    assert {target_of(response) for response in responses} == {(200, SECOND, "1")}
    row = await house.recorder.wait_for(5)
    assert row.queue_s in (None, 0.0)
    assert standing(house)["k-user:requests"].used == 5
    nothing_is_left(house)
    place.leave()
    assert target_of(await house.chat("m", stream=stream)) == (200, FIRST, "1")


async def test_a_deployment_that_is_full_is_passed_over_for_one_as_near(house: House) -> None:
    local, other = house.gateway.router.find("local").targets[0], house.gateway.router.find("remote").targets[0]
    house.route("m", local, msgspec.structs.replace(other, zone="on_box"))  # type: ignore[arg-type]
    await full(house, "local")
    assert target_of(await house.chat("m")) == (200, other.name, "1")


async def test_a_cloud_is_only_asked_when_the_wait_on_the_box_was_in_vain(house: House) -> None:
    local, other = house.gateway.router.find("local").targets[0], house.gateway.router.find("remote").targets[0]
    house.route("m", local, msgspec.structs.replace(other, zone="cloud"))  # type: ignore[arg-type]
    [place] = await full(house, "local")
    asking = asyncio.create_task(house.chat("m"))
    await until(lambda: waiting(house) == {"local": 1})
    place.leave()
    assert target_of(await asking) == (200, "local", "1")
    house.gateway.gates.apply(Rules(max_wait=dict.fromkeys(PRIORITIES, 0.05)), [Opening("local", ("local",), 1)])
    assert house.gateway.gates.enter("local", "normal", "somebody else").enter_at_once()
    assert target_of(await house.chat("m")) == (200, other.name, "1")


async def test_where_all_are_full_the_first_is_waited_for(house: House) -> None:
    house.route("m", "ok", "ok~2", retries=0)
    first, second = await full(house, FIRST, SECOND)
    asking = asyncio.create_task(house.chat("m"))
    await until(lambda: waiting(house) == {FIRST: 1, SECOND: 0})
    second.leave()  # whoever waits stays where he is
    passing = await house.chat("m")
    assert target_of(passing) == (200, SECOND, "1"), "and nobody else waits for him"
    assert not asking.done()
    first.leave()
    assert target_of(await asking) == (200, FIRST, "1")
    row = await house.recorder.wait_for(2)
    assert row.queue_s is not None and row.queue_s > 0


async def test_who_comes_later_never_takes_the_place_of_who_waits(house: House) -> None:
    house.upstream.behave("held", held)
    house.route("m", "held", "ok")
    house.route("alone", "held")
    [first] = await full(house, "fake/held")
    asking = asyncio.create_task(house.chat("alone"))
    await until(lambda: waiting(house)["fake/held"] == 1)
    first.leave()  # to the one who waits, though others come at that moment
    assert target_of(await house.chat("m")) == (200, FIRST, "1")
    house.upstream.release.set()
    assert target_of(await asking) == (200, "fake/held", "1")


async def test_when_the_one_with_room_fails_the_full_one_is_waited_for(house: House) -> None:
    house.route("m", "ok", "503", retries=2)
    [first] = await full(house, FIRST)
    asking = asyncio.create_task(house.chat("m"))
    await until(lambda: waiting(house)[FIRST] == 1)
    assert len(house.upstream.asked("503")) == 1
    first.leave()
    assert target_of(await asking) == (200, FIRST, "2")


async def test_what_the_one_with_room_refuses_is_told_and_nobody_waits(house: House) -> None:
    house.route("m", "ok", "400")
    await full(house, FIRST)
    async with asyncio.timeout(5):
        response = await house.chat("m")
    assert target_of(response) == (400, "fake/400", "1")


async def test_who_waited_for_the_first_in_vain_is_told(house: House) -> None:
    house.route("m", "ok", "ok~2", retries=0)
    await full(house, FIRST, SECOND, max_wait={"interactive": 0.05, "normal": 0.05, "batch": 0.05})
    response = await house.chat("m")
    assert (response.status, (await response.json())["error"]["code"]) == (503, "queue_timeout")
    assert "Retry-After" in response.headers
    nothing_is_left(house)


async def test_where_the_first_queue_is_full_the_second_is_waited_in(house: House) -> None:
    house.route("m", "ok", "ok~2")
    house.route("alone", "ok")
    first, second = await full(house, FIRST, SECOND, max_waiting=1)
    alone = asyncio.create_task(house.chat("alone"))
    await until(lambda: waiting(house)[FIRST] == 1)
    asking = asyncio.create_task(house.chat("m"))
    await until(lambda: waiting(house) == {FIRST: 1, SECOND: 1})
    second.leave()
    assert target_of(await asking) == (200, SECOND, "1")
    first.leave()
    await alone


async def test_a_target_that_the_limits_refuse_is_no_reason_not_to_wait(house: House) -> None:
    """The second one's limit is used up: the first, which is full, is waited for, and the place of neither is lost."""
    house.route("m", "ok", "ok~2")
    limit(house, {"scope": "model", "match": {"model": [SECOND]}, "requests": "1/hour"})
    first, second = await full(house, FIRST, SECOND)
    second.leave()
    assert target_of(await house.chat("m")) == (200, SECOND, "1")
    asking = asyncio.create_task(house.chat("m"))
    await until(lambda: waiting(house)[FIRST] == 1)
    assert {view.name: view.inside for view in house.gateway.gates.views()} == {FIRST: 1, SECOND: 0}
    first.leave()
    assert target_of(await asking) == (200, FIRST, "1")
    nothing_is_left(house)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_second_runner_that_is_full_leaves_the_race_to_the_first(
    house: House, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.upstream.behave("held", held)
    hedged(house, "held", "ok")
    await full(house, FIRST)
    tries: list[str] = []
    enter = house.gateway.gates.enter

    def watched(target: str, *rest: Any, **more: Any) -> Visit:
        tries.append(target)
        return enter(target, *rest, **more)

    monkeypatch.setattr(house.gateway.gates, "enter", watched)
    asking = asyncio.create_task(house.chat("m", stream=stream))
    await until(lambda: tries == ["fake/held", FIRST])
    await until(lambda: len(house.upstream.seen) == 1)
    assert waiting(house) == {FIRST: 0}
    house.upstream.release.set()
    response = await asking
    assert target_of(response) == (200, "fake/held", "1")
    if stream:
        assert (await events_of(response))[-1] == "[DONE]"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_first_runner_that_is_full_leaves_the_race_to_the_second(house: House, stream: bool) -> None:
    hedged(house, "ok", "ok~2")
    await full(house, FIRST)
    assert target_of(await house.chat("m", stream=stream)) == (200, SECOND, "1")
