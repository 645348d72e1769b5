"""An answer that one target begins and another ends: nothing twice, nothing lost, and no patchwork."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from appliance.dialects.splice import A_REPETITION, A_RESTART, WORDS_BEFORE, Sent, Spent, Splice, Way, sent
from appliance.dialects.tally import Tally
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


def spliced(seen: Sent, way: Way = "again", *, listener: Listener | None = None, **more: Any) -> Splice:
    return Splice(Listener() if listener is None else listener, seen, Tally(), Tally(), way=way, **more)


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
    splice = spliced(seen, listener=listener)
    for event in again:
        splice.feed([event])
    both = sent([*whole[:cut], *listener.events])
    wanted = sent(whole)
    assert (both.text, both.reasoning, both.calls) == (wanted.text, wanted.reasoning, wanted.calls)
    assert [type(event) for event in listener.events if not isinstance(event, Delta)] == [Finished, Usage]


@given(st.text(min_size=1), st.text(), st.data())
def test_another_answer_is_never_put_behind_the_beginning_of_one(before: str, other: str, data: st.DataObject) -> None:
    listener = Listener()
    splice = spliced(Sent(text=before), listener=listener)
    size = data.draw(st.integers(1, max(1, len(other))))
    events: list[Event] = [Delta(text=other[at : at + size]) for at in range(0, len(other), size)]
    try:
        splice.feed([*events, Finished("stop"), Usage(1)])
    except Diverged:
        assert not other.startswith(before)
    else:
        assert other.startswith(before)
        assert before + sent(listener.events).text == other


def in_pieces(text: str, data: st.DataObject) -> list[Event]:
    size = data.draw(st.integers(1, max(1, len(text))))
    return [Delta(text=text[at : at + size]) for at in range(0, len(text), size)]


def gone_on(seen: str, way: Way, other: list[Event], before: str = "") -> str:
    """What the client has in the end."""
    listener = Listener()
    splice = spliced(Sent(text=seen), way, listener=listener, before=before)
    for event in [*other, Finished("stop"), Usage(1)]:
        splice.feed([event])
    return seen + sent(listener.events).text


words = st.text(alphabet="ab \n", min_size=1, max_size=40).filter(lambda text: not text.isspace())
"""Of so few letters that one text often goes on as it began."""


@given(words, st.text(alphabet="ab \n", max_size=40), st.data())
def test_who_is_known_to_go_on_from_there_is_taken_at_its_word(before: str, rest: str, data: st.DataObject) -> None:
    whole = before + rest
    # It was told what was sent without the white space at its end.
    other = whole[len(before.rstrip()) :]
    assert gone_on(before, "from_there", in_pieces(other, data)) == whole


@given(words, st.text(alphabet="ab \n", max_size=40), st.text(alphabet="ab ", max_size=4), st.data())
def test_who_says_all_of_it_again_is_heard_once(before: str, rest: str, first: str, data: st.DataObject) -> None:
    """Also one that says the caller's own beginning again, and however little it was."""
    whole = before + rest
    again = whole if data.draw(st.booleans()) else first + whole
    if not again.startswith(first + before.rstrip()) and again.startswith(first):
        again = whole
    text = gone_on(before, "perhaps", in_pieces(again, data), before=first)
    if again == whole and first and whole.startswith(first + before.rstrip()):
        return  # either may have been meant
    assert text == whole


@given(words, st.text(alphabet="ab \n", max_size=40), st.data())
def test_who_only_goes_on_loses_nothing(before: str, rest: str, data: st.DataObject) -> None:
    """But for one that begins with all that was sent: that cannot be told from a repetition."""
    told = before.rstrip()
    other = (before + rest)[len(told) :]
    assume(not other.startswith(told))
    assume(not (told.startswith(other) and len(other) >= A_REPETITION))
    assert gone_on(before, "perhaps", in_pieces(other, data)) == before + rest


def test_a_repetition_that_stops_half_way_is_not_put_behind_what_it_repeats() -> None:
    before = "One, two, three, four, five, six."
    for text, reason in (("One, two, three, four", "stop"), ("One", "length")):
        splice = spliced(Sent(text=before), "perhaps")
        splice.feed([Delta(text=text)])
        with pytest.raises(Diverged):
            splice.feed([Finished(reason)])  # type: ignore[arg-type]
    assert gone_on("1, 2", "perhaps", [Delta(text="1")]) == "1, 21", "so little may be new"


LONG = "The capital of France is Paris, a city on the Seine that was founded more than two thousand years ago"


