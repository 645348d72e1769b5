"""Events to Anthropic's messages and back, put together by its own client, and gone on with after a break."""

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
from appliance.dialects.messages.answer import MessagesStream
from appliance.dialects.messages.assemble import assemble
from appliance.dialects.messages.reader import MessagesReader, read_whole
from appliance.dialects.messages.resuming import refit
from appliance.dialects.splice import Splice, sent
from appliance.dialects.tally import Tally
from runtimes import engine as e
from tests.dialects.messages_samples import (
    END,
    FRAME,
    HELLO,
    RICH,
    begin,
    call,
    check,
    delta,
    merged,
    parsed,
    read,
    start,
    stop,
    stopped,
    whole,
    written,
)

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
    try:
        everything = before + rest(before, events)
    except errors.Diverged:
        # Where texts and thoughts alternate, it is not known how far the next answer has come.
        return
    check(everything)
    assert spoken(read([everything])) == spoken(events)


def rest(before: bytes, events: list[e.Event]) -> bytes:
    """What is sent after `before` when another target says it all again."""
    seen = MessagesReader("up").feed(before)
    renderer = MessagesStream(refit(FRAME, [before]), told := Tally())
    renderer.feed(seen)
    after = Splice(renderer, sent(seen), Tally(), told)
    return b"".join(after.feed([event]) for event in events) + after.end()


ODD = [
    start(),
    begin(0, "text", text=""),
    stop(0),
    begin(1, "thinking", thinking="", signature=""),
    delta(1, "thinking_delta", thinking="hm"),
    stop(1),
    begin(2, "thinking", thinking="", signature=""),
    delta(2, "signature_delta", signature="x"),
    stop(2),
    begin(3, "text", text=""),
    delta(3, "text_delta", text="One."),
    stop(3),
    begin(4, "text", text=""),
    delta(4, "text_delta", text="Two."),
    stop(4),
    begin(5, "tool_use", id="a", name="f", input={}),
    stop(5),
    begin(6, "tool_use", id="b", name="g", input={}),
    delta(6, "input_json_delta", partial_json='{"a":1}'),
    stop(6),
    stopped("tool_use"),
    END,
]
"""Blocks that events do not tell apart, and some that they do not show."""


@pytest.mark.parametrize("stream", [HELLO, RICH, ODD], ids=["hello", "rich", "odd"])
def test_a_stream_of_another_targets_bytes_goes_on_from_every_event(stream: list[bytes]) -> None:
    said = MessagesReader("up").feed(b"".join(stream))
    for at in range(1, len(stream) - 2):
        everything = b"".join(stream[:at]) + rest(b"".join(stream[:at]), said)
        check(everything)
        assert spoken(read([everything])) == spoken(said)


def test_an_answer_that_goes_on_keeps_its_id() -> None:
    assert refit(FRAME, [HELLO[0]]).id == "msg_up"


def spoken(events: list[e.Event]) -> tuple[str, str, dict[int, str], list[e.Event]]:
    deltas = [event for event in events if isinstance(event, e.Delta)]
    pieces = [piece for event in deltas for piece in event.tool_calls]
    calls = {piece.index: "" for piece in pieces}
    for piece in pieces:
        calls[piece.index] += piece.arguments
    text, thought = ("".join(getattr(event, name) for event in deltas) for name in ("text", "reasoning"))
    return text, thought, calls, [event for event in events if not isinstance(event, e.Delta)]
