"""Trying candidates in turn, as long as the client has seen nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from appliance.errors import OutpostError
from appliance.routing.plan import Candidate

T = TypeVar("T")

PAUSE_S = 0.05


async def first_answer(
    candidates: Sequence[Candidate],
    retries: int,
    ask: Callable[[Candidate], Awaitable[T]],
    pause: Callable[[float], Awaitable[None]],
) -> T:
    """The first answer that a candidate gives; raises the most useful error when none does (see `to_tell`).

    Every candidate is asked once, in order; then those whose failure may not happen again get another turn,
    after a pause that doubles. At most `retries` + 1 attempts may fail; a target that is too small for the request
    has not failed, and is not asked again. An error that no other target could avoid ends it at once.
    """
    waiting = deque(candidates)
    again: list[Candidate] = []
    told: OutpostError | None = None
    left = retries + 1
    delay = PAUSE_S
    try:
        while True:
            candidate = waiting.popleft()
            try:
                return await ask(candidate)
            except OutpostError as error:
                told = to_tell(told, error)
                if error.again:
                    again.append(candidate)
                if not error.elsewhere:
                    left -= 1
                if not (error.retryable or error.elsewhere) or not left or not (waiting or again):
                    raise told  # noqa: B904 – it may be an earlier one, with a cause of its own
            if not waiting:
                await pause(delay)
                delay *= 2
                waiting.extend(again)
                again.clear()
    finally:
        told = None  # its traceback holds this frame: together they would stay until the next garbage collection


def to_tell(before: OutpostError | None, now: OutpostError) -> OutpostError:
    """Which error is more useful to the caller: the best one of the attempts `before`, or that of the last one.

    A failure of a target that might have taken the request comes first, the last one of these: it may pass, and
    clients then try again. Where there is nothing to wait for, the first refusal that says what to change.
    """
    if before is None or now.retryable or now.status >= 500:
        return now
    return before if now.elsewhere or before.elsewhere else now
