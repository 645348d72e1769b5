"""Ids of exchanges: unguessable, and in the order of time so that an index only ever grows at its end."""

from __future__ import annotations

import os
import time
from functools import lru_cache

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
_SHIFTS = range(120, -10, -10)
_DRAW = 640
"""Random bytes that are drawn at a time."""
_TIME = 10
"""Characters of the time; the other 16 are noise."""
_endings: list[str] = []


def make_id(milliseconds: int, random: bytes) -> str:
    """26 characters of Crockford's base 32 (a ULID): 48 bits of Unix time, then 80 random bits (10 bytes)."""
    number = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(random[:10], "big")
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in _SHIFTS])


def new_id() -> str:
    """A fresh id of this moment: as `make_id` makes it of time and noise."""
    try:
        ending = _endings.pop()
    except IndexError:
        # Asking the system costs more than all the rest, so it is asked for many at once; each is used once.
        drawn = os.urandom(_DRAW)
        _endings.extend([make_id(0, drawn[at : at + 10])[_TIME:] for at in range(10, _DRAW, 10)])
        ending = make_id(0, drawn[:10])[_TIME:]
    return _beginning(time.time_ns() // 1_000_000) + ending


@lru_cache(maxsize=4)
def _beginning(milliseconds: int) -> str:
    return make_id(milliseconds, bytes(10))[:_TIME]
