"""Secrets and personal data out of texts, by patterns. Pure, in time linear in the text.

A small net for what is written to the disk, not a guard: names, addresses and disguised spellings pass. Linear,
because every pattern begins where a word does and what follows is bounded or possessive: no start is tried twice
over the same characters without a bound.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address
from typing import Any

import msgspec

from appliance.redact import private_keys, redact_looks

Judge = Callable[[re.Match[str]], tuple[int, str] | None]
"""Where in the text the finding ends, and what stands for it; None: it is none."""

# --- personal data ----------------------------------------------------------------------------------

_HOST = r"@(?:[\w-]{1,63}\.){1,8}[\w-]{2,63}"
_EMAIL = re.compile(rf"(?<![\w.%+-])[\w.%+-]{{1,128}}+{_HOST}(?:[\w.%+-]{{1,128}}+{_HOST})*")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]){10,30}")
_CARD = re.compile(
    r"(?<![0-9])(?:[2-6][0-9]{3}(?:[ -]?[0-9]{4}){2}[ -]?[0-9]{1,4}(?:[ -]?[0-9]{1,3})?"
    r"|3[47][0-9]{2}[ -]?[0-9]{6}[ -]?[0-9]{5})"
)
_PHONE = re.compile(
    r"(?<![\w.+-])(?:"
    r"(?:\+|00)[1-9](?:[ ()./-]{0,2}[0-9]){6,14}(?![0-9])"
    r"|\(?[0-9]{3}\)?[ .-][0-9]{3}[ .-][0-9]{4}(?![0-9-])"
    r"|\(?0[0-9]{2,5}\)?[ /-]{1,3}[0-9]{3,8}(?:[ -][0-9]{2,5}){0,3}(?![0-9-])"
    r")"
)
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?<![\w.])(?:{_OCTET}\.){{3}}{_OCTET}(?![\w]|\.[0-9])")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9.]{7,15}|[0-9A-Fa-f]{0,4})(?![\w:])")

_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29,
    "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29,
    "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28,
    "HN": 28, "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20,
    "LB": 28, "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19,
    "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29,
    "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24,
    "SM": 27, "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20,
    "YE": 30,
}  # fmt: skip

_DATA_URL = re.compile(r"data:([\w.+/-]{0,80})(?:;[\w.=+-]{1,40}){0,4},[^\s\"'<>)]{64,}+")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{512,}={0,2}")
_PIECE = 16384
"""Characters."""
_SENTENCE = re.compile(r"[.!?}\])]\s(?=\s*+[A-Za-z{\[(])")


def redact_secrets(text: str) -> str:
    """`text` with keys, tokens, passwords and private keys replaced by `[SECRET]`; the same net as that of logs."""
    return redact_looks(text, "[SECRET]")


def redact_text(text: str) -> str:
    """`redact_secrets`, and e-mail addresses, IBANs, card and telephone numbers and network addresses replaced by
    their kind, `[EMAIL]` for example. What has become a placeholder stays one: redacting twice changes nothing."""
    if len(text) >= 64:
        text = _DATA_URL.sub(r"[DATA \1]", text)
        text = _BASE64.sub("[DATA]", text)
    if "PRIVATE KEY" in text:
        text = private_keys(text, "[PRIVATE_KEY]")
    return "".join(map(_redact_piece, _pieces(text)))


def _redact_piece(text: str) -> str:
    text = redact_secrets(text)
    if "@" in text:
        text = _EMAIL.sub("[EMAIL]", text)
    if _has_digit(text):
        text = _replace(text, _IBAN, _iban)
        text = _replace(text, _CARD, _card)
        text = _IPV4.sub("[IP]", text)
        text = _PHONE.sub("[PHONE]", text)
    if ":" in text:
        text = _replace(text, _IPV6, _ipv6)
    return text


def _pieces(text: str) -> Iterator[str]:
    """A long text in pieces, cut where no finding goes across: a pattern holds the interpreter's lock while it runs,
    and the event loop must get a turn between two."""
    at = 0
    while len(text) - at > 2 * _PIECE:
        end = _SENTENCE.search(text, at + _PIECE)
        if end is None:
            break
        yield text[at : end.start() + 1]
        at = end.start() + 1
    yield text[at:]


def redact_json(body: bytes, most: int) -> tuple[bytes, bool]:
    """A JSON body with every text value redacted; its structure and other values stay. A body that is no JSON is
    redacted as one text. Texts beyond `most` characters in all are left out before they are looked at, so that the
    time is bounded; True beside the result says that this happened."""
    budget = _Budget(most)
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return budget.text(body.decode("utf-8", "replace")).encode("utf-8", "replace"), budget.cut
    return msgspec.json.encode(_walk(value, budget)), budget.cut


class _Budget:
    __slots__ = ("cut", "left")

    def __init__(self, most: int) -> None:
        self.left = most
        self.cut = False

    def text(self, text: str) -> str:
        if len(text) > self.left:
            # A secret that the cut goes through would no longer be known as one: the last word goes as well.
            self.cut, text = True, text[: self.left]
            text = text[: max(text.rfind(" "), text.rfind("\n")) + 1]
            self.left = 0
        else:
            self.left -= len(text)
        return redact_text(text)


def _walk(value: Any, budget: _Budget) -> Any:
    if isinstance(value, str):
        return budget.text(value)
    if isinstance(value, dict):
        return {name: _walk(member, budget) for name, member in value.items()}
    if isinstance(value, list):
        return [_walk(item, budget) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and 10**12 <= value < 10**19 and _luhn(str(value)):
        return "[CARD]"
    return value


def _replace(text: str, pattern: re.Pattern[str], judge: Judge) -> str:
    """What `judge` finds, replaced. A candidate that is none is given up by one character only: what it swallowed
    may hold one. Candidates are short, so this stays linear."""
    parts: list[str] = []
    done = at = 0
    while (match := pattern.search(text, at)) is not None:
        found = judge(match)
        if found is None:
            at = match.start() + 1
            continue
        end, shown = found
        parts += (text[done : match.start()], shown)
        done = at = end
    return "".join((*parts, text[done:])) if parts else text


def _iban(match: re.Match[str]) -> tuple[int, str] | None:
    text = match[0]
    length = _IBAN_LENGTHS.get(text[:2].upper())
    if length is None:
        return None
    end, plain = _take(text, length)
    if len(plain) < length or _goes_on(match, end):
        return None
    number = "".join(str(int(char, 36)) for char in plain[4:] + plain[:4])
    return (match.start() + end, "[IBAN]") if int(number) % 97 == 1 else None


def _card(match: re.Match[str]) -> tuple[int, str] | None:
    """The longest beginning with 13 to 19 digits and a right check digit: what follows a card may be digits too."""
    plain, ends = "", []
    for at, char in enumerate(match[0], 1):
        if char.isdigit():
            plain += char
            ends.append(at)
    for length in range(len(plain), 12, -1):
        if _luhn(plain[:length]) and not _goes_on(match, ends[length - 1]):
            return match.start() + ends[length - 1], "[CARD]"
    return None


def _ipv6(match: re.Match[str]) -> tuple[int, str] | None:
    try:
        address = IPv6Address(match[0])
    except ValueError:
        return None
    return None if int(address) == 0 else (match.end(), "[IP]")


def _take(text: str, count: int) -> tuple[int, str]:
    """The first `count` letters and digits, and where they end."""
    plain = ""
    for at, char in enumerate(text):
        if char.isalnum():
            plain += char
            if len(plain) == count:
                return at + 1, plain
    return len(text), plain


def _goes_on(match: re.Match[str], end: int) -> bool:
    """Whether a letter or digit follows at once, so that this is only the beginning of something else."""
    following = match.string[match.start() + end : match.start() + end + 1]
    return following.isascii() and following.isalnum()


def _luhn(digits: str) -> bool:
    if digits[0] not in "23456" or digits == digits[0] * len(digits):
        return False
    return (sum(map(int, digits[-1::-2])) + sum(map(_DOUBLED.__getitem__, digits[-2::-2]))) % 10 == 0


_DOUBLED = {str(digit): digit * 2 % 10 + digit * 2 // 10 for digit in range(10)}
_DIGIT = re.compile(r"[0-9]")


def _has_digit(text: str) -> bool:
    return _DIGIT.search(text) is not None
