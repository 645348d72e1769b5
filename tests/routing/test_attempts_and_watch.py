from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import (
    BadRequest,
    ContextLengthExceeded,
    DeadlineExceeded,
    OutpostError,
    Overloaded,
    RateLimited,
    ShuttingDown,
    UpstreamError,
    UpstreamFailed,
    UpstreamTimeout,
)
from appliance.routing.attempts import first_answer, to_tell
from appliance.routing.watch import Running, Watch


async def attempt(names: Sequence[str], retries: int, outcomes: list[Any]) -> tuple[Any, list[str], list[float]]:
    """The answer (or the error), who was asked in which order, and the pauses."""
    asked: list[str] = []
    pauses: list[float] = []

    async def ask(name: Any) -> str:
        asked.append(name)
        outcome = outcomes[len(asked) - 1]
        if isinstance(outcome, OutpostError):
            raise outcome
        return str(outcome)

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    try:
        answer: Any = await first_answer(names, retries, ask, pause)  # type: ignore[arg-type]
    except OutpostError as error:
        answer = error
    return answer, asked, pauses


async def test_the_first_answer_ends_it() -> None:
    assert await attempt("ab", 2, ["x"]) == ("x", ["a"], [])


async def test_the_next_target_is_asked_at_once() -> None:
    assert await attempt("ab", 2, [UpstreamTimeout("late"), "x"]) == ("x", ["a", "b"], [])


async def test_the_same_target_is_asked_again_only_after_a_passing_failure() -> None:
    assert await attempt("a", 2, [UpstreamFailed("500"), UpstreamFailed("500"), "x"]) == ("x", ["a"] * 3, [0.05, 0.1])
    error = UpstreamTimeout("late")
    assert await attempt("a", 2, [error]) == (error, ["a"], [])
    limited = RateLimited("slow down", retry_after_s=7)
    assert await attempt("a", 2, [limited]) == (limited, ["a"], [])


async def test_the_callers_mistakes_are_not_tried_elsewhere() -> None:
    for error in (BadRequest("bad"), ShuttingDown("bye")):
        assert await attempt("abc", 5, [error]) == (error, ["a"], [])


async def test_no_retries_means_one_attempt() -> None:
    error = UpstreamFailed("500")
    assert await attempt("ab", 0, [error]) == (error, ["a"], [])


errors = st.sampled_from([UpstreamFailed("x"), UpstreamTimeout("x"), UpstreamError("x"), RateLimited("x")])


@given(st.integers(1, 4), st.integers(0, 6), st.data())
def test_attempts_are_bounded_and_the_last_error_is_told(count: int, retries: int, data: st.DataObject) -> None:
    names = "abcd"[:count]
    outcomes = data.draw(st.lists(errors, min_size=retries + 1, max_size=retries + 1))
    answer, asked, _ = asyncio.run(attempt(names, retries, outcomes))
    assert 1 <= len(asked) <= retries + 1
    assert asked[:count] == list(names[: len(asked)])
    assert answer is outcomes[len(asked) - 1]


# --- targets that are too small for the request ---------------------------------------------------

LONG, LONGER = ContextLengthExceeded("3,000 tokens"), ContextLengthExceeded("8,000 tokens")
DOWN, LOST, BAD, LATE = Overloaded("busy"), UpstreamFailed("500"), BadRequest("bad"), DeadlineExceeded("over")


async def test_a_larger_target_may_take_what_is_too_long_for_the_first() -> None:
    assert await attempt("ab", 2, [LONG, "x"]) == ("x", ["a", "b"], [])
    # It is no failure, so it takes none of the attempts that failures may take.
    assert await attempt("abc", 0, [LONG, LONGER, "x"]) == ("x", ["a", "b", "c"], [])
    assert await attempt("abc", 1, [LONG, LOST, LOST]) == (LOST, ["a", "b", "c"], [])


