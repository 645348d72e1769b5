"""What this machine is doing, as far as the choice of threads needs it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from runtimes.llamacpp.pace import Threads, idle_processors

STAT = Path("/proc/stat")


def read_times() -> tuple[float, float]:
    """(idle, total) processor time of the whole machine in clock ticks; (0, 0) where it cannot be read."""
    try:
        with STAT.open(encoding="ascii") as file:
            fields = [float(value) for value in file.readline().split()[1:9]]
    except OSError:
        return 0.0, 0.0
    return fields[3] + fields[4], sum(fields)


class Compute:
    """Wraps computed steps: measures them, and says how many threads the next one should use."""

    def __init__(self, threads: int) -> None:
        self._threads = Threads(threads)
        self._processors = os.cpu_count() or 1
        self._read = read_times()
        self._read_for = self._threads.count
        self._cpu = 0.0

    @property
    def threads(self) -> int:
        """Threads for the next step."""
        return self._threads.count

    def began(self) -> None:
        """Call right before a step."""
        self._cpu = time.process_time()

    def ended(self, wall_s: float, now: float) -> None:
        """Call right after a step that took `wall_s` seconds."""
        threads = self._threads
        threads.observed(wall_s, time.process_time() - self._cpu, now)
        if threads.count != self._read_for:
            self._read, self._read_for = read_times(), threads.count
        elif threads.wants_to_know(now):
            latest = read_times()
            idle = idle_processors(self._read, latest, self._processors)
            self._read = latest
            threads.idle(idle, now)
