"""Who is asking, as plain data."""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["admin", "user"]
"""admin: everything, the operator's listener included. user: the public APIs."""


class Principal(msgspec.Struct, frozen=True):
    """The owner of a key, as far as the rest of the house needs to know."""

    key_id: str
    key_name: str
    role: Role
