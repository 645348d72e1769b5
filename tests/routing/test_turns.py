from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import (
    BadRequest,
    ContextLengthExceeded,
    DeadlineExceeded,
    Diverged,
    OutpostError,
    Overloaded,
    RateLimited,
    ShuttingDown,
    TargetBusy,
    TargetLimited,
    TargetResting,
    UpstreamError,
    UpstreamFailed,
    UpstreamTimeout,
)
from appliance.routing.attempts import MOST_DOWN_S, MOST_WAIT_S, Turns, to_tell
from appliance.routing.breaker import FINE, Standing


def attempt(
    names: Sequence[str], retries: int, outcomes: list[Any], left_s: float = 100.0
) -> tuple[Any, list[str], list[float]]:
    """The answer (or the error), who was asked in which order, and the pauses."""
    asked: list[str] = []
    pauses: list[float] = []
    turns = Turns(names, retries, lambda: 0.5)  # type: ignore[arg-type]
    name: Any = turns.first()
    while True:
        outcome = outcomes[len(asked)]
        asked.append(name)
        if not isinstance(outcome, OutpostError):
            return outcome, asked, pauses
        step = turns.failed(name, outcome, left_s=left_s)
        if step is None:
            return turns.told, asked, pauses
        name, pause = step
        if pause:
            pauses.append(pause)


def test_the_first_answer_ends_it() -> None:
    assert attempt("ab", 2, ["x"]) == ("x", ["a"], [])


def test_the_next_target_is_asked_at_once() -> None:
    assert attempt("ab", 2, [UpstreamTimeout("late"), "x"]) == ("x", ["a", "b"], [])


def test_the_same_target_is_asked_again_only_after_a_passing_failure() -> None:
    answer, asked, pauses = attempt("a", 2, [UpstreamFailed("500"), UpstreamFailed("500"), "x"])
    assert (answer, asked) == ("x", ["a"] * 3)
    assert 0 < pauses[0] < pauses[1] < 1
    error = UpstreamTimeout("late")
    assert attempt("a", 2, [error]) == (error, ["a"], [])
    limited = RateLimited("one of our own limits", retry_after_s=7)
    assert attempt("a", 2, [limited]) == (limited, ["a"], [])


def test_a_target_that_says_when_is_asked_again_then_and_not_before() -> None:
    limited = TargetLimited("slow down", retry_after_s=7)
    answer, asked, pauses = attempt("a", 2, [limited, "x"])
    assert (answer, asked) == ("x", ["a", "a"])
    assert 7 <= pauses[0] < 9
    # Others who need not be waited for come first, and then who is free again first.
    sooner = TargetLimited("slow down", retry_after_s=3)
    answer, asked, pauses = attempt("ab", 2, [limited, sooner, "x"])
    assert (answer, asked) == ("x", ["a", "b", "b"])
    assert 3 <= pauses[0] < 5
    # Nobody waits longer than there is time.
    assert attempt("a", 2, [limited], left_s=5.0) == (limited, ["a"], [])


def test_the_callers_mistakes_are_not_tried_elsewhere() -> None:
    for error in (BadRequest("bad"), ShuttingDown("bye")):
        assert attempt("abc", 5, [error]) == (error, ["a"], [])


def test_no_retries_means_one_attempt() -> None:
    error = UpstreamFailed("500")
    assert attempt("ab", 0, [error]) == (error, ["a"], [])


errors = st.sampled_from([UpstreamFailed("x"), UpstreamTimeout("x"), UpstreamError("x"), RateLimited("x")])


@given(st.integers(1, 4), st.integers(0, 6), st.data())
def test_attempts_are_bounded_and_the_last_error_is_told(count: int, retries: int, data: st.DataObject) -> None:
    names = "abcd"[:count]
    outcomes = data.draw(st.lists(errors, min_size=retries + 1, max_size=retries + 1))
    answer, asked, _ = attempt(names, retries, outcomes)
    assert 1 <= len(asked) <= retries + 1
    assert asked[:count] == list(names[: len(asked)])
    assert answer is outcomes[len(asked) - 1]


# --- targets that are too small for the request ---------------------------------------------------

LONG, LONGER = ContextLengthExceeded("3,000 tokens"), ContextLengthExceeded("8,000 tokens")
DOWN, LOST, BAD, LATE = Overloaded("busy"), UpstreamFailed("500"), BadRequest("bad"), DeadlineExceeded("over")


