"""Server-sent events without I/O: bytes in, whole events out, however the bytes are cut.

`Framer` is fed what a connection gave and returns the data of each event that is now complete, and says whether the
very bytes that came in may be passed on: in the usual case a read ends where an event ends.
"""

from __future__ import annotations

DONE = b"[DONE]"
DONE_EVENT = b"data: [DONE]\n\n"

MAX_EVENT = 16 * 1024 * 1024


class EventTooLarge(ValueError):
    """An event did not end within `MAX_EVENT` bytes."""


def event(data: bytes) -> bytes:
    """One event with one line of data (JSON has no raw line ends)."""
    return b"data: " + data + b"\n\n"


class Framer:
    """Cuts a stream of bytes into events by the rules of the HTML standard.

    Line ends may be LF, CRLF or CR; comments, `id`, `retry` and `event` fields are skipped; several `data`
    lines are joined by LF; an event without data is none.
    """

    __slots__ = ("_after_cr", "_data", "_line", "_size", "_start")

    def __init__(self) -> None:
        self._line: list[bytes] = []  # pieces of a line whose end has not come yet
        self._data: list[bytes] = []  # data lines of an event whose end has not come yet
        self._size = 0
        self._after_cr = False
        self._start = True

    def feed(self, read: bytes) -> tuple[list[bytes], bool]:
        """The data of each event that `read` completes, and whether `read` is these events and nothing else, each
        written as `event` writes it. Raises EventTooLarge.
        """
        if (
            not self._line
            and not self._data
            and not self._after_cr
            and read.startswith(b"data: ")
            and read.endswith(b"\n\n")
            and b"\r" not in read
        ):
            parts = read[6:-2].split(b"\n\ndata: ")
            if read.count(b"\n") == 2 * len(parts):
                self._start = False
                return parts, True
        return self._lines(read), False

    def end(self) -> list[bytes]:
        """What a stream that has ended left behind: its last event may lack the empty line after it."""
        line = b"".join(self._line)
        self._line.clear()
        found: list[bytes] = []
        self._take(line, found)
        self._take(b"", found)
        return found

    def _lines(self, read: bytes) -> list[bytes]:
        found: list[bytes] = []
        if self._after_cr and read:
            self._after_cr = False
            if read.startswith(b"\n"):
                read = read[1:]
        if not read:
            return found
        self._after_cr = read.endswith(b"\r")
        if b"\r" in read:
            read = read.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *whole, rest = read.split(b"\n")
        for line in whole:
            if self._line:
                self._line.append(line)
                line = b"".join(self._line)
                self._line.clear()
            self._take(line, found)
        if rest:
            self._line.append(rest)
            self._grow(len(rest))
        return found

    def _take(self, line: bytes, found: list[bytes]) -> None:
        if self._start:
            self._start = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            if self._data:
                found.append(b"\n".join(self._data))
                self._data.clear()
            self._size = 0
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._grow(len(line))

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > MAX_EVENT:
            raise EventTooLarge(f"an event is larger than {MAX_EVENT} bytes")


class NamedFramer(Framer):
    """A `Framer` for events that have names. The second value that `feed` returns says whether the very bytes that
    came in are these events with their names and nothing else."""

    __slots__ = ()

    def feed(self, read: bytes) -> tuple[list[bytes], bool]:
        if (
            read.startswith(b"event: ")
            and read.endswith(b"\n\n")
            and not (self._line or self._data or self._after_cr)
            and b"\r" not in read
        ):
            found: list[bytes] = []
            for part in read[:-2].split(b"\n\n"):
                head, _, data = part.partition(b"\ndata: ")
                if not data or not head.startswith(b"event: ") or b"\n" in head or b"\n" in data:
                    break
                found.append(data)
            else:
                self._start = False
                return found, True
        return super().feed(read)[0], False
