"""Logits to spans and probabilities."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from appliance.guards.features import Pieces, Window, windows
from appliance.guards.manifest import Detector, LabelScale
from appliance.guards.verdicts import Entity, best_path, entities_of, merged, probability, stitched

LABELS = ["O", "B-PERSON", "I-PERSON", "B-PLACE", "I-PLACE"]
SPANS = Detector(output="pii", kind="spans", labels=LABELS)


def logits_of(tags: list[str]) -> np.ndarray:
    found = np.full((len(tags), len(LABELS)), -4.0, np.float32)
    for row, tag in enumerate(tags):
        found[row, LABELS.index(tag)] = 4.0
    return found


def words_of(text: str) -> Pieces:
    offsets, at = [], 0
    for word in text.split(" "):
        offsets.append((at, at + len(word)))
        at += len(word) + 1
    return Pieces([0] * len(offsets), [0] * len(offsets), offsets)


def test_spans_are_words_with_their_ends() -> None:
    text = "Yesterday Anna Keller came to Bad Tölz again"
    tags = ["O", "B-PERSON", "I-PERSON", "O", "O", "B-PLACE", "I-PLACE", "O"]
    found = entities_of(text, words_of(text), logits_of(tags), SPANS)
    assert [(text[e.start : e.end], e.type) for e in found] == [("Anna Keller", "PERSON"), ("Bad Tölz", "PLACE")]
    assert all(e.score > 0.99 for e in found)


def test_two_people_side_by_side_are_two() -> None:
    text = "Anna Bob"
    found = entities_of(text, words_of(text), logits_of(["B-PERSON", "B-PERSON"]), SPANS)
    assert [text[e.start : e.end] for e in found] == ["Anna", "Bob"]


def test_a_span_never_cuts_a_word() -> None:
    text = "Kellermann"
    pieces = Pieces([1, 2], [0, 0], [(0, 6), (6, 10)])
    (found,) = entities_of(text, pieces, logits_of(["B-PERSON", "O"]), SPANS)
    assert (found.start, found.end) == (0, 10)


def test_spans_below_the_threshold_are_not_told() -> None:
    text = "Anna"
    unsure = np.array([[1.0, 1.05, -9, -9, -9]], np.float32)
    assert entities_of(text, words_of(text), unsure, SPANS.model_copy(update={"threshold": 0.6})) == []
    assert len(entities_of(text, words_of(text), unsure, SPANS.model_copy(update={"threshold": 0.5}))) == 1


@given(hnp.arrays(np.float32, st.tuples(st.integers(0, 30), st.just(5)), elements=st.floats(-9, 9, width=32)))
def test_the_best_path_is_a_sequence_of_spans_and_no_worse_than_any_other(logits: np.ndarray) -> None:
    path = best_path(logits, LABELS)
    assert len(path) == len(logits)
    for before, after in zip([0, *path], path, strict=False):
        if LABELS[after].startswith("I-"):
            assert LABELS[before][2:] == LABELS[after][2:]
    if len(path):
        value = sum(float(logits[i, tag]) for i, tag in enumerate(path))
        single = [i for i, name in enumerate(LABELS) if not name.startswith("I-")]
        assert value >= sum(float(row[single].max()) for row in logits) - 1e-3


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(5)), elements=st.floats(-9, 9, width=32)))
def test_no_sequence_of_spans_is_more_probable_than_the_best_path(logits: np.ndarray) -> None:
    def value(path: Sequence[int]) -> float:
        return sum(float(row[tag]) for row, tag in zip(logits, path, strict=True))

    def is_spans(path: Sequence[int]) -> bool:
        names = ["O", *(LABELS[tag] for tag in path)]
        return all(
            not name.startswith("I-") or (before[2:] == name[2:] and before != "O") for before, name in pairwise(names)
        )

    best = max(value(path) for path in product(range(5), repeat=len(logits)) if is_spans(path))
    assert is_spans(best_path(logits, LABELS))
    assert value(best_path(logits, LABELS)) == pytest.approx(best, abs=1e-4)


@given(st.integers(1, 120), st.integers(4, 40), st.data())
def test_stitching_takes_each_piece_from_a_window_that_has_it(pieces: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size // 2))
    parts = [
        (
            one,
            np.stack([np.arange(one.start, one.end), np.full(one.end - one.start, one.start)], axis=1).astype(
                np.float32
            ),
        )
        for one in windows(pieces, size=size, overlap=overlap)
    ]
    whole = stitched(parts, pieces)
    assert whole[:, 0].tolist() == list(range(pieces))


def test_an_overlap_is_read_from_the_window_that_sees_more_around() -> None:
    left, right = (Window(0, 8), np.zeros((8, 1), np.float32)), (Window(4, 12), np.ones((8, 1), np.float32))
    assert stitched([left, right], 12)[:, 0].tolist() == [0] * 6 + [1] * 6


def test_a_probability_follows_its_scale() -> None:
    detector = Detector(output="x", kind="text", labels=["a", "b"], scales={"a": LabelScale(slope=2, offset=1)})
    assert probability(0.0, detector, "b") == 0.5
    assert probability(-0.5, detector, "a") == 0.5
    assert probability(1e9, detector, "a") == pytest.approx(1)
    assert probability(-1e9, detector, "a") == pytest.approx(0)


def test_merging_prefers_earlier_groups_then_longer_spans() -> None:
    pattern = [Entity(5, 9, "EMAIL", 1.0, "pattern")]
    model = [Entity(0, 6, "PERSON", 0.9), Entity(20, 30, "PLACE", 0.8), Entity(22, 40, "PERSON", 0.7)]
    assert [(e.start, e.end) for e in merged(pattern, model)] == [(5, 9), (22, 40)]


ENTITIES = st.builds(
    lambda start, size, score: Entity(start, start + size, "X", score),
    st.integers(0, 30),
    st.integers(1, 9),
    st.floats(0, 1),
)


@given(st.lists(st.lists(ENTITIES, max_size=8), max_size=3))
def test_merged_entities_overlap_nowhere_and_leave_out_only_what_does(groups: list[list[Entity]]) -> None:
    found = merged(*groups)
    assert all(before.end <= after.start for before, after in pairwise(found))
    for one in (one for group in groups for one in group):
        assert one in found or any(one.start < other.end and other.start < one.end for other in found)


def test_merging_takes_linear_time() -> None:
    def cost(count: int) -> float:
        patterns = [Entity(10 * at, 10 * at + 6, "EMAIL", 1.0) for at in range(count)]
        model = [Entity(10 * at + 3, 10 * at + 9, "PERSON", 0.9) for at in range(count)]
        began = time.process_time()
        assert merged(patterns, model) == patterns
        return time.process_time() - began

    small = max(cost(4_000), 0.02)
    assert cost(32_000) < 8 * small * 4


def pieces_of(text: str, *names: str) -> tuple[Pieces, np.ndarray]:
    """Each letter a piece; `names` are people."""
    tags = ["O"] * len(text)
    for name in names:
        start = text.index(name)
        tags[start : start + len(name)] = ["B-PERSON", *["I-PERSON"] * (len(name) - 1)]
    return Pieces([0] * len(text), [0] * len(text), [(at, at + 1) for at in range(len(text))]), logits_of(tags)


@pytest.mark.parametrize(
    ("text", "cut", "told"),
    [
        ("张伟住在北京市海淀区。", "张伟", "张伟"),
        ("田中さんは東京に住んでいます。", "田中", "田中"),
        ("ジョンはカナダから来た。", "ジョン", "ジョン"),
        ("สมชายอยู่ที่กรุงเทพ", "สมชาย", "สมชาย"),
        ("我是Anna从柏林来的", "Ann", "Anna"),
        # Korean has spaces, so what is cut is widened, its particle included.
        ("어제 김민수가 왔다", "김민", "김민수가"),
        ("Вчера Иванов пришёл", "Ива", "Иванов"),
        ("gestern kam To\u0308lzer an", "To", "To\u0308lzer"),
        ("कल प्रिया आई", "प", "प्रिया"),
    ],
)
def test_spans_are_widened_only_where_words_have_spaces_between_them(text: str, cut: str, told: str) -> None:
    (found,) = entities_of(text, *pieces_of(text, cut), SPANS)
    assert text[found.start : found.end] == told


def test_a_long_word_of_many_spans_takes_linear_time() -> None:
    def cost(count: int) -> float:
        text = "a" * count
        pieces = Pieces([0] * count, [0] * count, [(at, at + 1) for at in range(count)])
        logits = logits_of(["B-PERSON", "O"] * (count // 2))
        began = time.process_time()
        (found,) = entities_of(text, pieces, logits, SPANS)
        assert (found.start, found.end) == (0, count)
        return time.process_time() - began

    small = max(cost(2_000), 0.02)
    assert cost(16_000) < 8 * small * 4


def test_the_probability_of_a_span_follows_the_scale_of_its_type() -> None:
    unsure = np.array([[1.0, 1.05, -9, -9, -9]], np.float32)
    surer = SPANS.model_copy(update={"threshold": 0.0, "scales": {"B-PERSON": LabelScale(slope=1, offset=3)}})
    (plain,) = entities_of("Anna", words_of("Anna"), unsure, SPANS.model_copy(update={"threshold": 0.0}))
    (scaled,) = entities_of("Anna", words_of("Anna"), unsure, surer)
    assert plain.type == scaled.type == "PERSON"
    assert scaled.score > 0.94 > 0.6 > plain.score
