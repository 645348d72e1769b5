"""Time as the limits see it."""

from __future__ import annotations

from typing import NamedTuple


class Now(NamedTuple):
    """One moment on both clocks. wall: unix seconds; monotonic: seconds since some moment."""

    wall: float
    monotonic: float
