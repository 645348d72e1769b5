"""Streams that another target goes on with: whose bounds hold, who is charged, and what is not gone on with."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
import pytest

from appliance.dialects.chat import ChatRequest, UserMessage
from appliance.dialects.kinds import MESSAGES
from appliance.dialects.splice import Sent
from appliance.rescue import LEAST_REST, Rescue, _asking_for_the_rest
from appliance.routing.routes import Deadlines
from tests.exchange.test_limits_in_the_exchange import limit, nothing_is_left, standing
from tests.fakes.answers import events_of
from tests.fakes.house import USER_KEY, House
from tests.fakes.replies import End
from tests.fakes.tongue_openai import chunk
from tests.fakes.upstream import Reply

SHORT = Deadlines(first_token=2.0, idle=2.0, total=20.0)


def choice(index: int, text: str) -> bytes:
    return json.dumps({"choices": [{"index": index, "delta": {"content": text}, "finish_reason": None}]}).encode()


def texts_of(events: list[Any]) -> dict[int, str]:
    found: dict[int, str] = {}
    for event in events:
        for each in event.get("choices", ()) if isinstance(event, dict) else ():
            found[each["index"]] = found.get(each["index"], "") + (each["delta"].get("content") or "")
    return found


def broken(house: House, *events: bytes) -> None:
    house.upstream.behave("broken", lambda seen: Reply(events=list(events), end="cut"))


async def test_several_choices_are_never_put_into_one(house: House) -> None:
    broken(house, choice(0, "one"))
    again = [choice(0, "one and"), choice(1, "two"), choice(0, " more")]
    house.upstream.behave("again", lambda seen: Reply(events=again))
    house.route("m", "broken", "again", rescue="resume", deadlines=SHORT)
    events = await events_of(await house.chat("m", stream=True, n=2))
    assert "two" not in texts_of(events)[0]
    assert "error" in str(events[-1]), "it says that it broke"
    assert house.upstream.asked("again") == []


ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 99},
    "/v1/responses": {"input": "Hi", "store": False},
}


async def said_by(house: House, model: str, path: str) -> list[Any]:
    """What a client is told that has seen the first of it before the rest comes."""
    house.route("m", model, "ok", rescue="resume", deadlines=SHORT)
    auth = {"Authorization": f"Bearer {USER_KEY}"}
    response = await house.session.post(
        house.url + path, json={"model": "m", "stream": True, **ASKED[path]}, headers=auth
    )
    house.upstream.release.set()
    return await events_of(response)


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("end", ["cut", "reset", "bad_chunk"])
async def test_an_answer_that_is_finished_is_not_gone_on_with(house: House, end: End, path: str) -> None:
    events = [chunk({"content": "The answer is 42."}), chunk({}, "stop")]
    house.upstream.behave("finished", lambda seen: Reply(events=events, end=end, hold_after=1))
    said = await said_by(house, "finished", path)
    assert "42." in str(said)
    assert "error" not in str(said[-1]).replace("'error': None", "")
    assert [each.outcome for each in (await house.recorder.wait_for(1)).attempts] == ["completed"]
    assert house.upstream.asked("ok") == []


async def test_nor_is_one_that_fails_after_its_end(house: House) -> None:
    events = [chunk({"content": "The answer is 42."}), chunk({}, "stop"), b'{"error":{"message":"oops","code":500}}']
    house.upstream.behave("finished", lambda seen: Reply(events=events, hold_after=1))
    said = await said_by(house, "finished", "/v1/chat/completions")
    assert "42." in str(said)
    assert "error" in str(said[-1])
    assert house.upstream.asked("ok") == []


@pytest.mark.parametrize(
    ("pieces", "most", "left"), [(30, 100, 70), (100, 100, LEAST_REST), (99, 100, LEAST_REST), (5, 8, 8)]
)
def test_what_was_said_is_no_part_of_the_bound_any_more(pieces: int, most: int, left: int) -> None:
    request = ChatRequest(model="m", messages=[UserMessage("Hi")], max_completion_tokens=most)
    asked = _asking_for_the_rest(request, Sent(text="abc", pieces=pieces), "prefill")
    assert (asked.max_completion_tokens, asked.max_tokens) == (left, None)
    assert (
        _asking_for_the_rest(
            msgspec.structs.replace(request, max_completion_tokens=None), Sent(text="abc", pieces=pieces), "instruct"
        ).token_limit
        is None
    )


async def test_what_cannot_be_read_is_not_gone_on_with() -> None:
    rescue = Rescue(MESSAGES)
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "server_tool_use", "id": "x"}}
    rescue.pieces.append(b"event: content_block_start\ndata: " + json.dumps(start).encode() + b"\n\n")
    assert not await rescue.may_resume()


async def test_each_part_is_on_the_account_of_its_target(house: House) -> None:
    broken(house, chunk({"content": "one"}), chunk({"content": " two"}))
    whole = [chunk({"content": "one two three"}), chunk({}, "stop")]
    house.upstream.behave("again", lambda seen: Reply(events=whole))
    limit(
        house,
        {"name": "a", "scope": "model", "match": {"model": "fake/broken"}, "output_tokens": "100000/hour"},
        {"name": "b", "scope": "model", "match": {"model": "fake/again"}, "output_tokens": "100000/hour"},
        {"name": "c", "scope": "key", "requests": "9/hour", "in_flight": 1},
    )
    house.route("m", "broken", "again", rescue="resume", deadlines=SHORT)
    events = await events_of(await house.chat("m", stream=True))
    assert texts_of(events)[0] == "one two three"
    row = await house.recorder.wait_for(1)
    assert [each.completion_tokens for each in row.attempts] == [2, 1], "of what was not counted, the pieces"
    used = {name: each.used for name, each in standing(house).items()}
    assert used == {"fake/broken:output_tokens": 2, "fake/again:output_tokens": 1, "k-user:requests": 1}
    nothing_is_left(house)


async def test_who_may_not_be_asked_in_the_middle_is_passed_over(house: House) -> None:
    """The second target's limit is too small for the request at any time; the third goes on."""
    broken(house, chunk({"content": "one"}))
    whole = [chunk({"content": "one two"}), chunk({}, "stop")]
    house.upstream.behave("third", lambda seen: Reply(events=whole))
    limit(house, {"name": "b", "scope": "model", "match": {"model": "fake/ok"}, "tokens": "5/hour"})
    house.route("m", "broken", "ok", "third", rescue="resume", deadlines=SHORT)
    events = await events_of(await house.chat("m", stream=True))
    assert texts_of(events)[0] == "one two"
    assert house.upstream.asked("ok") == []
    nothing_is_left(house)


async def test_a_client_that_leaves_while_nobody_answers_is_charged_and_gone(house: House) -> None:
    broken(house, chunk({"content": "one"}))
    paused = asyncio.Event()

    async def pause(seconds: float) -> None:
        paused.set()
        await asyncio.Event().wait()

    house.gateway.pause = pause
    limit(house, {"scope": "key", "output_tokens": "100000/hour", "in_flight": 1})
    house.route("m", "broken", rescue="resume", deadlines=SHORT)
    asking = asyncio.create_task(house.chat("m", stream=True))
    async with asyncio.timeout(5):
        await paused.wait()
        asking.cancel()
        row = await house.recorder.wait_for(1)
    assert (row.outcome, row.attempts[0].completion_tokens) == ("client_closed", 1)
    assert standing(house)["k-user:output_tokens"].used == 1
    nothing_is_left(house)
