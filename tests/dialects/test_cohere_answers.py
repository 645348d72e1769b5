from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.dialects.cohere_outbound import COHERE
from appliance.errors import UpstreamFailed
from runtimes.engine import Delta, Event, Finished, PositionLogprobs, TokenLogprob, ToolCallDelta, Usage
from tests.dialects.chat_requests import asked


def said(kind: str, message: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"type": kind, **({} if message is None else {"delta": {"message": message}}), **more}


USED = {
    "billed_units": {"input_tokens": 5, "output_tokens": 6},
    "tokens": {"input_tokens": 50.0, "output_tokens": 60.0},
    "cached_tokens": 48,
}


def end(reason: str | None = "COMPLETE", **more: Any) -> dict[str, Any]:
    return {"type": "message-end", "id": "x", "delta": {"finish_reason": reason, "usage": USED, **more}}


START = said("message-start", {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []})
STREAM = [
    START,
    said("content-start", {"content": {"type": "thinking", "thinking": "Hm"}}, index=0),
    said("content-delta", {"content": {"thinking": "m."}}, index=0),
    said("content-end", index=0),
    said("content-start", {"content": {"type": "text", "text": ""}}, index=1),
    said("content-delta", {"content": {"text": "Wär"}}, index=1),
    said("content-delta", {"content": {"text": "me"}}, index=1, logprobs=None),
    said("citation-start", {"citations": {"start": 0, "end": 5, "text": "Wärme", "sources": []}}, index=0),
    said("citation-end", index=0),
    said("content-end", index=1),
    said("tool-plan-delta", {"tool_plan": "I look."}),
    said(
        "tool-call-start", {"tool_calls": {"id": "a1", "type": "function", "function": {"name": "f", "arguments": ""}}}
    ),
    said("tool-call-delta", {"tool_calls": {"function": {"arguments": '{"a":'}}}, index=0),
    said("tool-call-delta", {"tool_calls": {"function": {"arguments": "1}"}}}, index=0),
    said("tool-call-end", index=0),
    said("something-new", index="whatever"),
    said("tool-call-start", {"tool_calls": {"id": "a2", "function": {"name": "g", "arguments": "{}"}}}, index=3),
    said("tool-call-end", index=3),
    end("TOOL_CALL"),
]
EXPECTED: list[Event] = [
    Delta(reasoning="Hm"),
    Delta(reasoning="m."),
    Delta(text="Wär"),
    Delta(text="me"),
    Delta(reasoning="I look."),
    Delta(tool_calls=[ToolCallDelta(0, "a1", "f", "")]),
    Delta(tool_calls=[ToolCallDelta(0, "", "", '{"a":')]),
    Delta(tool_calls=[ToolCallDelta(0, "", "", "1}")]),
    Delta(tool_calls=[ToolCallDelta(1, "a2", "g", "{}")]),
    Finished("tool_calls"),
    Usage(50, 60, cached_tokens=48),
]


def wire(events: list[dict[str, Any]]) -> bytes:
    return b"".join(
        f"event: {each['type']}\ndata: {json.dumps(each, ensure_ascii=False)}\n\n".encode() for each in events
    )


def read(pieces: list[bytes], **fields: Any) -> tuple[list[Event], bool]:
    reader = COHERE.reader("up", asked(**fields))
    events: list[Event] = []
    for piece in pieces:
        events += reader.feed(piece)
    return events, reader.done


def test_every_cut_gives_the_same_events() -> None:
    data = wire(STREAM)
    for i in range(1, len(data)):
        assert read([data[:i], data[i:]]) == (EXPECTED, True)
    assert read([data[i : i + 1] for i in range(len(data))]) == (EXPECTED, True)
    assert read([b": ping\n\n" + data.replace(b"\n", b"\r\n")]) == (EXPECTED, True)


def test_what_comes_after_the_end_is_not_read() -> None:
    reader = COHERE.reader("up", asked())
    assert reader.feed(wire(STREAM) + b"data: [DONE]\n\ndata: nonsense\n\n") == EXPECTED
    assert reader.feed(b"data: nonsense\n\n") == reader.feed(b"") == []


@pytest.mark.parametrize("kept", range(len(STREAM)))
def test_an_end_without_the_last_event_is_no_end(kept: int) -> None:
    with pytest.raises(UpstreamFailed, match="up ended its answer"):
        read([wire(STREAM[:kept]), b""])
    with pytest.raises(UpstreamFailed, match="up ended its answer"):
        read([wire(STREAM[:kept]) + b"data: [DONE]\n\n", b""])


def test_the_last_event_may_lack_its_empty_line() -> None:
    assert read([wire([START, end()])[:-2], b""]) == ([Finished("stop"), Usage(50, 60, cached_tokens=48)], True)