def test_a_larger_target_may_take_what_is_too_long_for_the_first() -> None:
    assert attempt("ab", 2, [LONG, "x"]) == ("x", ["a", "b"], [])
    # It is no failure, so it takes none of the attempts that failures may take.
    assert attempt("abc", 0, [LONG, LONGER, "x"]) == ("x", ["a", "b", "c"], [])
    assert attempt("abc", 1, [LONG, LOST, LOST]) == (LOST, ["a", "b", "c"], [])


def test_a_target_that_is_too_small_is_not_asked_again() -> None:
    answer, asked, pauses = attempt("ab", 2, [LONG, LOST, LOST, "x"])
    assert (answer, asked, len(pauses)) == ("x", ["a", "b", "b", "b"], 2)
    assert attempt("a", 5, [LONG]) == (LONG, ["a"], [])


@pytest.mark.parametrize(
    ("outcomes", "told"),
    [
        ([LONG, LONGER], LONG),
        ([LONG, DOWN], DOWN),
        ([DOWN, LONG], DOWN),
        ([DOWN, LONG, LONGER], DOWN),
        ([LONG, DOWN, LONGER], DOWN),
        ([LONG, BAD], LONG),
        ([DOWN, BAD], BAD),
        ([LONG, LATE], LATE),
    ],
)
def test_when_nobody_answers_the_most_useful_error_is_told(outcomes: list[OutpostError], told: OutpostError) -> None:
    answer, asked, _ = attempt("abc"[: len(outcomes)], 5, outcomes)
    assert (answer, len(asked)) == (told, len(outcomes))


mixed = st.sampled_from([LONG, LONGER, DOWN, LOST, BAD, LATE])


@given(st.lists(mixed, min_size=1))
def test_a_failure_that_may_pass_is_never_hidden_by_a_refusal(outcomes: list[OutpostError]) -> None:
    told: OutpostError | None = None
    for error in outcomes:
        told = to_tell(told, error)
    assert told in outcomes
    if told is LONG or told is LONGER:
        later = outcomes[outcomes.index(told) :]
        assert not any(error.retryable or error.status >= 500 for error in later)


@given(st.integers(1, 4), st.integers(0, 4), st.data())
def test_attempts_end_whatever_the_targets_say(count: int, retries: int, data: st.DataObject) -> None:
    outcomes = data.draw(st.lists(mixed, min_size=count + retries, max_size=count + retries))
    answer, asked, _ = attempt("abcd"[:count], retries, outcomes)
    seen = outcomes[: len(asked)]
    assert answer in seen
    assert sum(not error.elsewhere for error in seen) <= retries + 1
    if all(error.elsewhere for error in seen):
        assert (answer, len(asked)) == (seen[0], count)


# --- targets that are not to be asked yet ---------------------------------------------------------

waits = st.floats(0.001, 100.0)
standings = st.one_of(
    st.just(FINE),
    st.builds(lambda wait_s: Standing("open", wait_s, reason="5 failures in a row", down=True), waits),
    st.builds(lambda wait_s: Standing("closed", wait_s, cooling=True), waits),
)


def not_asked(kind: type[OutpostError], wait_s: float) -> OutpostError:
    error = kind("not now", retry_after_s=wait_s)
    error.again, error.elsewhere = False, True
    return error


histories = st.one_of(
    st.builds(
        lambda kind, after: kind("x", retry_after_s=after), st.sampled_from([TargetLimited, UpstreamFailed]), waits
    ),
    st.builds(not_asked, st.sampled_from([TargetLimited, TargetResting]), waits),
    st.builds(lambda: UpstreamFailed("x")),
)


@given(st.integers(1, 3), st.integers(0, 5), st.floats(0.0, 0.999), st.floats(0.1, 200.0), st.data())
def test_pauses_are_bounded_all_together(
    count: int, retries: int, random: float, left_s: float, data: st.DataObject
) -> None:
    """Whatever targets and their breakers say, and however often: it ends, and soon."""
    turns: Any = Turns("abc"[:count], retries, lambda: random)  # type: ignore[arg-type]
    name, paused_s = turns.first(), 0.0
    for _ in range(count + retries + 1):
        step = turns.failed(name, data.draw(histories), left_s=left_s - paused_s, rest=data.draw(standings))
        if step is None:
            break
        name, pause = step
        paused_s += pause
    else:
        pytest.fail("it goes on for ever")
    assert paused_s <= min(left_s, MOST_WAIT_S)
    assert turns.told is not None


