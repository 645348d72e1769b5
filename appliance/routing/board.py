"""What the gateway knows of its targets from asking them: what is under way, how fast they are, whether they fail.

One board a process, shared by all routes and kept over reloads, by the names of targets. It belongs to the event loop;
nothing else writes to it. `now` is monotonic seconds.
"""

from __future__ import annotations

import random as chance
from collections import deque
from collections.abc import Callable, Mapping

import msgspec

from appliance.routing.breaker import FINE, Breaker, Outcome, Pass, Standing
from appliance.routing.measures import PeakAverage, Recent

ERRORS_KEPT = 5
ENOUGH_SAMPLES = 20
"""Fewer say nothing about a percentile."""
TOKEN_S = 0.02
"""What a token of an answer takes, where nobody has measured it."""
LONG = 32
"""Tokens of an answer from which on the time to the first one hardly matters."""


class TargetState(msgspec.Struct, frozen=True):
    """A target at a moment, for strategies and for people."""

    name: str
    standing: Standing = FINE
    in_flight: int = 0
    in_flight_tokens: int = 0
    """Of the prompts and expected answers that are under way."""
    ttft_s: float | None = None
    """Seconds to the first token lately, the bad ones weighing more; None: not known."""
    per_token_s: float | None = None
    samples: int = 0
    """How many times to a first token are remembered."""
    requests: int = 0
    failures: int = 0
    """Both since the start."""
    errors: tuple[tuple[float, str], ...] = ()
    """(seconds ago, code) of the last failures, the newest last."""


class _Entry:
    """One target."""

    __slots__ = ("breaker", "errors", "failures", "in_flight", "per_token", "recent", "requests", "tokens", "ttft")

    def __init__(self) -> None:
        self.breaker = Breaker()
        self.in_flight = 0
        self.tokens = 0
        self.ttft = PeakAverage()
        self.per_token = PeakAverage()
        self.recent = Recent()
        self.requests = 0
        self.failures = 0
        self.errors: deque[tuple[float, str]] = deque(maxlen=ERRORS_KEPT)


class Board:
    """`random` spreads the pauses of breakers."""

    def __init__(self, random: Callable[[], float] = chance.random) -> None:
        self._random = random
        self._entries: dict[str, _Entry] = {}

    def keep(self, targets: Mapping[str, bool]) -> None:
        """The targets that there are from now on, and whether each has a health check that costs nothing. What is known
        of others is forgotten, but for those with something under way: they go at the next reload."""
        gone = [name for name, entry in self._entries.items() if name not in targets and not entry.in_flight]
        for name in gone:
            del self._entries[name]
        for name, has_probe in targets.items():
            self._entry(name).breaker.has_probe = has_probe

    def began(self, name: str, tokens: int, now: float, *, alone: bool = False) -> Flight | None:
        """An attempt begins. `tokens`: of its prompt and expected answer. alone: nobody else could be asked. None: the
        target must not be asked now."""
        entry = self._entries.get(name) or self._entry(name)
        given = entry.breaker.take(now, alone=alone)
        if given is None:
            return None
        entry.in_flight += 1
        entry.tokens += tokens
        entry.requests += 1
        return Flight(entry, given, tokens, now, self._random)

    def standing(self, name: str, now: float) -> Standing:
        entry = self._entries.get(name)
        return FINE if entry is None else entry.breaker.standing(now)

    def snapshot(self, name: str, now: float) -> TargetState:
        entry = self._entries.get(name)
        if entry is None:
            return TargetState(name)
        return TargetState(
            name,
            entry.breaker.standing(now),
            entry.in_flight,
            entry.tokens,
            entry.ttft.read(now),
            entry.per_token.read(now),
            len(entry.recent),
            entry.requests,
            entry.failures,
            tuple([(now - at, code) for at, code in entry.errors]) if entry.errors else (),
        )

    def names(self) -> list[str]:
        return list(self._entries)

    def hedge_after_s(self, name: str, percentile: float) -> float | None:
        """The percentile of the target's latest times to a first token, in seconds; None: there are too few."""
        entry = self._entries.get(name)
        if entry is None or len(entry.recent) < ENOUGH_SAMPLES:
            return None
        return entry.recent.quantile(percentile)

    def due_probes(self, now: float) -> list[str]:
        """The targets whose health check should be asked now."""
        return [name for name, entry in self._entries.items() if entry.breaker.wants_probe(now)]

    def probe_began(self, name: str, now: float) -> Probe | None:
        """None: it is not wanted, or under way already."""
        entry = self._entries.get(name)
        given = None if entry is None else entry.breaker.take_probe(now)
        return None if entry is None or given is None else Probe(entry.breaker, given, self._random)

    def _entry(self, name: str) -> _Entry:
        return self._entries.setdefault(name, _Entry())


