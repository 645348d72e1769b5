"""Whose turn it is: the candidates of a plan, one after the other, for as long as an answer can still be had. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from appliance.errors import Diverged, OutpostError, TargetBusy, TargetLimited, TargetResting
from appliance.routing.budget import pause_s
from appliance.routing.plan import Candidate

MOST_WAIT_S = 30.0
"""Nobody waits longer than this for a target to be free again: the caller is told when to come back instead."""


MOST_ROUNDS = 16
"""Of waiting for targets that are not to be asked yet, again and again."""


def _always(candidate: Candidate, again: bool) -> bool:
    return True


_FAR = {"on_box": 0, "on_prem": 1, "cloud": 2}


def far(candidate: Candidate) -> int:
    """In zones."""
    return _FAR[candidate.target.zone]


def _was_not_asked(error: OutpostError) -> bool:
    return error.elsewhere and isinstance(error, TargetResting | TargetLimited)


class Turns:
    """The turns of one exchange. Every candidate gets one, in order; then those whose failure may not happen again get
    another, after a pause that grows.

    At most `retries` + 1 attempts may fail, with those that diverge, of which each is work in vain. A target that
    diverges is asked in another way at once, where its budget allows that; else it is the next one's turn. One that is
    too small for the request, or that may not be asked now, has not failed. An error that no other target could avoid
    ends it at once.

    One that is busy is passed over for those that are as near. Where nobody else is left, the first of those gets
    another turn, in which it is waited for (`patient`). Who has a place on the premises does not go to a cloud, which
    costs, only because it has to wait a moment.
    """

    __slots__ = ("_again", "_busy", "_far", "_left", "_may_retry", "_random", "_round", "_waiting", "patient", "told")

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
        self._again: list[tuple[Candidate, float | None]] = []
        """With the seconds for which each asks to be left alone."""
        self._left = retries + 1
        self._random = random
        self._may_retry = may_retry
        self._far = far
        self._round = 0
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
        rest_s: float = 0.0,
    ) -> tuple[Candidate, float] | None:
        """Who is next, and the seconds to wait before; None when there is no use in another attempt.

        left_s: of the time for the whole request. rest_s: how long the candidate is to be left alone in any case.
        """
        if isinstance(error, TargetBusy):
            self._busy += (candidate,)
            step = self._untried(_always)
            assert step is not None
            return step
        self.told = to_tell(self.told, error)
        left_s = min(left_s, MOST_WAIT_S)
        diverged = isinstance(error, Diverged)
        if diverged and self._left > 1 and self._may_retry(candidate, True):
            self._left -= 1
            self.patient = True
            return candidate, 0.0  # there is another way to ask it
        if (error.again and not diverged) or (self._round and _was_not_asked(error)):
            # One that was to be asked again, and has been told to rest meanwhile, is only asked later.
            self._again.append((candidate, max(error.retry_after_s or 0.0, rest_s) or None))
        if not error.elsewhere:
            self._left -= 1
        if not (error.retryable or error.elsewhere) or self._left <= 0:
            return None
        step = self._untried(_always if error.elsewhere else self._may_retry)
        if step is not None:
            return step
        self._round += 1
        if self._round > MOST_ROUNDS:
            return None
        # Who is free again first; of two, who failed first.
        for place in sorted(range(len(self._again)), key=lambda at: self._again[at][1] or 0.0):
            chosen, retry_after_s = self._again[place]
            pause = pause_s(self._round, self._random(), retry_after_s=retry_after_s, left_s=left_s)
            if pause is not None:
                del self._again[place]
                self.patient = True
                return (chosen, pause) if self._may_retry(chosen, True) else None
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
