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


def load_secret(data_dir: Path, *, make: bool = True, random: Callable[[int], bytes] = secrets.token_bytes) -> bytes:
    """The secret of a data folder. make: make it if there is none yet; else the answer is one that is kept nowhere and
    fits no key. Raises IdentityError (see `secret_file.load`)."""
    secret = secret_file.load(secret_path(data_dir), random, IdentityError, make=make)
    return random(SECRET_BYTES) if secret is None else secret
