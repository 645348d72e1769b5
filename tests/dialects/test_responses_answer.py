from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dialects.responses.answer import ResponsesStream, ResponsesWhole
from appliance.dialects.responses.errors import body as error_body
from appliance.dialects.responses.resource import failed, public, skeleton
from appliance.dialects.tally import Tally
from appliance.errors import UpstreamTimeout
from runtimes.engine import Delta, Event, Finished, PositionLogprobs, Started, TokenLogprob, ToolCallDelta, Usage
from tests.dialects.responses_samples import (
    ID,
    answers,
    check_stream,
    events_of,
    frame,
    merged,
    mistakes,
    usage,
    wall,
)

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}


def streamed(events: list[Event], **fields: Any) -> tuple[list[dict[str, Any]], ResponsesStream, Tally]:
    tally = Tally()
    stream = ResponsesStream(frame(stream=True, **fields), tally, wall=wall)
    out = b"".join([stream.feed([each]) for each in events]) + stream.end()
    return events_of(out), stream, tally


def whole(events: list[Event], **fields: Any) -> dict[str, Any]:
    answer = ResponsesWhole(frame(**fields), Tally(), wall=wall)
    answer.feed(events)
    shape: dict[str, Any] = json.loads(answer.body())
    return shape


def types(shapes: list[dict[str, Any]]) -> list[str]:
    return [shape["type"].removeprefix("response.") for shape in shapes]


TEXT: list[Event] = [Started(3), Delta(text="Hel"), Delta(text="lo"), Finished("stop"), usage()]


def test_events_of_a_text() -> None:
    shapes, stream, tally = streamed(TEXT)
    assert types(shapes) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    check_stream(shapes)
    response = shapes[-1]["response"]
    assert mistakes(response, "ResponseResource") == []
    assert response["output"] == [
        {"id": f"msg_{ID[5:]}_0", "type": "message", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}]}
    ]  # fmt: skip
    assert response["usage"] == {
        "input_tokens": 7, "input_tokens_details": {"cached_tokens": 2},
        "output_tokens": 5, "output_tokens_details": {"reasoning_tokens": 1}, "total_tokens": 12,
    }  # fmt: skip
    assert (response["id"], response["status"], response["completed_at"]) == (ID, "completed", 1_700_000_100)
    assert stream.response() == response
    assert (tally.reasons(), tally.prompt_tokens, tally.reasoning_tokens) == (["stop"], 7, 1)


def test_nothing_is_said_before_there_is_something() -> None:
    stream = ResponsesStream(frame(), Tally(), wall=wall)
    assert stream.feed([Started(3)]) == b""
    assert stream.feed([Delta(text="")]) == b""
    assert stream.feed([Delta(text="a")]).startswith(b"event: response.created\n")


def test_the_same_whole_and_streamed() -> None:
    fields: dict[str, Any] = {"tools": [TOOL], "instructions": "x", "metadata": {"a": "b"}, "store": False}
    events: list[Event] = [
        Delta(reasoning="hm"),
        *TEXT[1:3],
        Delta(tool_calls=[ToolCallDelta(0, "c1", "f", "{}")]),
        Finished("tool_calls"),
        usage(),
    ]
    shapes, _, _ = streamed(events, **fields)
    assert shapes[-1]["response"] == whole(events, **fields)
    check_stream(shapes)


def test_what_was_asked_is_told_again() -> None:
    response = whole(
        TEXT,
        instructions="Be kind.",
        tools=[TOOL],
        tool_choice={"type": "function", "name": "f"},
        parallel_tool_calls=False,
        text={"verbosity": "low"},
        reasoning={"effort": "low", "summary": "auto"},
        max_output_tokens=99,
        max_tool_calls=2,
        temperature=0.5,
        top_p=0.25,
        top_logprobs=2,
        truncation="auto",
        metadata={"a": "b"},
        safety_identifier="s",
        prompt_cache_key="k",
        store=False,
        service_tier="auto",
        user="u",
    )
    assert mistakes(response, "ResponseResource") == []
    expected = {
        "instructions": "Be kind.",
        "tools": [{**TOOL, "description": None, "strict": None}],
        "tool_choice": {"type": "function", "name": "f"},
        "parallel_tool_calls": False,
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "max_output_tokens": 99,
        "max_tool_calls": 2,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_logprobs": 2,
        "truncation": "auto",
        "metadata": {"a": "b"},
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "store": False,
        "service_tier": "default",
        "user": "u",
        "background": False,
        "previous_response_id": None,
    }
    assert {name: response[name] for name in expected} == expected


