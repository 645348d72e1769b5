"""The data folder belongs to one gateway at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from appliance.errors import OutpostError


class DataDirInUse(OutpostError):
    """Another process serves from this folder."""

    code = "data_dir_in_use"


@contextlib.contextmanager
def hold(data_dir: Path) -> Iterator[None]:
    """Keep every other gateway out of `data_dir` until the block is left. Raises DataDirInUse, OSError.

    Two gateways would take each other's engine sockets and number the same records. The kernel gives the
    lock back however this process ends, so there is no stale one to clean up.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    path = data_dir / "outpost.lock"
    # The descriptor closes on exec, so engines do not hold the lock when their gateway has gone.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            raise DataDirInUse(
                f"another gateway (process {holder or 'unknown'}) is already running on {data_dir}: stop it first, or "
                "give this one a data_dir of its own"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
