from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dialects.responses.answer import ResponsesStream, ResponsesWhole
from appliance.dialects.responses.reader import ResponsesReader, read_events
from appliance.dialects.tally import Tally
from appliance.errors import ContentFiltered, ContextLengthExceeded, OutpostError, RateLimited, UpstreamFailed
from runtimes.engine import Delta, Event, Finished, Started, ToolCallDelta, Usage
from tests.dialects.responses_samples import (
    CALLED,
    SAID,
    SEARCHED,
    STREAM,
    STREAM_SHAPES,
    THOUGHT,
    USED,
    answers,
    frame,
    merged,
    resource,
    sse,
    wall,
)


def read(stream: bytes, *cuts: int) -> list[Event]:
    reader = ResponsesReader("up")
    found: list[Event] = []
    for start, end in zip((0, *cuts), (*cuts, len(stream)), strict=True):
        if stream[start:end] and not reader.done:
            found += reader.feed(stream[start:end])
    assert reader.done
    return found


EVENTS: list[Event] = [
    Delta(reasoning="One."),
    Delta(reasoning="\n\nTwo."),
    Delta(reasoning_data="openai-responses:rs_up:ENC"),
    Delta(text="Hö"),
    Delta(text="i!"),
    Delta(tool_calls=[ToolCallDelta(0, "call_0", "f")]),
    Delta(tool_calls=[ToolCallDelta(1, "call_1", "f")]),
    Delta(tool_calls=[ToolCallDelta(0, arguments='{"a"')]),
    Delta(tool_calls=[ToolCallDelta(0, arguments=":1}")]),
    Delta(tool_calls=[ToolCallDelta(1, arguments='{"a":1}')]),
    Finished("tool_calls"),
    Usage(20, 9, 4, reasoning_tokens=3),
]


def test_events_of_a_real_stream() -> None:
    assert read(STREAM) == EVENTS


def test_every_cut_gives_the_same_events() -> None:
    for i in range(1, len(STREAM)):
        assert read(STREAM, i) == EVENTS
    assert read(STREAM, *range(1, len(STREAM))) == EVENTS


def test_lines_may_end_otherwise_and_comments_pass() -> None:
    assert read(STREAM.replace(b"\n", b"\r\n")) == EVENTS
    assert read(b": ping\n\n" + STREAM.replace(b"\n\n", b"\n\n: ping\n\n")) == EVENTS


def test_the_end_needs_no_empty_line() -> None:
    reader = ResponsesReader("up")
    found = reader.feed(STREAM[:-2])
    assert not reader.done
    assert found + reader.feed(b"") == EVENTS


def test_whole_answers_say_the_same() -> None:
    body = resource("completed", [THOUGHT, SEARCHED, SAID, *CALLED], usage=USED)
    assert merged(read_events(json.dumps(body).encode(), "up")) == merged(EVENTS)


def test_an_answer_that_comes_with_its_end_alone() -> None:
    """Some servers send no deltas, or only whole items."""
    end = STREAM_SHAPES[-1]
    assert merged(read(sse(end))) == merged(EVENTS)
    done = [shape for shape in STREAM_SHAPES if shape["type"] == "response.output_item.done"]
    assert merged(read(sse(*done, end))) == merged(EVENTS)


@pytest.mark.parametrize(
    ("status", "details", "reason"),
    [
        ("incomplete", {"reason": "max_output_tokens"}, "length"),
        ("incomplete", {"reason": "content_filter"}, "content_filter"),
        ("incomplete", None, "length"),
        ("completed", None, "stop"),
    ],
)
def test_why_an_answer_ended(status: str, details: Any, reason: str) -> None:
    end = {"type": f"response.{status}", "response": resource(status, [SAID], incomplete_details=details, usage=USED)}
    assert Finished(reason) in read(sse(end))  # type: ignore[arg-type]
    assert Finished(reason) in read_events(json.dumps(end["response"]).encode(), "up")  # type: ignore[arg-type]


def test_refusals_and_thoughts_in_full() -> None:
    place = {"output_index": 0, "content_index": 0}
    shapes = [
        {"type": "response.output_item.added", "output_index": 0, "item": {"type": "reasoning", "summary": []}},
        {"type": "response.reasoning_text.delta", **place, "delta": "h"},
        {"type": "response.reasoning_summary_text.delta", "output_index": 0, "summary_index": 0, "delta": "short"},
        {"type": "response.reasoning_text.delta", **place, "delta": "m"},
        {"type": "response.refusal.delta", "output_index": 1, "content_index": 0, "delta": "no"},
        {"type": "response.refusal.done", "output_index": 1, "content_index": 0, "refusal": "no"},
        {"type": "response.completed", "response": resource("completed", [], usage=USED)},
    ]
    assert merged(read(sse(*shapes)))[:2] == [["reasoning", "hm"], ["refusal", "no"]]