def test_defaults_are_told_too() -> None:
    response = whole(TEXT)
    told = {name: response[name] for name in ("store", "temperature", "top_p", "tool_choice", "truncation", "tools")}
    assert told == {
        "store": True, "temperature": 1.0, "top_p": 1.0, "tool_choice": "auto", "truncation": "disabled", "tools": [],
    }  # fmt: skip
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    assert whole(TEXT, text={"format": schema})["text"]["format"] == {**schema, "description": None, "strict": False}


def test_events_of_interleaved_calls() -> None:
    events: list[Event] = [
        Delta(text="Look."),
        Delta(tool_calls=[ToolCallDelta(0, "a", "f"), ToolCallDelta(1, "b", "g", "{")]),
        Delta(tool_calls=[ToolCallDelta(0, arguments="[")]),
        Delta(tool_calls=[ToolCallDelta(1, arguments="}")]),
        Delta(tool_calls=[ToolCallDelta(0, arguments="]")]),
        Finished("tool_calls"),
        usage(),
    ]
    shapes, _, _ = streamed(events, tools=[TOOL])
    check_stream(shapes)
    output = shapes[-1]["response"]["output"]
    assert [(item["type"], item.get("call_id"), item.get("arguments")) for item in output] == [
        ("message", None, None), ("function_call", "a", "[]"), ("function_call", "b", "{}"),
    ]  # fmt: skip
    deltas = [(s["output_index"], s["delta"]) for s in shapes if s["type"].endswith("arguments.delta")]
    assert deltas == [(2, "{"), (1, "["), (2, "}"), (1, "]")]


def test_a_call_without_an_id_gets_one() -> None:
    output = whole([Delta(tool_calls=[ToolCallDelta(0, "", "f")]), Finished("tool_calls"), usage()])["output"]
    assert output[0]["call_id"] == f"call_{ID[5:]}_0"
    assert output[0]["id"] == f"fc_{ID[5:]}_0"


