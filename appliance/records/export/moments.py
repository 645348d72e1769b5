"""Moments as people write them. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from appliance.errors import BadRequest
from appliance.settings.units import BadForm, parse_duration

_NUMBER = re.compile(r"(?:0|[1-9][0-9]{8,11})(?:\.[0-9]{1,6})?", re.ASCII)
"""Unix seconds from 1973 on, or 0: 2026 and 20261101 are not meant for moments of 1970."""
_MOST = 253402300800.0
"""The first second of the year 10000."""


def parse_moment(text: str, now: float, name: str) -> float:
    """Unix seconds of `2026-11-01`, `2026-11-01T12:00:00Z` (UTC where no zone is given), unix seconds, or a time ago
    like `7d` or `12h`. Raises BadRequest naming `name`."""
    moment: float | None = None
    if _NUMBER.fullmatch(text):
        moment = float(text)
    else:
        try:
            if text[-1:] in ("s", "m", "h", "d"):
                moment = now - parse_duration(text)
            else:
                read = datetime.fromisoformat(text)
                moment = (read if read.tzinfo is not None else read.replace(tzinfo=UTC)).timestamp()
        except (BadForm, ValueError, OverflowError):
            moment = None
    if moment is None or not 0 <= moment < _MOST:
        raise BadRequest(
            f"{name}: expected a date, a time, unix seconds or a time ago; write e.g. 2026-11-01, "
            "2026-11-01T12:00:00Z or 7d",
            param=name,
        )
    return moment
