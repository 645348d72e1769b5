"""The data folder belongs to one gateway at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from appliance.errors import OutpostError


class DataDirInUse(OutpostError):
    """Another process serves from this folder. holder: its id, as far as it is known."""

    code = "data_dir_in_use"

    def __init__(self, message: str, holder: str) -> None:
        super().__init__(message)
        self.holder = holder


class DataDirUnusable(OutpostError):
    """The folder cannot be made or written to."""

    code = "data_dir_unusable"


@contextlib.contextmanager
def hold(data_dir: Path) -> Iterator[None]:
    """Keep every other gateway out of `data_dir` until the block is left. Raises DataDirInUse, DataDirUnusable.

    Two gateways would take each other's engine sockets and number the same records. The kernel gives the
    lock back however this process ends, so there is no stale one to clean up.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        # The descriptor closes on exec, so engines do not hold the lock when their gateway has gone.
        descriptor = os.open(data_dir / "outpost.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DataDirUnusable(
            f"data_dir: {data_dir} cannot be used ({error.strerror or error}): name a folder that this user may make "
            "or write to"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise DataDirInUse(
                f"another gateway (process {holder}) is already running on {data_dir}: stop it first, or give this one "
                "a data_dir of its own",
                holder,
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        try:
            yield
        finally:
            # Nobody shall send a signal to whatever has this number next.
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