@pytest.mark.parametrize(("reason", "told"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_answers_that_were_cut_off(reason: Any, told: str) -> None:
    shapes, _, _ = streamed([Delta(text="a"), Finished(reason), usage()])
    check_stream(shapes)
    response = shapes[-1]["response"]
    assert shapes[-1]["type"] == "response.incomplete"
    assert response["incomplete_details"] == {"reason": told}
    assert (response["status"], response["completed_at"]) == ("incomplete", None)
    assert response["output"][0]["status"] == "incomplete"


def test_reasoning_in_full_and_in_short() -> None:
    events: list[Event] = [Delta(reasoning="h"), Delta(reasoning="m"), *TEXT[1:]]
    shapes, _, _ = streamed(events)
    assert types(shapes)[2:9] == [
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
    ]  # fmt: skip
    assert shapes[-1]["response"]["output"][0] == {
        "id": f"rs_{ID[5:]}_0", "type": "reasoning", "summary": [],
        "content": [{"type": "reasoning_text", "text": "hm"}],
    }  # fmt: skip
    shapes, _, _ = streamed(events, reasoning={"summary": "auto"})
    check_stream(shapes)
    assert types(shapes)[2:9] == [
        "output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta",
        "reasoning_summary_text.delta", "reasoning_summary_text.done", "reasoning_summary_part.done",
        "output_item.done",
    ]  # fmt: skip
    assert shapes[-1]["response"]["output"][0]["summary"] == [{"type": "summary_text", "text": "hm"}]


def test_encrypted_reasoning_goes_to_who_asks_for_it_and_to_the_store() -> None:
    data = "openai-responses:rs_abc:SECRET"
    events: list[Event] = [
        Delta(reasoning="hm"), Delta(reasoning_signature="SIG"), Delta(reasoning_data=data), *TEXT[1:],
    ]  # fmt: skip
    plain, stream, _ = streamed(events)
    assert "SECRET" not in json.dumps(plain)
    assert "SIG" not in json.dumps(plain)
    kept = [item.get("encrypted_content") for item in stream.response()["output"]]
    assert kept == ["outpost-signature:SIG", "SECRET", None]
    assert stream.response()["output"][1]["id"] == "rs_abc"
    asked, stream, _ = streamed(events, include=["reasoning.encrypted_content"])
    assert asked[-1]["response"] == stream.response()
    check_stream(asked)
    done = [s["item"] for s in asked if s["type"] == "response.output_item.done"]
    assert done == asked[-1]["response"]["output"]
    assert public(stream.response(), None) == plain[-1]["response"]


def test_refusals_are_parts_of_the_message() -> None:
    shapes, _, _ = streamed([Delta(text="a"), Delta(refusal="n"), Delta(refusal="o"), Finished("stop"), usage()])
    check_stream(shapes)
    assert [part["type"] for part in shapes[-1]["response"]["output"][0]["content"]] == ["output_text", "refusal"]
    assert [s["content_index"] for s in shapes if s["type"] == "response.refusal.delta"] == [1, 1]


def test_text_after_another_thing_is_a_new_message_with_its_own_place() -> None:
    events: list[Event] = [
        Delta(text="a"), Delta(text="b"), Delta(tool_calls=[ToolCallDelta(0, "c", "f")], text="x"), Delta(text="y"),
        Delta(text="z"), Finished("tool_calls"), usage(),
    ]  # fmt: skip
    shapes, _, _ = streamed(events)
    check_stream(shapes)
    for shape in shapes:
        if shape["type"] == "response.output_text.delta":
            assert shape["item_id"] == f"msg_{ID[5:]}_{shape['output_index']}"


@pytest.mark.parametrize("reason", ["stop", "length"])
@pytest.mark.parametrize(
    "late", [[Delta(text="b")], [Delta(tool_calls=[ToolCallDelta(0, "c", "f", "{}")])], [Delta(refusal="b")]]
)
def test_what_is_said_after_an_early_reason_is_finished_too(reason: Any, late: list[Event]) -> None:
    events: list[Event] = [Delta(text="a"), Finished("stop"), *late, Finished(reason), usage()]
    for told in (events, [*events[:-2], usage()]):
        shapes, _, _ = streamed(told)
        check_stream(shapes)
        output = shapes[-1]["response"]["output"]
        assert len(output) == 2
        assert output[0]["content"][0]["text"] == "a"
        assert whole(told)["output"] == output


def test_logprobs_come_if_asked_for() -> None:
    position = PositionLogprobs(TokenLogprob("a", -0.5, [97]), [TokenLogprob("a", float("-inf"), [97])])
    events: list[Event] = [Delta(text="a", logprobs=[position]), Finished("stop"), usage()]
    shapes, _, _ = streamed(events, top_logprobs=1)
    check_stream(shapes)
    told = [{"token": "a", "logprob": -0.5, "bytes": [97],
             "top_logprobs": [{"token": "a", "logprob": -9999.0, "bytes": [97]}]}]  # fmt: skip
    assert shapes[4]["logprobs"] == told
    assert shapes[-1]["response"]["output"][0]["content"][0]["logprobs"] == told
    shapes, _, _ = streamed(events)
    assert shapes[4]["logprobs"] == []


def test_other_choices_are_none_of_ours() -> None:
    events: list[Event] = [Delta(index=1, text="b"), Delta(text="a"), Finished("stop", 1), Finished("stop"), usage()]
    assert whole(events)["output"][0]["content"][0]["text"] == "a"


def test_a_failure_before_and_after_the_beginning() -> None:
    error = UpstreamTimeout("No sign of life; the key was sk-abcdefghijklmnopqrstuvwxyz0123456789.")
    stream = ResponsesStream(frame(), Tally(), wall=wall)
    (shape,) = events_of(stream.fail(error))
    assert mistakes(shape, "ErrorStreamingEvent") == []
    assert (shape["type"], shape["code"], shape["param"]) == ("error", "upstream_timeout", None)
    assert shape["error"]["message"] == shape["message"]
    assert "abcdefghij" not in shape["message"]
    stream = ResponsesStream(frame(), Tally(), wall=wall)
    shapes = events_of(stream.feed([Delta(text="a")]) + stream.fail(error))
    assert shapes[-1]["type"] == "response.failed"
    assert mistakes(shapes[-1], "ResponseFailedStreamingEvent") == []
    assert [shape["sequence_number"] for shape in shapes] == list(range(len(shapes)))
    assert shapes[-1]["response"]["error"]["code"] == "upstream_timeout"
    assert "abcdefghij" not in json.dumps(shapes)
    assert stream.response()["status"] == "failed"


def test_a_response_that_waits_or_was_stopped() -> None:
    waiting = skeleton(frame(background=True), "queued")
    assert mistakes(waiting, "ResponseResource") == []
    assert (waiting["background"], waiting["status"], waiting["output"]) == (True, "queued", [])
    assert failed(waiting, UpstreamTimeout("x"), "cancelled")["status"] == "cancelled"
    assert json.loads(error_body(UpstreamTimeout("x")))["error"]["code"] == "upstream_timeout"


@settings(max_examples=60, deadline=None)
@given(answers(), st.booleans(), st.booleans(), st.data())
def test_every_answer_is_sound(events: list[Event], short: bool, encrypted: bool, data: st.DataObject) -> None:
    fields: dict[str, Any] = {"reasoning": {"summary": "auto"}} if short else {}
    if encrypted:
        fields["include"] = ["reasoning.encrypted_content"]
    stream = ResponsesStream(frame(**fields), Tally(), wall=wall)
    out = b""
    rest = list(events)
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        out += stream.feed(rest[:size])
        rest = rest[size:]
    shapes = events_of(out + stream.end())
    check_stream(shapes)
    response = shapes[-1]["response"]
    assert mistakes(response, "ResponseResource") == []
    assert response == whole(events, **fields)
    texts = "".join(each.text for each in events if isinstance(each, Delta))
    assert "".join(s["delta"] for s in shapes if s["type"] == "response.output_text.delta") == texts
    assert merged(events)[-2][0] == Usage(7, 5, 2, reasoning_tokens=1)


# --- OpenAI's own client as the judge ---------------------------------------------------------------------------------


def sdk(body: bytes, content_type: str) -> openai.OpenAI:
    """A client for which every request has this answer."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=body, headers={"Content-Type": content_type})

    return openai.OpenAI(
        api_key="none", base_url="http://gateway/v1", http_client=httpx.Client(transport=httpx.MockTransport(answer))
    )


ALL: list[Event] = [
    Delta(reasoning="hm"),
    Delta(text="Hel"),
    Delta(text="lo"),
    Delta(tool_calls=[ToolCallDelta(0, "a", "f", "{"), ToolCallDelta(1, "b", "g", "[")]),
    Delta(tool_calls=[ToolCallDelta(1, arguments="]"), ToolCallDelta(0, arguments="}")]),
    Finished("tool_calls"),
    usage(),
]


@pytest.mark.parametrize("reasoning", [{}, {"summary": "auto"}])
def test_openais_client_puts_a_stream_together(reasoning: Any) -> None:
    stream = ResponsesStream(frame(reasoning=reasoning), Tally(), wall=wall)
    client = sdk(stream.feed(ALL) + stream.end(), "text/event-stream")
    with client.responses.stream(model="m", input="Hi") as events:
        deltas = [event for event in events if event.type == "response.output_text.delta"]
        final = events.get_final_response()
    assert [event.snapshot for event in deltas] == ["Hel", "Hello"]
    assert final.output_text == "Hello"
    assert [(item.name, item.arguments) for item in final.output if item.type == "function_call"] == [
        ("f", "{}"), ("g", "[]"),
    ]  # fmt: skip
    assert final.usage is not None
    assert final.usage.output_tokens_details.reasoning_tokens == 1


def test_openais_client_reads_a_whole_answer_and_an_error() -> None:
    whole_answer = ResponsesWhole(frame(), Tally(), wall=wall)
    whole_answer.feed(ALL)
    final = sdk(whole_answer.body(), "application/json").responses.create(model="m", input="Hi")
    assert (final.id, final.output_text, final.status) == (ID, "Hello", "completed")
    told = ResponsesStream(frame(), Tally(), wall=wall).fail(UpstreamTimeout("Silence."))
    with pytest.raises(openai.APIError, match="Silence"):
        list(sdk(told, "text/event-stream").responses.create(model="m", input="Hi", stream=True))
