"""Targets that do not say what an answer has used: it ends as others do, and is no answer for nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from appliance.dialects import chat_answer
from appliance.dialects.answer import Frame, MakeStream, MakeWhole, Outbound
from appliance.dialects.bedrock.outbound import Bedrock
from appliance.dialects.cohere_outbound import COHERE
from appliance.dialects.gemini_outbound import GEMINI
from appliance.dialects.messages.answer import MessagesStream, MessagesWhole
from appliance.dialects.messages.outbound import AnthropicOutbound
from appliance.dialects.openai_outbound import OpenAIOutbound
from appliance.dialects.responses.answer import ResponsesStream, ResponsesWhole
from appliance.dialects.responses.outbound import ResponsesOutbound
from appliance.dialects.tally import Tally
from appliance.providers.translating import Translating, believed
from runtimes.engine import Usage
from tests.dialects.chat_requests import asked
from tests.fakes import event_stream as aws

REQUEST = asked(stream=True, stream_options={"include_usage": True})


def events(*data: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in data)


def named(*data: Any) -> bytes:
    return b"".join(f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in data)


STREAMS: dict[str, tuple[Outbound, bytes]] = {
    "openai": (
        OpenAIOutbound(),
        events(
            {"choices": [{"index": 0, "delta": {"content": "Hi"}}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        )
        + b"data: [DONE]\n\n",
    ),
    "anthropic": (
        AnthropicOutbound(),
        named(
            {"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
            {"type": "message_stop"},
        ),
    ),
    "gemini": (GEMINI, events({"candidates": [{"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP"}]})),
    "cohere": (
        COHERE,
        events(
            {"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "Hi"}}}},
            {"type": "message-end", "delta": {"finish_reason": "COMPLETE"}},
        ),
    ),
    "bedrock": (
        Bedrock(),
        aws.piece(0, {"text": "Hi"}) + aws.event("messageStop", {"stopReason": "end_turn"}),
    ),
    "responses": (
        ResponsesOutbound(),
        named(
            {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "Hi"},
            {"type": "response.completed", "response": {"status": "completed", "output": []}},
        ),
    ),
}
WHOLE: dict[str, bytes] = {
    name: json.dumps(body).encode()
    for name, body in {
        "openai": {"choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]},
        "anthropic": {"type": "message", "content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn"},
        "gemini": {"candidates": [{"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP"}]},
        "cohere": {"message": {"content": [{"type": "text", "text": "Hi"}]}, "finish_reason": "COMPLETE"},
        "bedrock": {"output": {"message": {"content": [{"text": "Hi"}]}}, "stopReason": "end_turn"},
        "responses": {
            "status": "completed",
            "output": [{"type": "message", "content": [{"type": "output_text", "text": "Hi"}]}],
        },
    }.items()
}
FRAME = Frame("id", 1, "m", REQUEST)
ENDS: dict[MakeStream, tuple[bytes, ...]] = {
    chat_answer.stream: (b'"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":1,', b"data: [DONE]"),
    MessagesStream: (b"event: message_delta", b'"output_tokens":1', b"event: message_stop"),
    ResponsesStream: (b"event: response.completed", b'"output_tokens":1'),
}


def _with(stream: bytes, before: bytes, after: bytes) -> bytes:
    assert before in stream
    return stream.replace(before, after)


NOTHING: dict[str, bytes] = {
    "openai": _with(
        STREAMS["openai"][1], b"data: [DONE]", b'data: {"choices": [], "usage": {"prompt_tokens": 0}}\n\ndata: [DONE]'
    ),
    "anthropic": _with(
        STREAMS["anthropic"][1],
        b'"delta": {"stop_reason": "end_turn"}',
        b'"delta": {"stop_reason": "end_turn"}, "usage": {"input_tokens": 0, "output_tokens": 0}',
    ),
    "gemini": _with(
        STREAMS["gemini"][1], b'{"candidates"', b'{"usageMetadata": {"candidatesTokenCount": 0}, "candidates"'
    ),
    "cohere": _with(
        STREAMS["cohere"][1], b'"COMPLETE"', b'"COMPLETE", "usage": {"tokens": {"input_tokens": 0, "output_tokens": 0}}'
    ),
    "bedrock": STREAMS["bedrock"][1] + aws.event("metadata", {"usage": {"inputTokens": 0, "outputTokens": 0}}),
    "responses": _with(
        STREAMS["responses"][1], b'"output": []', b'"output": [], "usage": {"input_tokens": 0, "output_tokens": 0}'
    ),
}
"""The same answers, for which no tokens are reported."""


@pytest.mark.parametrize("target", STREAMS)
@pytest.mark.parametrize("make", ENDS, ids=["chat", "messages", "responses"])
@pytest.mark.parametrize("told", [False, True], ids=["untold", "told nothing"])
def test_a_stream_ends_well_and_stays_an_estimate(target: str, make: MakeStream, told: bool) -> None:
    outbound, stream = STREAMS[target]
    stream = NOTHING[target] if told else stream
    tally = Tally()
    on_its_way = Translating(
        outbound.reader("t", REQUEST), make(FRAME, tally), tally, target="t", secret=b"", alive=lambda: None
    )
    sent = on_its_way.feed(stream) + on_its_way.feed(b"")
    sent += on_its_way.end()
    assert on_its_way.done
    assert (tally.source, tally.completion_tokens) == ("estimated", 1)
    at = 0
    for part in ENDS[make]:
        assert (at := sent.find(part, at)) >= 0, part


@pytest.mark.parametrize("target", WHOLE)
@pytest.mark.parametrize(
    "make", [chat_answer.whole, MessagesWhole, ResponsesWhole], ids=["chat", "messages", "responses"]
)
def test_a_whole_answer_is_not_taken_to_be_counted(target: str, make: MakeWhole) -> None:
    events = STREAMS[target][0].read_whole(WHOLE[target], "t", REQUEST)
    assert not any(isinstance(each, Usage) for each in events)
    assert believed(events) is events
    assert believed([*events, Usage(3, 0)]) == events
    assert believed([*events, Usage(3, 1)]) == [*events, Usage(3, 1)]
    tally = Tally()
    answer = make(FRAME, tally)
    answer.feed(events)
    assert msgspec.json.decode(answer.body())
    assert tally.source == "none"  # which the relay makes an estimate of


def test_counts_that_come_are_told_once() -> None:
    make: Callable[..., Any] = chat_answer.stream
    stream = make(FRAME, Tally())
    sent = stream.feed([Usage(3, 2)]) + stream.end()
    assert sent.count(b'"usage":{') == 1
