"""A circuit breaker for one target: when it may be asked, after what it has answered lately.

Closed, it lets everything through. After FAILURES_IN_A_ROW it is open for a pause that doubles up to MOST_PAUSE_S, so
that a target that recovers is back soon. Then it is half open: one request at a time is its trial, whose outcome
decides. Where a target has a health check that costs nothing, that has to succeed first; it shows no more than that
the target can be reached, so a trial follows.

A target that fails only sometimes is not down, and where all do so it is better asked than not. With half of what was
asked in the window failed the breaker is open too, but *softly*: the target may be asked after all others. With fewer
failures it only stands back for a little while. In a row it may fail more often than others, by what is usual for it.

Pure but for its own state: `now` is monotonic seconds, `random` a number in [0, 1).
"""

from __future__ import annotations

import asyncio
import math
from typing import Literal, NamedTuple

from appliance.errors import DeadlineExceeded, InternalError, OutpostError, RateLimited, TargetUsedUp, UpstreamError

Phase = Literal["closed", "open", "half_open"]
Outcome = Literal["ok", "failed", "refused", "limited", "cancelled"]
"""How an attempt ended: `refused` for a fault of the caller's, `cancelled` for what says nothing about the target."""

FAILURES_IN_A_ROW = 5
MOST_IN_A_ROW = 32
"""Of a target that also failed before, now and then."""
BY_CHANCE = 1e-6
"""A row of failures that is less likely than this, by what is usual for the target, means that it is down."""
USUAL_OF = 128
"""The latest answers, about, by which it is told what is usual."""
WINDOW_S = 20.0
WINDOW_LEAST = 20
"""Fewer attempts than this in the window say nothing about a rate."""
WINDOW_SHARE = 0.5
BACK_SHARE = 0.2
BACK_LEAST = 10
BACK_S = 2.0
"""With more failures in the window than both of these a target stands back for so long: others are asked first."""
MOST_TRIALS = 4
"""At a time, where there is no other target: better some who wait for one that hangs than all refused for as long."""
FIRST_PAUSE_S = 1.0
MOST_PAUSE_S = 20.0
STEADY_S = 60.0
"""A target that stayed closed for this long begins with the shortest pause again; one that flaps does not."""
FIRST_COOLING_S = 1.0
MOST_COOLING_S = 30.0
"""Where a target does not say when to come back."""
LONGEST_COOLING_S = 86_400.0
"""More than a day is taken for a mistake."""
BLAMELESS = frozenset({"answer_diverged", "engine_lost"})
"""Codes of failures that tell nothing about the next attempt: a target was asked to repeat what another one had said;
an engine of this box went away, and whoever started it says when there is one again."""
TRIAL_LEASE_S = 600.0
"""A trial of which nothing was heard for this long is lost; another one may begin."""
TOO_MANY = "it gets too many requests"
LIMITS = {TargetUsedUp.code: "the gateway's account there has no quota left"}
"""Why a target is left alone, by the code of its answer, where that is not TOO_MANY."""
SOON_S = 1.0
"""When to look again while a trial or a health check is awaited."""


class Standing(NamedTuple):
    """Whether a target may be asked now."""

    phase: Phase = "closed"
    wait_s: float = 0.0
    """Seconds until it may be; 0: now."""
    cooling: bool = False
    """It has said that it takes no more for now: `code` says why."""
    reason: str = ""
    """Why it is not asked, or not without care."""
    last: bool = False
    """It may be asked, but after all others."""
    alone: bool = False
    """It is not to be asked now, but may be where there is no other."""
    down: bool = False
    """It is not to be asked now because it failed; not because it has said when to come back."""
    code: str = ""
    """Of the error with which it said that it takes no more; of one that was cooling only."""


FINE = Standing()


def usable(standing: Standing) -> bool:
    """Whether a target may be asked now. A half-open one may, when its trial is free."""
    return standing.wait_s <= 0


def outcome_of(error: BaseException | None) -> Outcome:
    """What an attempt's error says about its target."""
    if error is None:
        return "ok"
    if isinstance(error, OutpostError) and error.at_once:
        return "cancelled"
    if isinstance(error, DeadlineExceeded):
        return "cancelled"  # the time of all attempts together was over, whoever used it up
    if isinstance(error, UpstreamError):
        return "cancelled" if error.code in BLAMELESS else "failed"
    if isinstance(error, RateLimited):
        return "limited"
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    if isinstance(error, OutpostError):
        stalled = error.status in (408, 499)  # the client's own slowness
        return "refused" if error.status < 500 and not stalled else "cancelled"
    return "cancelled" if not isinstance(error, Exception) else outcome_of(InternalError(""))


class Pass(NamedTuple):
    """Leave to ask a target once. `epoch`: how often the breaker had changed; older outcomes tell nothing new."""

    epoch: int
    trial: bool


