from __future__ import annotations

import base64
import json
import struct
from binascii import crc32
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import errors
from appliance.dialects.bedrock.answer import ConverseReader, read_whole
from appliance.dialects.bedrock.frames import BadFrame, Framer
from appliance.dialects.bedrock.outbound import Bedrock
from runtimes.engine import Delta, Event, Finished, ToolCallDelta, Usage
from tests.fakes import event_stream as aws

SECRET = base64.b64encode(b"nobody reads this").decode()

THOUGHTFUL = [
    aws.BEGIN,
    aws.piece(0, {"reasoningContent": {"text": "Two cities, "}}),
    aws.piece(0, {"reasoningContent": {"text": "two calls."}}),
    aws.piece(0, {"reasoningContent": {"signature": "sig=="}}),
    aws.stop(0),
    aws.piece(1, {"reasoningContent": {"redactedContent": SECRET}}),
    aws.stop(1),
    aws.piece(2, {"text": "Let me löok."}),
    aws.stop(2),
    aws.start(3, "tooluse_a", "weather"),
    aws.piece(3, {"toolUse": {"input": '{"city":'}}),
    aws.piece(3, {"toolUse": {"input": ' "Bern"}'}}),
    aws.stop(3),
    aws.start(4, "tooluse_b", "now"),
    aws.piece(4, {"toolUse": {"input": ""}}),
    aws.stop(4),
    aws.event("messageStop", {"stopReason": "tool_use"}),
    aws.usage(cacheReadInputTokens=100, cacheWriteInputTokens=20),
]
EVENTS: list[Event] = [
    Delta(reasoning="Two cities, "),
    Delta(reasoning="two calls."),
    Delta(reasoning_signature="sig=="),
    Delta(reasoning_data=SECRET),
    Delta(text="Let me löok."),
    Delta(tool_calls=[ToolCallDelta(0, "tooluse_a", "weather")]),
    Delta(tool_calls=[ToolCallDelta(0, arguments='{"city":')]),
    Delta(tool_calls=[ToolCallDelta(0, arguments=' "Bern"}')]),
    Delta(tool_calls=[ToolCallDelta(1, "tooluse_b", "now")]),
    Delta(tool_calls=[ToolCallDelta(1, arguments="{}")]),
    Finished("tool_calls"),
    Usage(131, 7, cached_tokens=100, cache_write_tokens=20),
]


def read(*pieces: bytes) -> list[Event]:
    reader = ConverseReader("up")
    events = [event for piece in pieces for event in reader.feed(piece)]
    if not reader.done:
        events += reader.feed(b"")
    assert reader.done
    assert reader.feed(b"more") == reader.feed(b"") == []
    return events


def test_a_stream_gives_the_events_of_its_answer() -> None:
    assert read(*THOUGHTFUL) == EVENTS


def test_an_answer_of_which_only_the_counts_are_missing_is_complete() -> None:
    reader = ConverseReader("up")
    assert reader.feed(b"".join(THOUGHTFUL[:-2])) == EVENTS[:-2]
    assert not reader.complete
    assert reader.feed(THOUGHTFUL[-2]) == [Finished("tool_calls")]
    assert reader.complete
    assert not reader.done


def test_every_cut_gives_the_same_events() -> None:
    stream = b"".join(THOUGHTFUL)
    for i in range(1, len(stream)):
        assert read(stream[:i], stream[i:]) == EVENTS
    assert read(*[stream[i : i + 1] for i in range(len(stream))]) == EVENTS


