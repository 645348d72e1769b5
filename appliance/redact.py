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
    (r"gl(?:pat|dt|rt|ptt)-", 20, 20),
    (r"hf_", 20, 34),
    (r"xox[abeoprs]-", 16, 24),
    (r"xapp-", 16, 24),
    (r"A(?:KI|SI|BI|CC)A(?=[A-Z0-9]{12})", 16, None),
    (r"gsk_", 20, 40),
    (r"xai-", 20, 40),
    (r"r8_", 20, 37),
    (r"pplx-", 20, 40),
    (r"nvapi-", 20, 40),
    (r"[srp]k_(?:live|test)_", 18, 30),
    (r"whsec_", 26, 30),
    (r"npm_", 34, 40),
    (r"pypi-", 35, 40),
    (r"dop_v1_", 47, 47),
    (r"SG\.(?=[A-Za-z0-9_-]{16,32}\.)", 36, None),
)
_MARK = re.compile("|".join(f"({prefix})" for prefix, _, _ in _LOOKS))
_ESCAPED = re.compile(r"%[0-9A-Fa-f]{2}")
_DONE = r"(?!\[(?:redacted|SECRET)\])"
"""What stands in a secret's place already is none."""
_BEARER = re.compile(
    r"(?i)(?<![A-Za-z0-9])((?:bearer|basic|negotiate)(?:[ \t:=]|%20){1,8})"
    # A word of a sentence is neither long nor has it digits.
    r"(?=[A-Za-z._~+/-]*+[0-9=%]|[A-Za-z._~+/-]{20})[A-Za-z0-9._~+/=%-]{8,}+"
)
_NAMED = re.compile(
    r"(?i)((?<![A-Za-z0-9])(?:authorization|x[-_]api[-_]key|api[-_]?key|password|passwd|passphrase|pwd|client[-_]?secret"
    r"|secret|(?:access|account|secret|private)[-_]?key|(?:access|refresh|id|session|auth)[-_]?token|code[-_]verifier)"
    r"(?:(?:\\{0,3}[\"'])?[ \t]{0,4}[:=]|[\"'],)[ \t]{0,4}(?:b?\\{0,3}[\"'])?"
    r"(?:(?:basic|bearer|digest|negotiate|token)[ ]{1,4})?+)" + _DONE + r"[^\s\"',;&\\]{4,}+"
)
_COOKIE = re.compile(
    r"(?i)((?<![A-Za-z0-9])(?:set-)?cookie[\"']?[ \t]{0,4}[:=,][ \t]{0,4}(?:b?[\"'])?)"
    + _DONE
    + r"[^\s;\"'\\]++(?:;[ \t]{0,4}[^\s;\"'\\]++)*+"
)
_USER = re.compile(r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]{1,30}://)[^\s/:@\"'<>]{0,256}:[^\s\"'<>]{1,512}@")
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_PRIVATE_KEY_END = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_PREFIXES = (
    "op-", "op%2", "sk-", "eyJ", "AIza", "ya29.", "gh", "github_", "gl", "hf_", "xox", "xapp-", "AKIA", "ASIA", "ABIA",
    "ACCA", "gsk_", "xai-", "r8_", "pplx-", "nvapi-", "k_live_", "k_test_", "whsec_", "npm_", "pypi-", "dop_v1_", "SG.",
)  # fmt: skip
"""One of these is in everything that looks like a key."""
_ASSIGNED = re.compile(
    r"(?:authorization|key|password|passwd|passphrase|pwd|secret|token|verifier|cookie)\\{0,3}[\"']?[ \t]{0,4}[:=,]"
)
"""This is in everything that `_NAMED` and `_COOKIE` find, in lower case."""

SENSITIVE = re.compile(
    r"(?i)(?:^|[-_])(?:authorization|cookie|password|passwd|secret|credential|credentials|api[-_]?key|token)$"
)
"""Names of fields whose values are never told."""


def redact_looks(text: str, mark: str = REDACTED) -> str:
    """The text without what looks like a credential. `mark` stands in its place: `[redacted]` or `[SECRET]`."""
    text = redact_keys(text, mark)
    lower = text.lower()
    # Looking for a pattern costs far more than looking for what must be in it.
    if _ASSIGNED.search(lower) is not None:
        text = _NAMED.sub(rf"\1{mark}", text)
        if "cookie" in lower:
            text = _COOKIE.sub(rf"\1{mark}", text)
    return text


def redact_keys(text: str, mark: str = REDACTED) -> str:
    """The same for our own messages, in which `password: ` is followed by what is wrong with it: only what is a
    credential by itself goes."""
    if "PRIVATE KEY" in text:
        text = private_keys(text, mark)
    if "://" in text and "@" in text:
        text = _USER.sub(rf"\1{mark}@", text)
    if any(prefix in text for prefix in _PREFIXES):
        text = _RUN.sub(lambda match: _run(match[0], mark), text)
    lower = text.lower()
    if "bearer" in lower or "basic" in lower or "negotiate" in lower:
        text = _BEARER.sub(rf"\1{mark}", text)
    return text


def looks_secret(text: str) -> bool:
    """Whether a name holds what looks like a credential: it must not become one that is shown and kept."""
    return redact_looks(text) != text


def shown(text: str, most: int) -> str:
    """A caller's words as a message may quote them: redacted before they are cut, as half a key is known by nobody."""
    # What is far beyond the cut cannot matter; a run that goes across it is whole enough to be known.
    text = redact_looks(text[: 8 * most + 4096])
    return text if len(text) <= most else text[:most] + "…"


def _run(run: str, mark: str) -> str:
    for found in _MARK.finditer(run):
        at = found.start()
        _, bounded, anywhere = _LOOKS[(found.lastindex or 1) - 1]
        alone = at == 0 or not run[at - 1].isalnum() or _ESCAPED.match(run, at - 3) is not None
        least = bounded if alone else anywhere
        if least is not None and len(run) - at >= least:
            return run[:at] + mark
    return run


def private_keys(text: str, mark: str = REDACTED) -> str:
    """The text without private keys in PEM. Without an end all the rest of the text belongs to one."""
    kept, at = [], 0
    while (begin := _PRIVATE_KEY.search(text, at)) is not None:
        kept += [text[at : begin.start()], mark]
        end = _PRIVATE_KEY_END.search(text, begin.end())
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
