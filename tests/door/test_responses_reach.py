"""What was said where data must stay is not gone on with where it may not go: whoever asks, on whatever route."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from appliance.identity.principal import Principal, Restrictions
from appliance.records.tables import responses
from appliance.routing.routes import Nested, Route, Router
from tests.fakes.house import ADMIN_KEY, USER_KEY, House, open_house
from tests.fakes.responses import Stored, open_responses

SECRET = "Ann has measles."
SAID = "Paris"
"""Of every answer of the box."""


@pytest.fixture
async def stored(tmp_path: Path) -> AsyncIterator[Stored]:
    async with open_responses(tmp_path) as opened:
        yield opened


@pytest.fixture
async def house(tmp_path: Path, stored: Stored) -> AsyncIterator[House]:
    """`patients` stays on the box; `ward` leads to it; `mixed` has a target on the box behind one in the cloud. Two
    keys of one person: the user's may go everywhere, the admin's only to the box."""
    async with open_house(tmp_path) as opened:
        opened.gateway.responses = stored.responses
        local = opened.gateway.router.find("local").targets[0]
        patients = Route("patients", (local,), keep="on_box")
        made = [
            patients,
            Route("ward", (Nested(patients),)),
            Route("mixed", (opened.provider("ok"), local)),
            Route("on_prem", (local,), keep="on_prem"),
        ]
        opened.gateway.router = Router([*opened.gateway.router.routes, *made])
        limited = Restrictions(zones=("on_box",))
        opened.keys.known = {
            USER_KEY: Principal("k-user", "user", "member", user="ann"),
            ADMIN_KEY: Principal("k-admin", "admin", "member", user="ann", restrictions=limited),
        }
        yield opened


async def ask(house: House, model: str, key: str = USER_KEY, path: str = "", **fields: Any) -> tuple[int, Any]:
    """The answer's status, and what it says; for a stream its final response."""
    response = await house.post(f"/v1/responses{path}", {"model": model, **fields}, key=key)
    text = await response.text()
    if "event-stream" in response.headers["Content-Type"]:
        return response.status, json.loads(text.strip().splitlines()[-1].removeprefix("data: "))["response"]
    return response.status, json.loads(text)


async def first(house: House, where: str) -> dict[str, Any]:
    """A conversation that has to stay on the box."""
    model, key = {"route": ("patients", USER_KEY), "inside": ("ward", USER_KEY), "key": ("local", ADMIN_KEY)}[where]
    status, found = await ask(house, model, key, input=SECRET)
    assert status == 200, found
    return dict(found)


def seen(house: House) -> str:
    return str([each.body for each in house.upstream.seen])


def check_refused(house: House, told: tuple[int, Any]) -> None:
    status, found = told
    assert (status, found["error"]["code"]) == (403, "residency"), found
    assert "the conversation that it goes on from keeps data on the box" in found["error"]["message"]
    assert not house.upstream.seen


@pytest.mark.parametrize("where", ["route", "inside", "key"])
@pytest.mark.parametrize("how", ["whole", "stream", "background", "unstored", "compact"])
async def test_it_is_not_gone_on_with_in_a_cloud(house: House, where: str, how: str) -> None:
    id = (await first(house, where))["id"]
    fields: dict[str, dict[str, Any]] = {
        "stream": {"stream": True},
        "background": {"background": True},
        "unstored": {"store": False},
    }
    path = "/compact" if how == "compact" else ""
    more = {"input": "Go on", "previous_response_id": id, **fields.get(how, {})}
    check_refused(house, await ask(house, "remote", path=path, **more))
    # The same where it may go, so that nothing else was the reason.
    assert (await ask(house, "patients", path=path, **more))[0] == 200
    assert not house.upstream.seen


@pytest.mark.parametrize("where", ["route", "key"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_summary_made_on_the_box_stays_there(house: House, where: str, stream: bool) -> None:
    key = ADMIN_KEY if where == "key" else USER_KEY
    _, found = await ask(house, "local" if where == "key" else "patients", key, "/compact", input=SECRET)
    item = found["output"][-1]
    body: dict[str, Any] = {"input": [item, {"role": "user", "content": "Go on"}], "stream": stream}
    check_refused(house, await ask(house, "remote", **body))
    check_refused(house, await ask(house, "remote", path="/compact", input=body["input"]))
    # Stored on a route that goes everywhere, and gone on with from there: still not.
    status, later = await ask(house, "local", **body)
    assert status == 200
    check_refused(house, await ask(house, "remote", input="More", previous_response_id=later["id"]))


@pytest.mark.parametrize("how", ["whole", "stream", "background"])
async def test_what_goes_on_from_it_inherits_it(house: House, how: str) -> None:
    id = (await first(house, "route"))["id"]
    more: dict[str, Any] = {"whole": {}, "stream": {"stream": True}, "background": {"background": True}}[how]
    _, second = await ask(house, "local", input="Go on", previous_response_id=id, **more)
    async with asyncio.timeout(5):
        while how == "background" and second["status"] != "completed":
            await house.recorder.wait_for(2)
            second = await (await house.session.get(f"{house.url}/v1/responses/{second['id']}",
                headers={"Authorization": f"Bearer {USER_KEY}"})).json()  # fmt: skip
    check_refused(house, await ask(house, "remote", input="And now?", previous_response_id=second["id"]))
    _, summary = await ask(house, "local", path="/compact", previous_response_id=second["id"])
    check_refused(house, await ask(house, "remote", input=[summary["output"][-1]]))


async def test_only_the_targets_that_are_too_far_are_left_out(house: House) -> None:
    status, free = await ask(house, "mixed", input="Hi")
    assert (status, len(house.upstream.seen)) == (200, 1)
    assert (await ask(house, "mixed", input="More", previous_response_id=free["id"]))[0] == 200
    assert len(house.upstream.seen) == 2, "a conversation that may go everywhere does"
    id = (await first(house, "route"))["id"]
    status, found = await ask(house, "mixed", input="Go on", previous_response_id=id)
    assert (status, len(house.upstream.seen)) == (200, 2)
    assert SAID in str(found["output"])
    assert SECRET not in seen(house)


async def test_the_nearest_of_all_its_places_counts(house: House) -> None:
    _, far = await ask(house, "on_prem", input="Hi")
    _, near = await ask(house, "patients", input=SECRET, previous_response_id=far["id"])
    status, found = await ask(house, "remote", input="Go on", previous_response_id=far["id"])
    assert (status, "keeps data on the premises" in found["error"]["message"]) == (403, True)
    check_refused(house, await ask(house, "remote", input="Go on", previous_response_id=near["id"]))


async def test_what_an_earlier_version_stored_stays_on_the_box(house: House, stored: Stored) -> None:
    _, old = await ask(house, "remote", input="Hi")
    house.upstream.seen.clear()
    forget = update(responses).values(reach=None)
    await stored.recorder.write(lambda transaction: transaction.connection.execute(forget).rowcount)
    status, found = await ask(house, "remote", input="More", previous_response_id=old["id"])
    assert (status, found["error"]["code"]) == (403, "residency")
    assert "begun before the gateway noted" in found["error"]["message"]
    assert not house.upstream.seen
    assert (await ask(house, "local", input="More", previous_response_id=old["id"]))[0] == 200
