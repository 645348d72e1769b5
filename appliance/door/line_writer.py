"""Lines of a log on their way to a stream that may not take them."""

from __future__ import annotations

import queue
import threading
from typing import BinaryIO


class LineWriter:
    """Writes to a stream from a thread of its own: a full pipe must not hold up the event loop.

    What waits is bounded; beyond that lines are dropped, and a line says how many.
    """

    MOST_WAITING = 16 * 1024 * 1024

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._waiting = 0
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def __call__(self, lines: bytes) -> None:
        if self._waiting + len(lines) > self.MOST_WAITING:
            self._dropped += lines.count(b"\n")
            return
        self._waiting += len(lines)
        self._queue.put(lines)

    @property
    def alive(self) -> bool:
        """Whether lines are still written; False after `close`, and when nobody reads any more."""
        return self._thread.is_alive()

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what is waiting, as far as the reader takes it in this time."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (lines := self._queue.get()) is not None:
            self._waiting -= len(lines)
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                lines += b'{"event":"access_lines_dropped","count":%d}\n' % dropped
            try:
                self._stream.write(lines)
                self._stream.flush()
            except (OSError, ValueError):
                return  # nobody reads any more
