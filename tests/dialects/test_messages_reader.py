"""Anthropic's messages, streamed and whole, to events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance import errors
from appliance.dialects.messages.reader import MessagesReader, read_whole
from runtimes import engine as e
from tests.dialects.messages_samples import (
    END,
    HELLO,
    HELLO_EVENTS,
    PING,
    RICH,
    RICH_EVENTS,
    begin,
    call,
    delta,
    merged,
    named,
    read,
    start,
    stop,
    stopped,
)


def failed(pieces: list[bytes]) -> errors.OutpostError:
    reader = MessagesReader("up")
    with pytest.raises(errors.OutpostError) as caught:
        for piece in [*pieces, b""]:
            reader.feed(piece)
    assert not reader.done
    return caught.value


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


def test_a_ping_says_nothing() -> None:
    assert MessagesReader("up").feed(PING) == []


def test_all_is_told_before_an_end_that_may_never_come() -> None:
    reader = MessagesReader("up")
    assert reader.feed(b"".join(HELLO[:-2])) != []
    assert not reader.complete
    assert reader.feed(HELLO[-2]) == HELLO_EVENTS[1:]
    assert (reader.complete, reader.done) == (True, False)
    assert reader.feed(END) == []
    assert reader.done
