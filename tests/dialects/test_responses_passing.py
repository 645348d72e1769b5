from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dialects.answer import Frame
from appliance.dialects.responses.answer import ResponsesStream
from appliance.dialects.responses.assemble import assemble
from appliance.dialects.responses.passing import ResponsesPassing, adopt, make_passing, read_whole
from appliance.dialects.tally import Tally
from appliance.errors import ContentFiltered, OutpostError, RateLimited, UpstreamFailed, UpstreamTimeout
from runtimes.engine import Event
from tests.dialects.responses_samples import (
    CALLED,
    ID,
    SAID,
    STREAM,
    STREAM_SHAPES,
    USED,
    answers,
    events_of,
    frame,
    resource,
    sse,
    wall,
)

FRAME = frame(stream=True, store=True)
LAST = sse(*STREAM_SHAPES)[len(sse(*STREAM_SHAPES[:-1])) :]
BEFORE = STREAM[: len(STREAM) - len(LAST)]


def passed(stream: bytes, *cuts: int, of: Frame | None = None) -> tuple[bytes, ResponsesPassing, Tally]:
    tally = Tally()
    reader = ResponsesPassing("up", tally, frame=of)
    out = b""
    for start, end in zip((0, *cuts), (*cuts, len(stream)), strict=True):
        if stream[start:end] and not reader.done:
            out += reader.feed(stream[start:end])
    assert reader.done
    return out, reader, tally


def test_bytes_pass_as_they_came_and_the_end_is_held_back() -> None:
    out, reader, tally = passed(STREAM)
    assert out == BEFORE
    assert reader.end() == LAST
    assert (tally.prompt_tokens, tally.completion_tokens, tally.cached_tokens, tally.reasoning_tokens) == (20, 9, 4, 3)
    assert (tally.source, tally.reasons()) == ("reported", ["tool_calls"])
    assert reader.response() == STREAM_SHAPES[-1]["response"]


def test_every_cut_gives_the_same() -> None:
    for i in range(1, len(STREAM)):
        out, reader, _ = passed(STREAM, i)
        assert out + reader.end() == STREAM
    out, reader, _ = passed(STREAM, *range(1, len(STREAM)))
    assert out + reader.end() == STREAM


def test_a_read_in_the_middle_passes_as_the_same_object() -> None:
    reader = ResponsesPassing("up", Tally())
    reader.feed(sse(*STREAM_SHAPES[:13]))
    piece = sse(*STREAM_SHAPES[13:15])
    assert reader.feed(piece) is piece


def test_comments_pass_and_line_ends_may_be_others() -> None:
    reader = ResponsesPassing("up", Tally())
    reader.feed(sse(*STREAM_SHAPES[:13]))
    assert reader.feed(b": ping\n\n") == b": ping\n\n"
    out, reader, _ = passed(STREAM.replace(b"\n", b"\r\n"))
    assert out + reader.end() == STREAM


def test_nothing_leaves_before_something_is_shown() -> None:
    reader = ResponsesPassing("up", Tally())
    quiet = sse(*STREAM_SHAPES[:4])
    assert reader.feed(quiet) == b""
    assert reader.feed(b": ping\n\n") == b""
    delta = sse(STREAM_SHAPES[4])
    assert reader.feed(delta) == quiet + b": ping\n\n" + delta


@pytest.mark.parametrize("shape", [STREAM_SHAPES[8], STREAM_SHAPES[12], STREAM_SHAPES[17]])
def test_what_shows_something(shape: dict[str, Any]) -> None:
    reader = ResponsesPassing("up", Tally())
    assert reader.feed(sse(STREAM_SHAPES[0], shape))


def test_until_it_is_reported_what_was_used_is_estimated() -> None:
    tally = Tally()
    ResponsesPassing("up", tally).feed(sse(*STREAM_SHAPES[:15]))
    assert (tally.completion_tokens, tally.source) == (4, "estimated")


