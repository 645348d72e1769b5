"""What commands show: times and texts that a stranger may have written."""

from __future__ import annotations

import time


def visible(text: object) -> str:
    """A text safe for a terminal and for one line: control, direction and separator characters are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def readable(text: str) -> str:
    """A text of several lines safe for a terminal: as `visible`, but line ends and tabs stay."""
    return "".join(c if c in "\n\t" else visible(c) for c in text)


def moment(unix_s: float | None) -> str:
    """Local date and time to the second; empty for None."""
    return "" if unix_s is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))


def seconds(value: float | None) -> str:
    """A duration with three digits that matter: 1.23s, 45ms; `-` for None."""
    if value is None:
        return "-"
    return f"{value * 1000:.0f}ms" if value < 1 else f"{value:.2f}s"
