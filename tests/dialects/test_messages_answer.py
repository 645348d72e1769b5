"""Events to Anthropic's messages, streamed and whole, and Anthropic's messages to events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from appliance import errors
from appliance.dialects.messages import errors as written_errors
from appliance.dialects.messages.answer import MessagesStream
from appliance.dialects.messages.assemble import assemble
from appliance.dialects.messages.reader import MessagesReader, read_whole
from appliance.dialects.splice import Splice, sent
from appliance.dialects.tally import Tally
from runtimes import engine as e
from tests.dialects.anthropic_shapes import complaints
from tests.dialects.messages_samples import (
    END,
    FRAME,
    HELLO,
    PING,
    RICH,
    RICH_EVENTS,
    begin,
    check,
    delta,
    merged,
    named,
    parsed,
    read,
    start,
    stop,
    stopped,
    whole,
    written,
)

HELLO_EVENTS: list[e.Event] = [e.Delta(text="Hello 🌍"), e.Finished("stop"), e.Usage(10, 7)]


def call(index: int, arguments: str = "", name: str = "", id: str = "") -> e.Delta:
    return e.Delta(tool_calls=[e.ToolCallDelta(index, id, name, arguments)])


def failed(pieces: list[bytes]) -> errors.OutpostError:
    reader = MessagesReader("up")
    with pytest.raises(errors.OutpostError) as caught:
        for piece in [*pieces, b""]:
            reader.feed(piece)
    assert not reader.done
    return caught.value


# --- reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stream", "expected"), [(HELLO, HELLO_EVENTS), (RICH, RICH_EVENTS)], ids=["hello", "rich"])
def test_streams_are_read_however_they_are_cut(stream: list[bytes], expected: list[e.Event]) -> None:
    data = b"".join(stream)
    for i in range(1, len(data)):
        assert merged(read([data[:i], data[i:]])) == expected
    assert merged(read([data[i : i + 1] for i in range(len(data))])) == expected
    assert merged(read([data.replace(b"\n", b"\r\n")])) == expected
    assert merged(read([b": hi\n\n" + data.replace(b"event: ", b"id: 1\nevent: ")])) == expected
    unnamed = b"".join(line + b"\n" for line in data.split(b"\n") if not line.startswith(b"event: "))
    assert merged(read([unnamed])) == expected


@pytest.mark.parametrize("stream", [HELLO, RICH], ids=["hello", "rich"])
def test_a_stream_that_ends_before_its_reason_is_no_answer(stream: list[bytes]) -> None:
    data = b"".join(stream)
    complete = data.index(b'"message_delta"')
    for i in range(complete):
        assert isinstance(failed([data[:i]]), errors.UpstreamFailed)


def test_an_end_that_is_missing_after_the_reason_does_no_harm() -> None:
    assert merged(read(HELLO[:-1])) == HELLO_EVENTS
    for i in range(1, len(END)):
        assert merged(read([*HELLO[:-1], END[:i]])) == HELLO_EVENTS


def test_what_comes_after_the_end_is_not_read() -> None:
    reader = MessagesReader("up")
    assert merged(reader.feed(b"".join([*HELLO, named("error", error={"type": "api_error"}), *HELLO]))) == HELLO_EVENTS


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("overloaded_error", errors.UpstreamUnavailable),
        ("rate_limit_error", errors.TargetLimited),
        ("api_error", errors.UpstreamFailed),
        (None, errors.UpstreamFailed),
    ],
)
def test_errors_in_the_middle(kind: str | None, expected: type) -> None:
    told = {"message": "of account 17"} if kind is None else {"type": kind, "message": "of account 17"}
    error = failed([*HELLO[:4], named("error", error=told)])
    assert type(error) is expected
    assert "17" not in error.message


@pytest.mark.parametrize(
    "bad",
    [
        b"data: {\n\n",
        b"data: []\n\n",
        b"data: \xff\n\n",
        b'data: {"type":5}\n\n',
        b'data: {"type":"content_block_delta","index":0}\n\n',
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":5}}\n\n',
        b'data: {"type":"message_start"}\n\n',
        begin(1, "server_tool_use", id="srvtoolu_1", name="web_search", input={}),
        END,
        b"data: " + b"[" * 100_000 + b"\n\n",
    ],
)
def test_what_is_not_sound(bad: bytes) -> None:
    assert type(failed([*HELLO[:4], bad])) is errors.UpstreamFailed


def test_events_and_deltas_that_are_new_are_passed_over() -> None:
    stream = [
        *HELLO[:4],
        named("new_thing", index=7),
        delta(0, "new_delta", words="x"),
        delta(0, "citations_delta", citation={}),
    ]
    assert merged(read([*stream, *HELLO[4:]])) == HELLO_EVENTS


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("end_turn", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
    ],
)
def test_reasons(reason: str, expected: Any) -> None:
    assert e.Finished(expected) in read([*HELLO[:-2], stopped(reason), END])


def test_the_stop_sequence_is_told() -> None:
    assert e.Finished("stop", stop_sequence="###") in read([*HELLO[:-2], stopped("stop_sequence", "###"), END])


def test_the_words_of_a_refusal() -> None:
    details = {"type": "refusal", "category": "cyber", "explanation": "Not that."}
    found = merged(read([start(), stopped("refusal", details=details), END]))
    assert found[:2] == [e.Delta(refusal="Not that."), e.Finished("content_filter")]


def test_arguments_that_come_with_their_beginning() -> None:
    stream = [start(), begin(0, "tool_use", id="a", name="f", input={"x": 1}), stop(0), stopped("tool_use"), END]
    assert merged(read(stream))[0] == call(0, '{"x":1}', "f", "a")
    del stream[2]
    assert merged(read(stream))[0] == call(0, '{"x":1}', "f", "a")


def test_counts_that_are_told_again_replace_the_first() -> None:
    stream = [
        start(),
        *HELLO[1:6],
        stopped("end_turn", input_tokens=11, cache_read_input_tokens=5, cache_creation_input_tokens=None),
    ]
    assert read(stream)[-1] == e.Usage(16, 7, 5)
    assert read([*stream[:-1], stopped("end_turn", output_tokens=-3)])[-1] == e.Usage(10, 0)


def test_an_answer_with_nothing_in_it_is_a_failure_unless_it_was_bounded() -> None:
    silent = [start(output_tokens=0), begin(0, "text", text=""), stop(0)]
    assert isinstance(failed([*silent, stopped("end_turn", output_tokens=0), END]), errors.UpstreamFailed)
    assert read([*silent, stopped("max_tokens", output_tokens=0), END])[0] == e.Finished("length")
    assert read([*silent, stopped("end_turn", output_tokens=3), END])[0] == e.Finished("stop")


def message(**fields: Any) -> bytes:
    body = {"type": "message", "content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn", **fields}
    return json.dumps(body).encode()


def test_whole_answers_are_read() -> None:
    content = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "d"},
        {"type": "text", "text": "Hi", "citations": None},
        {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 2**70}},
        {"type": "tool_use", "id": "b", "name": "g", "input": {}},
    ]
    usage = {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": 3, "cache_creation_input_tokens": None}
    found = read_whole(message(content=content, stop_reason="tool_use", usage=usage), "up")
    assert merged(found) == [
        e.Delta(reasoning="hm"),
        e.Delta(reasoning_signature="s"),
        e.Delta(reasoning_data="d"),
        e.Delta(text="Hi"),
        call(0, f'{{"x":{2**70}}}', "f", "a"),
        call(1, "{}", "g", "b"),
        e.Finished("tool_calls"),
        e.Usage(4, 2, 3),
    ]


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        message(type="error"),
        message(content="Hi"),
        message(stop_reason=None),
        message(content=[]),
        message(content=[{"type": "server_tool_use"}]),
    ],
)
def test_whole_answers_that_are_none(bad: bytes) -> None:
    with pytest.raises(errors.UpstreamFailed):
        read_whole(bad, "up")


# --- writing ----------------------------------------------------------------------------------------


def test_what_was_read_is_written_as_it_was() -> None:
    """But for pings, and the pieces without characters."""
    assert merged(read([written([read(RICH)])])) == RICH_EVENTS
    kinds = [item["type"] for item in parsed(written([read(HELLO)]))]
    assert kinds == [item["type"] for item in parsed(b"".join(HELLO)) if item["type"] != "ping"]


def test_counts_are_told_in_anthropics_way() -> None:
    tally = Tally()
    last = parsed(written([RICH_EVENTS], tally))[-2]
    assert (tally.prompt_tokens, tally.cached_tokens, tally.cache_write_tokens, tally.source) == (
        130,
        100,
        20,
        "reported",
    )
    assert tally.reasons() == ["tool_calls"]
    assert last["usage"] == {
        "input_tokens": 10,
        "cache_creation_input_tokens": 20,
        "cache_read_input_tokens": 100,
        "output_tokens": 89,
        "output_tokens_details": {"thinking_tokens": 12},
        "server_tool_use": None,
    }
    assert whole(RICH_EVENTS)["usage"] == {
        **last["usage"],
        "cache_creation": None,
        "inference_geo": None,
        "service_tier": None,
    }


def test_a_prompt_that_was_counted_before_is_told_at_once() -> None:
    first = parsed(written([[e.Started(42)], HELLO_EVENTS]))[0]
    assert first["message"]["usage"]["input_tokens"] == 42


def test_nothing_is_written_before_the_first_delta() -> None:
    answer = MessagesStream(FRAME, Tally())
    assert answer.feed([e.Started(1), e.Working()]) == b""
    assert answer.feed([e.Delta(text="a")]) != b""


def test_each_piece_is_written_when_it_comes() -> None:
    answer = MessagesStream(FRAME, Tally())
    for piece in (e.Delta(text="abc"), e.Delta(reasoning="def"), call(0, '{"ghi', "f", "a"), call(0, "jkl")):
        found = answer.feed([piece])
        assert any(word in found for word in (b"abc", b"def", b"ghi", b"jkl"))


@pytest.mark.parametrize(
    ("finished", "expected"),
    [
        (e.Finished("stop"), ("end_turn", None)),
        (e.Finished("stop", stop_sequence="#"), ("stop_sequence", "#")),
        (e.Finished("length"), ("max_tokens", None)),
        (e.Finished("content_filter"), ("refusal", None)),
    ],
)
def test_stop_reasons(finished: e.Finished, expected: tuple[str, Any]) -> None:
    events: list[e.Event] = [e.Delta(text="a"), finished, e.Usage(1)]
    told = parsed(written([events]))[-2]["delta"]
    body = whole(events)
    for found in (told, body):
        assert (found["stop_reason"], found["stop_sequence"]) == expected
        assert (found["stop_details"] is not None) == (expected[0] == "refusal")


def test_a_call_ends_in_tool_use_whatever_its_target_says() -> None:
    events: list[e.Event] = [call(0, "{}", "f", "a"), e.Finished("stop"), e.Usage(1)]
    assert parsed(written([events]))[-2]["delta"]["stop_reason"] == "tool_use"
    assert whole(events)["stop_reason"] == "tool_use"


def test_a_refusal_is_text() -> None:
    events: list[e.Event] = [e.Delta(refusal="I "), e.Delta(refusal="won't."), e.Finished("content_filter"), e.Usage(1)]
    assert whole(events)["content"] == [{"type": "text", "text": "I won't.", "citations": None}]
    assert merged(read([written([events])]))[0] == e.Delta(text="I won't.")


def test_calls_without_an_id_get_one_that_stays() -> None:
    events: list[e.Event] = [call(0, "{}", "f"), call(1, "{}", "f"), e.Finished("tool_calls"), e.Usage(1)]
    ids = [block["id"] for block in whole(events)["content"]]
    assert ids == ["toolu_1_0", "toolu_1_1"]
    begun = [item["content_block"]["id"] for item in parsed(written([events])) if item["type"] == "content_block_start"]
    assert begun == ids


def test_only_the_first_choice_is_written() -> None:
    events: list[e.Event] = [
        e.Delta(text="a"),
        e.Delta(1, "b"),
        e.Finished("length", 1),
        e.Finished("stop"),
        e.Usage(1),
    ]
    assert whole(events)["content"] == [{"type": "text", "text": "a", "citations": None}]
    assert b'"b"' not in written([events])
    assert whole(events)["stop_reason"] == "end_turn"


def test_calls_that_come_mixed_are_written_one_after_the_other() -> None:
    events: list[e.Event] = [
        call(0, '{"a":', "f", "x"),
        call(1, '{"b"', "g", "y"),
        call(0, "1"),
        call(1, ":2"),
        call(0, "}"),
        call(1, "}"),
        e.Finished("tool_calls"),
        e.Usage(1),
    ]
    expected = [call(0, '{"a":1}', "f", "x"), call(1, '{"b":2}', "g", "y")]
    assert merged(read([written([[event] for event in events])]))[:2] == expected
    answer = MessagesStream(FRAME, Tally())
    answer.feed(events[:4])
    assert b'{\\"b\\":2' in answer.feed(events[4:5])  # the first is complete: the second is not held any longer


def test_text_within_a_call_waits_for_its_end() -> None:
    events: list[e.Event] = [
        call(0, '{"a":', "f", "x"),
        e.Delta(text="Hm"),
        call(0, "1}"),
        e.Delta(text="!"),
        e.Finished("tool_calls"),
        e.Usage(1),
    ]
    assert merged(read([written([[event] for event in events])]))[:2] == [
        call(0, '{"a":1}', "f", "x"),
        e.Delta(text="Hm!"),
    ]


def test_arguments_that_are_no_object() -> None:
    for arguments in ('{"a":', "[1]", "nothing", '{"a":' + "[" * 99 + "]" * 99 + "}"):
        events: list[e.Event] = [call(0, arguments, "f", "x"), e.Finished("tool_calls"), e.Usage(1)]
        with pytest.raises(errors.UpstreamFailed, match="no JSON object"):
            whole(events)
        cut: list[e.Event] = [events[0], e.Finished("length"), e.Usage(1)]
        assert whole(cut)["content"][0]["input"] == {}
    assert whole([call(0, "", "f", "x"), e.Finished("tool_calls"), e.Usage(1)])["content"][0]["input"] == {}


def test_a_failure_is_an_error_event_and_no_end() -> None:
    answer = MessagesStream(FRAME, Tally())
    answer.feed([e.Delta(text="a")])
    said = answer.fail(errors.UpstreamFailed("It broke off; key sk-abcdefghijklmnopqrstuvwxyz0123456789."))
    (item,) = parsed(said)
    assert (item["type"], item["error"]["type"]) == ("error", "api_error")
    assert "sk-abc" not in said.decode()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.BadRequest("x"), "invalid_request_error"),
        (errors.Unauthenticated("x"), "authentication_error"),
        (errors.PermissionDenied("x"), "permission_error"),
        (errors.ModelNotFound("x"), "not_found_error"),
        (errors.RateLimited("x"), "rate_limit_error"),
        (errors.InternalError("x"), "api_error"),
        (errors.UpstreamError("x"), "api_error"),
        (errors.Overloaded("x"), "overloaded_error"),
        (errors.UpstreamTimeout("x"), "timeout_error"),
    ],
)
def test_errors_have_anthropics_types(error: errors.OutpostError, kind: str) -> None:
    found = json.loads(written_errors.body(error, "req_1"))
    assert found == {"type": "error", "error": {"type": kind, "message": "x"}, "request_id": "req_1"}
    assert complaints("ErrorResponse", found) == []
    assert complaints("ErrorResponse", json.loads(written_errors.body(error))) == []


# --- properties -------------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)
objects = st.dictionaries(words, st.integers() | words | st.lists(st.booleans(), max_size=2), max_size=2).map(
    json.dumps
)


def split(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@st.composite
def answers(draw: st.DrawFn) -> list[e.Event]:
    """Thoughts, texts and calls in any order; the pieces of calls that follow each other are mixed."""
    events: list[e.Event] = []
    index = 0
    for kind in draw(st.lists(st.sampled_from(["text", "thinking", "redacted", "calls"]), min_size=1, max_size=5)):
        if kind == "text":
            events += [e.Delta(text=piece) for piece in split(draw, draw(words)) if piece]
        elif kind == "redacted":
            events.append(e.Delta(reasoning_data=draw(words)))
        elif kind == "thinking":
            events += [e.Delta(reasoning=piece) for piece in split(draw, draw(words)) if piece]
            if draw(st.booleans()):
                events.append(e.Delta(reasoning_signature=draw(words)))
        else:
            queues = []
            for _ in range(draw(st.integers(1, 3))):
                pieces = [call(index, piece) for piece in split(draw, draw(objects)) if piece]
                events.append(call(index, "", draw(st.sampled_from("fg")), f"id_{index}"))
                queues.append(pieces)
                index += 1
            while any(queues):
                events.append(draw(st.sampled_from([queue for queue in queues if queue])).pop(0))
    counts = draw(st.tuples(*[st.integers(0, 99)] * 3))
    usage = e.Usage(sum(counts), draw(st.integers(1, 99)), counts[1], reasoning_tokens=3, cache_write_tokens=counts[2])
    finished = e.Finished("tool_calls") if index else draw(st.sampled_from([e.Finished("length"), e.Finished("stop")]))
    return [*events, finished, usage]


def batches(draw: Any, events: list[e.Event]) -> list[list[e.Event]]:
    cuts = sorted(draw(st.lists(st.integers(0, len(events)), max_size=5)))
    return [events[a:b] for a, b in zip([0, *cuts], [*cuts, len(events)], strict=True)]


@settings(deadline=None)
@given(st.data(), answers())
def test_events_written_and_read_are_the_same_events(data: st.DataObject, events: list[e.Event]) -> None:
    stream = written(batches(data.draw, events))
    cut = data.draw(st.integers(0, len(stream)))
    assert merged(read([piece for piece in (stream[:cut], stream[cut:]) if piece])) == merged(events)


@settings(deadline=None)
@given(answers())
def test_whole_and_streamed_messages_say_the_same(events: list[e.Event]) -> None:
    stream = written([[event] for event in events])
    body = whole(events)
    assert merged(read_whole(json.dumps(body).encode(), "up")) == [
        *[as_read(event) for event in merged(events)[:-1]],
        events[-1],
    ]
    put_together = json.loads(assemble([stream]))
    started = parsed(stream)[0]["message"]
    assert put_together == {**body, "usage": {**started["usage"], **known(body["usage"])}}


def known(usage: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in usage.items() if value is not None}


def as_read(event: e.Event) -> e.Event:
    """A call's arguments are JSON, however it is spaced."""
    if isinstance(event, e.Delta) and event.tool_calls:
        piece = event.tool_calls[0]
        arguments = json.dumps(json.loads(piece.arguments or "{}"), separators=(",", ":"), ensure_ascii=False)
        return call(piece.index, arguments, piece.name, piece.id)
    return event


