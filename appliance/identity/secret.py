"""The box's own secret: 32 random bytes in a file that only its owner reads. Purpose keys derive from it."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from appliance.errors import OutpostError

SECRET_BYTES = 32


class IdentityError(OutpostError):
    """Keys cannot be used as things are; the message names the file and the cure."""

    code = "identity_setup"


def secret_path(data_dir: Path) -> Path:
    return data_dir / "secrets" / "master.key"


def load_secret(data_dir: Path, *, random: Callable[[int], bytes] = secrets.token_bytes) -> bytes:
    """The secret of a data folder, made (0600, synced) if there is none yet.

    Two processes that start together end up with the same one. Raises IdentityError for a file that
    others may read or that is not 64 hexadecimal digits.
    """
    path = secret_path(data_dir)
    try:
        if not path.exists():
            _create(path, random(SECRET_BYTES))
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise IdentityError(f"{path} can be read by others (mode {mode:o}). Run: chmod 600 {path}")
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise IdentityError(f"{path} cannot be read or made: {error.strerror}") from error
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise IdentityError(f"{path} is damaged: it must hold 64 hexadecimal digits. Restore it from your backup.")
    return bytes.fromhex(text)


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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
