"""32 random bytes in a file that only its owner reads: made once, never written again."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from appliance.errors import OutpostError

BYTES = 32


def load(
    path: Path,
    random: Callable[[int], bytes],
    error: type[OutpostError],
    *,
    make: bool = True,
    restore: str = "Restore it from your backup.",
) -> bytes | None:
    """The bytes of a file, made (0600, synced) if there is none yet; with `make` off, None then.

    Two processes that start together end up with the same ones. Raises `error` for a file that others may read or that
    is not 64 hexadecimal digits; `restore` is the cure for the latter.
    """
    try:
        if not path.exists():
            if not make:
                return None
            _create(path, random(BYTES))
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise error(f"{path} can be read by others (mode {mode:o}). Run: chmod 600 {path}")
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as cause:
        raise error(f"{path} cannot be read or made: {cause.strerror}") from cause
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise error(f"{path} is damaged: it must hold 64 hexadecimal digits. {restore}")
    return bytes.fromhex(text)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(path: Path, secret: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secret.hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            # A link, not a rename: it fails if another process was first, and its secret stands.
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink()
    sync_folder(path.parent)