class Breaker:
    """One target's breaker. Whoever has a pass reports one outcome for it."""

    __slots__ = (
        "_back_until",
        "_before_all",
        "_before_failed",
        "_closed_at",
        "_cool_until",
        "_cooled",
        "_cooled_code",
        "_coolings",
        "_epoch",
        "_half_ends",
        "_level",
        "_now_all",
        "_now_failed",
        "_open",
        "_pass",
        "_probation",
        "_reached",
        "_soft",
        "_streak",
        "_trial_at",
        "_trials",
        "_until",
        "_usual",
        "_usual_of",
        "_why",
        "has_probe",
    )

    def __init__(self, *, has_probe: bool = False) -> None:
        self.has_probe = has_probe
        self._open = False
        self._soft = False
        """Why it is open is that the target fails often, not always."""
        self._until = 0.0
        self._reached = False
        """Its health check has succeeded since it was opened."""
        self._level = 0
        self._closed_at = float("-inf")
        self._trials = 0
        """Under way, with a health check."""
        self._trial_at: float | None = None
        """When the last of them began."""
        self._probation = False
        self._streak = 0
        self._usual = 0.0
        """The share of its answers that are failures, while it is not down."""
        self._usual_of = 0
        """Of how many answers, at most USUAL_OF."""
        self._back_until = float("-inf")
        self._epoch = 0
        self._pass = Pass(0, False)
        self._cool_until = float("-inf")
        self._coolings = 0
        self._cooled = self._cooled_code = ""
        """Why it is left alone until then, where it has failed; else the code with which it was told so."""
        self._why = ""
        self._now_all = self._now_failed = self._before_all = self._before_failed = 0
        self._half_ends = float("-inf")

    def standing(self, now: float) -> Standing:
        if not self._open and now >= self._cool_until and now >= self._back_until:
            return FINE
        phase: Phase = "closed"
        wait_s, reason, last, alone = 0.0, "", False, False
        if self._open:
            phase, last = "half_open", self._soft
            if now < self._until:
                phase, wait_s, reason = "open", self._until - now, self._why
            elif self._trial_out(now):
                wait_s, reason = SOON_S, "one trial after its failures is under way"
                alone = self._may_try and self._trials < MOST_TRIALS
            elif not self._may_try:
                wait_s, reason = SOON_S, "its health check has yet to succeed after its failures"
            else:
                reason, last = "the next request is its trial after its failures", False
            if last:
                wait_s = 0.0
        elif now < self._back_until:
            reason, last = "it has failed too often lately to be asked first", True
        cooling_s = self._cool_until - now
        if cooling_s > 0 and cooling_s >= wait_s:
            code = self._cooled_code
            reason = self._cooled or LIMITS.get(code, TOO_MANY)
            return Standing(phase, cooling_s, not self._cooled, reason, code=code)
        return Standing(phase, wait_s, cooling_s > 0 and not self._cooled, reason, last, alone, wait_s > 0)

    def take(self, now: float, *, alone: bool = False) -> Pass | None:
        """Leave for one attempt; None: not now. alone: nobody else could be asked."""
        if now < self._cool_until:
            return None
        if not self._open:
            return self._pass
        trial = self._take_trial(now, MOST_TRIALS if alone else 1) if self._may_try else None
        return trial or (self._pass if self._soft else None)

    @property
    def _may_try(self) -> bool:
        """Whether a request may be the trial, once it is time."""
        return self._reached or not self.has_probe

    def wants_probe(self, now: float) -> bool:
        """Whether the target's health check should be asked now."""
        return self._open and not self._may_try and now >= self._until and not self._trial_out(now)

    def take_probe(self, now: float) -> Pass | None:
        """Leave for the one health check; None: it is not wanted, or under way."""
        return self._take_trial(now) if self.wants_probe(now) else None

    def proven(self, given: Pass, now: float) -> Pass:
        """The target has begun to answer: a trial need not end to have succeeded. Gives the pass to go on with, which
        is no trial any more: what breaks off later is a failure like any other, but one is enough at first."""
        if not given.trial or given.epoch != self._epoch:
            return given
        self._close(now)
        return self._pass

    def ok(self, given: Pass, now: float) -> None:
        """An answer was complete."""
        if given.epoch != self._epoch:
            return
        if given.trial:
            self._close(now)
        if self._streak or self._usual:
            self._learn(self._streak)
        elif self._usual_of < USUAL_OF:
            self._usual_of += 1
        self._streak = 0
        self._coolings = 0
        self._turn(now)
        self._now_all += 1
        if self._open:
            everything, failures = self._window()
            if everything >= WINDOW_LEAST and failures < WINDOW_SHARE * everything:
                self._close(now)  # it was asked all the same, and that tells more than a trial
        self._probation = False

    def probed(self, given: Pass, now: float) -> None:
        """The health check succeeded. It is no answer: a request has yet to show that there are any."""
        if given.trial and given.epoch == self._epoch:
            self._reached = True
            self.given_back(given, now)

    def failed(self, given: Pass, now: float, random: float, code: str = "") -> None:
        if given.epoch != self._epoch:
            return
        if given.trial:
            self._level += 1
            self._pause(now, random, f"its trial failed ({code or 'failed'})", soft=self._soft)
            return
        self._streak += 1
        self._turn(now)
        self._now_all += 1
        self._now_failed += 1
        everything, failures = self._window()
        soft = False
        if self._probation:
            why, soft = f"it failed again after its trial ({code or 'failed'})", self._soft
        elif self._streak >= _row(self._usual):
            why = f"{self._streak} failures in a row ({code or 'failed'})"
        elif self._open:
            return
        elif everything >= WINDOW_LEAST and failures >= WINDOW_SHARE * everything:
            why, soft = f"{failures} of its last {everything} attempts failed ({code or 'failed'})", True
        else:
            if failures > max(BACK_LEAST, BACK_SHARE * everything):
                self._back_until = now + BACK_S
            return
        self._level = 0 if now - self._closed_at >= STEADY_S else self._level + 1
        self._pause(now, random, why, soft=soft)

    def cool(
        self,
        now: float,
        random: float,
        retry_after_s: float | None = None,
        *,
        code: str = "",
        why: str = "",
    ) -> None:
        """The target takes no more for now, as an error with this `code` says; or it is to be left alone because it has
        failed, `why`. What was asked before it said so may be told the same: that is one time."""
        if retry_after_s is not None and retry_after_s > 0:
            pause_s = min(retry_after_s, LONGEST_COOLING_S)
        elif now < self._cool_until:
            return
        else:
            pause_s = _jittered(min(MOST_COOLING_S, FIRST_COOLING_S * 2.0 ** min(self._coolings, 16)), random)
        if now >= self._cool_until:
            self._coolings += 1
        if now + pause_s >= self._cool_until:
            self._cool_until, self._cooled, self._cooled_code = now + pause_s, why, code

    def given_back(self, given: Pass, now: float) -> None:
        """The attempt says nothing about the target. A trial has to be made again, by the next who comes."""
        if given.trial and given.epoch == self._epoch:
            self._trials -= 1
            if not self._trials:
                self._trial_at = None
                self._renew()

    def answered(self, given: Pass, now: float) -> None:
        """It refused the request: no failure and no success, but for a trial a sign of life."""
        self.proven(given, now)

    def _take_trial(self, now: float, most: int = 1) -> Pass | None:
        """One of at most so many at a time: the first to end, well or not, decides."""
        if now < self._until:
            return None
        if not self._trial_out(now):
            self._trials = 0
            self._renew()
        elif self._trials >= most:
            return None
        self._trials += 1
        self._trial_at = now
        return Pass(self._epoch, True)

    def _trial_out(self, now: float) -> bool:
        return self._trial_at is not None and now - self._trial_at < TRIAL_LEASE_S

    def _renew(self) -> None:
        self._epoch += 1
        self._pass = Pass(self._epoch, False)

    def _close(self, now: float) -> None:
        self._open = False
        self._trials, self._trial_at = 0, None
        self._closed_at = now
        self._streak = 0
        self._probation = True
        if not self._soft:
            self._forget_window()
        self._renew()

    def _pause(self, now: float, random: float, why: str, *, soft: bool) -> None:
        pause_s = _jittered(min(MOST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._level, 16)), random)
        self._open = True
        self._soft = soft
        self._until = now + pause_s
        self._reached = False
        self._trials, self._trial_at = 0, None
        self._probation = False
        self._streak = 0
        self._why = why
        if not soft:
            self._forget_window()
        self._renew()

    def _learn(self, failures: int) -> None:
        """A success after so many failures tells what is usual."""
        of = min(USUAL_OF, self._usual_of + failures + 1)
        self._usual += (failures - (failures + 1) * self._usual) / of
        self._usual_of = of

    def _turn(self, now: float) -> None:
        """The window is this half and the one before it."""
        if now >= self._half_ends:
            gone = now >= self._half_ends + WINDOW_S / 2
            self._before_all, self._before_failed = (0, 0) if gone else (self._now_all, self._now_failed)
            self._now_all = self._now_failed = 0
            self._half_ends = now + WINDOW_S / 2

    def _window(self) -> tuple[int, int]:
        """Attempts in it, and how many of them failed."""
        return self._now_all + self._before_all, self._now_failed + self._before_failed

    def _forget_window(self) -> None:
        self._now_all = self._now_failed = self._before_all = self._before_failed = 0
        self._half_ends = float("-inf")


def _row(usual: float) -> int:
    """So many failures in a row mean that a target is down, of whose answers a share of `usual` are failures anyway."""
    if usual <= 0.0:
        return FAILURES_IN_A_ROW
    likely = math.log(BY_CHANCE) / math.log(usual) if usual < 1.0 else math.inf
    return math.ceil(min(MOST_IN_A_ROW, max(FAILURES_IN_A_ROW, likely)))


def _jittered(pause_s: float, random: float) -> float:
    """Between three quarters of a pause and all of it, so that many gateways do not come back at once."""
    return pause_s * (0.75 + 0.25 * random)
