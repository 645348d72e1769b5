"""The box's own secret: 32 random bytes in a file that only its owner reads. Purpose keys derive from it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

from appliance import secret_file
from appliance.errors import OutpostError

SECRET_BYTES = secret_file.BYTES


class IdentityError(OutpostError):
    """Keys cannot be used as things are; the message names the file and the cure."""

    code = "identity_setup"


def secret_path(data_dir: Path) -> Path:
    return data_dir / "secrets" / "master.key"


def load_secret(data_dir: Path, *, random: Callable[[int], bytes] = secrets.token_bytes) -> bytes:
    """The secret of a data folder, made if there is none yet. Raises IdentityError (see `secret_file.load`)."""
    secret = secret_file.load(secret_path(data_dir), random, IdentityError)
    assert secret is not None  # it is made where there is none
    return secret
