"""A vocabulary of single bytes, some common pieces and control tokens: grammars can be tried without a model."""

from __future__ import annotations

import json
from typing import Any

import llguidance
import numpy as np

from runtimes.llamacpp.constraints import Constraint
from tests.llamacpp.template_shapes import CONTROL

WORDS = ['{"', '": ', '", "', '"}', '"name"', "get", "_weather", "location", " none", "Tool:", "true", "  ", "tool"]
PIECES: list[bytes] = [bytes([i]) for i in range(256)] + [word.encode() for word in WORDS]
SPECIAL = {text: len(PIECES) + i for i, text in enumerate(CONTROL)}
N_VOCAB = len(PIECES) + len(SPECIAL)
EOG = SPECIAL["<|im_end|>"]


class _Wrapper:
    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = EOG
    special_token_ids = list(SPECIAL.values())
    tokens = [*PIECES, *(b"\xff" + text.encode() for text in SPECIAL)]

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def tokenizer() -> llguidance.LLTokenizer:
    wrapper: Any = _Wrapper()
    return llguidance.LLTokenizer(wrapper, eos_token=[EOG])


def piece(token: int) -> bytes:
    """As llama_token_to_piece without control tokens: those have no text."""
    return PIECES[token] if token < len(PIECES) else b""


def encode(text: str) -> list[int]:
    """Bytes, and control tokens where they are spelled out."""
    out: list[int] = []
    while text:
        for word, token in SPECIAL.items():
            if text.startswith(word):
                out.append(token)
                text = text[len(word) :]
                break
        else:
            out += text[0].encode()
            text = text[1:]
    return out


def accepts(constraint: Constraint, text: str, *, ended: bool = True) -> bool:
    """Whether the text may be written from here on (and the answer end there); checks `mask` on the way."""
    for token in encode(text):
        allowed = constraint.allows(token)
        assert bool(constraint.mask()[token]) == allowed
        if not allowed:
            return False
        constraint.accept(token)
    return not ended or constraint.is_done() or constraint.allows(EOG)


def wander(constraint: Constraint, seed: int, most: int = 400) -> str:
    """Text written by choosing at random among what is allowed, ending as soon as it may."""
    rng = np.random.default_rng(seed)
    out: list[int] = []
    for _ in range(most):
        if constraint.is_done() or constraint.allows(EOG):
            break
        token = int(rng.choice(np.flatnonzero(constraint.mask())))
        constraint.accept(token)
        out.append(token)
    return b"".join(PIECES[t] if t < len(PIECES) else CONTROL[t - len(PIECES)].encode() for t in out).decode(
        "utf-8", "replace"
    )


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
