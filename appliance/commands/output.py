"""Where exports go: a file that appears when it is whole, or the standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from appliance.commands.terminal import visible
from appliance.errors import OutpostError

T = TypeVar("T")
Write = Callable[[bytes], object]


class OutputFailed(OutpostError):
    """The file cannot be written."""

    code = "output_failed"


def to_file(path: Path, fill: Callable[[Write], T]) -> T:
    """Write beside the file and put it in its place when it is whole; answer what `fill` does. Raises OutputFailed."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            done = fill(file.write)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise OutputFailed(f"{visible(path)} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            draft.unlink()
    return done


def to_stdout(fill: Callable[[Write], object]) -> None:
    """Whoever reads may leave early, as `head` does."""
    try:
        fill(sys.stdout.buffer.write)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        drop_stdout()


def drop_stdout() -> None:
    """Have nothing more written to the standard output, at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
