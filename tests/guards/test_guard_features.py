"""Texts as the models read them: pieces, shapes, windows."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import GuardModelError
from appliance.guards.features import (
    ALNUM,
    DIGITS,
    FIRST,
    INITIAL,
    LOWER,
    MIXED,
    TITLE,
    UPPER,
    PieceTokenizer,
    batch_of,
    shape_of,
    windows,
)
from appliance.guards.judge import shipped_models
from appliance.guards.names import SHIPPED

TOKENIZER = PieceTokenizer(shipped_models() / SHIPPED / "tokenizer.json")
ANY_TEXT = st.text(st.characters(), max_size=300)


@pytest.mark.parametrize(
    ("word", "shape"),
    [
        ("house", LOWER), ("...", LOWER), ("日本", LOWER), ("Anna", TITLE), ("NATO", UPPER), ("J", INITIAL),
        ("McDonald", MIXED),
        ("iPhone", MIXED), ("B12", ALNUM), ("1984", DIGITS), ("Élodie", TITLE),
    ],
)  # fmt: skip
def test_how_a_word_is_written(word: str, shape: int) -> None:
    assert shape_of(word, first=False) == shape


def test_a_capital_at_the_beginning_of_a_sentence_is_told_apart() -> None:
    text = "Anna met Bob. Then Carla left.\nDora stayed"
    pieces = TOKENIZER.pieces(text)
    shapes = {text[a:b]: shape for (a, b), shape in zip(pieces.offsets, pieces.shapes, strict=True)}
    assert (shapes["Anna"], shapes["Then"]) == (FIRST, FIRST)
    assert (shapes["Bob"], shapes["met"]) == (TITLE, LOWER)


@given(ANY_TEXT)
def test_pieces_of_any_text_lie_within_it_in_order(text: str) -> None:
    pieces = TOKENIZER.pieces(text)
    assert len(pieces.ids) == len(pieces.shapes) == len(pieces.offsets)
    assert all(0 <= a <= b <= len(text) for a, b in pieces.offsets)
    assert all(before[0] <= after[0] for before, after in zip(pieces.offsets, pieces.offsets[1:], strict=False))
    assert all(0 <= shape <= FIRST for shape in pieces.shapes)


@given(ANY_TEXT)
def test_all_pieces_of_a_word_have_one_shape(text: str) -> None:
    pieces = TOKENIZER.pieces(text)
    for (_, end), (start, _), one, other in zip(
        pieces.offsets, pieces.offsets[1:], pieces.shapes, pieces.shapes[1:], strict=False
    ):
        if end == start and text[end - 1 : end].isalnum() and text[start : start + 1].isalnum():
            assert one == other


def test_a_lone_surrogate_is_no_failure() -> None:
    assert len(TOKENIZER.pieces("a \ud800 b")) >= 2


@given(st.integers(0, 3000), st.integers(1, 300), st.data())
def test_windows_cover_a_text_and_overlap(pieces: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    found = windows(pieces, size=size, overlap=overlap)
    assert found[0].start == 0
    assert found[-1].end == pieces
    for one in found:
        assert one.end - one.start == min(size, pieces)
    for before, after in pairwise(found):
        assert before.start < after.start <= before.end - overlap


@pytest.mark.parametrize("overlap", [-1, 8, 9])
def test_an_overlap_that_does_not_fit_is_refused(overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        windows(20, size=8, overlap=overlap)


def test_a_batch_is_padded_and_says_where() -> None:
    texts = [TOKENIZER.pieces("one two three"), TOKENIZER.pieces("one")]
    batch = batch_of(TOKENIZER, [(one, windows(len(one), size=8, overlap=2)[0]) for one in texts])
    assert batch.ids.shape == batch.mask.shape == batch.shapes.shape == (2, 5)
    assert batch.mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.ids[1].tolist() == [TOKENIZER.begin, batch.ids[0][1], TOKENIZER.end, TOKENIZER.pad, TOKENIZER.pad]
    assert batch.ids.dtype == np.int64


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    wrong = tmp_path / "tokenizer.json"
    wrong.write_text('{"version": "1.0"}', encoding="utf-8")
    with pytest.raises(GuardModelError, match=r"tokenizer\.json"):
        PieceTokenizer(wrong)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("boat\U0001f600 all\U0001f600\U0001f600", ["boat", "\U0001f600", "all", "\U0001f600", "\U0001f600"]),
        ("a$b_c", ["a", "$", "b", "_", "c"]),
        ("x" * 250, ["x" * 100, "x" * 100, "x" * 50]),
    ],
)
def test_what_is_not_known_stands_apart_and_no_word_is_too_long(text: str, shown: list[str]) -> None:
    found = TOKENIZER.pieces(text)
    ends = {end for _, end in found.offsets}
    at = 0
    for word in shown:
        at = text.index(word, at) + len(word)
        assert at in ends
    assert sum(end - start for start, end in found.offsets) == len(text.replace(" ", ""))


@pytest.mark.parametrize("letter", ["q", "\u0e2a", "\U0001f600"])
def test_a_word_without_an_end_is_cut_in_linear_time(letter: str) -> None:
    def spent(length: int) -> float:
        began = time.process_time()
        TOKENIZER.pieces(letter * length)
        return time.process_time() - began

    short = min(spent(5_000) for _ in range(3))
    assert spent(50_000) < 30 * max(short, 0.002)
