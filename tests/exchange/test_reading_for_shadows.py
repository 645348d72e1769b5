"""What a caller was told is read the same from a whole answer and from a stream, however the stream is cut."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dialects.answer import Frame
from appliance.dialects.chat import ChatRequest, UserMessage
from appliance.dialects.completions import CompletionRequest
from appliance.dialects.kinds import CHAT, COMPLETIONS, KINDS, MESSAGES, RESPONSES, Kind
from appliance.dialects.tally import Tally
from appliance.records.rows import ExchangeRow
from appliance.routing.shadow import Comparison, Said, compare
from appliance.shadow_answers import READERS, Given, result_of, said_by_given
from runtimes.engine import Delta, Event, Finished, ToolCallDelta, Usage

WORD = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)
WORDS = st.lists(WORD, min_size=1, max_size=5)
NAME = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
CALLS = st.lists(st.tuples(NAME, st.integers(0, 99)), max_size=2, unique_by=lambda call: call[0])
USAGE = Usage(prompt_tokens=3, completion_tokens=2)


def events_of(words: list[str], calls: list[tuple[str, int]]) -> list[Event]:
    called: list[Event] = []
    for at, (name, value) in enumerate(calls):
        called.append(Delta(tool_calls=[ToolCallDelta(at, f"call_{at}", name, "")]))
        called.append(Delta(tool_calls=[ToolCallDelta(at, arguments=f'{{"value": {value}}}')]))
    reason = "tool_calls" if calls else "stop"
    return [*(Delta(text=word) for word in words), *called, Finished(reason), USAGE]  # type: ignore[arg-type]


def frame_of(kind: Kind) -> Frame:
    chat = ChatRequest(model="m", messages=[UserMessage("Hi")])
    request = CompletionRequest(model="m", prompt="Hi") if kind is COMPLETIONS else chat
    return Frame(kind.id_prefix + "1", 1, "m", request)


def row(kind: Kind, stream: bool) -> ExchangeRow:
    return ExchangeRow(id="1", kind=kind.name, started_at=1.0, stream=stream, duration_s=2.0, ttft_s=0.5)


def whole(kind: Kind, events: list[Event]) -> Said:
    writer = kind.make_whole(frame_of(kind), Tally())
    writer.feed(events)
    return said_by_given(kind, frame_of(kind).request, Given(row(kind, False), writer.body()))


def streamed(kind: Kind, events: list[Event]) -> tuple[bytes, bytes]:
    writer = kind.make_stream(frame_of(kind), Tally())
    return b"".join([writer.feed([event]) for event in events]), writer.end()


@pytest.mark.parametrize("kind", [CHAT, MESSAGES, RESPONSES], ids=lambda kind: kind.name)
@given(words=WORDS, calls=CALLS)
def test_streamed_and_whole_say_the_same(kind: Kind, words: list[str], calls: list[tuple[str, int]]) -> None:
    events = events_of(words, calls)
    said = whole(kind, events)
    assert said.text == "".join(words)
    assert [name for name, _ in said.tool_calls] == [name for name, _ in calls]
    assert said.finish_reason == ("tool_calls" if calls else "stop")
    assert said.ttft_s is None
    pieces, last = streamed(kind, events)
    other = said_by_given(kind, frame_of(kind).request, Given(row(kind, True), last, [pieces]))
    assert other.ttft_s == 0.5
    assert result_of(compare(said, other)) == "same"


@pytest.mark.parametrize("kind", [CHAT, COMPLETIONS, MESSAGES, RESPONSES], ids=lambda kind: kind.name)
def test_a_stream_that_is_cut_anywhere(kind: Kind) -> None:
    events = events_of(["Grüße ", "aus 🌍", "!"], [] if kind is COMPLETIONS else [("f", 1)])
    pieces, last = streamed(kind, events)
    request = frame_of(kind).request
    expected = said_by_given(kind, request, Given(row(kind, True), last, [pieces]))
    assert expected.text == "Grüße aus 🌍!"
    for at in range(len(pieces) + 1):
        cut = Given(row(kind, True), last, [pieces[:at], pieces[at:]])
        assert said_by_given(kind, request, cut) == expected
        # One that was too long to be kept to its end: what there is of it is compared.
        short = said_by_given(kind, request, Given(row(kind, True), b"", [pieces[:at]]))
        assert expected.text.startswith(short.text)
    ended = msgspec.structs.replace(row(kind, True), finish_reasons=["length"])
    assert said_by_given(kind, request, Given(ended, b"", [pieces[: len(pieces) // 2]])).finish_reason == "length"


def test_every_kind_that_is_streamed_has_shadows_but_those_for_the_house_alone() -> None:
    assert {name for name, kind in KINDS.items() if kind.make_reader is not None} == set(READERS)


@given(
    st.floats(0, 1), st.booleans(), st.booleans(), st.sampled_from(["", "upstream_error"]), st.sampled_from([None, 1.0])
)
def test_what_counts_as_the_same(similarity: float, calls: bool, reason: bool, error: str, ttft: float | None) -> None:
    found = result_of(Comparison(similarity, 1, 1, calls, reason, 0, 0.0, ttft, 0, error))
    expected = "same" if similarity == 1.0 and calls and reason else "different"
    assert found == ("failed" if error else expected)