@given(st.integers(0, 5), st.floats(0.0, 0.999), st.lists(st.tuples(st.booleans(), waits), min_size=7, max_size=7))
def test_pauses_for_a_target_that_is_down_are_shorter(
    retries: int, random: float, history: list[tuple[bool, float]]
) -> None:
    turns: Any = Turns("a", retries, lambda: random)  # type: ignore[arg-type]
    turns.first()
    paused_s = 0.0
    for asked, wait_s in history:
        down = Standing("open", wait_s, reason="5 failures in a row", down=True)
        error = UpstreamFailed("500") if asked else not_asked(TargetResting, wait_s)
        step = turns.failed("a", error, left_s=600.0, rest=down)
        if step is None:
            break
        paused_s += step[1]
    assert step is None
    assert paused_s <= MOST_DOWN_S


def test_a_target_that_is_down_is_waited_for_only_shortly() -> None:
    turns: Any = Turns("a", 5, lambda: 0.5)  # type: ignore[arg-type]
    turns.first()
    down = Standing("open", 1.5, reason="5 failures in a row", down=True)
    first = turns.failed("a", UpstreamFailed("500"), left_s=60.0, rest=down)
    assert first is not None
    assert 1.5 <= first[1] < MOST_DOWN_S
    lost = turns.told
    assert turns.failed("a", not_asked(TargetResting, 1.5), left_s=58.0, rest=down) is None
    assert turns.told is lost, "what it said when it was asked"
    assert lost.retry_after_s == 1.5, "as its breaker says"
    turns = Turns("a", 5, lambda: 0.5)  # type: ignore[arg-type]
    turns.first()
    assert turns.failed("a", UpstreamFailed("500"), left_s=60.0, rest=down._replace(wait_s=5.0)) is None


def test_to_be_refused_after_a_wait_is_one_of_the_attempts() -> None:
    turns: Any = Turns("a", 2, lambda: 0.5)  # type: ignore[arg-type]
    turns.first()
    resting = not_asked(TargetResting, 0.1)
    assert turns.failed("a", UpstreamFailed("500"), left_s=60.0) is not None
    assert turns.failed("a", resting, left_s=60.0) is not None
    assert turns.failed("a", resting, left_s=60.0) is None


def test_who_asks_for_time_gets_it_also_from_several_targets_but_in_all_no_more_than_there_is() -> None:
    limited = [TargetLimited("slow down", retry_after_s=seconds) for seconds in (14.0, 15.0, 14.5)]
    answer, asked, pauses = attempt("ab", 5, [*limited, "x"])
    assert (answer, asked) == ("x", ["a", "b", "a", "b"])
    assert sum(pauses) < 17.0, "the second one has rested meanwhile"
    answer, asked, pauses = attempt("a", 5, [*limited, "x"])
    assert (answer, asked) == (limited[2], ["a"] * 3)
    assert sum(pauses) <= MOST_WAIT_S


# --- answers that others have begun ---------------------------------------------------------------

ASIDE = Diverged("It said something else.")


def test_who_diverges_is_asked_in_another_way_at_once() -> None:
    assert attempt("abc", 2, [LOST, ASIDE, "x"]) == ("x", ["a", "b", "b"], [])


def test_what_diverges_is_an_attempt_like_others() -> None:
    assert attempt("abc", 2, [LOST, ASIDE, ASIDE]) == (ASIDE, ["a", "b", "b"], [])
    assert attempt("abc", 0, [ASIDE]) == (ASIDE, ["a"], [])


def test_where_the_budget_of_who_diverged_is_used_up_the_next_one_goes_on() -> None:
    turns: Any = Turns("abc", 5, lambda: 0.5, lambda candidate, again: not again)  # type: ignore[arg-type]
    turns.first()
    assert turns.failed("a", LOST, left_s=100.0) == ("b", 0.0)
    assert turns.failed("b", ASIDE, left_s=100.0) == ("c", 0.0)
    assert turns.failed("c", ASIDE, left_s=100.0) is None
    assert turns.told is ASIDE


@pytest.mark.parametrize(("may", "expected"), [(True, "a"), (False, None)])
def test_alone_a_target_is_asked_again_only_as_its_budget_allows(may: bool, expected: str | None) -> None:
    turns: Any = Turns("a", 5, lambda: 0.5, lambda *asked: may)  # type: ignore[arg-type]
    turns.first()
    step = turns.failed("a", LOST, left_s=100.0)
    assert (step and step[0]) == expected


