"""Measures of how good a detector is, against their plain definitions."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.guards.metrics import aligned, auc, calibration_error, compared, confusion, threshold_at, tpr_at
from appliance.guards.verdicts import Entity

PAIRS = st.lists(st.tuples(st.integers(0, 10).map(lambda n: n / 10), st.booleans()), max_size=60)


@given(PAIRS)
def test_auc_is_the_share_of_pairs_in_the_right_order(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], bool)
    good, bad = scores[labels], scores[~labels]
    if not len(good) or not len(bad):
        assert math.isnan(auc(scores, labels))
        return
    plain = np.mean([(1.0 if a > b else 0.5 if a == b else 0.0) for a in good for b in bad])
    assert auc(scores, labels) == pytest.approx(plain)


@given(st.lists(st.floats(0, 1), max_size=200), st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5, 1.0]))
def test_a_threshold_tells_no_more_honest_texts_than_allowed(scores: list[float], rate: float) -> None:
    values = np.array(scores)
    at = threshold_at(values, rate)
    assert (values >= at).sum() <= rate * len(values)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=100, unique=True), st.floats(0, 0.99))
def test_no_lower_threshold_would_do(scores: list[float], rate: float) -> None:
    values = np.array(scores)
    at = threshold_at(values, rate)
    if at > 0:
        assert (values >= np.nextafter(at, -1)).sum() > rate * len(values)


def test_a_confusion_and_what_follows_from_it() -> None:
    counts = confusion(np.array([0.9, 0.4, 0.8, 0.1, 0.2]), np.array([True, True, False, False, False]), 0.5)
    assert (counts.caught, counts.missed, counts.wrong, counts.passed) == (1, 1, 1, 2)
    assert counts.recall == counts.precision == counts.f1 == 0.5
    assert counts.false_positive_rate == pytest.approx(1 / 3)
    assert counts.balanced_accuracy == pytest.approx((0.5 + 2 / 3) / 2)


def test_tpr_at_a_rate_uses_the_honest_texts_of_the_same_set() -> None:
    scores = np.array([0.9, 0.8, 0.3, 0.5, 0.1])
    labels = np.array([True, True, True, False, False])
    assert tpr_at(scores, labels, 0.01) == pytest.approx(2 / 3)
    assert math.isnan(tpr_at(scores, np.zeros(5, bool), 0.01))


def test_calibration_error_of_honest_and_of_boasting_scores() -> None:
    labels = np.array([True, False] * 50)
    assert calibration_error(np.full(100, 0.5), labels) == pytest.approx(0)
    assert calibration_error(np.full(100, 0.99), labels) == pytest.approx(0.49)


TEXT_SPANS = [(0, 10, "PERSON"), (20, 30, "CITY")]


@pytest.mark.parametrize(
    ("found", "counts"),
    [
        ([], (0, 2, 0)),
        ([Entity(0, 10, "PERSON", 1), Entity(20, 30, "PLACE", 1)], (2, 0, 0)),
        ([Entity(0, 6, "PERSON", 1)], (1, 1, 0)),
        ([Entity(0, 4, "PERSON", 1)], (0, 2, 1)),
        ([Entity(0, 4, "PERSON", 1), Entity(5, 10, "PERSON", 1)], (1, 1, 0)),
        ([Entity(0, 60, "PERSON", 1)], (0, 2, 1)),
        ([Entity(0, 10, "PERSON", 1), Entity(18, 21, "CITY", 1)], (1, 1, 1)),
        ([Entity(40, 50, "PERSON", 1)], (0, 2, 1)),
        ([Entity(0, 10, "PLACE", 1)], (0, 2, 1)),
    ],
)
def test_spans_are_compared_by_what_they_cover(found: list[Entity], counts: tuple[int, int, int]) -> None:
    result = compared(found, TEXT_SPANS, groups={"CITY": "PLACE"})
    assert (result.found.total(), result.missed.total(), result.wrong.total()) == counts


def test_strict_spans_have_the_same_ends_and_ignored_parts_say_nothing() -> None:
    strict = compared([Entity(0, 9, "PERSON", 1)], TEXT_SPANS[:1], groups={}, strict=True)
    assert (strict.found.total(), strict.missed.total(), strict.wrong.total()) == (0, 1, 1)
    ignored = compared([Entity(40, 50, "PERSON", 1)], [], groups={}, ignored=[(45, 46)])
    assert ignored.wrong.total() == 0


def test_one_find_over_a_whole_text_is_wrong_however_much_it_covers() -> None:
    counts = compared([Entity(0, 5000, "PERSON", 1)], [(100, 110, "PERSON"), (4000, 4012, "PERSON")], groups={})
    assert (counts.found.total(), counts.missed.total(), counts.wrong.total()) == (0, 2, 1)


KINDS = st.sampled_from(["A", "B", "C"])
PARTS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 15), KINDS).map(lambda p: (p[0], p[0] + p[1], p[2])))
BOUNDS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 5)).map(lambda p: (p[0], p[0] + p[1])), max_size=3)


@given(PARTS, PARTS, BOUNDS, st.booleans())
def test_spans_are_aligned_as_their_definition_says(
    told: list[tuple[int, int, str]], wanted: list[tuple[int, int, str]], ignored: list[tuple[int, int]], strict: bool
) -> None:
    groups = {"B": "A"}
    finds = [Entity(start, end, kind, 1) for start, end, kind in told]
    found: list[tuple[int, int, str]] = []
    missed: list[tuple[int, int, str]] = []
    used: set[int] = set()
    for number, span in enumerate(wanted):
        if span in wanted[:number]:
            continue
        start, end, kind = span
        near = [
            place
            for place, (begin, stop, other) in enumerate(told)
            if begin < end and stop > start and groups.get(other, other) == groups.get(kind, kind)
        ]
        if strict:
            near = [place for place in near if told[place][:2] == (start, end)]
            good = bool(near)
        else:
            covered = sum(min(told[n][1], end) - max(told[n][0], start) for n in near)
            length = sum(told[n][1] - told[n][0] for n in near)
            good = covered > (end - start) / 2 and length <= max(2 * (end - start), end - start + 12)
        (found if good else missed).append(span)
        used |= set(near) if good else set()
    wrong = [
        one
        for number, one in enumerate(finds)
        if number not in used and not any(one.start < end and one.end > start for start, end in ignored)
    ]
    result = aligned(finds, wanted, groups=groups, ignored=ignored, strict=strict)
    assert (result.found, result.missed, result.wrong) == (found, missed, wrong)


def test_a_text_full_of_spans_is_compared_in_linear_time() -> None:
    finds = [Entity(at, at + 3, "A", 1) for at in range(0, 400_000, 4)]
    began = time.process_time()
    counts = compared(finds, [(at, at + 3, "A") for at in range(0, 400_000, 4)], groups={}, ignored=[(1, 2)] * 10)
    assert time.process_time() - began < 10
    assert counts.found.total() == 100_000
