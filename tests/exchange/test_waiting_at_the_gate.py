"""Requests that wait for a busy target: who goes first, what counts meanwhile, and that no place is ever lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from appliance.limits.admission import Opening
from appliance.limits.fair_queue import Rules
from appliance.routing.routes import Deadlines, Target
from tests.fakes.house import House

HOLD = {"model": "local", "messages": [{"role": "user", "content": "!hold"}]}
SAY = {"model": "local", "messages": [{"role": "user", "content": "Hi"}]}
PATH = "/v1/chat/completions"


def one_place(house: House, **rules: Any) -> None:
    house.gateway.gates.apply(Rules(**rules), [Opening("local", ("local",), 1)])


def state(house: House) -> tuple[int, int]:
    """Places taken, and requests that wait."""
    [view] = house.gateway.gates.views()
    return view.inside, sum(view.waiting.values())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def holding(house: House, **fields: Any) -> asyncio.Task[Any]:
    """A request that has the only place and keeps it until the engine is released."""
    task = asyncio.create_task(house.post(PATH, {**HOLD, **fields}))
    await house.engine.holding.acquire()
    return task


def send(house: House, body: Any = SAY, **headers: str) -> asyncio.Task[Any]:
    return asyncio.create_task(house.post(PATH, body, **headers))


async def test_the_more_urgent_goes_first(house: House) -> None:
    one_place(house)
    first = await holding(house)
    tasks = []
    for priority in ("batch", "normal", "interactive"):
        body = {**SAY, "messages": [{"role": "user", "content": priority}]}
        tasks.append(send(house, body, **{"x-outpost-priority": priority}))
        await until(lambda: state(house) == (1, len(tasks)))
    house.engine.release.set()
    await asyncio.gather(first, *tasks)
    said = [request.messages[-1]["content"] for request in house.engine.requests if request.messages]
    assert said == ["!hold", "interactive", "normal", "batch"]
    await house.recorder.wait_for(4)
    rows = {row.priority: row for row in house.recorder.rows[1:]}
    assert set(rows) == {"interactive", "normal", "batch"}
    assert rows["batch"].queue_s is not None
    assert rows["batch"].queue_s > 0.25, "the wait at the gate is added to the engine's own"
    assert state(house) == (0, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_deadlines_stand_still_while_it_waits(house: House, stream: bool) -> None:
    one_place(house)
    first = await holding(house)
    target = house.gateway.router.find("local").targets[0]
    house.route("hurried", Target(target.upstream), deadlines=Deadlines(1.0, 0.2, 0.2, 0.2))
    waiting = send(house, {**SAY, "model": "hurried", "stream": stream})
    await until(lambda: state(house) == (1, 1))
    await asyncio.sleep(0.3)  # longer than all of its deadlines
    house.engine.release.set()
    assert (await waiting).status == 200
    await first


async def test_a_full_queue_is_503_and_says_when_to_come_back(house: House) -> None:
    one_place(house, max_waiting=1)
    first = await holding(house)
    second = send(house)
    await until(lambda: state(house) == (1, 1))
    refused = await house.post(PATH, SAY)
    assert refused.status == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert (await refused.json())["error"]["code"] == "overloaded"
    house.engine.release.set()
    assert {response.status for response in await asyncio.gather(first, second)} == {200}


async def test_a_full_queue_sends_the_request_elsewhere(house: House) -> None:
    one_place(house, max_waiting=0)
    first = await holding(house)
    local = house.gateway.router.find("local").targets[0]
    house.route("either", Target(local.upstream), "ok")
    response = await house.chat("either")
    assert (response.status, response.headers["x-outpost-target"]) == (200, "fake/ok")
    house.engine.release.set()
    await first


async def test_who_waited_too_long_is_told(house: House) -> None:
    one_place(house, max_wait={"interactive": 0.05, "normal": 0.05, "batch": 0.05})
    first = await holding(house)
    response = await house.post(PATH, SAY)
    assert (response.status, (await response.json())["error"]["code"]) == (503, "queue_timeout")
    assert "Retry-After" in response.headers
    house.engine.release.set()
    await first


async def test_who_leaves_the_queue_is_gone_at_once(house: House) -> None:
    one_place(house)
    first = await holding(house)
    leaving = send(house)
    await until(lambda: state(house) == (1, 1))
    leaving.cancel()
    await until(lambda: state(house) == (1, 0))
    house.engine.release.set()
    await first
    await house.recorder.wait_for(2)
    assert {row.outcome for row in house.recorder.rows} == {"client_closed", "completed"}
    assert len(house.engine.requests) == 1


async def _completes(house: House) -> None:
    assert (await house.post(PATH, {**SAY, "stream": True})).status == 200


async def _fails(house: House) -> None:
    body = {**SAY, "messages": [{"role": "user", "content": "!dies"}], "stream": True}
    assert b"engine_lost" in await (await house.post(PATH, body)).read()


async def _is_refused(house: House) -> None:
    body = {**SAY, "messages": [{"role": "user", "content": "!invalid"}]}
    assert (await house.post(PATH, body)).status == 400


async def _leaves_a_stream(house: House) -> None:
    body = {**SAY, "messages": [{"role": "user", "content": "!stall"}], "stream": True}
    task = send(house, body)
    await house.engine.holding.acquire()
    task.cancel()


async def _leaves_before_the_first_token(house: House) -> None:
    task = await holding(house, stream=True)
    task.cancel()


@pytest.mark.parametrize(
    "how", [_completes, _fails, _is_refused, _leaves_a_stream, _leaves_before_the_first_token], ids=lambda f: f.__name__
)
async def test_however_it_ends_the_place_is_free_again(house: House, how: Callable[[House], Awaitable[None]]) -> None:
    one_place(house)
    for _ in range(3):
        await how(house)
        await until(lambda: state(house) == (0, 0))
    assert (await house.post(PATH, SAY)).status == 200


@pytest.mark.parametrize("bad", ["urgent", "0", "INTERACTIVE NOW"])
async def test_an_unknown_class_is_refused_by_name(house: House, bad: str) -> None:
    response = await house.post(PATH, SAY, **{"x-outpost-priority": bad})
    assert (response.status, (await response.json())["error"]["param"]) == (400, "x-outpost-priority")
