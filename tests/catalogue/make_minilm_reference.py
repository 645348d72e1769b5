"""Writes minilm_reference.json: run by hand when the texts change, never by the tests.

    python tests/catalogue/make_minilm_reference.py FOLDER     (the unpacked model: model.safetensors, tokenizer.json)

The token ids are those of the `tokenizers` library with the model's own tokenizer.json; the vectors come from the
float64 forward pass over the original weights. Neither has seen our converter or llama.cpp.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import numpy as np
import tokenizers
from numpy_bert import NumpyBert

TEXTS = [
    "This is an example sentence",
    "Each sentence is converted",
    "A man is eating food.",
    "Someone is having a meal.",
    "The stock market fell sharply on Monday.",
    "How do I reset my password?",
    "I forgot my login credentials and cannot sign in.",
    "The cat sits outside in the garden.",
    "MiXeD CaSe and ALL CAPS",
    "don't, can't; won't: it's $5.00 (50%) a_b-c ~^`|+<=>{}[]@#&*\\/!?",
    "café naïve résumé Ångström façade über Señor",
    "e\u0301 cafe\u0301 nai\u0308ve",
    "Việt Nam, Đường phố Hồ Chí Minh",
    "Łódź Gdańsk žluťoučký kůň Ğıİş",
    "İstanbul STRAßE ǅ Ǆ",
    "我想在apple工作1314151天～",
    "日本語 カタカナ ひらがな がぎ 東京都",
    "漢字かな交じり文です。、「」",
    "Привет мир ё й Щ",
    "Ελληνικά ΆΈΉ ς Σίσυφος",
    "العربية مُحَمَّد السلام عليكم",
    "שלום עולם",
    "ไทย ภาษา",
    "🚀 (normal) 😶\u200d🌫️ done ✅ 🦙🦙",
    "👨\u200d👩\u200d👧\u200d👦 family",
    "ﬁ ligature ½ ² ™ ® € £ ¥ § ¶ † • …",
    "–—…“quotes”‘’«»",
    "\u200bzero\u200bwidth\u00adsoft\u2060joiner",
    "tab\tnew\nline\r\n nbsp\u00a0x\u2003em\u3000ideographic",
    "\ufeffbom \ufffd replacement \x01 control \x7f delete",
    "private \ue000 tags \U000e0061",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "x" * 100,
    "ab" * 45,
    "antidisestablishmentarianism" * 3,
    "3 33 333 3333 33333 333333 3333333 3.14159 1,000,000 2026-11-23T06:25:26Z",
    "https://example.org/path?query=1&x=%20#frag user@example.org C:\\temp\\file.txt",
    "def f(x): return {'a': [1, 2, 3], \"b\": None}  # comment",
    "SELECT * FROM t WHERE a <> 'b' -- comment",
    "",
    "   ",
    "?",
    "a",
    "word " * 200,
    "The quick brown fox jumps over the lazy dog. " * 40,
    "[ unused ] ##ing # # ing",
    "\u0301\u0302 leading accents",
    "ǆ ﬀ Å ﷺ ⅷ ℌ ﹏ ＡＢＣ１２３",
    "a\u0000b null",
    "𝕬𝖑𝖕𝖍𝖆 𝟙𝟚𝟛 𐍈 𠀀𪛕",
]
UNLIKE = {
    "한국어 텍스트": "syllables: llama.cpp keeps the first letter of each, the library takes them apart",
    "नमस्ते दुनिया": "spacing vowel signs: llama.cpp drops them, the library keeps them",
    "x" * 101: "words of more than 100 characters: the library gives up on them, llama.cpp splits them",
    "[CLS] [MASK] [SEP]": "names of control tokens: tokens to the library, words to llama.cpp",
}
"""Where llama.cpp is known to read a text in another way: the test shows that it is still so."""


def main(folder: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    model = NumpyBert(folder / "model.safetensors", heads=12)
    entries = []
    for text in [*TEXTS, *UNLIKE]:
        ids = tokenizer.encode(text).ids
        entry: dict[str, object] = {"text": text, "ids": ids}
        if text in UNLIKE:
            entry["unlike"] = UNLIKE[text]
        elif len(ids) <= 512:
            entry["vector"] = base64.b64encode(model.embed(ids).astype("<f2").tobytes()).decode()
        entries.append(entry)
    out = {"tokenizers": tokenizers.__version__, "numpy": np.__version__, "entries": entries}
    lines = ",\n".join(json.dumps(e) for e in entries)
    text = json.dumps({**out, "entries": []})[:-2] + "\n" + lines + "\n]}\n"
    Path(__file__).with_name("minilm_reference.json").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