@given(
    st.lists(st.tuples(st.dictionaries(st.text(min_size=1, max_size=9), st.text(max_size=9)), st.binary())), st.data()
)
def test_messages_come_out_as_they_went_in(messages: list[tuple[dict[str, str], bytes]], data: st.DataObject) -> None:
    stream = b"".join(aws.message(headers, payload) for headers, payload in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    framer, found = Framer(), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += framer.feed(stream[begin:end])
    assert [(dict(message.headers), message.payload) for message in found] == messages


@given(st.lists(st.text(min_size=1), min_size=1, max_size=5), st.integers(1, 40))
def test_texts_are_the_same_however_they_are_cut(texts: list[str], size: int) -> None:
    stream = b"".join([aws.BEGIN, *[aws.piece(0, {"text": text}) for text in texts], aws.stop(0), *aws.end()])
    events = read(*[stream[i : i + size] for i in range(0, len(stream), size)])
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "".join(texts)
    assert events[-2:] == [Finished("stop"), Usage(11, 7)]


@pytest.mark.parametrize("bit", range(8))
def test_a_damaged_byte_is_never_read_over(bit: int) -> None:
    stream = aws.answer("Hello")
    for i in range(len(stream)):
        broken = bytearray(stream)
        broken[i] ^= 1 << bit
        with pytest.raises(errors.UpstreamFailed):
            read(bytes(broken))


def test_a_stream_that_is_cut_short_has_failed() -> None:
    messages = [aws.BEGIN, aws.piece(0, {"text": "Hello"}), aws.stop(0), *aws.end()]
    stream = b"".join(messages)
    complete = len(stream) - len(messages[-1])
    for i in range(complete):
        with pytest.raises(errors.UpstreamFailed):
            read(stream[:i])
    # What is still missing is only what it used.
    for i in range(complete, len(stream)):
        assert read(stream[:i]) == [Delta(text="Hello"), Finished("stop")]


@pytest.mark.parametrize(
    ("length", "headers"), [(0, 0), (12, 0), (15, 0), (16, 1), (17 << 20, 0), (2**32 - 1, 2**32 - 1)]
)
def test_a_length_that_cannot_be_is_refused_at_once(length: int, headers: int) -> None:
    prelude = struct.pack("!II", length, headers)
    with pytest.raises(BadFrame):
        Framer().feed(prelude + struct.pack("!I", crc32(prelude)))


@pytest.mark.parametrize(
    "headers", [b"\x05", b"\x01a\x0a", b"\x01a\x07\x00\x09ab", b"\x01\xff\x00", b"\x01a\x00\x01a\x00"]
)
def test_headers_that_are_none_are_refused(headers: bytes) -> None:
    prelude = struct.pack("!II", 16 + len(headers), len(headers))
    body = prelude + struct.pack("!I", crc32(prelude)) + headers
    with pytest.raises(errors.UpstreamFailed, match="damaged|not of the expected form"):
        read(body + struct.pack("!I", crc32(body)))


@pytest.mark.parametrize(
    ("name", "words", "kind", "code"),
    [
        ("throttlingException", "Too many requests", errors.TargetLimited, "rate_limit_exceeded"),
        ("modelStreamErrorException", "oops", errors.UpstreamFailed, "upstream_error"),
        ("internalServerException", "oops", errors.UpstreamFailed, "upstream_error"),
        ("serviceUnavailableException", "oops", errors.UpstreamUnavailable, "upstream_unavailable"),
        ("modelTimeoutException", "oops", errors.UpstreamTimeout, "upstream_timeout"),
        ("validationException", "The field of account 123 is bad", errors.BadRequest, "invalid_request"),
        ("validationException", "Input is too long for account 123", errors.ContextLengthExceeded, None),
        ("accessDeniedException", "account 123", errors.UpstreamError, "upstream_credentials"),
        ("unheardOfException", "oops", errors.UpstreamFailed, "upstream_error"),
    ],
)
def test_exceptions_become_errors_without_the_targets_words(
    name: str, words: str, kind: type[errors.OutpostError], code: str | None
) -> None:
    reader = ConverseReader("up")
    assert reader.feed(aws.BEGIN + aws.piece(0, {"text": "Hello"})) == [Delta(text="Hello")]
    with pytest.raises(errors.OutpostError) as caught:
        reader.feed(aws.exception(name, words))
    assert type(caught.value) is kind
    assert caught.value.code == (code or kind.code)
    assert "up" in caught.value.message
    assert "123" not in caught.value.message
    assert not reader.done


def test_an_error_that_is_no_exception_of_the_service_fails_too() -> None:
    headers = {":message-type": "error", ":error-code": "InternalError", ":error-message": "x"}
    with pytest.raises(errors.UpstreamFailed):
        read(aws.message(headers, b""))


@pytest.mark.parametrize(
    "bad",
    [
        aws.event("contentBlockDelta", b"{"),
        aws.event("contentBlockDelta", {"delta": {"text": "x"}}),
        aws.event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": 1}}),
        aws.piece(0, {"toolUse": {"input": "{}"}}),
        aws.piece(0, {"reasoningContent": {"redactedContent": "no base64"}}),
        aws.start(0, "x", ""),
        aws.event("messageStop", {}),
        aws.event("metadata", {"usage": {"inputTokens": "many"}}),
        aws.event("messageStop", {"stopReason": "malformed_tool_use"}),
        aws.usage(),
        aws.message({":message-type": "other"}, b"{}"),
        aws.message({}, b"{}"),
    ],
)
def test_what_is_not_sound_fails(bad: bytes) -> None:
    with pytest.raises(errors.UpstreamFailed):
        read(aws.BEGIN, bad)


def test_events_of_other_kinds_are_skipped() -> None:
    extra = [
        aws.event("initial-response", {}),
        aws.event("somethingNew", {"a": 1}),
        aws.piece(0, {"citation": {"title": "x"}}),
        aws.event("contentBlockStart", {"start": {"image": {"format": "png"}}, "contentBlockIndex": 7}),
        aws.piece(7, {"image": {"source": {"bytes": "AAAA"}}}),
        aws.event("metadata", {"metrics": {"latencyMs": 1}}),
    ]
    assert read(*extra, aws.piece(0, {"text": "x"}), *aws.end()) == [Delta(text="x"), Finished("stop"), Usage(11, 7)]


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("guardrail_intervened", "content_filter"),
        ("content_filtered", "content_filter"),
        ("a_new_reason", "stop"),
    ],
)
def test_reasons(reason: str, told: Any) -> None:
    assert read(aws.piece(0, {"text": "x"}), *aws.end(reason))[1] == Finished(told)
    body = {"output": {"message": {"role": "assistant", "content": [{"text": "x"}]}}, "stopReason": reason}
    assert read_whole(json.dumps(body).encode(), "up") == [Delta(text="x"), Finished(told)]


