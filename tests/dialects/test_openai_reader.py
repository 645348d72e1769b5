"""Answers in OpenAI's dialect as events: cut anywhere, and as compatible servers write them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import errors
from appliance.dialects import chat, completions
from appliance.dialects.answer import Frame
from appliance.dialects.chat_answer import stream, whole
from appliance.dialects.completion_answer import stream as completion_stream
from appliance.dialects.openai_outbound import OpenAIOutbound
from appliance.dialects.openai_reader import OpenAIReader, read_whole
from appliance.dialects.sse import event
from appliance.dialects.tally import Tally
from appliance.errors import OutpostError, UpstreamFailed
from runtimes.engine import Delta, Event, Finished, PositionLogprobs, TokenLogprob, ToolCallDelta, Usage


def asked(choices: int = 1, **more: Any) -> chat.ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "n": choices, **more}
    return chat.parse(json.dumps(body).encode())


ONE = asked()


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return event(json.dumps({"choices": [choice], **more}).encode())


def used(prompt: int = 5, completion: int = 3, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, **more}


def counts(**usage: Any) -> bytes:
    return event(json.dumps({"choices": [], "usage": usage}).encode())


DONE = event(b"[DONE]")


def read(data: bytes, request: Any = ONE, cuts: tuple[int, ...] = ()) -> list[Event]:
    reader, out, at = OpenAIReader("up", request), [], 0  # type: ignore[var-annotated]
    for cut in (*cuts, len(data)):
        if cut > at:
            out += reader.feed(data[at:cut])
        at = max(at, cut)
    if not reader.done:
        out += reader.feed(b"")
    assert reader.done
    return out


def merged(events: list[Event]) -> list[Event]:
    """Neighbouring pieces of the same kind as one."""
    found: list[Event] = []
    for item in events:
        last = found[-1] if found else None
        if isinstance(item, Delta) and isinstance(last, Delta) and last.index == item.index:
            if (item.text and last == Delta(last.index, last.text)) and item == Delta(item.index, item.text):
                found[-1] = Delta(item.index, last.text + item.text)
                continue
            if item == Delta(item.index, reasoning=item.reasoning) and last == Delta(
                last.index, reasoning=last.reasoning
            ):
                found[-1] = Delta(item.index, reasoning=last.reasoning + item.reasoning)
                continue
        found.append(item)
    return found


# --- our own streams, read again ------------------------------------------------------------------

words = st.text(min_size=1, max_size=5)
deltas = st.one_of(
    words.map(lambda text: Delta(text=text)),
    words.map(lambda text: Delta(reasoning=text)),
    words.map(lambda text: Delta(reasoning_signature=text)),
    words.map(lambda text: Delta(reasoning_data=text)),
    words.map(lambda text: Delta(refusal=text)),
)


@st.composite
def answers(draw: st.DrawFn) -> list[Event]:
    said: list[Event] = list(draw(st.lists(deltas, min_size=1, max_size=5)))
    calls = draw(st.integers(0, 3))
    for index in range(calls):
        said.append(Delta(tool_calls=[ToolCallDelta(index, f"call_{index}", "f")]))
    for piece in draw(st.lists(st.tuples(st.integers(0, max(calls - 1, 0)), words), max_size=5)) if calls else []:
        said.append(Delta(tool_calls=[ToolCallDelta(piece[0], arguments=piece[1])]))
    # A call that was asked for by name may end with "stop"; it is told by its reason.
    reason = "tool_calls" if calls else draw(st.sampled_from(["stop", "length", "content_filter"]))
    usage = Usage(prompt_tokens=draw(st.integers(1, 99)), completion_tokens=draw(st.integers(1, 99)))
    return [*said, Finished(reason), usage]


@given(answers(), st.data())
def test_what_we_write_is_read_again_however_it_is_cut(events: list[Event], data: st.DataObject) -> None:
    frame = Frame("chatcmpl-1", 1, "m", asked(stream=True, stream_options={"include_usage": True}))
    writer = stream(frame, Tally())
    sent = b"".join([writer.feed([item]) for item in events]) + writer.end()
    cuts = tuple(sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=6))))
    assert merged(read(sent, cuts=cuts)) == merged(events)


@given(answers())
def test_whole_answers_say_the_same(events: list[Event]) -> None:
    writer = whole(Frame("chatcmpl-1", 1, "m", ONE), Tally())
    writer.feed(events)
    found = read_whole(writer.body(), "up", ONE)
    for kind in ("text", "refusal", "reasoning", "reasoning_data"):
        assert _all(found, kind) == _all(events, kind)
    assert _calls(found) == _calls(events)
    assert found[-2:] == events[-2:]


def _all(events: list[Event], field: str) -> str:
    return "".join([getattr(item, field) for item in events if isinstance(item, Delta)])


def _calls(events: list[Event]) -> dict[int, tuple[str, str, str]]:
    found: dict[int, tuple[str, str, str]] = {}
    for item in events:
        for piece in item.tool_calls if isinstance(item, Delta) else ():
            id, name, arguments = found.get(piece.index, ("", "", ""))
            found[piece.index] = (id + piece.id, name + piece.name, arguments + piece.arguments)
    return found


SAMPLE = (
    b": OPENROUTER PROCESSING\n\n"
    + chunk({"role": "assistant", "content": ""})
    + chunk({"reasoning_content": "hm"})
    + chunk({"content": "Hällo 🌍"})
    + chunk({"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]})
    + chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"x":1}'}}]})
    + chunk({}, "tool_calls")
    + counts(
        **used(9, 4),
        prompt_tokens_details={"cached_tokens": 2, "cache_write_tokens": 3},
        completion_tokens_details={"reasoning_tokens": 1},
    )
    + DONE
)
EXPECTED: list[Event] = [
    Delta(reasoning="hm"),
    Delta(text="Hällo 🌍"),
    Delta(tool_calls=[ToolCallDelta(0, "a", "f")]),
    Delta(tool_calls=[ToolCallDelta(0, arguments='{"x":1}')]),
    Finished("tool_calls"),
    Usage(9, 4, cached_tokens=2, reasoning_tokens=1, cache_write_tokens=3),
]


def test_a_stream_cut_at_every_byte() -> None:
    for at in range(1, len(SAMPLE)):
        assert read(SAMPLE, cuts=(at,)) == EXPECTED
    assert read(SAMPLE, cuts=tuple(range(len(SAMPLE)))) == EXPECTED
    assert read(SAMPLE.replace(b"\n", b"\r\n"), cuts=tuple(range(0, 2 * len(SAMPLE), 7))) == EXPECTED


def test_an_end_without_marker_is_one_once_every_choice_has_ended() -> None:
    reason_ends = SAMPLE.index(b'"tool_calls"}]}') + len(b'"tool_calls"}]}')
    for at in range(len(SAMPLE)):
        reader = OpenAIReader("up", ONE)
        if at:
            reader.feed(SAMPLE[:at])
        if at >= reason_ends:
            reader.feed(b"")
            assert reader.done
        else:
            with pytest.raises(UpstreamFailed):
                reader.feed(b"")


def test_nothing_is_read_after_the_end() -> None:
    reader = OpenAIReader("up", ONE)
    reader.feed(SAMPLE + chunk({"content": "more"}))
    assert reader.feed(chunk({"content": "more"})) == []
    assert reader.complete


def test_several_choices() -> None:
    data = b"".join(
        event(json.dumps({"choices": [{"index": i, "delta": {"content": t}, "finish_reason": f}]}).encode())
        for i, t, f in [(1, "b", None), (0, "a", "stop"), (1, "c", "length")]
    )
    assert read(data, asked(2)) == [
        Delta(1, "b"),
        Delta(0, "a"),
        Finished("stop", 0),
        Delta(1, "c"),
        Finished("length", 1),
    ]
    with pytest.raises(UpstreamFailed, match="without saying"):
        read(data, asked(3))


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        ({"reasoning": "hm"}, Delta(reasoning="hm")),
        ({"reasoning": "hm", "reasoning_content": "hm"}, Delta(reasoning="hm")),
        (
            {"reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm", "signature": "s"}]},
            Delta(reasoning="hm", reasoning_signature="s"),
        ),
        ({"reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}]}, Delta(reasoning="hm")),
        (
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
            Delta(reasoning="hm"),
        ),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, Delta(text="ab")),
        ({"refusal": "no"}, Delta(refusal="no")),
    ],
)
def test_what_compatible_servers_make_of_a_delta(delta: dict[str, Any], expected: Delta) -> None:
    assert read(chunk(delta) + chunk({}, "stop") + DONE) == [expected, Finished("stop")]


def call(arguments: Any = None, name: str | None = None, id: str | None = None, index: int | None = None) -> Any:
    function = {field: value for field, value in (("name", name), ("arguments", arguments)) if value is not None}
    shape = {"index": index, "id": id, "function": function}
    return {field: value for field, value in shape.items() if value is not None}


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        # Each of several calls has index 0.
        ([call("{}", "f", "a", 0), call("{}", "g", "b", 0)], {0: ("a", "f", "{}"), 1: ("b", "g", "{}")}),
        # No index at all.
        ([call("{", "f", "a"), call("}"), call(None, "g", "b")], {0: ("a", "f", "{}"), 1: ("b", "g", "")}),
        # Id and name with each piece.
        ([call("{", "f", "a", 1), call("}", "f", "a", 1)], {0: ("a", "f", "{}")}),
        # Pieces of two calls in turn.
        (
            [call("{", "f", "a", 0), call("[", "g", "b", 1), call("}", index=0), call("]", index=1)],
            {0: ("a", "f", "{}"), 1: ("b", "g", "[]")},
        ),
        # Arguments that are no text.
        ([call({"x": [1]}, "f", "a", 0)], {0: ("a", "f", '{"x":[1]}')}),
    ],
)
def test_what_compatible_servers_make_of_calls(
    pieces: list[dict[str, Any]], expected: dict[int, tuple[str, str, str]]
) -> None:
    apart = b"".join(chunk({"tool_calls": [piece]}) for piece in pieces) + chunk({}, "stop") + DONE
    found = read(apart)
    assert _calls(found) == expected
    assert found[-1] == Finished("tool_calls")
    assert _calls(read(chunk({"tool_calls": pieces}, "tool_calls") + DONE)) == expected


def test_the_way_before_tools() -> None:
    data = chunk({"function_call": {"name": "f", "arguments": "{"}}) + chunk({"function_call": {"arguments": "}"}})
    found = read(data + chunk({}, "function_call") + DONE)
    assert _calls(found) == {0: ("call_0", "f", "{}")}
    assert found[-1] == Finished("tool_calls")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("stop", "stop"),
        ("eos_token", "stop"),
        ("COMPLETE", "stop"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("content_filter", "content_filter"),
        ("SAFETY", "content_filter"),
        ("what else", "stop"),
    ],
)
def test_each_reason(said: str, reason: Any) -> None:
    assert read(chunk({"content": "x"}, said) + DONE) == [Delta(text="x"), Finished(reason)]


@pytest.mark.parametrize("said", ["error", "abort", "insufficient_system_resource"])
def test_a_reason_that_is_a_failure(said: str) -> None:
    with pytest.raises(UpstreamFailed, match="broke off"):
        read(chunk({"content": "x"}) + chunk({}, said) + DONE)


def test_an_end_marker_without_a_reason_is_a_stop() -> None:
    assert read(chunk({"content": "x"}) + DONE) == [Delta(text="x"), Finished("stop")]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (used(10, 4, prompt_cache_hit_tokens=6), Usage(10, 4, cached_tokens=6)),
        # xAI counts reasoning apart.
        (
            used(10, 4, total_tokens=17, completion_tokens_details={"reasoning_tokens": 3}),
            Usage(10, 7, reasoning_tokens=3),
        ),
        (
            used(10, 4, total_tokens=14, completion_tokens_details={"reasoning_tokens": 3}),
            Usage(10, 4, reasoning_tokens=3),
        ),
        (used(1, 2**70), Usage(1, (1 << 53) - 1)),
        (used(3, 1, prompt_tokens_details={"cached_tokens": 9}), Usage(3, 1, cached_tokens=3)),
        (used(3.0, 1, prompt_tokens_details=None), Usage(3, 1)),  # type: ignore[arg-type]
    ],
)
def test_usage_in_each_form(usage: dict[str, Any], expected: Usage) -> None:
    assert read(chunk({"content": "x"}, "stop") + counts(**usage) + DONE)[-1] == expected


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        "x",
        {"prompt_tokens": "5", "completion_tokens": "3"},
        {"prompt_tokens": True},
        used(9, 0),
        used(-1),
    ],
)
def test_counts_that_say_nothing_are_none(usage: Any) -> None:
    said = [Delta(text="x"), Finished("stop")]
    body = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
    assert read_whole(json.dumps(body).encode(), "up", ONE) == said
    counted = event(json.dumps({"choices": [], "usage": usage}).encode())
    assert read(counted + chunk({"content": "x"}) + chunk({}, "stop", usage=usage) + counted + DONE) == said


def test_what_comes_after_an_early_reason_is_not_lost() -> None:
    early = chunk({"content": "a"}, "stop") + chunk({}, "length")
    assert read(early + DONE) == [Delta(text="a"), Finished("stop")]
    data = early + chunk({"content": "b"}) + chunk({}, "length") + chunk({}, "stop") + DONE
    assert read(data) == [Delta(text="a"), Finished("stop"), Delta(text="b"), Finished("length")]


def test_choices_without_an_index_take_their_places() -> None:
    choices = [{"message": {"content": "a"}}, {"index": None, "message": {"content": "b"}, "finish_reason": "length"}]
    found = read_whole(json.dumps({"choices": choices}).encode(), "up", asked(2))
    assert found == [Delta(0, "a"), Delta(1, "b"), Finished("length", 1), Finished("stop", 0)]


@pytest.mark.parametrize("content", [42, True, {"parts": ["x"]}])
def test_a_content_that_is_no_text_is_a_failure(content: Any) -> None:
    with pytest.raises(UpstreamFailed, match="not of the expected form"):
        read(chunk({"content": content}))
    body = {"choices": [{"index": 0, "message": {"content": content}, "finish_reason": "stop"}]}
    with pytest.raises(UpstreamFailed, match="not of the expected form"):
        read_whole(json.dumps(body).encode(), "up", ONE)


def test_usage_in_every_chunk_counts_once() -> None:
    data = chunk({"content": "x"}, usage=used(5, 1)) + chunk({"content": "y"}, "stop", usage=used(5, 2)) + DONE
    assert read(data) == [Delta(text="x"), Delta(text="y"), Finished("stop"), Usage(5, 2)]


@pytest.mark.parametrize(
    ("finish", "tokens", "empty"),
    [
        ("stop", None, True),
        ("stop", 0, True),
        ("stop", 4, False),
        ("length", 0, False),
        ("content_filter", None, False),
    ],
)
def test_an_answer_with_nothing_in_it_as_events(finish: str, tokens: int | None, empty: bool) -> None:
    usage = b"" if tokens is None else counts(**used(1, tokens))
    data = chunk({"role": "assistant", "content": ""}) + chunk({}, finish) + usage + DONE
    body = {"choices": [{"index": 0, "message": {"content": ""}, "finish_reason": finish}]}
    if tokens is not None:
        body["usage"] = used(1, tokens)  # type: ignore[assignment]
    if empty:
        reader = OpenAIReader("up", ONE)
        assert reader.feed(data.removesuffix(usage + DONE)) == []
        with pytest.raises(UpstreamFailed, match="empty answer"):
            reader.feed(usage + DONE)
        with pytest.raises(UpstreamFailed, match="empty answer"):
            read_whole(json.dumps(body).encode(), "up", ONE)
    else:
        assert isinstance(read(data)[0], Finished)
        assert isinstance(read_whole(json.dumps(body).encode(), "up", ONE)[0], Finished)


def test_an_answer_without_choices() -> None:
    with pytest.raises(UpstreamFailed, match="empty answer"):
        read_whole(json.dumps({"choices": [], "usage": used(1, 5)}).encode(), "up", ONE)
    with pytest.raises(UpstreamFailed, match="empty answer"):
        read(DONE)


@pytest.mark.parametrize("data", [b"{nonsense", b'"text"', b"[]", b"{}", b'{"choices": 5}', b"\xff", b"[" * 90_000])
def test_a_chunk_of_another_form_is_a_failure(data: bytes) -> None:
    with pytest.raises(UpstreamFailed, match="not of the expected form"):
        read(chunk({"content": "x"}) + event(data))
    with pytest.raises(UpstreamFailed):
        read_whole(data, "up", ONE)


def test_what_the_target_reports_keeps_its_kind() -> None:
    with pytest.raises(errors.TargetLimited):
        read(chunk({"content": "x"}) + event(b'{"error":{"code":429,"message":"sk-secret"}}'))


def test_logprobs() -> None:
    token = {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [{"token": "x", "logprob": -1}]}
    choice = {"index": 0, "delta": {"content": "é"}, "logprobs": {"content": [token]}, "finish_reason": "stop"}
    found = read(event(json.dumps({"choices": [choice]}).encode()) + DONE)
    position = PositionLogprobs(TokenLogprob("é", -0.5, [195, 169]), [TokenLogprob("x", -1.0, [120])])
    assert found[0] == Delta(text="é", logprobs=[position])


def test_plain_completions() -> None:
    request = completions.parse(b'{"model":"m","prompt":"x","logprobs":1,"stream":true,"max_tokens":3}')
    events: list[Event] = [
        Delta(text="a", logprobs=[PositionLogprobs(TokenLogprob("a", -0.5, [97]), [])]),
        Delta(text="b", logprobs=[PositionLogprobs(TokenLogprob("b", -1.5, [98]), [])]),
        Finished("length"),
    ]
    writer = completion_stream(Frame("cmpl-1", 1, "m", request), Tally())
    found = read(writer.feed(events) + writer.end(), request)
    assert [(item.text, item.logprobs[0].chosen) for item in found if isinstance(item, Delta)] == [
        ("a", TokenLogprob("a", -0.5, [97])),
        ("b", TokenLogprob("b", -1.5, [98])),
    ]
    assert found[-1] == Finished("length")


jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["index", "delta", "message", "content", "tool_calls", "function", "text", "reasoning_details",
                         "logprobs", "finish_reason", "usage", "tokens", "top_logprobs", "id", "name", "arguments"]),
        inner,
        max_size=4,
    ),
    max_leaves=10,
)  # fmt: skip


@given(st.lists(jsons, max_size=3), jsons)
def test_whatever_comes_is_read_or_is_an_error_of_the_tree(choices: list[Any], usage: Any) -> None:
    body = json.dumps({"choices": choices, "usage": usage}).encode()
    for attempt in (lambda: read(event(body) + DONE), lambda: read_whole(body, "up", ONE)):
        try:
            attempt()
        except OutpostError as error:
            assert error.retryable


def test_the_outbound_hands_both_out() -> None:
    outbound = OpenAIOutbound()
    assert outbound.reader("up", ONE).feed(SAMPLE) == EXPECTED
    whole_body = json.dumps({"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}]}).encode()
    assert outbound.read_whole(whole_body, "up", ONE) == [Delta(text="x"), Finished("stop")]
