"""The box's own secret: 32 random bytes in a file that only its owner reads. Purpose keys derive from it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from appliance import secret_file
from appliance.errors import OutpostError

SECRET_BYTES = secret_file.BYTES
_RESTORE = (
    "Restore it from the backup that goes with the database. Where it is lost for good, move the file away and call: "
    "outpost keys revoke-lost"
)


class IdentityError(OutpostError):
    """Keys cannot be used as things are; the message names the file and the cure."""

    code = "identity_setup"


def secret_path(data_dir: Path) -> Path:
    return data_dir / "secrets" / "master.key"


def find_secret(data_dir: Path) -> bytes | None:
    """The secret of a data folder, None where the file is missing. Raises IdentityError (see `secret_file.load`)."""
    return secret_file.load(secret_path(data_dir), secrets.token_bytes, IdentityError, make=False, restore=_RESTORE)


def load_secret(data_dir: Path, *, random: Callable[[int], bytes] = secrets.token_bytes) -> bytes:
    """The secret of a data folder, made if there is none yet: for a folder in which nothing hangs on one that is lost
    (see `lost_secret`). Raises IdentityError (see `secret_file.load`)."""
    secret = secret_file.load(secret_path(data_dir), random, IdentityError, restore=_RESTORE)
    assert secret is not None
    return secret