def test_the_answer_gets_our_id_where_it_is_kept_here() -> None:
    out, reader, _ = passed(STREAM, of=FRAME)
    shapes = events_of(out + reader.end())
    told = [shape["response"] for shape in shapes if "response" in shape]
    assert {(each["id"], each["store"], each["previous_response_id"]) for each in told} == {(ID, True, None)}
    assert reader.response() == told[-1]
    ours = [shape for shape in shapes if "response" not in shape]
    theirs = [{**shape, "sequence_number": i} for i, shape in enumerate(STREAM_SHAPES) if "response" not in shape]
    assert ours == theirs
    for i in range(1, len(STREAM), 7):
        again, other, _ = passed(STREAM, i, of=FRAME)
        assert again + other.end() == out + reader.end()
    assert isinstance(make_passing("up", Tally(), FRAME, b""), ResponsesPassing)


def test_a_failure_on_the_way_is_told_as_one() -> None:
    reader = ResponsesPassing("up", Tally(), frame=FRAME)
    reader.feed(sse(*STREAM_SHAPES[:13]))
    (shape,) = events_of(reader.fail(UpstreamTimeout("Silence.")))
    assert (shape["type"], shape["sequence_number"]) == ("response.failed", 13)
    assert shape["response"]["id"] == ID
    assert shape["response"]["status"] == "failed"
    assert shape["response"]["error"] == {"code": "upstream_timeout", "message": "Silence."}
    early = ResponsesPassing("up", Tally())
    early.feed(sse(*STREAM_SHAPES[:2]))
    (shape,) = events_of(early.fail(UpstreamTimeout("Silence.")))
    assert (shape["type"], shape["sequence_number"]) == ("error", 0)


def test_a_secret_does_not_pass_however_it_is_cut() -> None:
    stream = sse(*STREAM_SHAPES[:12], {**STREAM_SHAPES[12], "delta": "the-gateways-key"})
    for i in range(1, len(stream)):
        reader = ResponsesPassing("up", Tally(), secret=b"the-gateways-key")
        with pytest.raises(UpstreamFailed):
            reader.feed(stream[:i])
            reader.feed(stream[i:])


BROKEN: list[tuple[bytes, type[OutpostError]]] = [
    (b"data: {nonsense\n\n", UpstreamFailed),
    (b'data: {"delta":"x"}\n\n', UpstreamFailed),
    (b'data: {"type":"response.completed"}\n\n', UpstreamFailed),
    (b"data: [DONE]\n\n", UpstreamFailed),
    (b'data: {"type":"error","code":"server_error","message":"sk-x"}\n\n', UpstreamFailed),
    (b'data: {"type":"response.failed","response":{"error":{"code":"rate_limit_exceeded"}}}\n\n', RateLimited),
    (b'data: {"type":"response.failed","response":{"error":{"code":"invalid_prompt"}}}\n\n', ContentFiltered),
    (sse({"type": "response.completed", "response": resource("completed", [])}), UpstreamFailed),
    (b"", UpstreamFailed),
]


@pytest.mark.parametrize(("stream", "error"), BROKEN, ids=lambda v: str(v)[:70])
def test_what_is_not_sound_fails(stream: bytes, error: type[OutpostError]) -> None:
    with pytest.raises(error) as caught:
        ResponsesPassing("up", Tally()).feed(stream)
    assert "sk-x" not in caught.value.message


def test_a_connection_that_ends_too_early_fails() -> None:
    for i in range(0, len(BEFORE), 97):
        reader = ResponsesPassing("up", Tally())
        reader.feed(STREAM[:i] or b": \n\n")
        with pytest.raises(UpstreamFailed):
            reader.feed(b"")


def test_the_end_needs_no_empty_line_and_may_be_incomplete() -> None:
    reader = ResponsesPassing("up", Tally())
    out = reader.feed(STREAM[:-2])
    out += reader.feed(b"")
    assert out + reader.end() == STREAM
    details = {"reason": "max_output_tokens"}
    end = {"type": "response.incomplete", "response": resource("incomplete", [], incomplete_details=details)}
    _, reader, tally = passed(sse(end))
    assert tally.reasons() == ["length"]
    assert reader.end() == sse(end)


def test_whole_answers() -> None:
    body = json.dumps(resource("completed", [SAID, *CALLED], usage=USED)).encode()
    tally = Tally()
    read_whole(body, tally, "up")
    assert (tally.prompt_tokens, tally.completion_tokens, tally.reasons()) == (20, 9, ["tool_calls"])
    adopted, response = adopt(body, FRAME)
    assert json.loads(adopted) == response
    assert (response["id"], response["store"], response["output"]) == (ID, True, [SAID, *CALLED])


