"""How fast to go: prefill beside decoding, and how many threads on a machine that is shared.

Pure bookkeeping over measured times; the decode loop reports and asks.
"""

from __future__ import annotations

from collections.abc import Sequence

SMOOTHING = 0.2
ALONE_S = 0.25
"""A prefill chunk with nobody else decoding: new requests are seen at least this often."""
BESIDE_S = 0.1
"""A prefill chunk beside decoding: the longest pause between others' tokens is this and a step of theirs."""
SMALLEST_CHUNK = 16
"""Below this the fixed cost of a batch begins to count."""

JUDGED_S = 0.05
"""Wall time over which the share of the processor is judged."""
CROWDED = 0.8
"""Below this share of the processor the threads wait for each other at barriers instead of working."""
ROOM = 0.75
"""Idle processors that one more thread needs."""
FIRST_PATIENCE_S = 0.5
LONGEST_PATIENCE_S = 16.0


class Pace:
    """Learns prefill rate and step time of this machine under its present load."""

    def __init__(self) -> None:
        self._prefill_rate = 200.0
        self._step_s = 0.0

    def measured(self, rows: int, seconds: float, *, prefill: bool) -> None:
        """Take in the wall time of one computed batch of `rows` tokens."""
        if seconds <= 0:
            return
        if prefill:
            if rows >= SMALLEST_CHUNK:
                self._prefill_rate += SMOOTHING * (rows / seconds - self._prefill_rate)
        else:
            self._step_s += SMOOTHING * (seconds - self._step_s)

    def prefill_budget(self, todo: int, *, decoding: bool, most: int) -> int:
        """How many prompt tokens to compute in the next step.

        While others decode, a chunk takes about as long as one of their steps (which halves their rate),
        but never less than SMALLEST_CHUNK, which on a slow processor costs them more. Alone, a chunk is
        bounded so that arrivals and cancels are seen in good time.
        """
        seconds = max(BESIDE_S, self._step_s) if decoding else ALONE_S
        return max(1, min(todo, most, max(SMALLEST_CHUNK, int(self._prefill_rate * seconds))))


def share_prefill(todo: Sequence[int], budget: int) -> list[int]:
    """How many tokens of each prompt to compute in a step; `todo` counts what is left of each, the oldest first.

    Half of the budget goes to the oldest, so that every prompt gets done; the other half goes to the shortest, so
    that a short prompt never waits for a long one.
    """
    counts = [0] * len(todo)
    if todo:
        counts[0] = min(todo[0], (budget + 1) // 2)
        budget -= counts[0]
    for at in sorted(range(len(todo)), key=lambda i: todo[i]):
        more = min(todo[at] - counts[at], budget)
        counts[at] += more
        budget -= more
    return counts


class Threads:
    """How many threads to compute with, from 1 to `most`.

    The threads of a matrix product meet at a barrier some hundred times a step. When a neighbour holds
    one of their processors, all of them wait for its next time slice at each barrier: two threads
    beside one busy process are many times slower than one. So the count falls as soon as the
    threads get clearly less processor time than they ask for, and rises again when the machine has
    idle processors – with growing patience if that turns out to have been a mistake.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.count = most
        self._wall = 0.0
        self._cpu = 0.0
        self._patience = FIRST_PATIENCE_S
        self._changed_at = 0.0

    def observed(self, wall_s: float, cpu_s: float, now: float) -> None:
        """Take in a step: its duration, and the processor time that this process spent in it."""
        self._wall += wall_s
        self._cpu += cpu_s
        if self._wall < JUDGED_S:
            return
        share = self._cpu / (self._wall * self.count)
        self._wall = self._cpu = 0.0
        if self.count > 1 and share < CROWDED:
            if now - self._changed_at < 4 * self._patience:
                self._patience = min(2 * self._patience, LONGEST_PATIENCE_S)
            else:
                self._patience = FIRST_PATIENCE_S
            self._change(max(1, min(self.count - 1, int(self.count * share + 0.25))), now)

    def wants_to_know(self, now: float) -> bool:
        """Whether it is time to look for idle processors."""
        return self.count < self.most and now - self._changed_at >= self._patience

    def idle(self, processors: float, now: float) -> None:
        """Take in how many processors of the machine were idle on average since the last change."""
        more = int(processors + 1 - ROOM)
        if more >= 1 and self.wants_to_know(now):
            self._change(min(self.most, self.count + more), now)

    def _change(self, count: int, now: float) -> None:
        self.count = count
        self._changed_at = now
        self._wall = self._cpu = 0.0


def idle_processors(before: tuple[float, float], after: tuple[float, float], processors: int) -> float:
    """Average number of idle processors between two readings of (idle, total) processor time."""
    total = after[1] - before[1]
    return processors * (after[0] - before[0]) / total if total > 0 else 0.0
