"""`x-outpost-explain: 1`: the plan in the place of the answer, for those who may see it, and nothing done."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from appliance.errors import ShuttingDown
from appliance.routing.conditions import Condition
from appliance.routing.routes import Nested, Route, Target
from tests.fakes.house import ADMIN_KEY, House
from tests.fakes.raw_client import RawClient

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
WAYS = [
    ("/v1/chat/completions", "remote", CHAT),
    ("/v1/chat/completions", "remote", {**CHAT, "stream": True}),
    ("/v1/completions", "remote", {"prompt": "Hi"}),
    ("/v1/embeddings", "embedder", {"input": "Hi"}),
    ("/v1/messages", "remote", {**CHAT, "max_tokens": 5}),
    ("/v1/messages", "remote", {**CHAT, "max_tokens": 5, "stream": True}),
    ("/v1/responses", "remote", {"input": "Hi"}),
    ("/v1/responses", "remote", {"input": "Hi", "stream": True}),
    ("/v1/responses/compact", "remote", {"input": "Hi"}),
]
EXPLAIN = {"x-outpost-explain": "1"}


def nothing_was_done(house: House) -> None:
    assert house.recorder.rows == []
    assert house.upstream.seen == []
    assert house.gateway.limits.store.allowed == 0  # type: ignore[attr-defined]
    assert house.gateway.health.board.names() == []
    assert len(house.gateway.running) == 0


@pytest.mark.parametrize(("path", "model", "body"), WAYS)
async def test_an_operator_is_told_the_plan(house: House, path: str, model: str, body: dict[str, Any]) -> None:
    response = await house.post(path, {"model": model, **body}, key=ADMIN_KEY, **EXPLAIN)
    told = await response.json()
    assert response.status == 200, told
    assert response.content_type == "application/json"
    assert (told["route"], told["strategy"]) == (model, "priority")
    (target,) = told["considered"]
    assert (target["target"], target["place"]) == ("fake/ok" if model == "remote" else model, 1)
    assert told["request"]["prompt_tokens"] == 64
    assert response.headers["x-outpost-attempts"] == "0"
    assert response.headers["Cache-Control"] == "no-store"
    assert ("request-id" in response.headers) == (path == "/v1/messages")
    nothing_was_done(house)


@pytest.mark.parametrize(("path", "model", "body"), WAYS)
async def test_nobody_else_is(house: House, path: str, model: str, body: dict[str, Any]) -> None:
    response = await house.post(path, {"model": model, **body}, **EXPLAIN)
    error = (await response.json())["error"]
    assert response.status == 403
    assert "needs the permission status.read; the role member lacks it" in error["message"]
    nothing_was_done(house)
    assert (await house.post(path, {"model": model, **body}, key="op-wrong", **EXPLAIN)).status == 401


@pytest.mark.parametrize("said", ["true", "2", "no"])
async def test_what_the_header_may_say(house: House, said: str) -> None:
    body = {"model": "remote", **CHAT}
    response = await house.post("/v1/chat/completions", body, key=ADMIN_KEY, **{"x-outpost-explain": said})
    error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, "x-outpost-explain")
    nothing_was_done(house)
    response = await house.post("/v1/chat/completions", body, **{"x-outpost-explain": "0"})
    assert (await response.json())["object"] == "chat.completion"


@pytest.mark.parametrize("body", [{"model": "remote"}, {"model": "nope", **CHAT}, {"model": "remote", "messages": 5}])
async def test_a_request_that_would_be_refused_is_refused(house: House, body: dict[str, Any]) -> None:
    explained = await house.post("/v1/chat/completions", body, key=ADMIN_KEY, **EXPLAIN)
    nothing_was_done(house)
    real = await house.post("/v1/chat/completions", body, key=ADMIN_KEY)
    assert explained.status == real.status >= 400
    assert await explained.json() == await real.json()


async def test_the_plan_is_the_one_that_a_request_goes_by(house: House) -> None:
    last = Route("last", (house.provider("ok"),), strategy="weighted")
    house.gateway.router = type(house.gateway.router)(
        [Route("m", (house.provider("500"), house.provider("503"), Nested(last)), retries=5)]
    )
    told = await (await house.post("/v1/chat/completions", {"model": "m", **CHAT}, key=ADMIN_KEY, **EXPLAIN)).json()
    nothing_was_done(house)
    assert (await house.chat("m")).status == 200
    row = await house.recorder.wait_for(1)
    asked = list(dict.fromkeys(attempt.target for attempt in row.attempts))
    assert [each["target"] for each in told["considered"]] == asked
    assert len(asked) == 3


async def test_headers_are_part_of_the_facts(house: House) -> None:
    headers = {**EXPLAIN, "x-outpost-tags": "vip, lab", "x-outpost-session": "s-1"}
    response = await house.post("/v1/chat/completions", {"model": "remote", **CHAT}, key=ADMIN_KEY, **headers)
    facts = (await response.json())["request"]
    assert (facts["tags"], facts["session"]) == ("vip, lab", "s-1")


async def test_a_caller_is_not_told_whom_targets_are_for(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """What conditions name is the settings' business; the log and an explanation have it."""
    caplog.set_level(logging.INFO, "outpost.exchange")
    names = ("board-room", "vip-tag", "merger-key")
    conditions = [Condition(teams=names[:1]), Condition(tags=names[1:2]), Condition(keys=names[2:])]
    first, *others = [Target(house.provider("ok").upstream, when=each) for each in conditions]
    house.route("m", first, Target(house.provider("other").upstream, when=conditions[1]))
    house.gateway.router = type(house.gateway.router)(
        [Route("m", (first, others[0], Nested(Route("inner", (house.provider("ok"),)), when=conditions[2])))]
    )
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/messages", {**CHAT, "max_tokens": 5})):
        response = await house.post(path, {"model": "m", **body})
        said = await response.text()
        assert response.status == 503
        assert "The model m is not for requests like this one" in said
        assert not any(name in said for name in names)
    (entry, _) = [each for each in caplog.records if each.message == "no_target"]
    assert all(name in entry.cause for name in names)  # type: ignore[attr-defined]
    response = await house.post("/v1/chat/completions", {"model": "m", **CHAT}, key=ADMIN_KEY, **EXPLAIN)
    told = await response.json()
    assert [each["place"] for each in told["considered"]] == [None] * 3
    assert all(name in str(told["considered"]) for name in names)
    assert "is not for requests like this one" in told["remarks"][0]


async def test_a_shutdown_ends_one_that_is_still_read(house: House) -> None:
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: box\r\nAuthorization: Bearer {ADMIN_KEY}\r\n"
        "x-outpost-explain: 1\r\nContent-Length: 50\r\nExpect: 100-continue\r\n\r\n"
    )
    async with RawClient(house.doors.public_port) as client:
        await client.send(head.encode())
        await client.until(b"100 Continue\r\n\r\n")
        house.gateway.running.stop_all()
        said = await client.until(b"\r\n\r\n")
    assert b" 503 " in said.partition(b"\r\n")[0]
    assert ShuttingDown.status == 503
    nothing_was_done(house)
