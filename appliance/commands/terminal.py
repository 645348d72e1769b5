"""What commands show: times, tables, the command's own name, and texts that a stranger may have written."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from rich.cells import cell_len


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


def command() -> str:
    """How this very `outpost` is called from a shell: by its name where PATH leads to it, else by its whole path."""
    script = Path(sys.executable).absolute().parent / "outpost"
    if not script.is_file():
        return f"{shlex.quote(sys.executable)} -m appliance.cli"
    found = shutil.which("outpost")
    # Another installation may be first on PATH; it has settings and data of its own.
    return "outpost" if found and Path(found).resolve() == script.resolve() else shlex.quote(str(script))


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], right: Collection[str] = ()) -> list[str]:
    """Lines with every column as wide as its widest cell: nothing is cut or wrapped, so that ids can be copied.

    `right`: headings of the columns that are aligned to the right.
    """
    shown = [list(headings), *([visible(cell) for cell in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*shown, strict=True)]
    lines = []
    for row in shown:
        cells = []
        for heading, text, width in zip(headings, row, widths, strict=True):
            space = " " * (width - cell_len(text))
            cells.append(space + text if heading in right else text + space)
        lines.append("  ".join(cells).rstrip())
    return lines
