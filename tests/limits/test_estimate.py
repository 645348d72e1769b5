"""The bounds against the tokenizers of real models."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as bounds_of
from hypothesis import strategies as st

from appliance.limits.estimate import A_MESSAGE, A_PROMPT, likely_most_tokens
from runtimes.catalogue import Catalogue
from tests.gateway import MODELS

ROOT = Path(__file__).parents[2]
PROSE = [
    "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "人人生而自由,在尊严和权利上一律平等。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "मनुष्य जन्म से स्वतंत्र हैं",
    "สวัสดีครับ ยินดีต้อนรับ",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق",
    "😀🎉👩‍👩‍👧 \u200b\u202e\ufeff",
    '{"a": [1, 2.5e-3, null, true], "b": {"c": "\\n\\t"}}',
    "    \n\n\n\t\t  indented\n        more\r\n" * 5,
    "0123456789" * 20,
    "SELECT * FROM t WHERE x = 'y'; -- !!!???...",
    "A B C D E F a b c d e f",
]


def hard_bound(text: str) -> int:
    """A token a byte, and one for the space that some vocabularies put before a text."""
    return len(text.encode("utf-8", "surrogatepass")) + 1


class Tokenizers:
    def __init__(self, files: list[Path]) -> None:
        self._models: list[Any] = [llama_cpp.Llama(str(file), vocab_only=True, verbose=False) for file in files]

    def most(self, text: str) -> int:
        """The most that one of them makes of a text."""
        data = text.encode("utf-8", "surrogatepass")
        return max(len(each.tokenize(data, add_bos=False, special=False)) for each in self._models)

    def close(self) -> None:
        for each in self._models:
            each.close()


@pytest.fixture(scope="module")
def tokenizers(catalogue: Catalogue) -> Iterator[Tokenizers]:
    found = Tokenizers([catalogue.resolve(model).main for model in MODELS])
    yield found
    found.close()


@pytest.mark.parametrize("text", PROSE)
def test_ordinary_texts_have_no_more(tokenizers: Tokenizers, text: str) -> None:
    assert tokenizers.most(text) <= likely_most_tokens([text]) <= hard_bound(text) + 1


@pytest.mark.parametrize("path", ["README.md", "appliance/relay.py", "appliance/door/serve.py", "pyproject.toml"])
def test_prose_and_code_have_no_more_and_the_bound_is_worth_it(tokenizers: Tokenizers, path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert tokenizers.most(text) <= likely_most_tokens([text]) <= 0.87 * len(text.encode())


@bounds_of(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=200))
def test_any_text_has_no_more(tokenizers: Tokenizers, text: str) -> None:
    assert tokenizers.most(text) <= likely_most_tokens([text])


@pytest.mark.parametrize(
    "alphabet", ["abcdefghijklmnopqrstuvwxyz", "qxzjkvw", "aeiou", "bcdfghlmnprst", "aB3/+", " a\n"]
)
def test_random_letters_have_no_more(tokenizers: Tokenizers, alphabet: str) -> None:
    dice = random.Random(alphabet)
    for length in (1, 2, 3, 5, 8, 13, 50, 500):
        text = "".join(dice.choice(alphabet) for _ in range(length))
        assert tokenizers.most(text) <= likely_most_tokens([text]), text


def test_what_is_made_to_defeat_it_stays_within_the_hard_bound(tokenizers: Tokenizers) -> None:
    for text in ("gd" * 100, "fhfn" * 100, "zx" * 100, "\x00" * 50, "ÿ" * 50):
        assert tokenizers.most(text) <= hard_bound(text)


def test_messages_are_counted_with_what_is_around_them() -> None:
    assert likely_most_tokens([], messages=2) == A_PROMPT + 2 * A_MESSAGE
    assert likely_most_tokens(["\ud800"]) == 5
