"""/v1/responses over real sockets: stored, gone on with, cancelled; by OpenAI's own client and by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from appliance.errors import NotFound
from appliance.identity.principal import Principal
from appliance.routing.routes import Target
from tests.fakes.house import ADMIN_KEY, USER_KEY, House, open_house, text_deadlines
from tests.fakes.providers import upstream
from tests.fakes.responses import Stored, open_responses

TEXT = "Paris is the capital of France."
WEATHER: Any = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {}}}
MEMBER = Principal(key_id="k-user", key_name="user", role="member")


@pytest.fixture
async def stored(tmp_path: Path) -> AsyncIterator[Stored]:
    async with open_responses(tmp_path) as opened:
        yield opened


@pytest.fixture
async def house(tmp_path: Path, stored: Stored) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        opened.gateway.responses = stored.responses
        yield opened


def client(house: House, key: str = USER_KEY) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=key, max_retries=0)


async def ask(house: House, said: str = "Hi", **fields: Any) -> dict[str, Any]:
    response = await house.post("/v1/responses", {"model": "local", "input": said, **fields})
    found: dict[str, Any] = await response.json()
    assert response.status == 200, found
    return found


async def call(
    house: House, method: str, path: str, *, key: str = USER_KEY, body: Any = None
) -> tuple[int, dict[str, Any]]:
    async with house.session.request(
        method, f"{house.url}/v1/responses/{path}", json=body, headers={"Authorization": f"Bearer {key}"}
    ) as response:
        assert response.headers["x-request-id"]
        return response.status, await response.json()


async def final(house: House, id: str) -> dict[str, Any]:
    """The response once nobody works on it any more."""
    async with asyncio.timeout(5):
        while (found := (await call(house, "GET", id))[1])["status"] in ("queued", "in_progress"):
            await asyncio.sleep(0.01)
    return found


async def test_a_conversation_by_the_sdk(house: House) -> None:
    async with client(house) as sdk:
        first = await sdk.responses.create(model="local", input="What is the capital of France?")
        assert (first.output_text, first.status) == (TEXT, "completed")
        again = await sdk.responses.retrieve(first.id)
        assert again.model_dump() == first.model_dump()
        second = await sdk.responses.create(model="local", input="Sure?", previous_response_id=first.id)
        assert second.previous_response_id == first.id
        asked = house.engine.requests[-1].messages
        assert asked is not None
        assert [(each["role"], each["content"]) for each in asked] == [
            ("user", "What is the capital of France?"),
            ("assistant", TEXT),
            ("user", "Sure?"),
        ]
        listed = [item async for item in sdk.responses.input_items.list(second.id, limit=1, order="asc")]
        assert [item.type for item in listed] == ["message"] * 3
        await sdk.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.retrieve(first.id)
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.responses.create(model="local", input="More", previous_response_id=second.id)
        assert caught.value.code == "previous_response_not_found"
        assert caught.value.param == "previous_response_id"


async def test_a_streamed_response_is_stored_as_it_was_told(house: House) -> None:
    async with client(house) as sdk:
        async with sdk.responses.stream(model="local", input="Hi") as stream:
            said = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
            told = await stream.get_final_response()
        found = await sdk.responses.retrieve(told.id)
        assert said == TEXT
        assert (found.output_text, found.status, found.usage) == (TEXT, "completed", told.usage)


async def test_tools_go_on(house: House) -> None:
    async with client(house) as sdk:
        first = await sdk.responses.create(model="local", input="!tool", tools=[WEATHER])
        (item,) = first.output
        assert item.type == "function_call"
        output: Any = {"type": "function_call_output", "call_id": item.call_id, "output": "sunny"}
        await sdk.responses.create(model="local", input=[output], previous_response_id=first.id, tools=[WEATHER])
        asked = house.engine.requests[-1].messages
        assert asked is not None
        assert [each["role"] for each in asked] == ["user", "assistant", "tool"]


async def test_another_key_finds_nothing(house: House) -> None:
    id = (await ask(house))["id"]
    for method, path in (("GET", id), ("GET", f"{id}/input_items"), ("DELETE", id), ("POST", f"{id}/cancel")):
        status, found = await call(house, method, path, key=ADMIN_KEY)
        assert (status, found["error"]["code"]) == (404, "not_found"), (method, path)
        assert (await call(house, method, path, key="op-wrong"))[0] == 401
    response = await house.post(
        "/v1/responses", {"model": "local", "input": "x", "previous_response_id": id}, key=ADMIN_KEY
    )
    assert (response.status, (await response.json())["error"]["code"]) == (400, "previous_response_not_found")
    assert (await call(house, "GET", id))[0] == 200


async def test_store_false(house: House) -> None:
    found = await ask(house, store=False)
    assert found["store"] is False
    assert (await call(house, "GET", found["id"]))[0] == 404


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("{}?nonsense=1", "nonsense"),
        ("{}?stream=true", "stream"),
        ("{}?starting_after=3", "stream"),
        ("{}?include=everything", "include"),
        ("{}/input_items?order=up", "order"),
        ("{}/input_items?limit=0", "limit"),
        ("{}/input_items?limit=101", "limit"),
        ("{}/input_items?limit=1&limit=2", "limit"),
        ("{}/input_items?after=nothing", "after"),
    ],
)
async def test_parameters_are_checked(house: House, path: str, param: str) -> None:
    status, found = await call(house, "GET", path.format((await ask(house))["id"]))
    assert (status, found["error"]["param"]) == (400, param)


async def test_parameters_that_are_taken(house: House) -> None:
    id = (await ask(house))["id"]
    both = "include[]=message.output_text.logprobs&include[]=reasoning.encrypted_content"
    for path in (f"{id}?{both}&stream=false", f"{id}/input_items?{both}&limit=100&order=asc"):
        assert (await call(house, "GET", path))[0] == 200
    assert (await call(house, "DELETE", f"{id}?include=reasoning.encrypted_content"))[0] == 400
    for method, path in (("PUT", id), ("GET", f"{id}/cancel"), ("GET", "compact")):
        assert (await call(house, method, path))[0] == 405


async def test_what_openai_has_beside_is_not_there(house: House) -> None:
    for path in ("input_tokens", "input_tokens/x"):
        status, found = await call(house, "POST", path, body={"model": "local", "input": "Hi"})
        assert (status, found["error"]["code"]) == (404, "not_found")
        assert f"no POST /v1/responses/{path} here" in found["error"]["message"]


# --- in the background ---


async def test_in_the_background(house: House) -> None:
    first = await ask(house, "!hold", background=True)
    assert (first["status"], first["output"], first["background"]) == ("queued", [], True)
    await house.engine.holding.acquire()
    assert (await call(house, "GET", first["id"]))[1]["status"] == "in_progress"
    assert house.recorder.rows == []
    house.engine.release.set()
    found = await final(house, first["id"])
    assert found["output"][0]["content"][0]["text"] == TEXT
    row = await house.recorder.wait_for(1)
    assert (row.id, row.outcome, row.completion_tokens) == (first["id"].removeprefix("resp_"), "completed", 6)


async def test_it_outlives_its_client(house: House) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{house.url}/v1/responses",
            json={"model": "local", "input": "!hold", "background": True},
            headers={"Authorization": f"Bearer {USER_KEY}"},
        ) as response,
    ):
        id = (await response.json())["id"]
    await house.engine.holding.acquire()
    house.engine.release.set()
    assert (await final(house, id))["status"] == "completed"


@pytest.mark.parametrize("model", ["local", "slow"])
async def test_cancelling_reaches_the_target(house: House, model: str) -> None:
    house.route("slow", "silent")
    first = await ask(house, "!hold", model=model, background=True)
    if model == "local":
        await house.engine.holding.acquire()
    else:
        await house.upstream.sending.acquire()
    for _ in range(2):
        status, found = await call(house, "POST", f"{first['id']}/cancel")
        assert (status, found["status"], found["id"]) == (200, "cancelled", first["id"])
    async with asyncio.timeout(5):
        await (house.engine.ended if model == "local" else house.upstream.hung_up).acquire()
    row = await house.recorder.wait_for(1)
    assert row.outcome == "client_closed"
    assert (await call(house, "GET", first["id"]))[1]["status"] == "cancelled"
    assert len(house.gateway.running) == 0


async def test_only_the_background_is_cancelled(house: House) -> None:
    status, found = await call(house, "POST", f"{(await ask(house))['id']}/cancel")
    assert status == 400
    assert "background" in found["error"]["message"]


async def test_what_is_refused_at_once_is_no_response(house: House) -> None:
    for fields, status, param in (
        ({"model": "nothing"}, 404, "model"),
        ({"stream": True}, 400, "stream"),
        ({"store": False}, 400, "background"),
        ({"input": 5}, 400, "input"),
    ):
        body = {"model": "local", "input": "Hi", "background": True, **fields}
        response = await house.post("/v1/responses", body)
        assert (response.status, (await response.json())["error"]["param"]) == (status, param)


async def test_a_failure_is_told_by_the_response(house: House) -> None:
    first = await ask(house, "!dies", background=True)
    found = await final(house, first["id"])
    assert (found["status"], found["output"]) == ("failed", [])
    assert found["error"]["message"]


async def test_a_restart(house: House, stored: Stored) -> None:
    first = await ask(house, "!hold", background=True)
    await house.engine.holding.acquire()
    again = stored.again()
    assert await again.recover() == 1
    assert json.loads(await again.get(MEMBER, first["id"]))["status"] == "failed"


async def test_deleting_ends_it(house: House, stored: Stored) -> None:
    first = await ask(house, "!hold", background=True)
    await house.engine.holding.acquire()
    assert (await call(house, "DELETE", first["id"]))[1]["deleted"] is True
    async with asyncio.timeout(5):
        await house.engine.ended.acquire()
    with pytest.raises(NotFound):
        await stored.responses.get(MEMBER, first["id"])


async def test_a_client_that_leaves_the_foreground_ends_it(house: House) -> None:
    asking = asyncio.create_task(house.post("/v1/responses", {"model": "local", "input": "!hold"}))
    await house.engine.holding.acquire()
    asking.cancel()
    async with asyncio.timeout(5):
        await house.engine.ended.acquire()
    assert (await house.recorder.wait_for(1)).outcome == "client_closed"
    assert (await call(house, "GET", f"resp_{house.recorder.rows[0].id}"))[0] == 404


# --- trouble ---


async def test_what_cannot_be_stored_is_not_answered(house: House, stored: Stored) -> None:
    await stored.recorder.close()
    response = await house.post("/v1/responses", {"model": "local", "input": "Hi"})
    assert (response.status, (await response.json())["error"]["code"]) == (503, "records_unavailable")
    streamed = await house.post("/v1/responses", {"model": "local", "input": "Hi", "stream": True})
    text = (await streamed.read()).decode()
    assert "response.completed" not in text
    assert "records_unavailable" in text
    background = await house.post("/v1/responses", {"model": "local", "input": "Hi", "background": True})
    assert background.status == 503
    assert (await ask(house, store=False))["status"] == "completed"


# --- summing up ---


@pytest.mark.parametrize("model", ["local", "remote"])
async def test_compacting(house: House, model: str) -> None:
    id = (await ask(house, "I am Ann."))["id"]
    async with client(house) as sdk:
        found = await sdk.responses.compact(model=model, previous_response_id=id, input="Bye.")
        assert found.object == "response.compaction"
        assert found.usage.total_tokens > 0
        assert [item.type for item in found.output] == ["message", "message", "compaction"]
        items: Any = [item.model_dump(exclude_none=True) for item in found.output]
        await sdk.responses.create(model="local", input=[*items, {"role": "user", "content": "Who am I?"}])
    asked = house.engine.requests[-1].messages
    assert asked is not None
    assert "What was said before" in str(asked)
    assert house.recorder.rows[1].kind == "responses.compact"


async def test_a_shutdown_ends_it_with_an_error(house: House, stored: Stored) -> None:
    first = await ask(house, "!hold", background=True)
    await house.engine.holding.acquire()
    await house.doors.close(0.05)
    await asyncio.gather(*house.gateway.background, return_exceptions=True)
    found = json.loads(await stored.responses.get(MEMBER, first["id"]))
    assert (found["status"], found["error"]["code"]) == ("failed", "shutting_down")
    assert house.recorder.rows[0].error_code == "shutting_down"


@pytest.mark.parametrize("behaviour", ["cut", "stall"])
async def test_a_stream_that_breaks_is_not_stored(house: House, behaviour: str) -> None:
    house.route("broken", behaviour, deadlines=text_deadlines(0.2), retries=0)
    house.upstream.release.set()
    if behaviour == "stall":
        house.upstream.release.clear()
    response = await house.post("/v1/responses", {"model": "broken", "input": "Hi", "stream": True})
    text = (await response.read()).decode()
    assert "response.completed" not in text
    assert "response.failed" in text or '"type":"error"' in text
    row = await house.recorder.wait_for(1)
    assert (await call(house, "GET", f"resp_{row.id}"))[0] == 404


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["openai", "openai_compatible"])
async def test_what_a_provider_sees(house: House, kind: str, stream: bool) -> None:
    """The whole conversation, whether it speaks the same dialect or not. It is asked to store nothing, and the ids that
    the caller sees are ours."""
    far = upstream(
        "fake/far", model="ok", base_url=house.upstream.url, api_key="sk-x", session=house.session, kind=kind
    )
    house.route("far", Target(far, {}, "cloud"))
    first = await ask(house, "I am Ann.")
    body = {"model": "far", "input": "Who am I?", "previous_response_id": first["id"], "stream": stream}
    response = await house.post("/v1/responses", body)
    told = await response.text()
    seen = house.upstream.seen[-1]
    assert seen.path.endswith("/responses" if kind == "openai" else "/chat/completions")
    assert seen.body.get("store", False) is False
    assert "previous_response_id" not in seen.body
    assert "I am Ann." in str(seen.body)
    id = f"resp_{house.recorder.rows[1].id}"
    second = json.loads(told.rpartition("data: ")[2])["response"] if stream else json.loads(told)
    assert (second["id"], second["previous_response_id"], second["store"]) == (id, first["id"], True)
    assert "resp_up" not in told
    assert (await call(house, "GET", id))[1] == second
    third = await ask(house, "Sure?", previous_response_id=id)
    assert third["status"] == "completed"
    assert len(house.engine.requests[-1].messages or ()) == 5