@pytest.mark.parametrize("words", ["Sure! ", "Of course. Here is the whole answer:\n\n"])
@given(st.data())
def test_who_starts_over_behind_words_of_its_own_is_heard_once(words: str, data: st.DataObject) -> None:
    rest = data.draw(st.sampled_from(["", ".", ". It lies in the north of the country, and many people live there."]))
    assert gone_on(LONG, "told", in_pieces(words + LONG + rest, data)) == LONG + rest
    assert gone_on(LONG, "told", in_pieces(LONG + rest, data)) == LONG + rest


@given(st.text(alphabet="Sure! abc\n", max_size=60), st.data())
def test_who_is_told_to_go_on_and_does_loses_nothing(rest: str, data: st.DataObject) -> None:
    splice = spliced(Sent(text=LONG), "told", listener=(listener := Listener()))
    for event in in_pieces(rest, data):
        splice.feed([event])
    splice.feed([Finished("stop")])
    assert sent(listener.events).text == rest


def test_what_is_new_is_not_held_for_long() -> None:
    splice = spliced(Sent(text=LONG), "told", listener=(listener := Listener()))
    for _ in range(WORDS_BEFORE + A_RESTART):
        splice.feed([Delta(text="x")])
    assert sent(listener.events).text == "x" * (WORDS_BEFORE + A_RESTART)
    splice.feed([Delta(text="y")])
    assert sent(listener.events).text.endswith("y")


@pytest.mark.parametrize(
    ("before", "way", "other"),
    [
        (LONG, "perhaps", "The capital of France is Paris, as everybody knows"),
        (LONG, "told", "The capital of France is Paris, as everybody knows"),
        (LONG, "told", "Sure! The capital of France is Paris, as everybody knows"),
        (LONG, "told", "Sure! The capital of France is Paris, a city"),
        ("The capital of France", "told", "Sure! The capital of France is Paris."),
    ],
)
def test_who_starts_over_in_other_words_is_not_put_behind(before: str, way: Way, other: str) -> None:
    for at in range(len(other) + 1):
        splice = spliced(Sent(text=before), way)
        with pytest.raises(Diverged):
            splice.feed([Delta(text=other[:at]), Delta(text=other[at:]), Finished("stop")])


@pytest.mark.parametrize("way", ["perhaps", "told"])
@pytest.mark.parametrize("other", [" is Paris. The capital of Italy is Rome.", "The capital of Italy is Rome."])
def test_what_is_a_little_alike_is_new(way: Way, other: str) -> None:
    splice = spliced(Sent(text="The capital of France"), way, listener=(listener := Listener()))
    splice.feed([Delta(text=other), Finished("stop")])
    assert sent(listener.events).text == other


def test_white_space_is_not_said_twice_and_not_lost() -> None:
    for before, other, whole in (
        ("One two ", [" ", "three"], "One two three"),
        ("One two ", ["three"], "One two three"),
        ("x =\n", ["\n", "    y"], "x =\n    y"),
        ("x =\n", ["    y"], "x =\n    y"),
        ("One\n", ["\n\nTwo"], "One\n\nTwo"),
        ("One two ", ["One two", "\nthree"], "One two \nthree"),
    ):
        assert gone_on(before, "perhaps", [Delta(text=text) for text in other]) == whole


# --- reasoning and who vouches for it -------------------------------------------------------------


def think(*pieces: str, signature: str = "") -> list[Event]:
    return [*[Delta(reasoning=each) for each in pieces], *([Delta(reasoning_signature=signature)] if signature else [])]


def vouched(first: list[Event], second: list[Event]) -> list[tuple[str, str]]:
    """What the client gets of the second's reasoning, and its signatures, in their order."""
    listener = Listener()
    splice = spliced(sent(first), listener=listener)
    for event in [*second, Delta(text="Yes."), Finished("stop")]:
        splice.feed([event])
    deltas = [each for each in listener.events if isinstance(each, Delta)]
    return [(each.reasoning, each.reasoning_signature) for each in deltas if each.reasoning or each.reasoning_signature]


def test_a_signature_goes_with_reasoning_that_is_wholly_its_makers() -> None:
    whole = think("Let me", " see.", signature="B")
    assert vouched([], whole) == [("Let me", ""), (" see.", ""), ("", "B")]
    assert vouched(think("Let me"), whole) == [(" see.", "")], "the beginning is another's"
    assert vouched(think("Let me", " see."), whole) == []
    assert vouched(think("Let me see.", signature="A"), whole) == [], "the client has one for it"


