"""Engine events to OpenAI's answers, judged by OpenAI's own schema."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dialects.chat_answer import ChatStream, ChatWhole
from appliance.dialects.completion_answer import CompletionStream, CompletionWhole
from appliance.dialects.sse import Framer
from appliance.dialects.tally import Tally
from runtimes import engine as e
from tests.fakes import openai_schema as schema

WORDS = ["Hello", " wörld", " 🌍", '"\\\n', "\u2028"]


def logprobs(word: str) -> list[e.PositionLogprobs]:
    chosen = e.TokenLogprob(word, -0.25, list(word.encode()))
    return [e.PositionLogprobs(chosen, [chosen, e.TokenLogprob("x", -math.inf, [120])])]


def spoken(n: int = 1, *, with_logprobs: bool = False) -> list[e.Event]:
    events: list[e.Event] = [e.Started(5)]
    for word in WORDS:
        events += [e.Delta(i, word, logprobs=logprobs(word) if with_logprobs else []) for i in range(n)]
    events += [e.Finished("stop", i) for i in range(n)]
    return [*events, e.Usage(5, len(WORDS) * n, 2, 0.5)]


def called() -> list[e.Event]:
    return [
        e.Started(5),
        e.Delta(0, "Let me see."),
        e.Delta(tool_calls=[e.ToolCallDelta(0, "call_a", "weather", '{"ci')]),
        e.Delta(tool_calls=[e.ToolCallDelta(0, arguments='ty":"Paris"}')]),
        e.Delta(tool_calls=[e.ToolCallDelta(1, "call_b", "time")]),
        e.Delta(tool_calls=[e.ToolCallDelta(1, arguments="{}")]),
        e.Finished("tool_calls"),
        e.Usage(5, 9),
    ]


def groups(events: list[e.Event], sizes: list[int]) -> list[list[e.Event]]:
    cut: list[list[e.Event]] = []
    for size in sizes:
        cut.append(events[:size])
        events = events[size:]
    return [*cut, events]


def stream(kind: Any, batches: list[list[e.Event]], **options: Any) -> tuple[list[dict[str, Any]], Tally]:
    tally = Tally()
    answer = kind("id-1", 1700000000, "m", tally, **{"usage": True, "logprobs": False, **options})
    sent = b"".join(answer.feed(batch) for batch in batches)
    return [json.loads(data) for data in Framer().feed(sent)[0]] if sent else [], tally


def whole(kind: Any, events: list[e.Event], **options: Any) -> dict[str, Any]:
    answer = kind("id-1", 1700000000, "m", Tally(), **{"choices": 1, "logprobs": False, **options})
    answer.feed(events)
    found: dict[str, Any] = json.loads(answer.body())
    return found


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("with_logprobs", [False, True])
@pytest.mark.parametrize("usage", [False, True])
def test_chat_chunks_are_valid_and_complete(n: int, with_logprobs: bool, usage: bool) -> None:
    chunks, tally = stream(ChatStream, [spoken(n, with_logprobs=with_logprobs)], logprobs=with_logprobs, usage=usage)
    for chunk in chunks:
        assert schema.complaints(schema.CHAT_CHUNK, chunk) == []
        assert ("usage" in chunk) == usage
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    for i in range(n):
        mine = [choice for choice in choices if choice["index"] == i]
        assert mine[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
        assert "".join(choice["delta"].get("content", "") for choice in mine) == "".join(WORDS)
        assert [choice["finish_reason"] for choice in mine][-1] == "stop"
        assert all(choice["finish_reason"] is None for choice in mine[:-1])
        if with_logprobs:
            tokens = [t["token"] for c in mine if c["logprobs"] for t in c["logprobs"]["content"]]
            assert tokens == WORDS
    if usage:
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["total_tokens"] == 5 + len(WORDS) * n
        assert chunks[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 2
        assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert tally.reasons() == ["stop"] * n
    assert (tally.prompt_tokens, tally.cached_tokens, tally.queue_s, tally.source) == (5, 2, 0.5, "reported")


@pytest.mark.parametrize("with_logprobs", [False, True])
def test_a_whole_chat_answer_is_valid(with_logprobs: bool) -> None:
    answer = whole(ChatWhole, spoken(2, with_logprobs=with_logprobs), choices=2, logprobs=with_logprobs)
    assert schema.complaints(schema.CHAT, answer) == []
    for i, choice in enumerate(answer["choices"]):
        assert choice["index"] == i
        assert choice["message"] == {
            "role": "assistant", "content": "".join(WORDS), "refusal": None, "annotations": [],
        }  # fmt: skip
        if with_logprobs:
            assert [t["token"] for t in choice["logprobs"]["content"]] == WORDS
            assert choice["logprobs"]["content"][0]["top_logprobs"][1]["logprob"] == -9999.0
        else:
            assert choice["logprobs"] is None


def test_tool_calls_are_the_same_whole_and_streamed() -> None:
    answer = whole(ChatWhole, called())
    assert schema.complaints(schema.CHAT, answer) == []
    message = answer["choices"][0]["message"]
    assert message["content"] == "Let me see."
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    chunks, _ = stream(ChatStream, [[event] for event in called()])
    calls: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        assert schema.complaints(schema.CHAT_CHUNK, chunk) == []
        for choice in chunk["choices"]:
            for piece in choice["delta"].get("tool_calls", []):
                call = calls.setdefault(piece["index"], {"function": {"name": "", "arguments": ""}})
                if "id" in piece:
                    call |= {"id": piece["id"], "type": piece["type"]}
                call["function"]["name"] += piece["function"].get("name", "")
                call["function"]["arguments"] += piece["function"]["arguments"]
    assert list(calls.values()) == message["tool_calls"]
    assert message["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city":"Paris"}'}


def test_a_tool_call_without_text_has_null_content() -> None:
    events = [event for event in called() if not (isinstance(event, e.Delta) and event.text)]
    assert whole(ChatWhole, events)["choices"][0]["message"]["content"] is None


def test_an_answer_without_a_word_still_says_who_speaks() -> None:
    chunks, _ = stream(ChatStream, [[e.Started(1), e.Finished("length"), e.Usage(1)]], usage=False)
    assert [c["choices"][0]["delta"] for c in chunks] == [{"role": "assistant", "content": "", "refusal": None}, {}]


@given(st.lists(st.integers(0, 4), max_size=12), st.booleans())
def test_grouping_of_events_does_not_change_the_stream(sizes: list[int], tools: bool) -> None:
    events = called() if tools else spoken(2)
    assert stream(ChatStream, groups(events, sizes))[0] == stream(ChatStream, [events])[0]
    assert stream(CompletionStream, groups(events, sizes))[0] == stream(CompletionStream, [events])[0]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text_comes_through(text: str) -> None:
    events: list[e.Event] = [e.Delta(0, text), e.Finished("stop"), e.Usage(1, 1)]
    chunks, _ = stream(ChatStream, [events], usage=False)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == text
    assert whole(ChatWhole, events)["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize("with_logprobs", [False, True])
def test_completions(with_logprobs: bool) -> None:
    events = spoken(2, with_logprobs=with_logprobs)
    answer = whole(CompletionWhole, events, choices=2, logprobs=with_logprobs)
    assert schema.complaints(schema.COMPLETION, answer) == []
    chunks, tally = stream(CompletionStream, [[event] for event in events], logprobs=with_logprobs)
    for i, choice in enumerate(answer["choices"]):
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == i]
        assert "".join(c["text"] for c in mine) == choice["text"] == "".join(WORDS)
        assert mine[-1]["finish_reason"] == choice["finish_reason"] == "stop"
        if with_logprobs:
            joined = {
                key: [item for c in mine if c["logprobs"] for item in c["logprobs"][key]]
                for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
            }
            assert joined == choice["logprobs"]
            assert all(t in top for t, top in zip(joined["tokens"], joined["top_logprobs"], strict=True))
            at = choice["logprobs"]["text_offset"][2]
            assert choice["text"][at:].startswith(WORDS[2])
    assert chunks[-1]["choices"] == []
    assert tally.source == "reported"


def test_completion_chunks_are_valid_but_for_the_reason_that_is_not_there_yet() -> None:
    # The official schema has no null for finish_reason here, though OpenAI's own stream sends it.
    chunks, _ = stream(CompletionStream, [spoken()])
    for chunk in chunks:
        for choice in chunk["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        chunk["usage"] = chunk["usage"] or {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        assert schema.complaints(schema.COMPLETION, chunk) == []


def test_a_call_stands_once_in_a_delta() -> None:
    """SDKs put what they get together by its number, and some take only the last of two with the same."""
    stream = ChatStream("id", 1, "m", Tally(), usage=False, logprobs=False)
    pieces = [
        e.ToolCallDelta(0, id="c", name="f"),
        e.ToolCallDelta(0, arguments='{"'),
        e.ToolCallDelta(1, id="d", name="g"),
        e.ToolCallDelta(0, arguments="a"),
    ]
    out = stream.feed([e.Delta(tool_calls=pieces)])
    [*_, chunk] = [json.loads(data) for data in Framer().feed(out)[0]]
    calls = chunk["choices"][0]["delta"]["tool_calls"]
    assert [(call["index"], call["id"], call["function"]) for call in calls] == [
        (0, "c", {"name": "f", "arguments": '{"a'}),
        (1, "d", {"name": "g", "arguments": ""}),
    ]
