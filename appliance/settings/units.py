"""Durations and sizes as people write them: `30s`, `1h30m`, `20MiB`. Pure, exact, both ways.

At run time a duration is a float in seconds and a size an int in bytes; the text forms exist only
in the file and on the screen. Decimal arithmetic keeps `parse(format(x)) == x`.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

DURATION_UNITS: dict[str, Decimal] = {
    "d": Decimal(86400),
    "h": Decimal(3600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
}
"""Unit → seconds, largest first."""

SIZE_UNITS: dict[str, int] = {
    "TiB": 1 << 40,
    "GiB": 1 << 30,
    "MiB": 1 << 20,
    "KiB": 1 << 10,
    "TB": 10**12,
    "GB": 10**9,
    "MB": 10**6,
    "kB": 10**3,
    "B": 1,
}
"""Unit → bytes; binary units first, because they are preferred when a size is printed."""

# Digits are counted, so that a hostile file cannot ask for huge-number arithmetic.
_NUMBER = r"\d{1,20}(?:_\d{1,20}){0,7}(?:\.\d{1,9})?"
DURATION_PATTERN = r"(?:\d+(?:\.\d+)?(?:d|h|m(?!s)|s|ms))+"
SIZE_PATTERN = r"\d+(?:\.\d+)? ?(?:[TGM]iB|[Kk]iB|[TGM]B|[Kk]B|B)"
_DURATION_PART = re.compile(rf"({_NUMBER})(ms|[smhd])", re.ASCII)
_BARE = re.compile(_NUMBER, re.ASCII)
_SIZE = re.compile(rf"({_NUMBER})\s?([A-Za-z]+)", re.ASCII)
_SIZE_BY_NAME = {name.lower(): factor for name, factor in SIZE_UNITS.items()}
_MOST_SIZE = 1 << 63


class BadForm(ValueError):
    """A text that is not in the expected form; `cure` says what to write instead."""

    def __init__(self, message: str, cure: str) -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure


def parse_duration(text: str) -> float:
    """Seconds. Units d, h, m, s, ms, largest first (`1h30m`); a bare number is seconds. Raises BadForm."""
    stripped = text.strip()
    if _BARE.fullmatch(stripped):
        return float(Decimal(stripped.replace("_", "")))
    total, at, last = Decimal(0), 0, Decimal("Infinity")
    while at < len(stripped):
        part = _DURATION_PART.match(stripped, at)
        if part is None:
            break
        factor = DURATION_UNITS[part.group(2)]
        if factor >= last:
            break
        total += Decimal(part.group(1).replace("_", "")) * factor
        at, last = part.end(), factor
    if not stripped or at < len(stripped):
        raise BadForm(
            f"{quote(text)} is not a duration",
            "write a number and a unit: ms, s, m, h or d, e.g. 500ms, 30s, 1h30m",
        )
    return float(total)


def format_duration(seconds: float) -> str:
    """The shortest exact text in one unit: 90.0 → `90s`, 3600.0 → `1h`, 0.5 → `500ms`."""
    value = Decimal(repr(float(seconds)))
    if value == 0:
        return "0s"
    for name, factor in DURATION_UNITS.items():
        if value % factor == 0:
            return f"{value / factor:.0f}{name}"
    return f"{value * 1000:f}".rstrip("0").rstrip(".") + "ms"


def spoken_wait(seconds: float) -> str:
    """A wait for people: at most two units, rounded up, at least a second: 77597.0 → `21 h 34 min`."""
    left = max(1, math.ceil(seconds))
    for longer, step in ((3600, 60), (86400, 3600)):
        if left >= longer:
            left = -(-left // step) * step
    parts = []
    for unit in (86400, 3600, 60, 1):
        count, left = divmod(left, unit)
        if count:
            parts.append(_spoken(count, unit))
    return " ".join(parts)


def spoken_period(text: str) -> str:
    """What `format_duration` gives of whole seconds, for people: `5m` → `5 min`, exactly."""
    return _spoken(int(text[:-1]), int(DURATION_UNITS[text[-1]]))


def _spoken(count: int, unit_s: int) -> str:
    word = {86400: "day" if count == 1 else "days", 3600: "h", 60: "min", 1: "s"}[unit_s]
    return f"{count} {word}"


def parse_size(text: str) -> int:
    """Bytes. Binary (KiB, MiB …) and decimal (kB, MB …) units; a bare number is bytes. Raises BadForm."""
    stripped = text.strip()
    if re.fullmatch(r"\d{1,20}(?:_\d{1,20}){0,7}", stripped, re.ASCII):
        value = Decimal(stripped.replace("_", ""))
    else:
        match = _SIZE.fullmatch(stripped)
        factor = _SIZE_BY_NAME.get(match.group(2).lower()) if match else None
        if match is None or factor is None:
            raise BadForm(
                f"{quote(text)} is not a size",
                "write a number and a unit: B, KiB, MiB, GiB, TiB (or kB, MB, GB, TB), e.g. 20MiB",
            )
        value = Decimal(match.group(1).replace("_", "")) * factor
    if value != value.to_integral_value():
        raise BadForm(f"{quote(text)} is not a whole number of bytes", "write a rounder number, e.g. 20MiB")
    if value >= _MOST_SIZE:
        raise BadForm(f"{quote(text)} is more than 8 million TiB", "write a smaller size, e.g. 20MiB")
    return int(value)


def format_size(size: int) -> str:
    """The shortest exact text: 20971520 → `20MiB`, 20000000 → `20MB`, 1500 → `1500B`."""
    if size == 0:
        return "0B"
    exact = (f"{size // factor}{name}" for name, factor in SIZE_UNITS.items() if size % factor == 0)
    return min(exact, key=len)


def quote(value: object, most: int = 48) -> str:
    """A value as shown in a message: quoted, cut, one line."""
    text = repr(str(value)) if isinstance(value, str) else repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"