def test_a_block_of_its_own_behind_anothers_keeps_its_signature() -> None:
    second = think("One.", signature="B1") + think("Two.", signature="B2")
    assert vouched(think("One.", signature="A1"), second) == [("Two.", ""), ("", "B2")]
    assert vouched(think("One.", signature="A1") + think("T"), second) == [("wo.", "")]


def test_reasoning_that_shows_nothing_is_signed_once() -> None:
    hidden = think(signature="B")
    assert vouched([], hidden) == [("", "B")]
    assert vouched(think(signature="A"), hidden) == []


def test_what_is_thought_before_a_text_that_the_client_has_is_no_part_of_it() -> None:
    assert vouched([*think("Hm."), Delta(text="Ye")], think("Hm.", " Well.", signature="B")) == []


# --- what the client is told that it has used -----------------------------------------------------


@pytest.mark.parametrize(
    ("way", "other", "expected"),
    [
        ("again", "One two three", (10, 9, 0)),
        ("from_there", " three", (10, 4 + 7, 1)),
        ("perhaps", " three", (10, 4 + 7, 1)),
        ("perhaps", "One two three", (10, 9, 2)),
    ],
)
def test_the_whole_answer_is_counted_once(way: Way, other: str, expected: tuple[int, int, int]) -> None:
    seen, tally, told = Sent(text="One two", pieces=2), Tally(), Tally()
    listener = Listener()
    spent = Spent(prompt_tokens=0, completion_tokens=4, reasoning_tokens=1, told_tokens=0 if way == "again" else 5)
    splice = Splice(listener, seen, tally, told, way=way, spent=spent)
    prompt = 10 if way == "again" else 15
    splice.feed([Delta(text=other), Finished("stop"), Usage(prompt, 9, cached_tokens=12, reasoning_tokens=2)])
    (usage,) = [each for each in listener.events if isinstance(each, Usage)]
    reasoning = 2 if splice.repeats else expected[2]
    assert (usage.prompt_tokens, usage.completion_tokens, usage.reasoning_tokens) == (*expected[:2], reasoning)
    assert usage.cached_tokens == (12 if way == "again" else 10), "of what was put together no more than there were"
    assert (tally.prompt_tokens, tally.completion_tokens, tally.source) == (prompt, 9, "reported"), "its own work"
    assert tally.finish_reasons == {0: "stop"}


def test_what_the_first_has_counted_of_the_prompt_goes_before() -> None:
    listener = Listener()
    splice = spliced(Sent(text="One"), "from_there", listener=listener, spent=Spent(7, 1, 0, 1))
    splice.feed([Delta(text=" two"), Usage(30, 2)])
    assert [each.prompt_tokens for each in listener.events if isinstance(each, Usage)] == [7]


def test_where_nobody_has_counted_the_estimates_are_put_together() -> None:
    tally, told = Tally(completion_tokens=3, source="estimated"), Tally()
    splice = Splice(Listener(), Sent(text="One"), tally, told, way="from_there", spent=Spent(7, 2))
    splice.feed([Delta(text=" two"), Finished("stop")])
    splice.end()
    assert (told.prompt_tokens, told.completion_tokens, told.source) == (7, 5, "estimated")


def test_what_ends_the_answer_passes() -> None:
    splice = spliced(Sent(text="a"))
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
    splice = spliced(seen)
    with pytest.raises(Diverged):
        splice.feed([Delta(tool_calls=[ToolCallDelta(0, id="d", name="delete", arguments="{}")])])


def test_a_call_that_is_not_made_again_is_another_answer() -> None:
    """Also one of which nothing but its name was sent."""
    begun = sent([Delta(text="Let me see."), Delta(tool_calls=[ToolCallDelta(0, "c", "search")])])
    for rest in ([Finished("stop")], [Delta(text=" It is 7."), Finished("stop")]):
        splice = spliced(begun)
        with pytest.raises(Diverged):
            splice.feed([Delta(text="Let me see."), *rest])


def test_what_was_held_comes_before_a_call() -> None:
    listener = Listener()
    splice = spliced(sent([Delta(text="abc")]), "perhaps", listener=listener)
    splice.feed([Delta(text="ab")])
    splice.feed([Delta(tool_calls=[ToolCallDelta(0, "c", "search", "{}")]), Finished("tool_calls")])
    assert [each.text for each in listener.events if isinstance(each, Delta)] == ["ab"]
    assert said(listener.events)[2] == {0: ("search", "{}")}