@pytest.mark.parametrize("usage", [None, {}, [], "x", {"input_tokens": "2"}, {"input_tokens": 3, "output_tokens": 0}])
def test_whole_answers_whose_counts_say_nothing_are_not_counted(usage: Any) -> None:
    tally = Tally()
    read_whole(json.dumps(resource("completed", [SAID], usage=usage)).encode(), tally, "up")
    assert (tally.completion_tokens, tally.source) == (0, "none")
    cut = json.dumps(resource("incomplete", [], usage={"input_tokens": 3, "output_tokens": 0})).encode()
    read_whole(cut, tally, "up")
    assert (tally.prompt_tokens, tally.completion_tokens, tally.source) == (3, 0, "reported")


def test_bytes_that_are_no_text_never_pass() -> None:
    bad = STREAM.replace(b'"type"', b'"other":"\xff","type"', 1)
    with pytest.raises(UpstreamFailed, match="not of the expected form"):
        passed(bad)
    whole = json.dumps(resource("completed", [SAID], usage=USED)).encode()
    with pytest.raises(UpstreamFailed, match="not of the expected form"):
        read_whole(whole.replace(b'"status"', b'"other":"\xff","status"', 1), Tally(), "up")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"[", UpstreamFailed),
        (b'{"status":"completed"}', UpstreamFailed),
        (b'{"status":"queued","output":[]}', UpstreamFailed),
        (b'{"status":"completed","output":[]}', UpstreamFailed),
        (b'{"status":"completed","output":[],"error":{"code":"rate_limit_exceeded"}}', RateLimited),
        (b'{"status":"failed","output":[],"error":{"code":"invalid_prompt"}}', ContentFiltered),
    ],
)
def test_whole_answers_that_are_none(body: bytes, error: type[OutpostError]) -> None:
    with pytest.raises(error):
        read_whole(body, Tally(), "up")


@settings(max_examples=50, deadline=None)
@given(answers(), st.data())
def test_our_own_streams_pass_and_add_up(events: list[Event], data: st.DataObject) -> None:
    stream = ResponsesStream(frame(include=["reasoning.encrypted_content"]), Tally(), wall=wall)
    sent = stream.feed(events) + stream.end()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sent) - 1), max_size=6)))
    out, reader, tally = passed(sent, *cuts)
    assert out + reader.end() == sent
    assert tally.completion_tokens == 5
    assert reader.response() == stream.response()
    pieces = [sent[a:b] for a, b in zip((0, *cuts), (*cuts, len(sent)), strict=True)]
    assert json.loads(assemble(pieces)) == stream.response()


def test_what_had_come_of_a_stream_that_broke() -> None:
    cut = STREAM.index(b'":1}')
    made = json.loads(assemble([STREAM[:cut]]))
    assert made["id"] == "resp_up"
    assert [item["type"] for item in made["output"]] == [
        "reasoning", "web_search_call", "message", "function_call", "function_call",
    ]  # fmt: skip
    assert [item.get("arguments") for item in made["output"][3:]] == ['{"a"', ""]
    middle = STREAM.index(b"i!")
    said = json.loads(assemble([STREAM[:middle], b'"}\n\n']))["output"][2]
    assert said["content"] == [{"type": "output_text", "text": "Hö"}]


def test_errors_and_nothing_are_on_record_too() -> None:
    assert assemble([]) == b""
    assert assemble([b": ping\n\n", b"data: nonsense\n\n"]) == b""
    error = b'data: {"type":"error","code":"x","message":"m"}\n\n'
    assert json.loads(assemble([error])) == {"output": [], "error": {"code": "x", "message": "m"}}
    reader = ResponsesPassing("up", Tally(), frame=FRAME)
    sent = reader.feed(sse(*STREAM_SHAPES[:13])) + reader.fail(UpstreamTimeout("Silence."))
    made = json.loads(assemble([sent]))
    assert (made["status"], made["error"]["code"]) == ("failed", "upstream_timeout")
    assert made["output"][2]["content"] == [{"type": "output_text", "text": "Hö"}]
