from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from appliance.dialects.chat_answer import ChatWhole
from appliance.dialects.gemini_outbound import VERTEX, Gemini
from appliance.dialects.sse import event
from appliance.dialects.tally import Tally
from appliance.errors import ContentFiltered, TargetLimited, UpstreamFailed, UpstreamUnavailable
from runtimes.engine import Delta, Event, Finished, PositionLogprobs, TokenLogprob, ToolCallDelta, Usage
from tests.dialects.chat_requests import USER, asked


def fresh() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"call_{next(numbers)}"


def gemini() -> Gemini:
    return Gemini("gemini", ids=True, embed=VERTEX.embed_ask, fresh=fresh())


def chunk(parts: list[Any] | None = None, finish: str | None = None, *, index: int = 0, **more: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {"index": index} if index else {}
    if parts is not None:
        candidate["content"] = {"role": "model", "parts": parts}
    if finish is not None:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], "modelVersion": "gemini-x", "responseId": "r", **more}


def used(prompt: int, candidates: int | None = None, **more: Any) -> dict[str, Any]:
    usage = {"promptTokenCount": prompt, "totalTokenCount": prompt + (candidates or 0), **more}
    return {"usageMetadata": usage if candidates is None else {**usage, "candidatesTokenCount": candidates}}


STREAM = [
    chunk([{"text": "Let me ", "thought": True}], **used(9)),
    chunk([{"text": "see.", "thought": True}], **used(9, thoughtsTokenCount=4)),
    chunk([{"text": "Wärme "}, {"text": ""}], **used(9, 1, thoughtsTokenCount=4)),
    chunk([{"functionCall": {"name": "weather", "args": {"city": "Oslo", "n": 1.50}}, "thoughtSignature": "S1="}]),
    chunk([{"functionCall": {"name": "clock", "id": "g-2"}}], **used(9, 5, thoughtsTokenCount=4)),
    chunk(
        [{"text": "", "thoughtSignature": "S2="}],
        "STOP",
        **used(9, 7, thoughtsTokenCount=4, cachedContentTokenCount=3, toolUsePromptTokenCount=2, extra=1),
    ),
]
EXPECTED: list[Event] = [
    Delta(reasoning="Let me "),
    Delta(reasoning="see."),
    Delta(text="Wärme "),
    Delta(reasoning_data="gemini:call:call_1:S1="),
    Delta(tool_calls=[ToolCallDelta(0, "call_1", "weather", '{"city":"Oslo","n":1.5}')]),
    Delta(tool_calls=[ToolCallDelta(1, "g-2", "clock", "{}")]),
    Delta(reasoning_data="gemini:text::S2="),
    Finished("tool_calls"),
    Usage(prompt_tokens=11, completion_tokens=11, cached_tokens=3, reasoning_tokens=4),
]


def wire(chunks: list[dict[str, Any]]) -> bytes:
    return b"".join(event(json.dumps(each, ensure_ascii=False, separators=(",", ":")).encode()) for each in chunks)


def read(pieces: list[bytes], request: Any = None) -> tuple[list[Event], bool]:
    reader = gemini().reader("up", request or asked())
    events: list[Event] = []
    for piece in pieces:
        events += reader.feed(piece)
    return events, reader.done


def test_every_cut_gives_the_same_events() -> None:
    data = wire(STREAM)
    for i in range(1, len(data)):
        assert read([data[:i], data[i:]]) == (EXPECTED, True)
    assert read([data[i : i + 1] for i in range(len(data))]) == (EXPECTED, True)


def test_lines_may_end_as_they_like_and_comments_say_nothing() -> None:
    data = b": hello\r\n\r\n" + wire(STREAM).replace(b"\n", b"\r\n")
    assert read([data]) == (EXPECTED, True)


def test_what_comes_after_the_end_is_not_read() -> None:
    reader = gemini().reader("up", asked())
    assert reader.feed(wire(STREAM)) == EXPECTED
    assert reader.feed(b"data: nonsense\n\n") == reader.feed(b"") == []


def test_the_end_waits_for_the_count() -> None:
    reader = gemini().reader("up", asked())
    assert reader.feed(wire([chunk([{"text": "a"}], **used(1)), chunk(finish="STOP")])) == [Delta(text="a")]
    assert not reader.done
    assert reader.feed(wire([{**used(1, 2), "responseId": "r"}])) == [Finished("stop"), Usage(1, 2)]
    assert reader.done


def test_an_answer_that_nobody_counts_ends_with_the_connection() -> None:
    assert read([wire([chunk([{"text": "a"}], "STOP")]), b""]) == (
        [Delta(text="a"), Finished("stop")],
        True,
    )
    # The last event may lack the empty line behind it.
    assert read([wire([chunk([{"text": "a"}], "STOP")])[:-2], b""])[1]


@pytest.mark.parametrize("kept", range(len(STREAM)))
def test_an_end_without_a_reason_is_no_end(kept: int) -> None:
    with pytest.raises(UpstreamFailed, match="up ended its answer"):
        read([wire(STREAM[:kept]), b""])


