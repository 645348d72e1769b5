"""The readings of a text that are judged besides the text itself: cleaned of tricks of writing, and decoded.

A model that reads a message will read its base64, its drawn-apart letters and its look-alikes as well, so each of them
that turns out to be text is judged as one. Every step is linear in the length of the text.
"""

from __future__ import annotations

import base64
import codecs
import html
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

MOST_VIEWS = 8
"""At most so many readings of one text, the cleaned one included."""
MOST_LAYERS = 3
"""At most so many encodings one within the other."""

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
_COMMON = frozenset([
    "the", "of", "and", "to", "in", "is", "you", "that", "it", "for", "on", "are", "with", "as", "this", "be", "at",
    "have", "from", "or", "not", "your", "what", "all", "can", "do", "ignore", "system", "prompt", "instructions",
    "instruction", "previous", "rules", "password", "secret", "tell", "me", "now", "print", "reveal", "say", "send",
    "email", "write", "follow", "please", "new", "der", "die", "und", "das", "ist", "nicht", "den", "von", "mit",
    "le", "la", "les", "des", "et", "est", "que", "de", "el", "los", "en", "un", "una", "por", "il", "che", "di",
    "per", "non", "een", "het", "van",
])  # fmt: skip


@dataclass(frozen=True, slots=True)
class View:
    """One reading of a text, and how it was got."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Level:
    """A text without tricks of writing, and where each of its characters comes from in the raw one."""

    text: str
    origins: list[int] | None = None
    """The place in the raw text of each character; None where every place is the same."""

    def raw(self, start: int, end: int) -> tuple[int, int]:
        """The place in the raw text of characters `start` to `end` (exclusive, at least one)."""
        return (start, end) if self.origins is None else (self.origins[start], self.origins[end - 1] + 1)


# Letters and marks that show nothing although their category does not say so.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_WORD = re.compile(r"[^\W\d_]+")


@lru_cache(maxsize=4096)
def _plain(letter: str) -> str:
    """What one character stands for; nothing where it is invisible."""
    if "\U000e0020" <= letter <= "\U000e007e":
        return chr(ord(letter) - 0xE0000)
    return "".join(filter(None, map(_shown, unicodedata.normalize("NFKC", letter))))


def _shown(letter: str) -> str:
    if letter in "\n\r\t":
        return letter
    category = unicodedata.category(letter)
    if category == "Cc":
        # A vertical tab, a form feed or a next line parts two words.
        return " " if letter.isspace() else ""
    return "" if category in ("Cf", "Co", "Cn", "Me") or letter in _BLANK else letter


def level(text: str) -> Level:
    """`text` with every character as the plain ones it stands for (wide digits, thin spaces, tag characters, letters of
    a fancy alphabet), without invisible characters and with look-alikes folded."""
    if text.isascii() and not _CONTROL.search(text):
        return Level(text)
    letters = set(text)
    changed = {letter: plain for letter in letters if (plain := _plain(letter)) != letter}
    origins: list[int] | None = None
    if changed:
        if any(len(plain) != 1 for plain in changed.values()):
            origins = []
            for place, letter in enumerate(text):
                origins.extend([place] * len(changed.get(letter, letter)))
        text = text.translate({ord(letter): plain for letter, plain in changed.items()})
        letters = set(text)
    if any(ord(letter) in _ALIKE for letter in letters):
        text = _WORD.sub(_folded_word, text)
    return Level(text, origins)


def cleaned(text: str) -> str:
    """The text of `level`, its letters composed with their accents."""
    return unicodedata.normalize("NFC", level(text).text)


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


_BROKEN = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd]+")
LEAST_PART = 16
"""Characters of readable text between unreadable bytes that are worth a look."""


def _readable(data: bytes) -> str | None:
    """The text that `data` is, or the longest text within it; None where there is none."""
    half = len(data) // 2
    if half and data[1::2].count(0) > 0.7 * half:
        decoded = data.decode("utf-16-le", "replace")
    elif half and data[::2].count(0) > 0.7 * half:
        decoded = data.decode("utf-16-be", "replace")
    else:
        decoded = data.decode("utf-8", "replace")
    parts = _BROKEN.split(decoded)
    text = cleaned("".join(parts))
    # A few broken characters are no reason not to read the rest.
    if len(decoded) - sum(map(len, parts)) <= 1 + 0.05 * len(decoded) and _is_prose(text, 6):
        return text
    text = cleaned(max(parts, key=len))
    return text if len(parts) > 1 and _is_prose(text, LEAST_PART) else None


def _is_prose(text: str, least: int) -> bool:
    letters = sum(letter.isalpha() or letter == " " for letter in text)
    shown = sum(letter.isprintable() or letter in "\n\r\t" for letter in text)
    return len(text) >= least and shown >= 0.95 * len(text) and letters >= 0.7 * len(text)


# In each of these what is repeated can be read in one way only: a separator is never also a letter or a digit.
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}")
_HEX = re.compile(
    r"(?:[0-9A-Fa-f]{2}[ :,]?){8,}(?:(?<=[0-9A-Fa-f])[0-9A-Fa-f])?"
    r"|(?:\\x[0-9A-Fa-f]{2}){4,}|(?:0x[0-9A-Fa-f]{2}[ ,]{0,2}){6,}"
)
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]{2,12});")
_ESCAPES = re.compile(r"(?:\\u[0-9A-Fa-f]{4}|\\u\{[0-9A-Fa-f]{1,6}\}|\\U[0-9A-Fa-f]{8})+")
_APART = re.compile(r"(?<![^\W_])(?:[^\W_][ .\-_*|]{1,2}){3,}[^\W_](?![^\W_])")
_BINARY = re.compile(r"(?:[01]{8}[ ,]?){6,}")
_DIGITS = re.compile(r"(?:\b\d{2,3}[ ,]{1,2}){8,}\d{2,3}\b")
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{6,}")


def _base64(text: str) -> str:
    def undone(match: re.Match[str]) -> str:
        run = match[0].rstrip("=").replace("-", "+").replace("_", "/")
        # Letters that stand right before it move the groups of four.
        for skipped in range(4):
            part = run[skipped : len(run) - ((len(run) - skipped) % 4 == 1)]
            found = _readable(base64.b64decode(part + "=" * (-len(part) % 4)))
            if found is not None:
                return found
        return match[0]

    return _BASE64.sub(undone, text)


def _hex(text: str) -> str:
    def undone(match: re.Match[str]) -> str:
        digits = re.sub(r"0x|\\x|[^0-9A-Fa-f]", "", match[0])
        for skipped in range(2):
            found = _readable(bytes.fromhex(digits[skipped : len(digits) - (len(digits) - skipped) % 2]))
            if found is not None:
                return found
        return match[0]

    return _HEX.sub(undone, text)


def _numbers(text: str) -> str:
    def bits(match: re.Match[str]) -> str:
        digits = re.sub(r"[^01]", "", match[0])
        return _readable(bytes(int(digits[i : i + 8], 2) for i in range(0, len(digits) // 8 * 8, 8))) or match[0]

    def codes(match: re.Match[str]) -> str:
        found = [int(part) for part in re.split(r"[ ,]+", match[0]) if part]
        return (_readable(bytes(found)) if all(code < 256 for code in found) else None) or match[0]

    return _DIGITS.sub(codes, _BINARY.sub(bits, text))


def _selectors(text: str) -> str:
    """Variation selectors 1 to 256, which show nothing, read as the bytes 0 to 255."""

    def undone(match: re.Match[str]) -> str:
        codes = map(ord, match[0])
        return _readable(bytes(code - 0xFE00 if code < 0xE0100 else code - 0xE0100 + 16 for code in codes)) or match[0]

    return _SELECTORS.sub(undone, text)


def _unescaped(match: re.Match[str]) -> str:
    codes = [int(code, 16) for code in re.findall(r"[0-9A-Fa-f]+", match[0])]
    found = "".join(chr(code) for code in codes if code <= 0x10FFFF)
    # JSON writes what is beyond U+FFFF as a pair of surrogates.
    return found.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _escapes(text: str) -> str:
    text = _ESCAPES.sub(_unescaped, text)
    # One at a time: a number of thousands of digits elsewhere in the text is more than Python reads.
    text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
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
        # No word is so long; it is rather an encoding.
        if len(word) > 40 or not letters or letters == len(word) or (letters < 2 and len(word) > 4):
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


# Each undoes what it finds in parts of a text, so all of them can be applied to one text, one after the other.
_PARTS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("selectors", _selectors),
    ("base64", _base64),
    ("hex", _hex),
    ("numbers", _numbers),
    ("escapes", _escapes),
    ("spaced", _together),
)
# These change a text as a whole, also what another decoder could read.
_WHOLE: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("leetspeak", _if_clearer(_unleet, factor=1.0)),
    ("rot13", _if_clearer(lambda text: codecs.encode(text, "rot13"), factor=2.0, least=0.15)),
    ("reversed", _if_clearer(lambda text: text[::-1], factor=2.0, least=0.15)),
)


def views(text: str) -> list[View]:
    """The readings of `text` that are worth a verdict: the cleaned one first, at most `MOST_VIEWS`, no two the same."""
    found = [View("clean", cleaned(text))]
    # Decoders that find something side by side are applied together, layer by layer: harmless decoys take no places
    # from what they hide.
    layers = [*found, *_layers(found[0])]
    found = layers[:]
    # The deepest one has most of what is hidden.
    for layer in reversed(layers):
        for whole in _changed(layer, _WHOLE):
            found += [whole, *_layers(whole)]
    if len(layers) > 1:
        # A decoder may also spoil what another one found.
        found += _changed(layers[0], _PARTS)
    kept: dict[str, View] = {}
    for view in found:
        kept.setdefault(view.text, view)
    return list(kept.values())[:MOST_VIEWS]


def _named(view: View, kind: str, text: str) -> View:
    return View(kind if view.kind == "clean" else f"{view.kind}+{kind}", cleaned(text))


def _layers(view: View) -> Iterator[View]:
    """`view` with all that the decoders of parts find, then with what they find in that, at most `MOST_LAYERS`."""
    for _ in range(MOST_LAYERS):
        before = view
        for kind, decode in _PARTS:
            if (text := decode(view.text)) != view.text:
                view = _named(view, kind, text)
        if view.text == before.text:
            return
        yield view


def _changed(view: View, decoders: Sequence[tuple[str, Callable[[str], str]]]) -> Iterator[View]:
    for kind, decode in decoders:
        if (text := decode(view.text)) != view.text:
            yield _named(view, kind, text)
