"""An answer that one target begins and another ends: nothing twice, nothing lost, and no patchwork."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dialects.splice import Sent, Splice, sent
from appliance.errors import Diverged, OutpostError
from runtimes.engine import Delta, Event, Finished, ToolCallDelta, Usage


class Listener:
    """A renderer that only remembers."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def feed(self, events: Any) -> bytes:
        self.events += events
        return b"x"

    def end(self) -> bytes:
        return b"end"

    def fail(self, error: OutpostError) -> bytes:
        return b"fail"


def said(events: list[Event]) -> tuple[str, str, dict[int, tuple[str, str]], str]:
    found = sent(events)
    return found.text, found.reasoning, found.calls, found.finished


pieces = st.lists(st.text(alphabet="ab c\né", max_size=4), max_size=8)
calls = st.lists(st.tuples(st.sampled_from(["search", "add"]), pieces), max_size=2)


def answer(thought: list[str], texts: list[str], made: list[tuple[str, list[str]]]) -> list[Event]:
    events: list[Event] = [Delta(reasoning=each) for each in thought if each]
    events += [Delta(text=each) for each in texts if each]
    for index, (name, arguments) in enumerate(made):
        events.append(Delta(tool_calls=[ToolCallDelta(index, id=f"c{index}", name=name)]))
        events += [Delta(tool_calls=[ToolCallDelta(index, arguments=each)]) for each in arguments if each]
    return [*events, Finished("tool_calls" if made else "stop"), Usage(3, 5)]


@given(pieces, pieces, calls, st.data())
def test_the_same_answer_again_is_gone_on_with_wherever_it_broke(
    thought: list[str], texts: list[str], made: list[tuple[str, list[str]]], data: st.DataObject
) -> None:
    whole = answer(thought, texts, made)
    cut = data.draw(st.integers(0, len(whole) - 2))
    seen = sent(whole[:cut])
    # The other target says the same in other pieces.
    again = answer(["".join(thought)], ["".join(texts)], [(name, ["".join(parts)]) for name, parts in made])
    listener = Listener()
    splice = Splice(listener, seen, repeats=True)
    for event in again:
        splice.feed([event])
    both = sent([*whole[:cut], *listener.events])
    wanted = sent(whole)
    assert (both.text, both.reasoning, both.calls) == (wanted.text, wanted.reasoning, wanted.calls)
    assert [type(event) for event in listener.events if not isinstance(event, Delta)] == [Finished, Usage]


@given(st.text(min_size=1), st.text(), st.data())
def test_another_answer_is_never_put_behind_the_beginning_of_one(before: str, other: str, data: st.DataObject) -> None:
    listener = Listener()
    splice = Splice(listener, Sent(text=before), repeats=True)
    size = data.draw(st.integers(1, max(1, len(other))))
    events: list[Event] = [Delta(text=other[at : at + size]) for at in range(0, len(other), size)]
    try:
        splice.feed([*events, Finished("stop"), Usage(1)])
    except Diverged:
        assert not other.startswith(before)
    else:
        assert other.startswith(before)
        assert before + sent(listener.events).text == other


@given(st.text(min_size=1), st.text(), st.data())
def test_who_goes_on_may_repeat_all_or_nothing(before: str, rest: str, data: st.DataObject) -> None:
    repeats = data.draw(st.booleans())
    other = before + rest if repeats else rest
    size = data.draw(st.integers(1, max(1, len(other))))
    listener = Listener()
    splice = Splice(listener, Sent(text=before), repeats=False)
    events: list[Event] = [Delta(text=other[at : at + size]) for at in range(0, len(other), size)]
    splice.feed([*events, Finished("stop"), Usage(1)])
    got = sent(listener.events).text
    # A text that goes on with a repetition of all of it cannot be told from one that repeats it.
    assert got == (other.removeprefix(before) if other.startswith(before) else rest)


def test_white_space_is_not_said_twice() -> None:
    listener = Listener()
    splice = Splice(listener, Sent(text="One two "), repeats=False, skip_space=True)
    splice.feed([Delta(text=" "), Delta(text=" three")])
    assert sent(listener.events).text == "three"


def test_what_ends_the_answer_passes() -> None:
    splice = Splice(Listener(), Sent(text="a"), repeats=True)
    assert (splice.end(), splice.fail(Diverged("x"))) == (b"end", b"fail")


@pytest.mark.parametrize(
    "events",
    [
        [Delta(index=1, text="x")],
        [Delta(text="x", tool_calls=[]), Delta(index=2)],
    ],
)
def test_several_choices_are_not_gone_on_with(events: list[Event]) -> None:
    assert not sent(events).resumable


def test_a_call_of_another_tool_is_another_answer() -> None:
    seen = sent([Delta(tool_calls=[ToolCallDelta(0, id="c", name="search", arguments='{"q')])])
    splice = Splice(Listener(), seen, repeats=True)
    with pytest.raises(Diverged):
        splice.feed([Delta(tool_calls=[ToolCallDelta(0, id="d", name="delete", arguments="{}")])])


def test_a_call_that_is_not_made_again_is_another_answer() -> None:
    """Also one of which nothing but its name was sent."""
    begun = sent([Delta(text="Let me see."), Delta(tool_calls=[ToolCallDelta(0, "c", "search")])])
    for rest in ([Finished("stop")], [Delta(text=" It is 7."), Finished("stop")]):
        splice = Splice(Listener(), begun, repeats=True)
        with pytest.raises(Diverged):
            splice.feed([Delta(text="Let me see."), *rest])


def test_what_was_held_comes_before_a_call() -> None:
    listener = Listener()
    splice = Splice(listener, sent([Delta(text="abc")]), repeats=False)
    splice.feed([Delta(text="ab")])
    splice.feed([Delta(tool_calls=[ToolCallDelta(0, "c", "search", "{}")]), Finished("tool_calls")])
    assert [each.text for each in listener.events if isinstance(each, Delta)] == ["ab"]
    assert said(listener.events)[2] == {0: ("search", "{}")}