def test_choices_end_each_for_itself() -> None:
    chunks = [
        chunk([{"text": "a"}]),
        chunk([{"functionCall": {"name": "f"}}], "STOP", index=1, **used(1, 1)),
        chunk([{"text": "b"}], "MAX_TOKENS", **used(1, 2)),
    ]
    assert read([wire(chunks)], asked(n=2)) == (
        [
            Delta(text="a"),
            Delta(index=1, tool_calls=[ToolCallDelta(0, "call_1", "f", "{}")]),
            Delta(text="b"),
            Finished("length"),
            Finished("tool_calls", index=1),
            Usage(1, 2),
        ],
        True,
    )
    with pytest.raises(UpstreamFailed):
        read([wire(chunks[:2]), b""], asked(n=2))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        *((name, "content_filter") for name in ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII")),
    ],
)
def test_why_it_ended(said: str, reason: str) -> None:
    body = json.dumps(chunk(None, said, **used(1, 1))).encode()
    assert gemini().read_whole(body, "up", asked()) == [Finished(reason), Usage(1, 1)]  # type: ignore[arg-type]


@pytest.mark.parametrize("said", ["MALFORMED_FUNCTION_CALL", "OTHER", "MISSING_THOUGHT_SIGNATURE", "SOMETHING_NEW"])
def test_an_answer_that_broke_off_failed(said: str) -> None:
    data = chunk([{"text": "a"}], said, **used(1, 1))
    for ask in (lambda: read([wire([data])]), lambda: gemini().read_whole(json.dumps(data).encode(), "up", asked())):
        with pytest.raises(UpstreamFailed, match=said):
            ask()


@pytest.mark.parametrize("parts", [None, [], [{"text": ""}], [{"text": "Hm.", "thought": True}]])
def test_an_answer_with_nothing_in_it_failed(parts: Any) -> None:
    data = chunk(parts, "STOP", **used(1, thoughtsTokenCount=5))
    for ask in (lambda: read([wire([data])]), lambda: gemini().read_whole(json.dumps(data).encode(), "up", asked())):
        with pytest.raises(UpstreamFailed, match="empty"):
            ask()
    # Unless something else than the model ended it.
    assert read([wire([chunk(parts, "MAX_TOKENS", **used(1, thoughtsTokenCount=5))])])[1]


def test_what_an_error_says_decides_who_is_asked_next() -> None:
    for code, kind in ((429, TargetLimited), (503, UpstreamUnavailable), (500, UpstreamFailed)):
        error = {"error": {"code": code, "message": "secret words", "status": "X"}}
        with pytest.raises(kind) as caught:
            read([wire([chunk([{"text": "a"}]), error])])
        assert "secret" not in caught.value.message


def test_half_an_event_after_the_end_does_no_harm() -> None:
    assert read([wire([chunk([{"text": "a"}], "STOP")]) + b'data: {"usageMeta', b""])[1]


def test_a_reader_says_that_only_counts_may_come() -> None:
    reader = gemini().reader("up", asked())
    reader.feed(wire([chunk([{"text": "a"}])]))
    assert not reader.complete
    reader.feed(wire([chunk(finish="STOP")]))
    assert (reader.complete, reader.done) == (True, False)


def test_a_prompt_that_is_blocked_is_a_clean_error() -> None:
    data = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, **used(5)}
    with pytest.raises(ContentFiltered) as caught:
        read([wire([data])])
    assert (caught.value.code, caught.value.status, caught.value.retryable) == ("content_filter", 400, False)
    with pytest.raises(ContentFiltered):
        gemini().read_whole(json.dumps(data).encode(), "up", asked())
    # Feedback alone is no refusal.
    assert read([wire([chunk([{"text": "a"}], "STOP", promptFeedback={"safetyRatings": []}, **used(1, 1))])])[1]


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"choices":[]}',
        b"\xff",
        b'{"candidates":7}',
        b'{"candidates":[{"content":{"parts":"x"}}]}',
        b'{"candidates":[{"content":{"parts":[{"text":7}]}}]}',
        b'{"candidates":[{"index":1}]}',
        b'{"candidates":[{"index":-1}]}',
        b'{"candidates":[{"content":{"parts":[{"functionCall":{"args":{}}}]}}]}',
        b'{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":[1]}}]}}]}',
        b'{"candidates":[{"content":{"parts":[{"inlineData":{"mimeType":"image/png","data":"AA"}}]}}]}',
        b'{"candidates":[{"content":{"parts":[{"executableCode":{"code":"1"}}]}}]}',
        b'{"error":"secret words"}',
        b'{"candidates":[{"finishReason":"secret words"}]}',
        b"[" * 100_000,
    ],
)
def test_what_is_not_sound_fails(data: bytes) -> None:
    for ask in (lambda: read([event(data)]), lambda: gemini().read_whole(data, "up", asked())):
        with pytest.raises(UpstreamFailed) as caught:
            ask()
        assert "secret" not in caught.value.message