def test_each_attempt_after_a_failure_asks_the_budget_once_and_says_whether_it_is_another_one() -> None:
    asked: list[tuple[Any, bool]] = []

    def may(candidate: Any, again: bool) -> bool:
        asked.append((candidate, again))
        return bool(candidate != "b")

    turns: Any = Turns("abc", 5, lambda: 0.5, may)  # type: ignore[arg-type]
    turns.first()
    assert turns.failed("a", LOST, left_s=100.0) == ("c", 0.0), "who may not be asked is passed over"
    assert turns.failed("c", LOST, left_s=100.0)[0] == "a"
    assert turns.failed("a", LOST, left_s=100.0)[0] == "c"
    assert asked == [("b", False), ("c", False), ("a", True), ("c", True)]


# --- targets that are busy ------------------------------------------------------------------------

BUSY = TargetBusy("full")


def test_who_is_busy_is_passed_over_and_waited_for_only_where_nobody_is_left() -> None:
    turns: Any = Turns("abc", 0, lambda: 0.5, lambda *asked: False)  # type: ignore[arg-type]
    assert (turns.first(), turns.patient) == ("a", False)
    assert (turns.failed("a", BUSY, left_s=100.0), turns.patient) == (("b", 0.0), False)
    assert (turns.failed("b", BUSY, left_s=100.0), turns.patient) == (("c", 0.0), False)
    assert (turns.failed("c", BUSY, left_s=100.0), turns.patient) == (("a", 0.0), True)
    assert turns.others
    assert turns.told is None


def test_alone_it_is_waited_for_at_once() -> None:
    turns: Any = Turns("a", 0, lambda: 0.5)  # type: ignore[arg-type]
    turns.first()
    assert turns.patient
    assert not turns.others


def test_when_those_with_room_fail_the_busy_one_is_waited_for() -> None:
    turns: Any = Turns("ab", 2, lambda: 0.5)  # type: ignore[arg-type]
    turns.first()
    assert turns.failed("a", BUSY, left_s=100.0) == ("b", 0.0)
    assert not turns.patient
    assert turns.failed("b", LOST, left_s=100.0) == ("a", 0.0)
    assert turns.patient
    assert turns.failed("a", LOST, left_s=100.0)[0] == "b"
    assert turns.patient


def test_who_waited_in_vain_may_still_try_the_other_one() -> None:
    turns: Any = Turns("ab", 2, lambda: 0.5)  # type: ignore[arg-type]
    turns.first()
    turns.failed("a", BUSY, left_s=100.0)
    assert turns.failed("b", BUSY, left_s=100.0) == ("a", 0.0)
    assert turns.failed("a", DOWN, left_s=100.0) == ("b", 0.0)
    assert turns.patient
    assert turns.failed("b", DOWN, left_s=100.0) is None
    assert turns.told is DOWN


def test_a_busy_target_hides_no_refusal() -> None:
    turns: Any = Turns("ab", 0, lambda: 0.5)  # type: ignore[arg-type]
    turns.first()
    turns.failed("a", BUSY, left_s=100.0)
    assert turns.failed("b", BAD, left_s=100.0) is None
    assert turns.told is BAD


def test_a_busy_one_is_waited_for_rather_than_going_farther_away() -> None:
    zones = {"box": 0, "other box": 0, "cloud": 2}
    candidates: Any = list(zones)
    turns: Any = Turns(candidates, 2, lambda: 0.0, far=zones.__getitem__)  # type: ignore[arg-type]
    busy, full = TargetBusy("busy"), Overloaded("waited in vain", code="queue_timeout")
    assert (turns.first(), turns.patient) == ("box", False), "the other box may have room"
    assert turns.failed("box", busy, left_s=60.0) == ("other box", 0.0)
    assert not turns.patient, "the first goes before"
    assert turns.failed("other box", busy, left_s=60.0) == ("box", 0.0)
    assert turns.patient, "only a cloud is left"
    asked = [step[0] for name in ("box", "other box") if (step := turns.failed(name, full, left_s=60.0))]
    assert asked == ["other box", "cloud"]


def test_a_busy_cloud_is_passed_over_for_what_is_nearer() -> None:
    zones = {"cloud": 2, "box": 0}
    candidates: Any = list(zones)
    turns: Any = Turns(candidates, 2, lambda: 0.0, far=zones.__getitem__)  # type: ignore[arg-type]
    assert (turns.first(), turns.patient) == ("cloud", False)
    assert turns.failed("cloud", TargetBusy("busy"), left_s=60.0) == ("box", 0.0)
    assert not turns.patient, "the one that comes first is left to go back to"