@pytest.mark.parametrize(
    ("word", "reason"),
    [("COMPLETE", "stop"), ("STOP_SEQUENCE", "stop"), ("MAX_TOKENS", "length"), ("TOOL_CALL", "tool_calls")],
)
def test_why_it_ended(word: str, reason: str) -> None:
    assert read([wire([end(word)])])[0][0] == Finished(reason)  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["ERROR", "TIMEOUT", "SOMETHING_NEW", "secret words", "", None])
def test_an_answer_that_broke_off_failed(word: str | None) -> None:
    whole = {"id": "x", "message": {"role": "assistant", "content": []}, "finish_reason": word}
    for ask in (
        lambda: read([wire([START, end(word)])]),
        lambda: COHERE.read_whole(json.dumps(whole).encode(), "up", asked()),
    ):
        with pytest.raises(UpstreamFailed) as caught:
            ask()
        assert "secret" not in caught.value.message
    with pytest.raises(UpstreamFailed):
        read([wire([end("COMPLETE", error="out of luck")])])


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        b'{"type":7}',
        b'{"message":"invalid api token"}',
        b'{"type":"content-delta"}',
        b'{"type":"content-delta","delta":{}}',
        b'{"type":"content-delta","delta":{"message":{"content":[]}}}',
        b'{"type":"content-delta","delta":{"message":{"content":{"text":7}}}}',
        b'{"type":"tool-plan-delta","delta":{"message":{}}}',
        b'{"type":"tool-call-start","delta":{"message":{"tool_calls":{"function":{"name":"f"}}}}}',
        b'{"type":"tool-call-start","delta":{"message":{"tool_calls":{"id":"a"}}}}',
        b'{"type":"tool-call-start","delta":{"message":{"tool_calls":[]}}}',
        b'{"type":"tool-call-delta","index":0,"delta":{"message":{"tool_calls":{"function":{"arguments":"a"}}}}}',
        b'{"type":"message-end","delta":{"finish_reason":"COMPLETE","usage":7}}',
        b"[" * 100_000,
    ],
)
def test_what_is_not_sound_fails(data: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        read([b"data: " + data + b"\n\n"])
    with pytest.raises(UpstreamFailed):
        COHERE.read_whole(data, "up", asked())


def test_a_whole_answer() -> None:
    body = {
        "id": "x",
        "message": {
            "role": "assistant",
            "tool_plan": "I look.",
            "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Hi"}],
            "tool_calls": [{"id": "a1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            "citations": [],
        },
        "finish_reason": "COMPLETE",
        "usage": {"billed_units": {"input_tokens": 5, "output_tokens": 6}},
    }
    expected: list[Event] = [
        Delta(reasoning="I look."),
        Delta(reasoning="Hm."),
        Delta(text="Hi"),
        Delta(tool_calls=[ToolCallDelta(0, "a1", "f", "{}")]),
        Finished("tool_calls"),
        Usage(5, 6),
    ]
    assert COHERE.read_whole(json.dumps(body).encode(), "up", asked()) == expected
    hidden = asked(reasoning={"exclude": True})
    assert COHERE.read_whole(json.dumps(body).encode(), "up", hidden) == expected[2:]


def test_reasoning_that_is_not_wanted_is_not_shown() -> None:
    events, _ = read([wire(STREAM)], reasoning={"exclude": True})
    assert events == [item for item in EXPECTED if not (isinstance(item, Delta) and item.reasoning)]


def test_logprobs() -> None:
    piece = said(
        "content-delta", {"content": {"text": "ä"}}, index=0, logprobs={"text": "ä", "logprobs": [-0.25, -0.5]}
    )
    position = PositionLogprobs(TokenLogprob("ä", -0.75, [195, 164]), [])
    events, _ = read([wire([piece, end()])], logprobs=True)
    assert events[:2] == [Delta(text="ä"), Delta(logprobs=[position])]
    assert read([wire([piece, end()])])[0][:2] == [Delta(text="ä"), Finished("stop")]
    whole = {
        "message": {"content": [{"type": "text", "text": "ä"}]},
        "finish_reason": "COMPLETE",
        "logprobs": [piece["logprobs"]],
    }
    assert COHERE.read_whole(json.dumps(whole).encode(), "up", asked(logprobs=True))[1] == Delta(logprobs=[position])


def test_an_answer_that_nobody_counts() -> None:
    last = {"type": "message-end", "delta": {"finish_reason": "COMPLETE"}}
    assert read([wire([said("content-delta", {"content": {"text": "a"}}), last])])[0][-1] == Finished("stop")


def test_an_answer_with_nothing_in_it_failed() -> None:
    thought = said("content-delta", {"content": {"thinking": "Hm."}})
    nothing = {"tokens": {"input_tokens": 5, "output_tokens": 0}}
    with pytest.raises(UpstreamFailed, match="empty"):
        read([wire([START, thought, end(usage=nothing)])])
    assert read([wire([START, thought, end("MAX_TOKENS", usage=nothing)])])[1]