class Flight:
    """An attempt under way. It must be ended, whatever becomes of it; only the first end counts."""

    __slots__ = ("_began", "_entry", "_first", "_pass", "_random", "_tokens", "_under_way")

    def __init__(self, entry: _Entry, given: Pass, tokens: int, now: float, random: Callable[[], float]) -> None:
        self._entry = entry
        self._pass = given
        self._tokens = tokens
        self._began = now
        self._first: float | None = None
        self._random = random
        self._under_way = True

    @property
    def trial(self) -> bool:
        """Whether all depends on this one: the target has failed, and nothing has come from it since."""
        return self._pass.trial

    def silent_s(self, now: float) -> float:
        """For how long there has been no sign of an answer, in seconds."""
        return now - self._began if self._first is None else 0.0

    def first_token(self, now: float) -> None:
        if self._first is not None or not self._under_way:
            return
        self._first = now
        entry, ttft_s = self._entry, now - self._began
        entry.ttft.add(ttft_s, now)
        entry.recent.add(ttft_s)
        if self._pass.trial:
            self._pass = entry.breaker.proven(self._pass, now)

    def ended(
        self,
        outcome: Outcome,
        now: float,
        *,
        tokens_out: int = 0,
        retry_after_s: float | None = None,
        code: str = "",
    ) -> None:
        """`tokens_out`: of the answer; `code`: the error's."""
        if not self._under_way:
            return
        self._under_way = False
        entry, breaker = self._entry, self._entry.breaker
        entry.in_flight -= 1
        entry.tokens -= self._tokens
        if outcome == "ok":
            breaker.ok(self._pass, now)
            self._measure(tokens_out, now)
            return
        if outcome in ("failed", "limited"):
            entry.failures += 1
            entry.errors.append((now, code or outcome))
        if outcome == "failed":
            breaker.failed(self._pass, now, self._random(), code)
            self._measure_silence(now)
            if retry_after_s is not None:
                breaker.cool(now, self._random(), retry_after_s, why="it has failed and said when to come back")
        elif outcome == "cancelled":
            breaker.given_back(self._pass, now)
        else:
            breaker.answered(self._pass, now)
            if outcome == "limited":
                breaker.cool(now, self._random(), retry_after_s, code=code)

    def _measure(self, tokens_out: int, now: float) -> None:
        """What a complete answer says of the target's speed. A whole one does not tell when its first token was there:
        a long one tells of its tokens, a short one of what came before them."""
        entry, first = self._entry, self._first
        if first is not None:
            if tokens_out > 1 and now > first:
                entry.per_token.add((now - first) / (tokens_out - 1), now)
            return
        seconds = now - self._began
        if tokens_out >= LONG:
            entry.per_token.add(seconds / tokens_out, now)
        else:
            entry.ttft.add(max(0.0, seconds - tokens_out * (entry.per_token.read(now) or TOKEN_S)), now)

    def _measure_silence(self, now: float) -> None:
        """Who says nothing for long and then fails is slower than that; who fails at once is not quick."""
        entry, silent_s = self._entry, now - self._began
        if self._first is None and silent_s > (entry.ttft.read(now) or 0.0) and silent_s >= 1.0:
            entry.ttft.add(silent_s, now)


class Probe:
    """A health check under way. It must be ended."""

    __slots__ = ("_breaker", "_pass", "_random", "_under_way")

    def __init__(self, breaker: Breaker, given: Pass, random: Callable[[], float]) -> None:
        self._breaker = breaker
        self._pass = given
        self._random = random
        self._under_way = True

    def ended(self, ok: bool, now: float) -> None:
        if not self._under_way:
            return
        self._under_way = False
        if ok:
            self._breaker.probed(self._pass, now)
        else:
            self._breaker.failed(self._pass, now, self._random(), "health_check")
