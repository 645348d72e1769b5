"""Anthropic's streams on their way through, and what is on record of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance import errors
from appliance.dialects.messages.assemble import assemble
from appliance.dialects.messages.passing import MessagesPassing, make_passing, read_whole
from appliance.dialects.tally import Tally
from tests.dialects.messages_samples import (
    END,
    HELLO,
    PING,
    RICH,
    begin,
    delta,
    named,
    parsed,
    start,
    stop,
    stopped,
)


def run(pieces: list[bytes], secret: bytes = b"") -> tuple[bytes, Tally, MessagesPassing]:
    tally = Tally()
    passing = MessagesPassing("up", tally, secret=secret)
    out = b"".join([passing.feed(piece) for piece in pieces if not passing.done])
    if not passing.done:
        out += passing.feed(b"")
    assert passing.done
    return out, tally, passing


def failed(pieces: list[bytes], secret: bytes = b"") -> errors.OutpostError:
    passing = MessagesPassing("up", Tally(), secret=secret)
    with pytest.raises(errors.OutpostError) as caught:
        for piece in [*pieces, b""]:
            passing.feed(piece)
    return caught.value


@pytest.mark.parametrize("stream", [HELLO, RICH], ids=["hello", "rich"])
def test_every_cut_gives_the_same_bytes(stream: list[bytes]) -> None:
    data = b"".join(stream)
    for i in range(1, len(data)):
        out, tally, passing = run([data[:i], data[i:]])
        assert out + passing.end() == data
        assert not out.endswith(END)
        assert tally.source == "reported"
    out, _, passing = run([data[i : i + 1] for i in range(len(data))])
    assert out + passing.end() == data


def test_what_an_answer_used() -> None:
    _, tally, _ = run(RICH)
    assert (tally.prompt_tokens, tally.cached_tokens, tally.cache_write_tokens) == (130, 100, 20)
    assert (tally.completion_tokens, tally.reasoning_tokens, tally.source) == (89, 12, "reported")
    assert tally.reasons() == ["tool_calls"]


def test_a_stream_that_breaks_leaves_an_estimate() -> None:
    tally = Tally()
    passing = MessagesPassing("up", tally)
    for piece in RICH[:6]:
        passing.feed(piece)
    assert (tally.prompt_tokens, tally.cached_tokens, tally.completion_tokens, tally.source) == (
        130,
        100,
        3,
        "estimated",
    )


def test_a_read_in_the_middle_passes_as_the_same_object() -> None:
    passing = MessagesPassing("up", Tally())
    assert passing.feed(b"".join(HELLO[:4]))
    piece = HELLO[4] + HELLO[5]
    assert passing.feed(piece) is piece


def test_nothing_leaves_before_the_first_token() -> None:
    passing = MessagesPassing("up", Tally())
    for piece in (HELLO[0], b": hi\n\n", HELLO[1], PING, delta(0, "text_delta", text="")):
        assert passing.feed(piece) == b""
    assert passing.feed(HELLO[3]) == HELLO[0] + HELLO[1] + PING + delta(0, "text_delta", text="") + HELLO[3]


@pytest.mark.parametrize(
    "first",
    [
        begin(0, "tool_use", id="a", name="f", input={}),
        begin(0, "redacted_thinking", data="x"),
        begin(0, "server_tool_use", id="srvtoolu_1", name="web_search", input={}),
        delta(0, "thinking_delta", thinking="x"),
        delta(0, "signature_delta", signature="x"),
        stopped("max_tokens"),
        stopped("refusal"),
    ],
)
def test_other_things_than_text_count_as_first_token(first: bytes) -> None:
    passing = MessagesPassing("up", Tally())
    assert passing.feed(start() + first) == start() + first


def test_events_without_names_get_them() -> None:
    data = b"".join(HELLO)
    bare = b"".join(line + b"\n" for line in data.split(b"\n") if not line.startswith(b"event: "))
    out, _, passing = run([bare])
    assert out + passing.end() == data
    out, _, passing = run([data.replace(b"\n", b"\r\n")])
    assert out + passing.end() == data


def test_what_is_new_passes() -> None:
    extra = named("new_thing", index=7) + delta(0, "citations_delta", citation={"type": "x"})
    out, _, _ = run([*HELLO[:4], extra, *HELLO[4:]])
    assert extra in out


def test_a_missing_end_after_the_reason_is_a_clean_end() -> None:
    for i in range(len(END)):
        out, _, passing = run([*HELLO[:-1], END[:i]])
        assert out + passing.end() == b"".join(HELLO)


def test_all_is_sent_before_an_end_that_may_never_come() -> None:
    passing = MessagesPassing("up", Tally())
    assert passing.feed(b"".join(HELLO[:-1])) == b"".join(HELLO[:-1])
    assert (passing.complete, passing.done, passing.end()) == (True, False, END)
    silent = MessagesPassing("up", Tally())
    assert silent.feed(start() + stopped("end_turn")) == start() + stopped("end_turn")


def test_a_stream_that_ends_before_its_reason_is_a_failure() -> None:
    data = b"".join(RICH)
    for i in range(data.index(b'"message_delta"')):
        assert isinstance(failed([data[:i]]), errors.UpstreamFailed)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("overloaded_error", errors.UpstreamUnavailable),
        ("rate_limit_error", errors.TargetLimited),
        ("api_error", errors.UpstreamFailed),
    ],
)
def test_errors_of_the_target(kind: str, expected: type) -> None:
    error = named("error", error={"type": kind, "message": "of account 17"})
    for pieces in ([error], [*HELLO[:4], error]):
        found = failed(pieces)
        assert type(found) is expected
        assert "17" not in found.message


@pytest.mark.parametrize("bad", [b"data: {\n\n", b"data: []\n\n", b"data: \xff\n\n", END, b"data: [DONE]\n\n"])
def test_what_is_not_sound(bad: bytes) -> None:
    assert type(failed([*HELLO[:4], bad])) is errors.UpstreamFailed


def test_an_event_that_is_too_large() -> None:
    passing = MessagesPassing("up", Tally())
    with pytest.raises(errors.UpstreamFailed, match="too large"):
        for _ in range(18):
            passing.feed(b"x" * (1 << 20))


def test_an_answer_with_nothing_in_it_is_a_failure() -> None:
    silent = [start(output_tokens=0), begin(0, "text", text=""), stop(0), stopped("end_turn", output_tokens=0)]
    assert "empty" in failed([*silent, END]).message
    assert "empty" in failed(silent).message
    short = [*silent[:3], stopped("end_turn", output_tokens=2), END]
    out, _, passing = run(short)
    assert out + passing.end() == b"".join(short)


def test_the_key_does_not_pass() -> None:
    secret = b"sk-ant-0123456789"
    data = b"".join([*HELLO[:4], delta(0, "text_delta", text=secret.decode()), *HELLO[4:]])
    at = data.index(secret)
    for i in range(at - 1, at + len(secret) + 2):
        passing = make_passing("up", Tally(), None, secret)
        with pytest.raises(errors.UpstreamFailed, match="withheld"):
            for piece in (data[:i], data[i:]):
                passing.feed(piece)


def test_a_failure_is_told_in_the_dialect() -> None:
    passing = MessagesPassing("up", Tally())
    (item,) = parsed(passing.fail(errors.UpstreamTimeout("It was silent.")))
    assert item == {"type": "error", "error": {"type": "timeout_error", "message": "It was silent."}}


def message(**fields: Any) -> bytes:
    body = {"type": "message", "content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn", **fields}
    return json.dumps(body).encode()


def test_whole_answers_are_counted() -> None:
    tally = Tally()
    usage = {"input_tokens": 1, "output_tokens": 2, "cache_read_input_tokens": 3, "cache_creation_input_tokens": 4}
    read_whole(message(usage=usage, stop_reason="max_tokens"), tally, "up")
    assert (tally.prompt_tokens, tally.completion_tokens, tally.cached_tokens, tally.cache_write_tokens) == (8, 2, 3, 4)
    assert (tally.reasons(), tally.source) == (["length"], "reported")
    uncounted = Tally()
    read_whole(message(content=[{"type": "server_tool_use"}]), uncounted, "up")
    assert uncounted.source == "none"


def test_counts_of_a_message_that_cannot_be_read_are_none() -> None:
    for usage in ([], "x", {"output_tokens": "2"}, {"input_tokens": {}}):
        tally = Tally()
        read_whole(message(usage=usage), tally, "up")
        assert (tally.completion_tokens, tally.source) == (0, "none")
    for text, source in (("Hi", "none"), ("", "reported")):
        tally, content = Tally(), [{"type": "text", "text": text}]
        nothing = {"input_tokens": 3, "output_tokens": 0}
        read_whole(message(usage=nothing, content=content, stop_reason="refusal"), tally, "up")
        assert (tally.prompt_tokens, tally.completion_tokens, tally.source) == (3, 0, source)


@pytest.mark.parametrize("field", ["text", "other"])
def test_bytes_that_are_no_text_never_pass(field: str) -> None:
    stream = b"".join(RICH)
    bad = stream.replace(b'"text_delta"', b'"text_delta", "%b": "a\xff"' % field.encode(), 1)
    assert bad != stream
    with pytest.raises(errors.UpstreamFailed, match="not of the expected form"):
        MessagesPassing("up", Tally()).feed(bad)
    with pytest.raises(errors.UpstreamFailed, match="not of the expected form"):
        read_whole(message(other="x").replace(b'"x"', b'"\xff"'), Tally(), "up")


@pytest.mark.parametrize("bad", [b"", b"[]", message(type="error"), message(stop_reason=None), message(content=[])])
def test_whole_answers_that_are_none(bad: bytes) -> None:
    with pytest.raises(errors.UpstreamFailed):
        read_whole(bad, Tally(), "up")


# --- for the record ---------------------------------------------------------------------------------


def test_a_stream_adds_up_to_a_message_however_it_is_cut() -> None:
    data = b"".join(RICH)
    expected = json.loads(assemble([data]))
    assert expected == {
        "id": "msg_up",
        "type": "message",
        "role": "assistant",
        "model": "claude-up",
        "content": [
            {"type": "thinking", "thinking": "Let me see.", "signature": "EqQBCg=="},
            {"type": "redacted_thinking", "data": "EmwKAhgB"},
            {"type": "text", "text": "I ask."},
            {"type": "tool_use", "id": "toolu_a", "name": "weather", "input": {"city": "Paris"}},
            {"type": "tool_use", "id": "toolu_b", "name": "clock", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 10,
            "output_tokens": 89,
            "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 20,
            "output_tokens_details": {"thinking_tokens": 12},
        },
    }
    for i in range(1, len(data)):
        assert json.loads(assemble([data[:i], data[i:]])) == expected


def test_what_broke_is_kept_as_far_as_it_came() -> None:
    assert assemble([]) == b""
    assert assemble([b"data: {\n\n", b": x\n\n", PING]) == b""
    found = json.loads(assemble([*RICH[:15], named("error", error={"type": "api_error", "message": "x"})]))
    assert found["content"][3]["input"] == '{"city": "Pa'
    assert found["error"]["type"] == "api_error"
    data = b"".join(RICH)
    for i in range(len(data)):
        json.loads(assemble([data[:i]]) or b"{}")


@pytest.mark.parametrize(
    "odd",
    [
        b'data: {"type":"message_start","message":5}\n\n',
        b'data: {"type":"content_block_start","index":"x","content_block":{}}\n\n',
        b'data: {"type":"content_block_delta","index":9,"delta":{"type":"text_delta","text":"x"}}\n\n',
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":5}}\n\n',
        b'data: {"type":"content_block_delta","index":0,"delta":5}\n\n',
        b'data: {"type":"message_delta","delta":null,"usage":5}\n\n',
        b"data: 5\n\n",
    ],
)
def test_what_is_not_sound_is_left_out(odd: bytes) -> None:
    assert json.loads(assemble([*HELLO[:4], odd, *HELLO[4:]])) == json.loads(assemble(HELLO))


def test_citations_are_kept() -> None:
    cited = delta(0, "citations_delta", citation={"type": "char_location"})
    found = json.loads(assemble([*HELLO[:5], cited, *HELLO[5:]]))
    assert found["content"] == [{"type": "text", "text": "Hello 🌍", "citations": [{"type": "char_location"}]}]
