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
    """The first answer that a candidate gives; raises the last error when none does.

    Every candidate is asked once, in order; then those whose failure may not happen again get another turn,
    after a pause that doubles. There are at most `retries` + 1 attempts. An error that no other target
    could avoid ends it at once.
    """
    waiting = deque(candidates)
    again: list[Candidate] = []
    left = retries + 1
    delay = PAUSE_S
    while True:
        candidate = waiting.popleft()
        left -= 1
        try:
            return await ask(candidate)
        except OutpostError as error:
            if error.again:
                again.append(candidate)
            if not error.retryable or not left or not (waiting or again):
                raise
        if not waiting:
            await pause(delay)
            delay *= 2
            waiting.extend(again)
            again.clear()
