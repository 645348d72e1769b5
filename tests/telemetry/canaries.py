"""Looks for credentials where none may be: files (logs, databases, whatever lies in a folder), pages, error bodies.

    hunt = Hunt([key, provider_key])
    hunt.folder(data_dir)                    every file, whatever its kind, write-ahead logs of databases too
    hunt.text("/metrics", page)              one text or body
    assert hunt.hits == []                   places, never the canaries themselves

Each canary is looked for as it is and as it may have been spelled: escaped, in an address, as Base64 at any place in a
longer text, as hexadecimal digits, in UTF-16.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable
from pathlib import Path

from appliance.redact import spellings

MIN_CANARY = 12
"""Characters; a shorter one would be found by chance."""


class Hunt:
    """Gathers the places where a canary was found. `allowed`: names of files that hold secrets by design."""

    def __init__(self, canaries: Iterable[str], *, allowed: Iterable[str] = ("master.key",)) -> None:
        self._needles: dict[bytes, int] = {}
        for number, canary in enumerate(canaries):
            if len(canary) < MIN_CANARY:
                raise ValueError(f"canary {number} has under {MIN_CANARY} characters; it would be found by chance")
            for spelling in spellings(canary):
                self._needles[spelling.encode("utf-8", "surrogatepass")] = number
            for encoding in ("utf-16-le", "utf-16-be"):
                self._needles[canary.encode(encoding, "surrogatepass")] = number
        if not self._needles:
            raise ValueError("there is no canary: nothing would be found")
        self._allowed = frozenset(allowed)
        self.hits: list[str] = []
        """Place, number of the canary, offset."""
        self.looked_at = 0
        """Places that were searched; a hunt that has seen nothing proves nothing."""

    def text(self, place: str, text: str | bytes) -> None:
        """Search one text."""
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        self.looked_at += 1
        found = {number: at for needle, number in self._needles.items() if (at := data.find(needle)) >= 0}
        self.hits += [f"{place}: canary {number} at {at}" for number, at in sorted(found.items())]

    def file(self, path: Path) -> None:
        """Search one file, compressed ones too."""
        data = path.read_bytes()
        self.text(str(path), data)
        if data.startswith(b"\x1f\x8b"):
            try:
                self.text(f"{path} (unpacked)", gzip.decompress(data))
            except (OSError, EOFError, zlib.error):
                pass  # it only looks like one

    def folder(self, folder: Path) -> None:
        """Search every file below a folder. Sockets, pipes and `allowed` files are left out."""
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.name not in self._allowed:
                self.file(path)
