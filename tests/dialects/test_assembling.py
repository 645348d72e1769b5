"""What is kept of a stream is what a whole answer to the same request would have said."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from appliance.dialects.assemble import assemble
from appliance.dialects.chat_answer import ChatStream, ChatWhole
from appliance.dialects.completion_answer import CompletionStream, CompletionWhole
from appliance.dialects.sse import DONE_EVENT
from appliance.dialects.tally import Tally
from runtimes.engine import Delta, Event, Finished, ToolCallDelta, Usage

calls = st.builds(ToolCallDelta, index=st.integers(0, 1), id=st.just("c"), name=st.just("f"), arguments=st.text())
deltas = st.builds(Delta, index=st.integers(0, 1), text=st.text(), tool_calls=st.lists(calls, max_size=2))
events = st.lists(deltas, max_size=8)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


def ended(given_events: list[Delta]) -> list[Event]:
    return [*given_events, Finished("stop", 0), Finished("length", 1), Usage(3, 4)]


@given(events, st.lists(st.integers(0, 10**6), max_size=6))
def test_a_chat(given_events: list[Delta], places: list[int]) -> None:
    stream = ChatStream("i", 1, "m", Tally(), usage=True, logprobs=False)
    whole = ChatWhole("i", 1, "m", Tally(), choices=2, logprobs=False)
    whole.feed(ended(given_events))
    made = json.loads(assemble(cut(stream.feed(ended(given_events)) + DONE_EVENT, places)))
    expected = json.loads(whole.body())
    assert (made["id"], made["object"], made["model"], made["usage"]) == (
        "i",
        "chat.completion",
        "m",
        expected["usage"],
    )
    for got, wanted in zip(made["choices"], expected["choices"], strict=True):
        assert got["finish_reason"] == wanted["finish_reason"]
        assert got["message"].get("content", "") == (wanted["message"]["content"] or "")
        assert got["message"].get("tool_calls", []) == wanted["message"].get("tool_calls", [])


@given(st.lists(st.builds(Delta, index=st.integers(0, 1), text=st.text()), max_size=8))
def test_a_completion(given_events: list[Delta]) -> None:
    stream = CompletionStream("i", 1, "m", Tally(), usage=False, logprobs=False)
    whole = CompletionWhole("i", 1, "m", Tally(), choices=2, logprobs=False)
    whole.feed(ended(given_events))
    made = json.loads(assemble([stream.feed(ended(given_events)), DONE_EVENT]))
    wanted = json.loads(whole.body())["choices"]
    assert [(c["text"], c["finish_reason"]) for c in made["choices"]] == [
        (c["text"], c["finish_reason"]) for c in wanted
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["choices", "delta", "index", "tool_calls", "function", "text", "x"]), inner)
    ),
    max_leaves=12,
)


@given(st.lists(json_values | st.binary(max_size=9), max_size=5), st.binary(max_size=20))
def test_nonsense_is_left_out_and_never_raises(chunks: list[Any], junk: bytes) -> None:
    pieces = [
        b"data: " + (chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()) + b"\n\n" for chunk in chunks
    ]
    made = assemble([*pieces, junk])
    assert made == b"" or isinstance(json.loads(made)["choices"], list)


def test_a_stream_that_broke_keeps_what_had_come_and_why() -> None:
    stream = ChatStream("i", 1, "m", Tally(), usage=False, logprobs=False)
    data = stream.feed([Delta(0, "Hel"), Delta(0, "lo")]) + b'data: {"error":{"code":"engine_lost"}}\n\n'
    made = json.loads(assemble([data]))
    assert made["choices"][0]["message"]["content"] == "Hello"
    assert made["error"] == {"code": "engine_lost"}
