"""Credentials out of texts, before the texts reach any sink. Pure but for the list of secrets that are known.

Two nets: the exact values of the secrets that the settings lead to, in the spellings that they may be met in, and the
looks of credentials. Every step is linear in the length of the text, whatever it holds.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

REDACTED = "[redacted]"
MIN_SECRET = 8
"""Characters; a shorter value ("none", "EMPTY") is a word that texts have for other reasons."""
_MIN_ENCODED = 16
_CACHED = 1024

# A run is taken whole, so that no character is looked at from more than one start.
_RUN = re.compile(r"[A-Za-z0-9_.%\-]{12,}")
_LOOKS: tuple[tuple[str, int, int | None], ...] = (
    # prefix, least length of the whole after a boundary, least length anywhere
    (r"op(?:-|%2[Dd])", 15, 43),
    (r"sk-", 16, 43),
    (r"eyJ", 20, 20),
    (r"AIza", 30, 35),
    (r"ya29\.", 24, 24),
    (r"gh[opsur]_", 24, 24),
    (r"github_pat_", 24, 24),
    (r"glpat-", 20, 20),
    (r"hf_", 20, 34),
    (r"xox[abeoprs]-", 16, 24),
    (r"(?:AKIA|ASIA)", 16, None),
    (r"gsk_", 20, 40),
    (r"xai-", 20, 40),
    (r"r8_", 20, 37),
    (r"pplx-", 20, 40),
    (r"nvapi-", 20, 40),
)
_MARK = re.compile("|".join(f"({prefix})" for prefix, _, _ in _LOOKS))
_BEARER = re.compile(r"(?i)(bearer|basic|negotiate)((?:[ \t:=]|%20){1,8})[A-Za-z0-9._~+/=%-]{8,}")
_NAMED = re.compile(
    r"(?i)((?<![A-Za-z0-9])(?:authorization|x[-_]api[-_]key|api[-_]?key|password|passwd|client[-_]secret|secret"
    r"|(?:access|refresh|id|session)[-_]token|code[-_]verifier)"
    r"(?:(?:\\{0,3}[\"'])?[ \t]{0,4}[:=]|[\"'],)[ \t]{0,4}(?:b?\\{0,3}[\"'])?)"
    r"((?:basic|bearer|digest|negotiate)[ ]{1,4})?[^\s\"',;&}\])\\]{4,}"
)
_COOKIE = re.compile(
    r"(?i)((?<![A-Za-z0-9])(?:set-)?cookie[\"']?[ \t]{0,4}[:=,][ \t]{0,4}(?:b?[\"'])?)[^\r\n\"'\\]{4,}"
)
_USER = re.compile(r"(://[^\s/@:\"']*:)[^\s/@\"']+@")
_PEM = re.compile(r"-----BEGIN [A-Z ]{0,24}PRIVATE KEY-----")
_PEM_END = re.compile(r"-----END [A-Z ]{0,24}PRIVATE KEY-----")

SENSITIVE = re.compile(
    r"(?i)(?:^|[-_])(?:authorization|cookie|password|passwd|secret|credential|credentials|api[-_]?key|token)$"
)
"""Names of fields whose values are never told."""


def redact_looks(text: str) -> str:
    """The text without what looks like a credential."""
    text = _RUN.sub(_run, text)
    text = _BEARER.sub(rf"\1\2{REDACTED}", text)
    text = _NAMED.sub(rf"\1\2{REDACTED}", text)
    text = _COOKIE.sub(rf"\1{REDACTED}", text)
    if "://" in text:
        text = _USER.sub(rf"\1{REDACTED}@", text)
    return _private_keys(text) if "PRIVATE KEY" in text else text


def _run(match: re.Match[str]) -> str:
    run = match[0]
    for mark in _MARK.finditer(run):
        at = mark.start()
        _, bounded, anywhere = _LOOKS[(mark.lastindex or 1) - 1]
        least = bounded if at == 0 or not run[at - 1].isalnum() else anywhere
        if least is not None and len(run) - at >= least:
            return run[:at] + REDACTED
    return run


def _private_keys(text: str) -> str:
    kept, at = [], 0
    while (begin := _PEM.search(text, at)) is not None:
        kept += [text[at : begin.start()], REDACTED]
        end = _PEM_END.search(text, begin.end())
        at = len(text) if end is None else end.end()
    return "".join([*kept, text[at:]])


def spellings(secret: str) -> Iterator[str]:
    """How a secret may be met in a text: as it is, escaped, in an address, as Base64 (whatever stands before it), as
    hexadecimal digits."""
    yield secret
    yield repr(secret)[1:-1]
    yield json.dumps(secret)[1:-1]
    yield json.dumps(secret, ensure_ascii=False)[1:-1]
    yield quote(secret, safe="", errors="surrogatepass")
    yield quote_plus(secret, errors="surrogatepass")
    raw = secret.encode("utf-8", "surrogatepass")
    yield repr(raw)[2:-1]
    if len(raw) >= _MIN_ENCODED:
        yield raw.hex()
        for before in range(3):
            first, last = (before * 8 + 5) // 6, (before + len(raw)) * 8 // 6
            yield base64.b64encode(bytes(before) + raw).decode()[first:last]
            yield base64.urlsafe_b64encode(bytes(before) + raw).decode()[first:last]


class Secrets:
    """The secrets of one process, to be kept out of all that it tells. Safe to use from any thread."""

    def __init__(self) -> None:
        self._spellings: tuple[str, ...] = ()
        self._cache: dict[str, str] = {}

    def add(self, secret: str) -> None:
        """Never tell this text. One that is too short to be told apart from words is ignored."""
        if len(secret) < MIN_SECRET:
            return
        found = {*self._spellings, *spellings(secret)}
        # The longest first: a secret may hold another one. Replaced whole, for readers in other threads.
        self._spellings = tuple(sorted(found, key=lambda each: (-len(each), each)))
        self._cache = {}

    def redact(self, text: str) -> str:
        """The text without credentials."""
        for spelling in self._spellings:
            if spelling in text:
                text = text.replace(spelling, REDACTED)
        return redact_looks(text)

    def redact_again(self, text: str) -> str:
        """The same for short texts that come again and again (paths, names): remembered."""
        cache = self._cache
        found = cache.get(text)
        if found is None:
            found = self.redact(text)
            if len(cache) >= _CACHED:
                cache.clear()
            cache[text] = found
        return found