def test_a_whole_answer() -> None:
    body = {
        "candidates": [
            {
                "content": {
                    "role": "model",
                    "parts": [
                        {"text": "Hm.", "thought": True, "thoughtSignature": "T="},
                        {"text": "Hi", "thoughtSignature": "X="},
                        {"functionCall": {"name": "f", "args": None}},
                    ],
                },
                "finishReason": "STOP",
                "safetyRatings": [],
            }
        ],
        **used(3, 4),
    }
    assert gemini().read_whole(json.dumps(body).encode(), "up", asked()) == [
        Delta(reasoning="Hm."),
        Delta(reasoning_data="gemini:thought::T="),
        Delta(text="Hi"),
        Delta(reasoning_data="gemini:text::X="),
        Delta(tool_calls=[ToolCallDelta(0, "call_1", "f", "{}")]),
        Finished("tool_calls"),
        Usage(3, 4),
    ]
    with pytest.raises(UpstreamFailed):
        gemini().read_whole(json.dumps(chunk([{"text": "a"}])).encode(), "up", asked())


def test_logprobs() -> None:
    result = {
        "logprobsResult": {
            "chosenCandidates": [{"token": "ä", "logProbability": -0.5}, {"token": "b"}],
            "topCandidates": [{"candidates": [{"token": "ä", "logProbability": -0.5}, {"token": "c"}]}],
        }
    }
    data = chunk([{"text": "äb"}], "STOP", **used(1, 2))
    data["candidates"][0].update(result)
    body = json.dumps(data).encode()
    a = TokenLogprob("ä", -0.5, [195, 164])
    expected = [
        PositionLogprobs(a, [a, TokenLogprob("c", 0.0, [99])]),
        PositionLogprobs(TokenLogprob("b", 0.0, [98]), []),
    ]
    events = gemini().read_whole(body, "up", asked(logprobs=True))
    assert events[0] == Delta(text="äb", logprobs=expected)
    assert gemini().read_whole(body, "up", asked())[0] == Delta(text="äb")


def test_fewer_choices_than_were_asked_for_are_an_answer() -> None:
    both = [chunk([{"text": "a"}], **used(3)), chunk([{"text": "b"}], "STOP", **used(3, 2))]
    said: list[Event] = [Delta(text="a"), Delta(text="b"), Finished("stop"), Usage(3, 2)]
    assert read([wire(both), b""], asked(n=2)) == (said, True)
    whole = json.dumps(chunk([{"text": "ab"}], "STOP", **used(3, 2))).encode()
    assert gemini().read_whole(whole, "up", asked(n=2)) == [Delta(text="ab"), Finished("stop"), Usage(3, 2)]


@pytest.mark.parametrize(
    "more", [[], [chunk([{"text": "x"}])], [chunk([{"text": "x"}]), chunk([{"text": "y"}], "STOP", index=1)]]
)
def test_a_choice_that_has_begun_must_end(more: list[dict[str, Any]]) -> None:
    ended = [chunk([{"text": "a"}], "STOP", index=1)] if more else []
    with pytest.raises(UpstreamFailed):
        read([wire([*ended, *more]), b""], asked(n=2))
    candidates = [candidate for each in (*ended, *more) for candidate in each["candidates"]]
    with pytest.raises(UpstreamFailed):
        gemini().read_whole(json.dumps({"candidates": candidates, "responseId": "r"}).encode(), "up", asked(n=2))


def test_no_tokens_for_a_text_are_not_believed() -> None:
    data = chunk([{"text": "a"}], "STOP", **used(3, 0))
    said = [Delta(text="a"), Finished("stop")]
    assert gemini().read_whole(json.dumps(data).encode(), "up", asked()) == said
    assert read([wire([data])]) == (said, True)


def test_counts_are_never_negative_nor_endless() -> None:
    body = json.dumps(chunk([{"text": "a"}], "STOP", **used(-5, 2**63))).encode()
    assert gemini().read_whole(body, "up", asked())[-1] == Usage(0, 2**53 - 1)


def test_an_id_of_ours_is_short_and_new() -> None:
    body = json.dumps(chunk([{"functionCall": {"name": "f"}}, {"functionCall": {"name": "f"}}], "STOP")).encode()
    ids = [
        piece.id
        for item in VERTEX.read_whole(body, "up", asked())
        if isinstance(item, Delta)
        for piece in item.tool_calls
    ]
    assert len(set(ids)) == 2
    assert all(id.startswith("call_") and len(id) <= 40 for id in ids)


def test_an_answer_comes_back_with_its_signatures() -> None:
    """As chat shows it, as a client sends it again, to the parts that Gemini had signed."""
    whole = ChatWhole("id", 0, "m", Tally(), choices=1, logprobs=False)
    whole.feed(EXPECTED)
    message = json.loads(whole.body())["choices"][0]["message"]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "ok"} for call in message["tool_calls"]]
    body = json.loads(gemini().ask(asked([USER, message, *results]), "gemini-3-pro", stream=True).body)
    parts = body["contents"][1]["parts"]
    assert parts == [
        {"text": "Wärme ", "thoughtSignature": "S2="},
        {
            "functionCall": {"id": "call_1", "name": "weather", "args": {"city": "Oslo", "n": 1.5}},
            "thoughtSignature": "S1=",
        },
        {"functionCall": {"id": "g-2", "name": "clock", "args": {}}},
    ]
