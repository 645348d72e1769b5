"""Lines of a log on their way to a stream that may not take them."""

from __future__ import annotations

import logging
import os
import queue
import threading

logger = logging.getLogger("outpost.door")

_NOTE = b'{"event":"access_lines_dropped","count":%d}\n'


class LineWriter:
    """Writes to a file descriptor from a thread of its own: a full pipe must not hold up the event loop.

    What waits is bounded. Lines beyond that, and those that the descriptor does not take (a full disk), are dropped; a
    line says how many, as soon as there is room for it. A reader that has gone away ends the log.
    """

    MOST_WAITING = 16 * 1024 * 1024
    """Bytes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        # Each of these counts has one thread that writes it: changed by two, it would drift.
        self._given = 0
        self._refused = 0
        self._taken = 0
        self._failed = 0
        self._told = 0
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def __call__(self, lines: bytes) -> None:
        if self._given - self._taken + len(lines) > self.MOST_WAITING:
            self._refused += lines.count(b"\n")
            return
        self._given += len(lines)
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
        rest = b""  # of a line that was written in part
        well = True
        while (lines := self._queue.get()) is not None:
            self._taken += len(lines)
            dropped = self._refused + self._failed
            note = _NOTE % (dropped - self._told) if dropped > self._told else b""
            data = rest + lines + note
            done, error = self._write(data)
            before_note = len(data) - len(note)
            if done > before_note:
                self._told = dropped
            if error is None:
                rest, well = b"", True
                continue
            if isinstance(error, BrokenPipeError):
                logger.warning("access_log_ended", extra={"cause": "nobody reads it any more"})
                return
            inside = data[done - 1 : done] != b"\n" if done else bool(rest)
            end = data.index(b"\n", done) + 1 if inside else done
            rest = data[done:end]
            self._failed += data.count(b"\n", end, max(end, before_note))
            if well:  # once: it would be so for each line
                well = False
                logger.error("access_log_not_written", extra={"cause": error.strerror or str(error)})

    def _write(self, data: bytes) -> tuple[int, OSError | None]:
        """How much of it was written, and what kept the rest from it."""
        done, view = 0, memoryview(data)
        try:
            while done < len(data):
                done += os.write(self._fd, view[done:])
        except OSError as error:
            return done, error
        return done, None
