"""checkpoints.txt: every checkpoint once more, outside the database, one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from appliance.records.notes import claimed_seq, split
from appliance.secret_file import sync_folder

_WINDOW = 1 << 16
"""Bytes from the end in which the last note is looked for; a note has some 200."""


class CheckpointFile:
    """Blocking. Raises OSError."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / "ledger" / "checkpoints.txt"

    @property
    def size(self) -> int:
        """Bytes, 0 where there is no file."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def repair(self) -> int:
        """Cut off a last note that was not written to its end; answer how many bytes that were."""
        size = self.size
        if not size:
            return 0
        tail = self._tail(size)
        # A note ends with its signature's line and an empty one.
        end = tail.rfind(b"\n\n")
        while end >= 0 and not tail[tail.rfind(b"\n", 0, end) + 1 : end].startswith("— ".encode()):
            end = tail.rfind(b"\n\n", 0, end)
        kept = size - len(tail) + end + 2 if end >= 0 else size - len(tail)
        if kept < size:
            with self.path.open("r+b") as file:
                file.truncate(kept)
                file.flush()
                os.fsync(file.fileno())
        return size - kept

    def last(self) -> str | None:
        """The last note, None if there is none."""
        lines = self._tail(self.size).decode("utf-8", "replace").splitlines(keepends=True)
        return next(iter([*split(iter(lines))][-1:]), None)

    def notes(self, size: int) -> Iterator[tuple[int | None, str]]:
        """The notes in the first `size` bytes, with the number that each speaks of (None: it has not the form)."""
        if not size:
            return
        with self.path.open("rb") as file:
            for note in split(_lines(iter(file), size)):
                yield claimed_seq(note), note

    def append(self, notes: Sequence[str]) -> None:
        """Add notes and sync. A write that fails in the middle leaves the file as before, if the disk lets it."""
        new = not self.path.exists()
        if new:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            data = "".join(f"{note}\n" for note in notes).encode()
            try:
                written = os.write(descriptor, data)
                if written < len(data):
                    raise OSError(f"only {written} of {len(data)} bytes were taken")
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
        if new:
            sync_folder(self.path.parent)

    def _tail(self, size: int) -> bytes:
        if not size:
            return b""
        with self.path.open("rb") as file:
            file.seek(max(0, size - _WINDOW))
            tail = file.read()
        if size > _WINDOW:
            # Begin with a whole note.
            mark = tail.find("\n— ".encode())
            tail = tail[tail.find(b"\n\n", mark) + 2 :]
        return tail


def _lines(lines: Iterator[bytes], size: int) -> Iterator[str]:
    """Lines as text, up to `size` bytes; what was added since is not looked at."""
    left = size
    for line in lines:
        if left <= 0:
            return
        yield line[:left].decode("utf-8", "replace")
        left -= len(line)
