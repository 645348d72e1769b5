"""The time for a request does not run while it waits at a gate, however long that is."""

from __future__ import annotations

import asyncio

import pytest

from appliance.limits.admission import Opening
from appliance.limits.fair_queue import Rules
from appliance.routing.routes import Deadlines
from tests.fakes.house import House
from tests.fakes.upstream import Reply, chat_whole

LONGER_S = 0.6


@pytest.mark.parametrize("behaviour", ["slow", "500-then-ok"])
async def test_who_waited_for_longer_than_a_request_may_take_has_all_its_time(house: House, behaviour: str) -> None:
    house.upstream.script("500-then-ok", "500", "ok")
    house.upstream.behave("slow", lambda seen: Reply(body=chat_whole(), hold=True))
    targets = (behaviour, "429") if behaviour == "slow" else (behaviour,)
    house.route("m", *targets, deadlines=Deadlines(total=LONGER_S - 0.1), retries=1)
    gates = house.gateway.gates
    name = f"fake/{behaviour}"
    gates.apply(Rules(), [Opening(name, (name,), 1)])
    place = gates.enter(name, "normal", "somebody else")
    await place.enter()
    asking = asyncio.create_task(house.chat("m"))
    async with asyncio.timeout(10):
        while not gates.views()[0].waiting["normal"]:
            await asyncio.sleep(0.001)
        await asyncio.sleep(LONGER_S)  # what is tested is that this time does not count
        place.leave()
        await asyncio.sleep(0.1)
        house.upstream.release.set()
        response = await asking
    assert response.status == 200
    assert response.headers["x-outpost-target"] == name
    row = await house.recorder.wait_for(1)
    assert row.queue_s is not None and row.queue_s >= LONGER_S - 0.1
