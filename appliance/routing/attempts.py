"""Whose turn it is: the candidates of a plan, one after the other, for as long as an answer can still be had. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from appliance.errors import Diverged, OutpostError, TargetBusy, TargetLimited, TargetResting, TargetUsedUp
from appliance.routing.breaker import FINE, Standing
from appliance.routing.budget import pause_s
from appliance.routing.candidate import Candidate
from appliance.routing.residency import DISTANCE

MOST_WAIT_S = 30.0
"""No request pauses for longer than this, all its pauses together: the caller is told when to come back instead."""
MOST_DOWN_S = 2.0
"""So much of it may be for targets that are down: whether they come back at all nobody knows."""


def _always(candidate: Candidate, again: bool) -> bool:
    return True


def far(candidate: Candidate) -> int:
    """In zones."""
    return DISTANCE[candidate.target.zone]


def _was_not_asked(error: OutpostError) -> bool:
    return error.elsewhere and isinstance(error, TargetResting | TargetLimited)


class _Later(NamedTuple):
    """One that is to be asked again."""

    candidate: Candidate
    free_s: float
    """In seconds of pauses of this request, from its start: not before."""
    down: bool
    """Whether that is because it is down."""


class Turns:
    """The turns of one exchange. Every candidate gets one, in order; then those whose failure may not happen again get
    another, after a pause that grows.

    At most `retries` + 1 attempts may fail, with those that diverge, of which each is work in vain. A target that
    diverges is asked in another way at once, where its budget allows that; else it is the next one's turn. One that is
    too small for the request, or that may not be asked now, has not failed; but who waited for it, and may not ask it
    then either, has used up an attempt. An error that no other target could avoid ends it at once.

    One that is busy is passed over for those that are as near. Where nobody else is left, the first of those gets
    another turn, in which it is waited for (`patient`). Who has a place on the premises does not go to a cloud, which
    costs, only because it has to wait a moment.
    """

    __slots__ = (
        "_again",
        "_busy",
        "_far",
        "_left",
        "_may_retry",
        "_paused_for_down_s",
        "_paused_s",
        "_random",
        "_round",
        "_waiting",
        "patient",
        "told",
    )

    def __init__(
        self,
        candidates: Sequence[Candidate],
        retries: int,
        random: Callable[[], float],
        may_retry: Callable[[Candidate, bool], bool] = _always,
        far: Callable[[Candidate], int] = lambda _: 0,
    ) -> None:
        """random: numbers in [0, 1). may_retry: whether the budget allows an attempt at a candidate after a failed one,
        and takes it from there; given whether the candidate has failed this request before. far: how far away a
        candidate is, in zones."""
        self._waiting = deque(candidates)
        self._again: list[_Later] = []
        self._left = retries + 1
        self._random = random
        self._may_retry = may_retry
        self._far = far
        self._round = 0
        self._paused_s = self._paused_for_down_s = 0.0
        self._busy: tuple[Candidate, ...] = ()
        """Those that were passed over."""
        self.patient = False
        """Whether the present one is to be waited for where it is busy."""
        self.told: OutpostError | None = None
        """What the caller is to learn if no further attempt succeeds."""

    def first(self) -> Candidate:
        first = self._waiting.popleft()
        self.patient = not self._has_as_near(first)
        return first

    @property
    def others(self) -> bool:
        """Whether somebody waits who has not been asked."""
        return bool(self._waiting or self._busy)

    def failed(
        self,
        candidate: Candidate,
        error: OutpostError,
        *,
        left_s: float,
        rest: Standing = FINE,
    ) -> tuple[Candidate, float] | None:
        """Who is next, and the seconds to wait before; None when there is no use in another attempt.

        left_s: of the time for the whole request. rest: whether the candidate may be asked now, and when; an error that
        does not tell the caller when to come back does so then.
        """
        if isinstance(error, TargetBusy):
            self._busy += (candidate,)
            step = self._untried(_always)
            assert step is not None
            return step
        self.told = to_tell(self.told, error)
        diverged = isinstance(error, Diverged)
        if diverged and self._left > 1 and self._may_retry(candidate, True):
            self._left -= 1
            self.patient = True
            return candidate, 0.0  # there is another way to ask it
        # One that was to be asked again, and may not be now either, is only asked later.
        in_vain = self._round > 0 and _was_not_asked(error)
        if (error.again and not diverged) or (in_vain and not isinstance(error, TargetUsedUp)):
            wait_s = max(error.retry_after_s or 0.0, rest.wait_s)
            down = rest.down or isinstance(error, TargetResting)
            self._again.append(_Later(candidate, self._paused_s + wait_s if wait_s else 0.0, down))
        if error.retryable and error.retry_after_s is None:
            error.retry_after_s = rest.wait_s or None
        if in_vain and self.told.retryable:
            self.told.retry_after_s = error.retry_after_s
        if not error.elsewhere or in_vain:
            self._left -= 1
        if not (error.retryable or error.elsewhere) or self._left <= 0:
            return None
        step = self._untried(_always if error.elsewhere else self._may_retry)
        if step is not None:
            return step
        return self._later(left_s)

    def _later(self, left_s: float) -> tuple[Candidate, float] | None:
        """One that has been asked before, after a pause."""
        self._round += 1
        # Who is free again first; of two, who failed first.
        for later in sorted(self._again, key=lambda each: max(each.free_s, self._paused_s)):
            wait_s = max(later.free_s - self._paused_s, 0.0)
            most_s = min(left_s, MOST_WAIT_S - self._paused_s)
            if down := later.down and wait_s > 0:
                most_s = min(most_s, MOST_DOWN_S - self._paused_for_down_s)
            pause = pause_s(self._round, self._random(), retry_after_s=wait_s, left_s=most_s)
            if pause is not None:
                self._again.remove(later)
                self.patient = True
                self._paused_s += pause
                self._paused_for_down_s += pause if down else 0.0
                return (later.candidate, pause) if self._may_retry(later.candidate, True) else None
        return None

    def _has_as_near(self, candidate: Candidate) -> bool:
        """Whether somebody has not been asked who comes before the candidate, or is where it is, or nearer."""
        if self._busy or not self._waiting:
            return bool(self._busy)
        far = self._far(candidate)
        return any(self._far(other) <= far for other in self._waiting)

    def _untried(self, may_retry: Callable[[Candidate, bool], bool]) -> tuple[Candidate, float] | None:
        """One that has not been asked: who was passed over because it was busy comes after all that are as near."""
        while self._waiting or self._busy:
            busy = bool(self._busy) and all(self._far(each) > self._far(self._busy[0]) for each in self._waiting)
            chosen = self._busy[0] if busy else self._waiting.popleft()
            self._busy = self._busy[busy:]
            if may_retry(chosen, False):
                self.patient = busy or not self._has_as_near(chosen)
                return chosen, 0.0
        return None


def to_tell(before: OutpostError | None, now: OutpostError) -> OutpostError:
    """Which error is more useful to the caller: the best one of the attempts `before`, or that of the last one.

    A failure of a target that might have taken the request comes first, the last one of these: it may pass, and
    clients then try again. Where there is nothing to wait for, the first refusal that says what to change.
    """
    if before is None:
        return now
    if _was_not_asked(now):
        return before  # nobody was asked; why that is says more
    if now.retryable or now.status >= 500:
        return now
    return before if now.elsewhere or before.elsewhere else now
