"""How fast to go: prefill beside decoding, and how many threads on a machine that is shared.

Pure bookkeeping over measured times; the decode loop reports and asks.
"""

from __future__ import annotations

SMOOTHING = 0.2
ALONE_S = 0.25
"""A prefill chunk with nobody else decoding: new requests are seen at least this often."""
BESIDE_S = 0.02
SMALLEST_CHUNK = 16


class Pace:
    """Learns prefill rate and step time of this machine under its present load."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
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

        While others decode, a chunk takes about as long as one of their steps, so that their rate at
        worst halves; alone, a chunk is bounded so that arrivals and cancels are seen in good time.
        """
        seconds = max(BESIDE_S, self._step_s) if decoding else ALONE_S
        return max(1, min(todo, most, max(SMALLEST_CHUNK, int(self._prefill_rate * seconds))))
