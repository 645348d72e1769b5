"""Looks for credentials where none may be: files (logs, databases, whatever lies in a folder), pages, error bodies.

    hunt = Hunt([key, provider_key])
    hunt.folder(data_dir)                    every file, whatever its kind, write-ahead logs of databases too
    hunt.text("/metrics", page)              one text or body
    assert hunt.hits == []                   places, never the canaries themselves

What nobody could name beforehand is found by its form (`FORMS`): keys that a gateway made, signed tokens.

Each canary is looked for as it is and as it may have been spelled: escaped, in an address, as Base64 at any place in a
longer text, as hexadecimal digits, in UTF-16.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from appliance.redact import spellings

MIN_CANARY = 12
"""Characters; a shorter one would be found by chance."""
FORMS = {
    "a key of ours": re.compile(rb"(?<![A-Za-z0-9])op-[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])"),
    "a signed token": re.compile(rb"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----"),
}
"""What no log, database or answer holds, whoever made it."""


class SecretFound(AssertionError):
    """A credential lies where none may be; the message names the place."""


def secrets_of(value: Any, env: Mapping[str, str]) -> Iterator[str]:
    """The secrets that settings lead to: every `{env: NAME}` and `{file: PATH}`, wherever it stands."""
    if isinstance(value, Mapping):
        if len(value) == 1 and isinstance(name := value.get("env"), str) and name in env:
            yield env[name].strip()
        elif len(value) == 1 and isinstance(path := value.get("file"), str) and Path(path).is_file():
            yield Path(path).read_text(encoding="utf-8").strip()
        else:
            for member in value.values():
                yield from secrets_of(member, env)
    elif isinstance(value, list):
        for member in value:
            yield from secrets_of(member, env)


class Hunt:
    """Gathers the places where a canary was found. `allowed`: names of files that hold secrets by design."""

    def __init__(
        self, canaries: Iterable[str], *, allowed: Iterable[str] = ("master.key",), forms: bool = False
    ) -> None:
        """forms: look for `FORMS` as well."""
        self._forms = forms
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
        if self._forms:
            for what, form in FORMS.items():
                if (match := form.search(data)) is not None:
                    self.hits.append(f"{place}: {what} at {match.start()}")

    def check(self) -> None:
        """Raises SecretFound."""
        if self.hits:
            raise SecretFound("; ".join(self.hits[:20]))
        if not self.looked_at:
            raise SecretFound("nothing was searched, so nothing is known")

    def file(self, path: Path) -> None:
        """Search one file, compressed ones too."""
        data = path.read_bytes()
        self.text(str(path), data)
        if data.startswith(b"\x1f\x8b"):
            try:
                self.text(f"{path} (unpacked)", gzip.decompress(data))
            except (OSError, EOFError, zlib.error):
                pass  # it only looks like one

    def folder(self, folder: Path, *, leave: Path | None = None) -> None:
        """Search every file below a folder. Sockets, pipes, `allowed` files and the folder `leave` are left out."""
        for path in sorted(folder.rglob("*")):
            if leave is not None and path.is_relative_to(leave):
                continue
            if path.is_file() and not path.is_symlink() and path.name not in self._allowed:
                self.file(path)
