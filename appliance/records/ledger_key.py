"""The key that signs the ledger's checkpoints: 32 random bytes in a file that only its owner reads."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from appliance import secret_file
from appliance.errors import OutpostError
from appliance.records.notes import Signer

_RESTORE = (
    "Restore it from the backup that goes with the database. Where it is lost for good, this ledger can be kept but "
    "not gone on with: export it, keep the export, and begin with another data_dir and database; see "
    "'A lost signing key' in docs/records.md."
)


class LedgerError(OutpostError):
    """The ledger's files cannot be used as they are; the message names the file and the cure."""

    code = "ledger_setup"


def key_path(data_dir: Path) -> Path:
    return data_dir / "secrets" / "ledger.key"


def lost_key(data_dir: Path) -> LedgerError:
    """Where checkpoints were signed and the key is not there: signed with a new one, the ledger would never be sound
    again, even with the old one put back."""
    return LedgerError(
        f"{key_path(data_dir)} is missing, though this ledger has checkpoints that were signed with it. {_RESTORE}"
    )


def load_signer(
    data_dir: Path, *, make: bool = True, random: Callable[[int], bytes] = secrets.token_bytes
) -> Signer | None:
    """The signer of a data folder. make: make its key if there is none yet; else answer None then.

    Raises LedgerError (see `secret_file.load`).
    """
    seed = secret_file.load(key_path(data_dir), random, LedgerError, make=make, restore=_RESTORE)
    return None if seed is None else Signer(seed)
