"""Whole exchanges over real sockets: what a client sees and what is on record, target by target, fault by fault."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from appliance.dialects.sse import Framer
from appliance.providers.local import LocalUpstream
from appliance.providers.upstream import READY, Readiness
from appliance.routing.routes import Deadlines, Target
from tests.fakes import openai_schema as schema
from tests.fakes import upstream as fake
from tests.fakes.answers import events_of, text_of
from tests.fakes.house import CHAT_MODEL, UPSTREAM_KEY, USER_KEY, House
from tests.fakes.providers import upstream as openai_upstream

TEXT = "".join(fake.TEXT)
LOADING = Readiness(False, "warming", loading=True)


# --- what goes well -------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["local", "remote"])
async def test_a_whole_answer(house: House, model: str) -> None:
    response = await house.chat(model)
    assert response.status == 200
    answer = await response.json()
    assert schema.complaints(schema.CHAT, answer) == []
    row = await house.recorder.wait_for(1)
    assert response.headers["x-request-id"] == row.id
    assert response.headers["x-outpost-target"] == row.target
    assert response.headers["x-outpost-attempts"] == "1"
    assert (row.kind, row.route, row.status, row.outcome) == ("chat.completions", model, 200, "completed")
    assert (row.key_id, row.key_name, row.stream, row.client) == ("k-user", "user", False, "127.0.0.1")
    assert row.finish_reasons == ["stop"]
    assert row.usage_source == "reported"
    assert (row.prompt_tokens, row.completion_tokens) == (
        answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"],
    )  # fmt: skip
    assert row.cached_tokens > 0
    assert [attempt.outcome for attempt in row.attempts] == ["completed"]


@pytest.mark.parametrize("model", ["local", "remote"])
@pytest.mark.parametrize("usage", [True, False])
async def test_a_stream(house: House, model: str, usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if usage else {}
    response = await house.chat(model, stream=True, **options)
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/event-stream")
    events = await events_of(response)
    assert events[-1] == "[DONE]"
    for chunk in events[:-1]:
        assert schema.complaints(schema.CHAT_CHUNK, chunk) == []
    assert [chunk for chunk in events[:-1] if chunk.get("usage")] == (events[-2:-1] if usage else [])
    row = await house.recorder.wait_for(1)
    assert (row.stream, row.outcome, row.usage_source, row.finish_reasons) == (True, "completed", "reported", ["stop"])
    assert row.ttft_s is not None
    assert 0 < row.ttft_s <= row.duration_s


async def test_an_alias_answers_under_the_routes_name(house: House) -> None:
    answer = await (await house.chat("gpt-4o-mini")).json()
    assert answer["model"] == "local"


async def test_what_the_upstream_sees(house: House) -> None:
    house.route("over", house.provider("ok", temperature=0.25))
    response = await house.post(
        "/v1/chat/completions",
        {
            "model": "over",
            "messages": [{"role": "user", "content": "Hi"}],
            "temperature": 1.5,
            "stream": True,
            "user": "ann",
            "metadata": {"team": "x"},
            "store": False,
            "service_tier": "auto",
            "safety_identifier": "s",
            "prompt_cache_key": "k",
        },
        **{"X-Tenant": "admin", "X-Forwarded-For": "1.2.3.4", "Cookie": "a=b", "OpenAI-Organization": "org"},
    )
    assert response.status == 200
    seen = house.upstream.seen[-1]
    assert seen.path == "/v1/chat/completions"
    assert seen.body == {
        "model": "ok",
        "messages": [{"role": "user", "content": "Hi"}],
        "temperature": 0.25,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert set(seen.headers) == {
        "host", "authorization", "content-type", "content-length", "accept", "accept-encoding", "user-agent",
    }  # fmt: skip
    assert seen.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"


async def test_connections_to_the_upstream_are_used_again(house: House) -> None:
    for stream in (True, False, True, True, False):
        assert (await house.chat("remote", stream=stream)).status == 200
    assert house.upstream.connections == 1


# --- faults before the first token ----------------------------------------------------------------

MOVES_ON = [
    "500", "503", "503-after", "429", "429-after", "401", "404", "redirect", "garbage", "compressed", "closed",
    "cut-whole", "bad-chunk-whole",
]  # fmt: skip
MOVES_ON_STREAM = [
    "500", "429", "closed", "cut-before-token", "bad-chunk-before-token", "malformed-first", "error-first", "empty",
    "garbage",
]  # fmt: skip


@pytest.mark.parametrize("fault", MOVES_ON)
async def test_a_failed_attempt_moves_on(house: House, fault: str) -> None:
    house.route("m", fault, "ok")
    response = await house.chat("m")
    assert response.status == 200
    assert (await response.json())["choices"][0]["message"]["content"] == TEXT
    assert response.headers["x-outpost-attempts"] == "2"
    assert response.headers["x-outpost-target"] == "fake/ok"
    row = await house.recorder.wait_for(1)
    assert [(a.target, a.outcome) for a in row.attempts] == [(f"fake/{fault}", "failed"), ("fake/ok", "completed")]
    assert row.target == "fake/ok"
    assert row.completion_tokens == 4


async def test_a_whole_answer_to_who_asked_for_a_stream_is_streamed(house: House) -> None:
    house.route("m", "json-for-stream", "ok")
    response = await house.chat("m", stream=True)
    events = await events_of(response)
    assert (text_of(events), events[-1]) == (TEXT, "[DONE]")
    assert response.headers["x-outpost-attempts"] == "1"
    assert response.headers["Content-Type"].startswith("text/event-stream")


@pytest.mark.parametrize("fault", MOVES_ON_STREAM)
async def test_a_failed_stream_moves_on_while_nothing_was_seen(house: House, fault: str) -> None:
    house.route("m", fault, "ok")
    response = await house.chat("m", stream=True)
    events = await events_of(response)
    assert (text_of(events), events[-1]) == (TEXT, "[DONE]")
    assert response.headers["x-outpost-attempts"] == "2"


@pytest.mark.parametrize(
    ("fault", "status", "code", "attempts"),
    [
        ("500", 502, "upstream_error", 3),
        ("503", 503, "upstream_unavailable", 3),
        ("429", 429, "rate_limit_exceeded", 3),
        ("401", 502, "upstream_credentials", 1),
        ("404", 502, "upstream_not_found", 1),
        ("garbage", 502, "upstream_error", 3),
        ("closed", 502, "upstream_error", 3),
        ("cut-whole", 502, "upstream_error", 3),
        ("400", 400, "invalid_value", 1),
        ("400-context", 400, "context_length_exceeded", 1),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_when_nothing_helps_the_error_is_told(
    house: House, fault: str, status: int, code: str, attempts: int, stream: bool
) -> None:
    if fault == "cut-whole" and stream:
        fault = "cut-before-token"
    house.route("m", fault)
    response = await house.chat("m", stream=stream)
    assert response.status == status
    body = await response.json()
    assert schema.complaints(schema.ERROR, body) == []
    assert body["error"]["code"] == code
    assert "sk-upstream-key" not in await response.text()
    assert response.headers["x-outpost-attempts"] == str(attempts)
    row = await house.recorder.wait_for(1)
    assert (row.status, row.error_code, len(row.attempts)) == (status, code, attempts)
    assert row.outcome == ("refused" if status == 400 else "upstream_error")


async def test_retry_after_is_passed_on_or_is_for_how_long_the_target_is_left_alone(house: House) -> None:
    house.route("m", "429-after")
    assert (await house.chat("m")).headers["Retry-After"] == "7"
    house.route("n", "503-after")
    assert (await house.chat("n")).headers["Retry-After"] == "3"
    house.route("o", "429")
    assert 1 <= int((await house.chat("o")).headers["Retry-After"]) <= 4
    house.route("p", "500")
    assert "Retry-After" not in (await house.chat("p")).headers, "after three failures it is not left alone yet"


async def test_a_500_once_is_asked_again(house: House) -> None:
    house.upstream.script("flaky", "500", "ok")
    house.route("m", "flaky")
    response = await house.chat("m")
    assert response.status == 200
    assert response.headers["x-outpost-attempts"] == "2"


async def test_a_callers_mistake_is_not_tried_elsewhere(house: House) -> None:
    house.route("m", "400", "ok")
    response = await house.chat("m")
    assert response.status == 400
    assert len(house.upstream.seen) == 1


async def test_a_prompt_too_long_for_one_target_is_tried_with_the_next(house: House) -> None:
    house.route("m", "400-context", "ok")
    response = await house.chat("m")
    assert (response.status, response.headers["x-outpost-target"]) == (200, "fake/ok")
    house.route("n", "400-context", "400-context")
    response = await house.chat("n")
    assert (response.status, (await response.json())["error"]["code"]) == (400, "context_length_exceeded")


async def test_a_prompt_too_long_for_those_that_are_up_waits_for_a_larger_one(house: House) -> None:
    large = LocalUpstream(
        "large", house.engine.lease, msgspec.structs.replace(CHAT_MODEL, context_length=131_072), lambda: LOADING
    )
    small = LocalUpstream("small", house.engine.lease, CHAT_MODEL, lambda: READY)
    house.route("m", Target(small), Target(large))
    for stream in (False, True):
        response = await house.chat("m", "!context", stream=stream)
        assert (response.status, (await response.json())["error"]["code"]) == (503, "model_loading")
        assert "Retry-After" in response.headers
    row = await house.recorder.wait_for(2)
    assert ([attempt.target for attempt in row.attempts], row.outcome) == (["small"], "refused")


async def test_nobody_listens(house: House) -> None:
    dead = house.provider("ok")
    house.route("m", _at(house, "http://127.0.0.1:1/v1"), retries=0)
    response = await house.chat("m")
    assert (response.status, (await response.json())["error"]["code"]) == (502, "upstream_unreachable")
    house.route("n", _at(house, "http://127.0.0.1:1/v1"), dead)
    assert (await house.chat("n")).status == 200


def _at(house: House, url: str) -> Target:
    return Target(openai_upstream("dead", model="x", base_url=url, api_key=None, session=house.session))


@pytest.mark.parametrize("fault", ["silent", "role-then-silent"])
async def test_a_slow_first_token_moves_on(house: House, fault: str) -> None:
    house.route("m", fault, "ok", deadlines=Deadlines(first_token=0.2))
    response = await house.chat("m", stream=True)
    assert (await events_of(response))[-1] == "[DONE]"
    assert response.headers["x-outpost-attempts"] == "2"
    async with asyncio.timeout(5):
        await house.upstream.hung_up.acquire()
    row = await house.recorder.wait_for(1)
    assert row.attempts[0].error_code == "upstream_timeout"


async def test_a_slow_first_token_and_no_other_target(house: House) -> None:
    house.route("m", "role-then-silent", deadlines=Deadlines(first_token=0.2))
    response = await house.chat("m", stream=True)
    assert (response.status, (await response.json())["error"]["code"]) == (504, "upstream_timeout")


@pytest.mark.parametrize("stream", [True, False])
async def test_the_total_deadline_covers_everything(house: House, stream: bool) -> None:
    house.route("m", "silent", "silent", deadlines=Deadlines(total=0.3, whole=5.0))
    response = await house.chat("m", stream=stream)
    assert (response.status, (await response.json())["error"]["code"]) == (504, "deadline_exceeded")
    assert len(house.upstream.seen) == 1


# --- faults after the first token -----------------------------------------------------------------


@pytest.mark.parametrize("fault", ["cut", "reset", "bad-chunk", "malformed", "error-in-stream"])
async def test_a_broken_stream_is_told_and_has_no_clean_end(house: House, fault: str) -> None:
    house.route("m", fault, "ok")
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    headers = {"Authorization": f"Bearer {USER_KEY}"}
    async with house.session.post(f"{house.url}/v1/chat/completions", json=body, headers=headers) as response:
        assert response.status == 200
        got = await response.content.readany()
        house.upstream.release.set()
        got += await response.content.read()
    events = [json.loads(data) for data in Framer().feed(got)[0]]
    assert b"[DONE]" not in got
    assert schema.complaints(schema.ERROR, events[-1]) == []
    assert events[-1]["error"]["code"] == "upstream_error"
    assert text_of(events).startswith("Hello")
    assert b"sk-secret" not in got
    row = await house.recorder.wait_for(1)
    assert (row.status, row.outcome, row.error_code) == (200, "upstream_error", "upstream_error")
    assert (row.usage_source, len(row.attempts)) == ("estimated", 1)
    assert row.completion_tokens > 0


async def test_an_answer_that_is_complete_needs_no_end_marker(house: House) -> None:
    house.upstream.release.set()
    house.route("m", "no-end-marker")
    events = await events_of(await house.chat("m", stream=True))
    assert (text_of(events), events[-1]) == (TEXT, "[DONE]")


async def test_a_stall_is_cut_by_the_idle_deadline(house: House) -> None:
    house.route("m", "stall", deadlines=Deadlines(idle=0.2))
    events = await events_of(await house.chat("m", stream=True))
    assert events[-1]["error"]["code"] == "upstream_timeout"
    async with asyncio.timeout(5):
        await house.upstream.hung_up.acquire()


@pytest.mark.parametrize("how", ["slices", "crlf", "comments"])
async def test_odd_but_sound_streams(house: House, how: str) -> None:
    house.route("m", how)
    events = await events_of(await house.chat("m", stream=True))
    assert (text_of(events), events[-1]) == (TEXT, "[DONE]")


async def test_an_upstream_without_usage_is_estimated(house: House) -> None:
    house.route("m", "no-usage")
    await house.chat("m", stream=True)
    row = await house.recorder.wait_for(1)
    assert row.usage_source == "estimated"
    assert row.completion_tokens > 0
