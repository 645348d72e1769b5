"""Texts as attackers and hasty people write them: the same text in another spelling.

Attacks and honest texts are disguised alike, in equal shares, so that a disguise says nothing by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

_LEET = {"a": "4@", "e": "3", "i": "1!", "o": "0", "s": "5$", "t": "7+", "l": "1", "b": "8", "g": "9", "z": "2"}
_ALIKE = {
    "a": "аɑα", "c": "сϲ", "e": "еҽ", "i": "іι", "o": "оο", "p": "рρ", "s": "ѕ", "x": "хχ", "y": "уү", "n": "ո", "h": "һ",
    "k": "κ", "v": "ν", "u": "υս", "A": "АΑ", "B": "ВΒ", "E": "ЕΕ", "H": "НΗ", "I": "ІΙ", "K": "КΚ", "M": "МΜ", "O": "ОΟ",
    "P": "РΡ", "S": "Ѕ", "T": "ТΤ", "X": "ХΧ", "Y": "ΥҮ", "C": "С",
}  # fmt: skip
_KEYS = {
    "q": "wa", "w": "qes", "e": "wrd", "r": "etf", "t": "ryg", "y": "tuh", "u": "yij", "i": "uok", "o": "ipl", "p": "ol",
    "a": "qsz", "s": "adwx", "d": "sfec", "f": "dgrv", "g": "fhtb", "h": "gjyn", "j": "hkum", "k": "jlim", "l": "kop",
    "z": "xas", "x": "zcsd", "c": "xvdf", "v": "cbfg", "b": "vngh", "n": "bmhj", "m": "njk",
}  # fmt: skip


def leet(text: str, random: Random) -> str:
    share = random.choice((0.3, 0.6, 1.0))
    return "".join(
        random.choice(_LEET[c.lower()]) if c.lower() in _LEET and random.random() < share else c for c in text
    )


def look_alike(text: str, random: Random) -> str:
    share = random.choice((0.15, 0.4, 0.8))
    return "".join(random.choice(_ALIKE[c]) if c in _ALIKE and random.random() < share else c for c in text)


def invisible(text: str, random: Random) -> str:
    mark = random.choice("\u200b\u200c\u200d\u2060\ufeff\u00ad")
    return "".join(c + mark if c.isalpha() and random.random() < 0.4 else c for c in text)


def spaced(text: str, random: Random) -> str:
    """Letters drawn apart, all of them or those of some words."""
    between = random.choice((" ", " ", ".", "-", "_"))
    share = random.choice((0.4, 1.0))
    words = text.split(" ")
    apart = [between.join(word) if len(word) > 2 and random.random() < share else word for word in words]
    return ("  " if between == " " else " ").join(apart)


def upper(text: str, random: Random) -> str:
    return text.upper()


def lower(text: str, random: Random) -> str:
    return text.lower()


def odd_case(text: str, random: Random) -> str:
    return "".join(c.upper() if random.random() < 0.5 else c.lower() for c in text)


def typing_errors(text: str, random: Random) -> str:
    out: list[str] = []
    for c in text:
        roll = random.random()
        if c.isalpha() and roll < 0.04:
            kind = random.randrange(4)
            if kind == 0:
                continue
            if kind == 1:
                out.append(c)
            elif kind == 2 and c.lower() in _KEYS:
                c = random.choice(_KEYS[c.lower()])
            elif out:
                c, out[-1] = out[-1], c
        out.append(c)
    return "".join(out)


def no_marks(text: str, random: Random) -> str:
    """Without punctuation, as people type on a phone."""
    return "".join(c for c in text if c.isalnum() or c.isspace())


LIGHT: tuple[Callable[[str, Random], str], ...] = (
    upper,
    lower,
    lower,
    typing_errors,
    typing_errors,
    no_marks,
    odd_case,
)
HEAVY: tuple[Callable[[str, Random], str], ...] = (leet, look_alike, invisible, spaced)
