"""Streams that one target has begun and another one ends, as the client sees them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dialects.answer import Frame
from appliance.dialects.responses.answer import ResponsesStream
from appliance.dialects.responses.passing import ResponsesPassing
from appliance.dialects.responses.reader import make_reader
from appliance.dialects.responses.resuming import refit
from appliance.dialects.tally import Tally
from appliance.errors import UpstreamTimeout
from runtimes.engine import Delta, Event, Finished, ToolCallDelta
from tests.dialects.responses_samples import (
    ID,
    STREAM_SHAPES,
    answers,
    check_order,
    events_of,
    frame,
    mistakes,
    sse,
    usage,
    wall,
)

INCLUDE = {"include": ["reasoning.encrypted_content"]}


def resumed(of: Frame, sent: bytes) -> ResponsesStream:
    stream = ResponsesStream(refit(of, [sent[:7], sent[7:]]), Tally(), wall=wall)
    assert stream.feed(make_reader("", None).feed(sent)) == b""
    return stream


@settings(max_examples=80, deadline=None)
@given(answers(), st.booleans(), st.booleans(), st.data())
def test_our_own_stream_goes_on_as_if_nothing_had_happened(
    events: list[Event], short: bool, shown: bool, data: st.DataObject
) -> None:
    fields: dict[str, Any] = {**(INCLUDE if shown else {}), **({"reasoning": {"summary": "auto"}} if short else {})}
    at = data.draw(st.integers(1, len(events) - 2))
    of = frame(**fields)
    first = ResponsesStream(of, Tally(), wall=wall)
    sent = b"".join([first.feed([each]) for each in events[:at]])
    rest = events[at:]
    again = resumed(of, sent)
    told = [first.feed([each]) for each in rest]
    assert [again.feed([each]) for each in rest] == told
    ends = [events_of(stream.end())[-1]["response"] for stream in (first, again)]
    assert ends[0] == ends[1]


CUTS = range(5, len(STREAM_SHAPES))


@pytest.mark.parametrize("at", CUTS)
def test_another_targets_stream_goes_on_in_sound_order(at: int) -> None:
    of = frame(reasoning={"summary": "auto"})
    passing = ResponsesPassing("up", Tally(), frame=of)
    sent = passing.feed(sse(*STREAM_SHAPES[:at]))
    stream = resumed(of, sent)
    more = stream.feed([Delta(text="More."), Finished("stop"), usage()]) + stream.end()
    shapes = events_of(sent + more)
    check_order(shapes)
    final = shapes[-1]["response"]
    assert (final["id"], final["model"], final["status"]) == (ID, "gpt-up", "completed")
    assert [item["type"] for item in final["output"][:1]] == ["reasoning"]
    texts = ["".join(part["text"] for part in item["content"]) for item in final["output"] if item["type"] == "message"]
    assert "".join(texts) == "".join(s["delta"] for s in shapes if s["type"] == "response.output_text.delta")
    assert texts[-1].endswith("More.")


def test_calls_that_were_begun_are_ended() -> None:
    of = frame()
    sent = ResponsesPassing("up", Tally(), frame=of).feed(sse(*STREAM_SHAPES[:20]))
    stream = resumed(of, sent)
    events: list[Event] = [
        Delta(tool_calls=[ToolCallDelta(0, arguments=":1}")]),
        Delta(tool_calls=[ToolCallDelta(1, arguments="{}")]),
        Delta(tool_calls=[ToolCallDelta(2, "c", "g", "[]")]),
        Finished("tool_calls"),
        usage(),
    ]
    final = events_of(stream.feed(events) + stream.end())[-1]["response"]
    calls = [item for item in final["output"] if item["type"] == "function_call"]
    assert [(item["call_id"], item["arguments"]) for item in calls] == [
        ("call_0", '{"a":1}'), ("call_1", "{}"), ("c", "[]"),
    ]  # fmt: skip
    assert mistakes(calls[0], "ItemField") == []


def test_what_nobody_can_go_on_with_is_told_as_incomplete() -> None:
    of = frame()
    sent = ResponsesPassing("up", Tally(), frame=of).feed(sse(*STREAM_SHAPES[:9]))
    stream = resumed(of, sent)
    shapes = events_of(sent + stream.feed([Delta(text="a"), Finished("stop"), usage()]) + stream.end())
    search = shapes[-1]["response"]["output"][1]
    assert (search["type"], search["status"]) == ("web_search_call", "incomplete")
    assert [s["output_index"] for s in shapes if s["type"] == "response.output_item.done"] == [0, 2, 1]


def test_citations_of_the_beginning_stay() -> None:
    cited = {"type": "url_citation", "url": "http://x/", "title": "x", "start_index": 0, "end_index": 1}
    note = {"type": "response.output_text.annotation.added", "item_id": "msg_up", "output_index": 2,
            "content_index": 0, "annotation_index": 0, "annotation": cited}  # fmt: skip
    of = frame()
    sent = ResponsesPassing("up", Tally(), frame=of).feed(sse(*STREAM_SHAPES[:13], note))
    stream = resumed(of, sent)
    final = events_of(stream.feed([Delta(text="a"), Finished("stop"), usage()]) + stream.end())[-1]["response"]
    assert final["output"][2]["content"][0]["annotations"] == [cited]
    assert final["output"][2]["content"][0]["text"] == "Höa"


def test_it_may_fail_again() -> None:
    of = frame()
    sent = ResponsesPassing("up", Tally(), frame=of).feed(sse(*STREAM_SHAPES[:13]))
    (shape,) = events_of(resumed(of, sent).fail(UpstreamTimeout("Silence.")))
    assert (shape["type"], shape["sequence_number"], shape["response"]["id"]) == ("response.failed", 13, ID)
