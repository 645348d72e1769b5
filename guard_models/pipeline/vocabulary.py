"""The base model's vocabulary with letters that it lacks: Chinese above all, of which it can read a third.

BERT's vocabulary has nearly a thousand entries that nobody uses. They become the characters that are most often unknown
in the rows that train, so the network stays as large as it was; what they mean is learned from those rows alone.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

UNUSED = re.compile(r"^\[unused\d+\]$")


def _alone(letter: str) -> bool:
    """Whether BERT's tokenizer makes a word of each such letter: CJK ideographs."""
    return any(
        low <= ord(letter) <= high
        for low, high in ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2CEAF), (0xF900, 0xFAFF))
    )


def normalised(text: str) -> str:
    """As BERT's normaliser leaves it: lower case, decomposed, without marks."""
    return "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")


def missing_letters(texts: Iterable[str], known: Mapping[str, int]) -> list[str]:
    """Entries that would make unknown letters of `texts` known, the most wanted first. A letter that stands within
    words needs two: at a word's beginning, and after it (`##`)."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(letter for letter in normalised(text) if letter.isalpha() and ord(letter) > 0x24F)
    wanted: Counter[str] = Counter()
    for letter, count in counts.items():
        if letter not in known:
            wanted[letter] = count
        if not _alone(letter) and f"##{letter}" not in known:
            wanted[f"##{letter}"] = count
    # Once is no pattern; equal counts are put in an order that is the same everywhere.
    return [entry for entry, count in sorted(wanted.items(), key=lambda item: (-item[1], item[0])) if count > 1]


def extended(tokenizer: dict[str, Any], texts: Iterable[str]) -> tuple[dict[str, Any], list[int]]:
    """`tokenizer` (the content of a tokenizer.json) with unused entries given to missing letters; and their numbers."""
    vocabulary: dict[str, int] = dict(tokenizer["model"]["vocab"])
    free = sorted((number, name) for name, number in vocabulary.items() if UNUSED.match(name))
    new: list[int] = []
    for (number, name), entry in zip(free, missing_letters(texts, vocabulary), strict=False):
        del vocabulary[name]
        vocabulary[entry] = number
        new.append(number)
    ordered = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    return {**tokenizer, "model": {**tokenizer["model"], "vocab": ordered}}, new


def write_tokenizer(base: Path, folder: Path, texts: Iterable[str]) -> list[int]:
    """Write `folder`/tokenizer.json, the base's extended by what `texts` need; the numbers of the new entries."""
    made, new = extended(json.loads((base / "tokenizer.json").read_text(encoding="utf-8")), texts)
    made["truncation"] = made["padding"] = None
    # A longer run of letters would be one unknown word: whole sentences of languages without spaces, and attacks glued.
    made["model"]["max_input_chars_per_word"] = 2000
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    return new
