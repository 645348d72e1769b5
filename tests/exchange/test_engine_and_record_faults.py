"""Whole exchanges with a local engine that fails, and with records that cannot be written."""

from __future__ import annotations

import asyncio

import pytest

from appliance.providers.upstream import Readiness
from tests.fakes import openai_schema as schema
from tests.fakes.answers import events_of, text_of
from tests.fakes.house import USER_KEY, House

# --- the engine's faults --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("marker", "status", "code", "param"),
    [
        ("!invalid", 400, "invalid_value", "response_format"),
        ("!context", 400, "context_length_exceeded", "messages"),
        ("!unsupported", 400, "unsupported_parameter", "tools"),
        ("!overloaded", 503, "overloaded", None),
        ("!lost", 503, "engine_lost", None),
        ("!broken", 502, "upstream_error", None),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_engine_errors(
    house: House, marker: str, status: int, code: str, param: str | None, stream: bool
) -> None:
    response = await house.chat("local", marker, stream=stream)
    error = (await response.json())["error"]
    assert (response.status, error["code"], error["param"]) == (status, code, param)
    assert "internal detail" not in error["message"]
    if marker == "!overloaded":
        assert response.headers["Retry-After"] == "1"
    assert house.engine.leases == 0


async def test_an_engine_that_dies_in_the_middle(house: House) -> None:
    events = await events_of(await house.chat("local", "!dies", stream=True))
    assert events[-1]["error"]["code"] == "engine_lost"
    assert text_of(events) == "Paris is "
    row = await house.recorder.wait_for(1)
    assert (row.usage_source, row.prompt_tokens, row.completion_tokens) == ("estimated", 7, 2)


async def test_an_engine_that_dies_in_a_whole_answer_is_asked_again(house: House) -> None:
    response = await house.chat("local", "!dies")
    assert (response.status, response.headers["x-outpost-attempts"]) == (503, "3")


async def test_nothing_is_up(house: House) -> None:
    house.readiness.append(Readiness(False, "starting", loading=True, retry_after_s=4))
    response = await house.chat("local")
    assert (response.status, response.headers["Retry-After"]) == (503, "4")
    assert (await response.json())["error"]["code"] == "model_loading"
    row = await house.recorder.wait_for(1)
    assert (row.outcome, row.attempts) == ("refused", [])


async def test_what_the_engine_is_asked(house: House) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    await house.chat(
        "local",
        max_completion_tokens=3, temperature=0, top_p=0.5, top_k=-1, min_p=0.1, seed=4, stop="x", n=2,
        logit_bias={"5": 1.5}, repetition_penalty=1.2, tools=[tool], tool_choice="auto", parallel_tool_calls=False,
        response_format={"type": "json_object"}, logprobs=True, top_logprobs=1,
    )  # fmt: skip
    asked = house.engine.requests[-1]
    assert asked.messages == [{"role": "user", "content": "Hi"}]
    assert (asked.max_tokens, asked.stop, asked.n, asked.logprobs) == (3, ["x"], 2, 1)
    assert asked.tools == [tool]
    assert (asked.tool_choice, asked.parallel_tool_calls) == ("auto", False)
    assert asked.response_format == {"type": "json_object"}
    assert asked.cache_partition == "k-user"
    s = asked.sampling
    assert (s.temperature, s.top_p, s.top_k, s.min_p, s.seed, s.repeat_penalty) == (0, 0.5, 0, 0.1, 4, 1.2)
    assert s.logit_bias == {5: 1.5}


async def test_the_other_operations(house: House) -> None:
    vectors = await (await house.post("/v1/embeddings", {"model": "embedder", "input": ["a", "b"]})).json()
    assert schema.complaints(schema.EMBEDDINGS, vectors) == []
    assert len(vectors["data"]) == 2
    packed = {"model": "embedder", "input": "a", "encoding_format": "base64"}
    assert isinstance((await (await house.post("/v1/embeddings", packed)).json())["data"][0]["embedding"], str)
    plain = {"model": "local", "prompt": ["a", "b"], "n": 2, "max_tokens": 2, "logprobs": 1}
    answer = await (await house.post("/v1/completions", plain)).json()
    assert schema.complaints(schema.COMPLETION, answer) == []
    assert [choice["text"] for choice in answer["choices"]] == ["Paris is "] * 4
    assert answer["usage"]["prompt_tokens"] == 14
    events = await events_of(await house.post("/v1/completions", {**plain, "stream": True}))
    for i in range(4):
        mine = [c["text"] for e in events[:-1] for c in e["choices"] if c["index"] == i]
        assert "".join(mine) == "Paris is "
    remote = await (await house.post("/v1/embeddings", {"model": "remote", "input": "a"})).json()
    assert remote["data"][0]["embedding"] == [0.6, 0.8]


async def test_one_of_several_prompts_that_fails_ends_all(house: House) -> None:
    body = {"model": "local", "prompt": ["!stall", "!invalid"]}
    response = await house.post("/v1/completions", body)
    assert response.status == 400
    assert house.engine.running == 0


# --- records --------------------------------------------------------------------------------------


async def test_the_row_is_durable_before_the_last_byte_of_a_whole_answer(house: House) -> None:
    house.recorder.gate.clear()
    asking = asyncio.create_task(house.chat("local"))
    async with asyncio.timeout(5):
        await house.engine.ended.acquire()
    done, _ = await asyncio.wait([asking], timeout=0.2)
    assert not done
    house.recorder.gate.set()
    assert (await asking).status == 200


async def test_the_row_is_durable_before_the_end_of_a_stream(house: House) -> None:
    house.recorder.gate.clear()
    body = {"model": "local", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    headers = {"Authorization": f"Bearer {USER_KEY}"}
    async with house.session.post(f"{house.url}/v1/chat/completions", json=body, headers=headers) as response:
        got = b""
        async with asyncio.timeout(5):
            while b'"finish_reason":"stop"' not in got:
                got += await response.content.readany()
        assert b"[DONE]" not in got
        assert house.recorder.rows == []
        house.recorder.gate.set()
        async with asyncio.timeout(5):
            got += await response.read()
        assert got.endswith(b"data: [DONE]\n\n")
    assert len(house.recorder.rows) == 1


async def test_what_cannot_be_recorded_is_not_answered(house: House) -> None:
    house.recorder.failing = True
    whole = await house.chat("local")
    assert (whole.status, (await whole.json())["error"]["code"]) == (503, "records_unavailable")
    assert "Paris" not in await whole.text()
    events = await events_of(await house.chat("local", stream=True))
    assert events[-1]["error"]["code"] == "records_unavailable"
    refused = await house.chat("local", temperature=9)
    assert refused.status == 503
    house.recorder.failing = False
    assert (await house.chat("local")).status == 200


async def test_a_record_that_is_known_to_be_down_costs_no_work(house: House) -> None:
    house.recorder.noticed = True
    for model in ("local", "remote"):
        for stream in (False, True):
            response = await house.chat(model, stream=stream)
            assert (response.status, (await response.json())["error"]["code"]) == (503, "records_unavailable")
            assert int(response.headers["Retry-After"]) >= 1
    assert (house.engine.requests, house.upstream.seen) == ([], [])
    house.recorder.noticed = False
    assert (await house.chat("remote")).status == 200


async def test_refusals_are_recorded_and_strangers_are_not(house: House) -> None:
    assert (await house.chat("local", temperature=9)).status == 400
    assert (await house.chat("nope")).status == 404
    rows = list(house.recorder.rows)
    assert [(row.status, row.error_code, row.outcome) for row in rows] == [
        (400, "invalid_value", "refused"), (404, "model_not_found", "refused"),
    ]  # fmt: skip
    assert (await house.post("/v1/chat/completions", {}, key=None)).status == 401
    assert (await house.post("/v1/nothing", {})).status == 404
    assert house.recorder.rows == rows


async def test_a_mistake_of_ours_is_a_500_that_tells_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("appliance.exchange.plain_plan", broken)
    response = await house.chat("local")
    assert response.status == 500
    assert "secret detail" not in await response.text()
    row = await house.recorder.wait_for(1)
    assert row.outcome == "internal_error"
    assert "ZeroDivisionError" in caplog.text
