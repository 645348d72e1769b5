"""The readings of a text that are judged besides the text itself: cleaned of tricks of writing, and decoded.

A model that reads a message will read its base64, its drawn-apart letters and its look-alikes as well, so each of them
that turns out to be text is judged as one. Every step is linear in the length of the text.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MOST_VIEWS = 8
"""At most so many readings of one text, the cleaned one included."""

# Letters of other scripts that are drawn like Latin ones; only what is common enough to be used for tricks.
_ALIKE = dict(
    zip(
        map(ord, "аеорсухіѕјһԁԛԝɑοαικρυχνγτωϲϳҽոսօɡАВЕЅІЈКМНОРСТУХҮΑΒΕΖΗΙΚΜΝΟΡΤΥΧ"),
        "aeopcyxisjhdqwaoaikpuxvytwcjenuogABESIJKMHOPCTYXYABEZHIKMNOPTYX",
        strict=True,
    )
)
_LEET = dict(zip(map(ord, "4@301!5$7+8|"), "aaeoiissttbl", strict=True))
# Common words of Latin-script languages: whether a decoding made sense is told by them.
_COMMON = frozenset(
    [
        "the",
        "of",
        "and",
        "to",
        "in",
        "is",
        "you",
        "that",
        "it",
        "for",
        "on",
        "are",
        "with",
        "as",
        "this",
        "be",
        "at",
        "have",
        "from",
        "or",
        "not",
        "your",
        "what",
        "all",
        "can",
        "do",
        "ignore",
        "system",
        "prompt",
        "instructions",
        "instruction",
        "previous",
        "rules",
        "password",
        "secret",
        "tell",
        "me",
        "now",
        "print",
        "reveal",
        "say",
        "send",
        "email",
        "email",
        "write",
        "follow",
        "please",
        "new",
        "der",
        "die",
        "und",
        "das",
        "ist",
        "nicht",
        "den",
        "von",
        "mit",
        "le",
        "la",
        "les",
        "des",
        "et",
        "est",
        "que",
        "de",
        "el",
        "los",
        "en",
        "un",
        "una",
        "por",
        "il",
        "che",
        "di",
        "per",
        "non",
        "een",
        "het",
        "van",
    ]
)


@dataclass(frozen=True, slots=True)
class View:
    """One reading of a text, and how it was got."""

    kind: str
    text: str


def _invisible(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cf", "Cc", "Co", "Cn") and letter not in "\n\r\t"


def cleaned(text: str) -> str:
    """NFKC, without invisible characters, with tag characters as the ASCII they stand for and look-alikes folded."""
    if text.isascii() and not any(letter < " " and letter not in "\n\r\t" for letter in text):
        return text
    tagged = "".join(chr(ord(c) - 0xE0000) if "\U000e0020" <= c <= "\U000e007e" else c for c in text)
    plain = "".join(c for c in unicodedata.normalize("NFKC", tagged) if not _invisible(c))
    return re.sub(r"[^\W\d_]+", _folded_word, plain)


def _script(letter: str) -> str:
    if letter.isascii() or "\u00c0" <= letter <= "\u024f":
        return "latin"
    if "\u0370" <= letter <= "\u03ff":
        return "greek"
    return "cyrillic" if "\u0400" <= letter <= "\u052f" else "other"


def _folded_word(match: re.Match[str]) -> str:
    """A word of mixed scripts is Latin in disguise; one of a single script is a word of that language."""
    word = match[0]
    if word.isascii() or len({_script(letter) for letter in word}) < 2:
        return word
    return word.translate(_ALIKE)


def _sense(text: str) -> float:
    """The share of common words among the words of `text`."""
    words = re.findall(r"[^\W\d_]+", text.lower())[:400]
    return sum(word in _COMMON for word in words) / len(words) if words else 0.0


def _readable(data: bytes) -> str | None:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    shown = sum(letter.isprintable() or letter in "\n\r\t" for letter in text)
    letters = sum(letter.isalpha() or letter == " " for letter in text)
    return text if len(text) >= 6 and shown == len(text) and letters >= 0.7 * len(text) else None


_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}")
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2}[ :,]?){8,}|(?:\\x[0-9A-Fa-f]{2}){4,}|(?:0x[0-9A-Fa-f]{2}[ ,]{0,2}){6,}")
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]{2,12});")
_ESCAPE = re.compile(r"\\u[0-9A-Fa-f]{4}")
_APART = re.compile(r"(?<!\w)(?:\w[ .\-_*|]{1,2}){3,}\w(?!\w)")
_BINARY = re.compile(r"(?:[01]{8}[ ,]?){6,}")
_DIGITS = re.compile(r"(?:\b\d{2,3}[ ,]{1,2}){8,}\d{2,3}\b")


def _base64(text: str) -> str | None:
    def undone(match: re.Match[str]) -> str:
        run = match[0].rstrip("=").replace("-", "+").replace("_", "/")
        for cut in range(min(3, len(run))):
            shorter = run[: len(run) - cut]
            try:
                if (found := _readable(base64.b64decode(shorter + "=" * (-len(shorter) % 4)))) is not None:
                    return found
            except (binascii.Error, ValueError):
                continue
        return match[0]

    return _BASE64.sub(undone, text)


def _hex(text: str) -> str:
    def undone(match: re.Match[str]) -> str:
        digits = re.sub(r"0x|\\x|[^0-9A-Fa-f]", "", match[0])
        return _readable(bytes.fromhex(digits[: len(digits) // 2 * 2])) or match[0]

    return _HEX.sub(undone, text)


def _numbers(text: str) -> str:
    def bits(match: re.Match[str]) -> str:
        digits = re.sub(r"[^01]", "", match[0])
        return _readable(bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits) // 8 * 8, 8))) or match[0]

    def codes(match: re.Match[str]) -> str:
        found = [int(part) for part in re.split(r"[ ,]+", match[0]) if part]
        return (_readable(bytes(found)) if all(code < 256 for code in found) else None) or match[0]

    return _DIGITS.sub(codes, _BINARY.sub(bits, text))


def _escapes(text: str) -> str:
    text = _ESCAPE.sub(lambda match: chr(int(match[0][2:], 16)), text)
    if _ENTITY.search(text):
        text = html.unescape(text)
    if len(_PERCENT.findall(text)) >= 3:
        text = urllib.parse.unquote(text, errors="replace")
    return text


def _together(text: str) -> str:
    """`i g n o r e` to `ignore`; words drawn apart side by side are parted by their wider gaps."""

    def undone(match: re.Match[str]) -> str:
        words = re.split(r" {2,}", match[0])
        return " ".join(re.sub(r"[ .\-_*|]", "", word) for word in words)

    return _APART.sub(undone, text)


def _unleet(text: str) -> str:
    def undone(match: re.Match[str]) -> str:
        word = match[0]
        letters = sum(letter.isalpha() for letter in word)
        if not letters or letters == len(word) or (letters < 2 and len(word) > 4):
            return word
        return word.translate(_LEET).rstrip("i") if word.endswith("!") else word.translate(_LEET)

    return re.sub(r"[\w@$!+|]{2,}", undone, text)


def _if_clearer(change: Callable[[str], str], *, factor: float, least: float = 0.0) -> Callable[[str], str]:
    """`change`, kept only where the share of common words grows by `factor` and to at least `least`."""

    def changed(text: str) -> str:
        if len(text) < 8:
            return text
        after = change(text)
        if after == text:
            return text
        clearer = _sense(after)
        return after if clearer >= least and clearer > factor * _sense(text) else text

    return changed


_DECODERS: tuple[tuple[str, Callable[[str], str | None]], ...] = (
    ("base64", _base64),
    ("hex", _hex),
    ("numbers", _numbers),
    ("escapes", _escapes),
    ("spaced", _together),
    ("leetspeak", _if_clearer(_unleet, factor=1.0)),
    ("rot13", _if_clearer(lambda text: codecs.encode(text, "rot13"), factor=2.0, least=0.15)),
    ("reversed", _if_clearer(lambda text: text[::-1], factor=2.0, least=0.15)),
)


def views(text: str) -> list[View]:
    """The readings of `text` that are worth a verdict: the cleaned one first, at most `MOST_VIEWS`, no two the same."""
    first = View("clean", cleaned(text))
    found = [first]
    seen = {first.text}
    at = 0
    # What was decoded may hide another layer.
    while at < len(found) and len(found) < MOST_VIEWS:
        for view in _decoded(found[at]):
            if view.text not in seen and len(found) < MOST_VIEWS:
                seen.add(view.text)
                found.append(view)
        at += 1
    return found


def _decoded(view: View) -> Iterator[View]:
    for kind, decode in _DECODERS:
        text = decode(view.text)
        if text is not None and text != view.text:
            yield View(kind if view.kind == "clean" else f"{view.kind}+{kind}", cleaned(text))
