"""The key that signs the ledger's checkpoints: 32 random bytes in a file that only its owner reads."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from appliance.errors import OutpostError
from appliance.records.notes import Signer

SEED_BYTES = 32


class LedgerError(OutpostError):
    """The ledger's files cannot be used as they are; the message names the file and the cure."""

    code = "ledger_setup"


def key_path(data_dir: Path) -> Path:
    return data_dir / "secrets" / "ledger.key"


def load_signer(
    data_dir: Path, *, make: bool = True, random: Callable[[int], bytes] = secrets.token_bytes
) -> Signer | None:
    """The signer of a data folder. make: make its key (0600, synced) if there is none yet; else answer None then.

    Two processes that start together end up with the same key. Raises LedgerError for a file that others may read or
    that is not 64 hexadecimal digits.
    """
    path = key_path(data_dir)
    try:
        if not path.exists():
            if not make:
                return None
            _create(path, random(SEED_BYTES))
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise LedgerError(f"{path} can be read by others (mode {mode:o}). Run: chmod 600 {path}")
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        raise LedgerError(f"{path} cannot be read or made: {error.strerror}") from error
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise LedgerError(
            f"{path} is damaged: it must hold 64 hexadecimal digits. Restore it from your backup; with another key, "
            "older checkpoints can only be verified with the old public key."
        )
    return Signer(bytes.fromhex(text))


def _create(path: Path, seed: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(seed.hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            # A link, not a rename: it fails if another process was first, and its key stands.
            os.link(draft, path)
        except FileExistsError:
            return
    finally:
        draft.unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