def test_the_stop_sequence_that_was_met_is_told() -> None:
    more = {"additionalModelResponseFields": {"stop_sequence": "END"}}
    assert read(aws.piece(0, {"text": "x"}), *aws.end("stop_sequence", **more))[1] == Finished("stop", 0, "END")
    nothing = {"additionalModelResponseFields": {"stop_sequence": None}}
    assert read(aws.piece(0, {"text": "x"}), *aws.end("end_turn", **nothing))[1] == Finished("stop")


def test_an_empty_answer_is_one_only_if_it_took_something() -> None:
    free = aws.usage(outputTokens=0)
    with pytest.raises(errors.UpstreamFailed, match="empty"):
        read(aws.BEGIN, aws.event("messageStop", {"stopReason": "end_turn"}), free)
    with pytest.raises(errors.UpstreamFailed, match="empty"):
        read(aws.BEGIN, aws.event("messageStop", {"stopReason": "end_turn"}))
    assert read(aws.BEGIN, *aws.end()) == [Finished("stop"), Usage(11, 7)]
    blocked = aws.event("messageStop", {"stopReason": "guardrail_intervened"})
    assert read(aws.BEGIN, blocked, free) == [Finished("content_filter"), Usage(11, 0)]


def test_the_end_of_an_empty_answer_is_held_until_it_is_known_to_be_meant() -> None:
    reader = ConverseReader("up")
    assert reader.feed(aws.BEGIN + aws.event("messageStop", {"stopReason": "end_turn"})) == []
    assert not reader.complete
    assert reader.feed(aws.usage()) == [Finished("stop"), Usage(11, 7)]


def test_sealed_reasoning_in_pieces_is_one_block() -> None:
    halves = [base64.b64encode(half).decode() for half in (b"nobody re", b"ads this!!")]
    pieces = [aws.piece(0, {"reasoningContent": {"redactedContent": half}}) for half in halves]
    events = read(*pieces, aws.piece(1, {"text": "x"}), *aws.end())  # without the block's end
    assert Delta(reasoning_data=base64.b64encode(b"nobody reads this!!").decode()) in events


WHOLE = {
    "output": {
        "message": {
            "role": "assistant",
            "content": [
                {"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "sig"}}},
                {"reasoningContent": {"redactedContent": SECRET}},
                {"text": "Let me look."},
                {"toolUse": {"toolUseId": "a", "name": "weather", "input": {"city": "Bern"}}},
                {"toolUse": {"toolUseId": "s", "name": "search", "input": {}, "type": "server_tool_use"}},
                {"toolUse": {"toolUseId": "b", "name": "now", "input": {}}},
                {"citationsContent": {"content": []}},
            ],
        }
    },
    "stopReason": "tool_use",
    "usage": {"inputTokens": 5, "outputTokens": 6, "totalTokens": 18, "cacheReadInputTokens": 7},
    "metrics": {"latencyMs": 9},
}


def test_a_whole_answer() -> None:
    assert Bedrock().read_whole(json.dumps(WHOLE).encode(), "up", None) == [
        Delta(reasoning="Hm.", reasoning_signature="sig"),
        Delta(reasoning_data=SECRET),
        Delta(text="Let me look."),
        Delta(tool_calls=[ToolCallDelta(0, "a", "weather", '{"city": "Bern"}')]),
        Delta(tool_calls=[ToolCallDelta(1, "b", "now", "{}")]),
        Finished("tool_calls"),
        Usage(12, 6, cached_tokens=7),
    ]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"{}",
        b'{"output":{},"stopReason":"end_turn"}',
        b'{"output":{"message":{"content":"x"}},"stopReason":"end_turn"}',
        b'{"output":{"message":{"content":[]}},"stopReason":"end_turn","usage":{"outputTokens":0}}',
        b'{"output":{"message":{"content":[{"text":"x"}]}},"stopReason":"malformed_model_output"}',
    ],
)
def test_a_whole_answer_that_is_none_fails(body: bytes) -> None:
    with pytest.raises(errors.UpstreamFailed):
        read_whole(body, "up")


def test_counts_of_a_target_gone_mad_are_bounded() -> None:
    content = {"output": {"message": {"content": [{"text": "x"}]}}, "stopReason": "end_turn"}
    counts = {"inputTokens": -5, "outputTokens": 2**60}
    assert read_whole(json.dumps({**content, "usage": counts}).encode(), "up")[-1] == Usage(0, (1 << 53) - 1)