def test_logprobs_are_read() -> None:
    at = {"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -1.0, "bytes": [98]}]}
    delta = {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "a"}
    (first, *_) = read(sse({**delta, "logprobs": [at]}, STREAM_SHAPES[-1]))
    assert isinstance(first, Delta)
    assert first.logprobs[0].chosen.bytes == [97]
    assert first.logprobs[0].top[0].token == "b"


BROKEN: list[tuple[bytes, type[OutpostError]]] = [
    (b"data: {nonsense\n\n", UpstreamFailed),
    (b"data: [1]\n\n", UpstreamFailed),
    (b'data: {"delta":"x"}\n\n', UpstreamFailed),
    (b'data: {"type":"response.completed"}\n\n', UpstreamFailed),
    (b'data: {"type":"response.output_text.delta","delta":5}\n\n', UpstreamFailed),
    (b'data: {"type":"response.function_call_arguments.delta","output_index":0,"delta":"x"}\n\n', UpstreamFailed),
    (b'data: {"type":"response.output_item.added","output_index":0}\n\n', UpstreamFailed),
    (b'data: {"type":"response.output_item.added","output_index":0,"item":{"type":"function_call"}}\n\n',
     UpstreamFailed),
    (b"data: [DONE]\n\n", UpstreamFailed),
    (b'data: {"type":"error","code":"server_error","message":"sk-x is out"}\n\n', UpstreamFailed),
    (b'data: {"type":"error","error":{"code":"rate_limit_exceeded","message":"x"}}\n\n', RateLimited),
    (b'data: {"type":"response.failed","response":{"status":"failed","error":{"code":"invalid_prompt"}}}\n\n',
     ContentFiltered),
    (b'data: {"type":"response.failed","response":{"error":{"code":"context_length_exceeded"}}}\n\n',
     ContextLengthExceeded),
    (b'data: {"type":"response.failed","response":{"error":{"code":"server_error"}}}\n\n', UpstreamFailed),
    (sse({"type": "response.completed", "response": resource("completed", [])}), UpstreamFailed),
    (b"data: " + b"x" * (17 << 20), UpstreamFailed),
    (b"", UpstreamFailed),
]  # fmt: skip


@pytest.mark.parametrize(("stream", "error"), BROKEN, ids=lambda v: str(v)[:70])
def test_what_is_not_sound_fails(stream: bytes, error: type[OutpostError]) -> None:
    with pytest.raises(error) as caught:
        ResponsesReader("up").feed(stream)
    assert "sk-x" not in caught.value.message
    assert caught.value.message.startswith("up ") or "for up" in caught.value.message


def test_a_connection_that_ends_too_early_fails() -> None:
    for i in range(0, len(STREAM) - 2, 97):
        reader = ResponsesReader("up")
        reader.feed(STREAM[:i] or b": \n\n")
        with pytest.raises(UpstreamFailed):
            reader.feed(b"")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"{", UpstreamFailed),
        (b'{"status":"completed"}', UpstreamFailed),
        (b'{"status":"in_progress","output":[]}', UpstreamFailed),
        (b'{"status":"completed","output":[]}', UpstreamFailed),
        (b'{"status":"failed","output":[],"error":{"code":"rate_limit_exceeded","message":""}}', RateLimited),
    ],
)
def test_whole_answers_that_are_none(body: bytes, error: type[OutpostError]) -> None:
    with pytest.raises(error):
        read_events(body, "up")


INCLUDE = {"include": ["reasoning.encrypted_content"]}


@settings(max_examples=60, deadline=None)
@given(answers(), st.booleans(), st.data())
def test_events_survive_a_response(events: list[Event], short: bool, data: st.DataObject) -> None:
    fields: dict[str, Any] = {**INCLUDE, **({"reasoning": {"summary": "auto"}} if short else {})}
    stream = ResponsesStream(frame(**fields), Tally(), wall=wall)
    sent = stream.feed(events) + stream.end()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sent) - 1), max_size=5)))
    assert merged(read(sent, *cuts)) == merged(events)
    whole = ResponsesWhole(frame(**fields), Tally(), wall=wall)
    whole.feed(events)
    assert merged(read_events(whole.body(), "up")) == merged(events)


def test_signs_of_life_are_no_events() -> None:
    stream = ResponsesStream(frame(), Tally(), wall=wall)
    assert stream.feed([Started(3), Usage(1)]) == b""
