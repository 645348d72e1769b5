"""Ids of exchanges: unguessable, and in the order of time so that an index only ever grows at its end."""

from __future__ import annotations

import os
import time
from functools import lru_cache

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
_SHIFTS = range(120, -10, -10)
_NOISE = bytes([ord(_ALPHABET[byte & 31]) for byte in range(256)])
"""A random byte as a random character."""
_DRAW = 1024
"""Random bytes that are drawn at a time."""
_TIME = 10
"""Characters of the time; the other 16 are noise."""
_LENGTH = 16
_endings: list[str] = []


def make_id(milliseconds: int, random: bytes) -> str:
    """26 characters of Crockford's base 32 (a ULID): 48 bits of Unix time, then 80 random bits (10 bytes)."""
    number = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(random[:10], "big")
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in _SHIFTS])


def new_id() -> str:
    """A fresh id of this moment: as `make_id` makes it of time and noise."""
    if not _endings:
        # Asking the system costs more than all the rest, so it is asked for many at once; each is used once.
        drawn = os.urandom(_DRAW).translate(_NOISE).decode("ascii")
        _endings.extend([drawn[at : at + _LENGTH] for at in range(0, _DRAW, _LENGTH)])
    milliseconds = time.time_ns() // 1_000_000
    return _second(milliseconds >> 10) + _PAIRS[milliseconds & 1023] + _endings.pop()


@lru_cache(maxsize=4)
def _second(number: int) -> str:
    """How the ids of one second, of 1,024 milliseconds, begin."""
    return make_id(number << 10, bytes(10))[: _TIME - 2]
