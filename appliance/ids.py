"""Ids of exchanges: unguessable, and in the order of time so that an index only ever grows at its end."""

from __future__ import annotations

import os
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
_SHIFTS = range(120, -10, -10)


def make_id(milliseconds: int, random: bytes) -> str:
    """26 characters of Crockford's base 32 (a ULID): 48 bits of Unix time, then 80 random bits (10 bytes)."""
    number = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(random[:10], "big")
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in _SHIFTS])


def new_id() -> str:
    """A fresh id of this moment."""
    return make_id(time.time_ns() // 1_000_000, os.urandom(10))