async def test_a_target_that_is_too_small_is_not_asked_again() -> None:
    assert await attempt("ab", 2, [LONG, LOST, LOST, "x"]) == ("x", ["a", "b", "b", "b"], [0.05, 0.1])
    assert await attempt("a", 5, [LONG]) == (LONG, ["a"], [])


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
async def test_when_nobody_answers_the_most_useful_error_is_told(
    outcomes: list[OutpostError], told: OutpostError
) -> None:
    answer, asked, _ = await attempt("abc"[: len(outcomes)], 5, outcomes)
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
    answer, asked, _ = asyncio.run(attempt("abcd"[:count], retries, outcomes))
    seen = outcomes[: len(asked)]
    assert answer in seen
    assert sum(not error.elsewhere for error in seen) <= retries + 1
    if all(error.elsewhere for error in seen):
        assert (answer, len(asked)) == (seen[0], count)


# --- deadlines ------------------------------------------------------------------------------------


def late() -> OutpostError:
    return UpstreamTimeout("late")


async def guarded(work: Any) -> OutpostError | None:
    """What the watch of a task that does `work(watch)` made of its cancellation."""
    running = Running()
    with running.watch() as watch:
        try:
            await work(watch)
        except asyncio.CancelledError:
            error = watch.caught()
            if error is None:
                raise
            return error
    return None


async def test_a_deadline_that_passes_is_an_error() -> None:
    async def work(watch: Watch) -> None:
        watch.arm(0.01, late)
        await asyncio.Event().wait()

    async with asyncio.timeout(5):
        error = await guarded(work)
    assert isinstance(error, UpstreamTimeout)
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_touching_moves_the_deadline_and_the_total_stays() -> None:
    touched = 0

    async def work(watch: Watch) -> None:
        nonlocal touched
        watch.total(0.3, lambda: UpstreamError("over"))
        watch.arm(0.2, late)
        while True:
            await asyncio.sleep(0.01)
            watch.touch()
            touched += 1

    async with asyncio.timeout(5):
        error = await guarded(work)
    assert error is not None
    assert error.message == "over"
    assert touched >= 2


async def test_a_disarmed_or_closed_watch_does_not_ring() -> None:
    async def work(watch: Watch) -> None:
        watch.arm(0.01, late)
        watch.disarm()
        await asyncio.sleep(0.03)
        watch.arm(0.01, late)
        watch.close()
        watch.stop(late())
        await asyncio.sleep(0.03)

    assert await guarded(work) is None


async def test_a_shorter_deadline_after_a_longer_one() -> None:
    async def work(watch: Watch) -> None:
        watch.total(60, late)
        watch.arm(0.01, lambda: UpstreamError("short"))
        await asyncio.Event().wait()

    async with asyncio.timeout(5):
        error = await guarded(work)
    assert error is not None
    assert error.message == "short"


async def test_a_cancellation_from_outside_stays_one() -> None:
    started = asyncio.Event()

    async def work(watch: Watch) -> None:
        watch.arm(60, late)
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(guarded(work))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_outside_wins_when_both_come_at_once() -> None:
    watches: list[Watch] = []

    async def work(watch: Watch) -> None:
        watches.append(watch)
        await asyncio.Event().wait()

    task = asyncio.create_task(guarded(work))
    await asyncio.sleep(0)
    watches[0].stop(late())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_shutdown_ends_all_and_waits() -> None:
    running = Running()
    seen: list[OutpostError | None] = []

    async def exchange() -> None:
        with running.watch() as watch:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append(watch.caught())

    tasks = [asyncio.create_task(exchange()) for _ in range(5)]
    await asyncio.sleep(0)
    assert len(running) == 5
    running.stop_all()
    async with asyncio.timeout(5):
        await running.wait_idle()
    await asyncio.gather(*tasks)
    assert [type(error) for error in seen] == [ShuttingDown] * 5
    assert len(running) == 0
