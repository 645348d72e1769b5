"""Events to Anthropic's messages, streamed and whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance import errors
from appliance.dialects.messages import errors as written_errors
from appliance.dialects.messages.answer import MessagesStream
from appliance.dialects.tally import Tally
from runtimes import engine as e
from tests.dialects.anthropic_shapes import complaints
from tests.dialects.messages_samples import (
    FRAME,
    HELLO,
    HELLO_EVENTS,
    RICH,
    RICH_EVENTS,
    call,
    merged,
    parsed,
    read,
    whole,
    written,
)


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


@pytest.mark.parametrize("reason", ["stop", "content_filter"])
def test_a_refusal_is_text_and_told_by_the_reason(reason: Any) -> None:
    events: list[e.Event] = [e.Delta(refusal="I "), e.Delta(refusal="won't."), e.Finished(reason), e.Usage(1)]
    for found in (parsed(written([events]))[-2]["delta"], whole(events)):
        assert (found["stop_reason"], found["stop_details"]["type"]) == ("refusal", "refusal")
    assert [each for each in read([written([events])]) if isinstance(each, e.Finished)] == [
        e.Finished("content_filter")
    ]
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


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("This model's maximum context length is 8 tokens.", "prompt is too long: This model's maximum context length"),
        ("prompt is too long: 9 tokens > 8 maximum", "prompt is too long: 9 tokens > 8 maximum"),
        ("input length and `max_tokens` exceed context limit: 9 + 1 > 8", "input length and `max_tokens` exceed"),
    ],
)
def test_a_conversation_that_is_too_long_is_told_in_words_that_agents_know(message: str, told: str) -> None:
    error = errors.ContextLengthExceeded(message)
    whole = json.loads(written_errors.body(error))
    streamed = json.loads(written_errors.stream_event(error).split(b"data: ")[1])
    shown = [whole["error"], streamed["error"]]
    assert all(each["message"].startswith(told) and each["type"] == "invalid_request_error" for each in shown)
    assert json.loads(written_errors.body(errors.BadRequest(message)))["error"]["message"] == message