_adapter: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


@settings(deadline=None)
@given(answers())
def test_anthropics_own_client_puts_a_stream_together_as_the_whole_message(events: list[e.Event]) -> None:
    snapshot: Any = None
    pieces: Any = {}
    for item in parsed(written([[event] for event in events])):
        found = _adapter.validate_python(item)
        snapshot = accumulate_event(event=found, current_snapshot=snapshot, json_bufs=pieces)
    expected = Message.model_validate(whole(events))
    assert [block.model_dump(exclude={"parsed_output"}) for block in snapshot.content] == [
        block.model_dump() for block in expected.content
    ]
    assert (snapshot.stop_reason, snapshot.id) == (expected.stop_reason, "msg_1")
    assert snapshot.usage.output_tokens == expected.usage.output_tokens
    assert snapshot.usage.input_tokens == expected.usage.input_tokens


@settings(deadline=None)
@given(st.data(), answers())
def test_a_stream_that_was_cut_goes_on_as_if_it_had_not_been(data: st.DataObject, events: list[e.Event]) -> None:
    """What was sent is read again, written again to nowhere, and the next target's answer goes on from there."""
    events = [event for event in events if not (isinstance(event, e.Delta) and event.reasoning_data)]
    assume(len(events) > 2)
    first = MessagesStream(FRAME, Tally())
    at = data.draw(st.integers(1, len(events) - 2))
    before = b"".join(first.feed([event]) for event in events[:at])
    seen = MessagesReader("up").feed(before)
    renderer = MessagesStream(FRAME, Tally())
    renderer.feed(seen)
    after = Splice(renderer, sent(seen), repeats=True)
    try:
        everything = before + after.feed(events) + after.end()
    except errors.Diverged:
        # Where texts and thoughts alternate, it is not known how far the next answer has come.
        return
    check(everything)
    assert spoken(read([everything])) == spoken(events)


def spoken(events: list[e.Event]) -> tuple[str, str, dict[int, str], list[e.Event]]:
    deltas = [event for event in events if isinstance(event, e.Delta)]
    pieces = [piece for event in deltas for piece in event.tool_calls]
    calls = {piece.index: "" for piece in pieces}
    for piece in pieces:
        calls[piece.index] += piece.arguments
    text, thought = ("".join(getattr(event, name) for event in deltas) for name in ("text", "reasoning"))
    return text, thought, calls, [event for event in events if not isinstance(event, e.Delta)]


def test_a_ping_says_nothing() -> None:
    assert MessagesReader("up").feed(PING) == []
