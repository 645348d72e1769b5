"""How long an upstream says to wait, by its headers. Pure; everything in seconds, at most an hour."""

from __future__ import annotations

import email.utils
import re
from collections.abc import Mapping
from datetime import datetime

LONGEST = 3600.0

_PARTS = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m(?!s))?(?:(\d{1,6}(?:\.\d{1,6})?)s)?(?:(\d{1,9}(?:\.\d{1,6})?)ms)?")
_NUMBER = re.compile(r"\d{1,16}(?:\.\d{1,9})?")
_RESETS = (
    ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
    ("x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("anthropic-ratelimit-requests-remaining", "anthropic-ratelimit-requests-reset"),
    ("anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"),
    ("anthropic-ratelimit-input-tokens-remaining", "anthropic-ratelimit-input-tokens-reset"),
    ("anthropic-ratelimit-output-tokens-remaining", "anthropic-ratelimit-output-tokens-reset"),
)
"""What is left of a limit, and when it is whole again."""


def wait_of(headers: Mapping[str, str], now: float) -> float | None:
    """The wait that an answer's headers ask for: `retry-after-ms`, `Retry-After`, else the latest reset of the limits
    of which nothing is left (a limit that is not used up is not why the request was refused). `now`: unix seconds."""
    milliseconds = _get(headers, "retry-after-ms")
    if milliseconds and _NUMBER.fullmatch(milliseconds.strip()):
        return min(float(milliseconds) / 1000.0, LONGEST)
    told = retry_after(_get(headers, "Retry-After"), now)
    if told is not None:
        return told
    resets = [
        found
        for remaining, reset in _RESETS
        if (_get(headers, remaining) or "").strip() == "0"
        and (found := reset_after(_get(headers, reset), now)) is not None
    ]
    return max(resets, default=None)


def _get(headers: Mapping[str, str], name: str) -> str | None:
    # The HTTP client's own mapping does not mind the case; a plain one in a test does.
    return headers.get(name) or headers.get(name.lower())


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds from a `Retry-After` header (a number or a date), at most an hour; None if there is none."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    return _bounded(seconds)


def reset_after(value: str | None, now: float) -> float | None:
    """Seconds from a reset header: a duration (`6m0s`, `17ms`), seconds, unix seconds or milliseconds, or a date."""
    text = (value or "").strip()
    if not text:
        return None
    if _NUMBER.fullmatch(text):
        number = float(text)
        if number >= 1e11:
            number /= 1000.0
        return _bounded(number - now if number >= 1e8 else number)
    if parts := _PARTS.fullmatch(text):
        hours, minutes, seconds, milliseconds = (float(part or 0) for part in parts.groups())
        return _bounded(hours * 3600 + minutes * 60 + seconds + milliseconds / 1000)
    try:
        moment = datetime.fromisoformat(text)
        return _bounded(moment.timestamp() - now) if moment.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _bounded(seconds: float) -> float | None:
    if seconds != seconds:
        return None
    return min(max(seconds, 0.0), LONGEST)
