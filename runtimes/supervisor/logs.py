"""The log of one replica: a file that never grows past its bound, and its last lines in memory."""

from __future__ import annotations

import logging
import os
from collections import deque
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

TAIL_LINES = 20
TAIL_LINE_CHARACTERS = 500


class RotatedLog:
    """Appends bytes to `path`; a file that is full becomes `path.1`, that one `path.2`, and so on.

    At most `max_bytes` × (`backups` + 1) are on disk. A disk that refuses writes does not stop the engine
    or the gateway: the output is dropped, the fact is logged once per outage, and the tail is still kept.
    """

    def __init__(self, path: Path, *, max_bytes: int = 10 * 1024 * 1024, backups: int = 2) -> None:
        if max_bytes < 1 or backups < 0:
            raise ValueError("max_bytes must be at least 1 and backups at least 0")
        self.path = path
        self.max_bytes = max_bytes
        self.backups = backups
        self.dropped_bytes = 0
        self._file: BinaryIO | None = None
        self._size = 0
        self._refused = False
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)
        self._partial = b""

    def write(self, data: bytes) -> None:
        """Append. Never raises for I/O."""
        self._remember(data)
        self._store(data)

    def note(self, text: str) -> None:
        """Append a line of ours. The tail shows only what the engine itself said."""
        line = text.encode(errors="replace") + b"\n"
        self._store(b"\n" + line if self._partial else line)

    def tail(self) -> str:
        """The last lines, each cut to a sensible length, as text."""
        lines = [*self._lines, *([_readable(self._partial)] if self._partial else [])]
        return "\n".join(line for line in lines[-TAIL_LINES:] if line.strip())

    def close(self) -> None:
        self._close_file()

    def _store(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self._append(view) :]
            except OSError as error:
                self.dropped_bytes += len(view)
                self._close_file()
                if not self._refused:
                    self._refused = True
                    log.warning(
                        "cannot write %s (%s): this engine's output is dropped until it works", self.path, error
                    )
                return
        self._refused = False

    def _append(self, view: memoryview) -> int:
        if self._file is None:
            self._file = self._open()
        if self._size >= self.max_bytes:
            self._rotate()
            self._file = self._open()
        written = self._file.write(view[: self.max_bytes - self._size])
        self._size += written
        return written

    def _open(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # An engine may log a piece of a prompt, so only the owner may read it.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(descriptor).st_size
        return os.fdopen(descriptor, "ab", buffering=0)

    def _rotate(self) -> None:
        self._close_file()
        if not self.backups:
            self.path.unlink(missing_ok=True)
            return
        for number in range(self.backups, 0, -1):
            older = self.path if number == 1 else self._backup(number - 1)
            if older.exists():
                older.replace(self._backup(number))

    def _backup(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _remember(self, data: bytes) -> None:
        *whole, partial = (self._partial + data).split(b"\n")
        self._lines.extend(_readable(line) for line in whole[-TAIL_LINES:])
        # A progress bar is one endless line; only its end is worth keeping.
        self._partial = partial[-4 * TAIL_LINE_CHARACTERS :]


def _readable(line: bytes) -> str:
    text = line.rsplit(b"\r", 1)[-1] if not line.endswith(b"\r") else line[:-1].rsplit(b"\r", 1)[-1]
    decoded = text.decode("utf-8", "replace")
    printable = "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in decoded)
    return printable if len(printable) <= TAIL_LINE_CHARACTERS else printable[: TAIL_LINE_CHARACTERS - 1] + "…"
