"""How far an answer is from documents, and the groundedness model that ships."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import GuardModelError
from appliance.guards.judge import GROUNDEDNESS, shipped_models, unsupported
from appliance.guards.model import GuardModel
from appliance.guards.names import GROUNDED, SHIPPED
from appliance.guards.nearness import FURTHEST, PART, strangeness

SIZES = st.integers(0, 700)


def vectors(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)


@given(SIZES, SIZES, st.integers(0, 99))
def test_strangeness_is_that_of_the_strangest_part(answer: int, documents: int, seed: int) -> None:
    mine, theirs = vectors(answer, seed), vectors(documents, seed + 1)
    found = strangeness(mine, theirs)
    if not answer:
        assert found == 0.0
        return
    if not documents:
        assert found == FURTHEST
        return
    assert 0.0 <= found <= FURTHEST
    directions = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (mine, theirs)]
    nearest = (directions[0] @ directions[1].T).max(axis=1)
    starts = [0] if answer <= PART else [*range(0, answer - PART, PART // 2), answer - PART]
    parts = [np.sort(nearest[at : at + PART]) for at in starts]
    assert found == pytest.approx(max(1 - part[: max(1, round(len(part) / 10))].mean() for part in parts), abs=1e-5)


@given(SIZES, st.integers(0, 99), st.floats(0.01, 50))
def test_what_is_copied_is_not_strange_whatever_its_length(count: int, seed: int, scale: float) -> None:
    theirs = vectors(count, seed)
    assert strangeness(theirs[: count // 2] * np.float32(scale), theirs) == pytest.approx(0, abs=1e-5)


@pytest.fixture(scope="module")
def model() -> GuardModel:
    return GuardModel(shipped_models() / GROUNDED)


DOCUMENT = (
    "The ferry to Halvorsund runs again from Thursday. Until the end of May cars have to use the ramp at Skarven, and "
    "bicycles are carried free of charge."
)


def test_an_answer_about_something_else_is_told_and_one_from_the_document_is_not(model: GuardModel) -> None:
    at = model.manifest.detectors[GROUNDEDNESS].threshold
    assert unsupported(model, [DOCUMENT], "Cars must take the ramp at Skarven until the end of May.") < at
    assert unsupported(model, [DOCUMENT], "The Treaty of Utrecht ended the War of the Spanish Succession.") >= at
    other = "A risotto needs warm stock, which is added ladle by ladle while the rice is stirred."
    assert unsupported(model, [DOCUMENT], other) >= at
    # Whatever document it is in, and wherever in the answer the strange sentence stands.
    assert unsupported(model, [DOCUMENT, other], other) < at
    assert unsupported(model, [DOCUMENT], f"{DOCUMENT} {other} {DOCUMENT}") >= at


def test_without_documents_nothing_is_supported_and_nothing_said_is(model: GuardModel) -> None:
    at = model.manifest.detectors[GROUNDEDNESS].threshold
    assert unsupported(model, [], "anything") == 1.0
    assert unsupported(model, [""], "The ferry runs again.") >= at
    assert unsupported(model, [DOCUMENT], "") < at


@pytest.mark.parametrize("size", [0, 1, 5000, 40_000])
def test_answers_and_documents_of_any_length_are_judged(model: GuardModel, size: int) -> None:
    text = ("Die Fähre fährt \U0001f6a2 \u0000 не идёт " * (size // 20 + 1))[:size]
    assert 0 <= unsupported(model, [text, DOCUMENT], text) <= 1


def test_a_model_without_pairs_cannot_be_asked_for_them() -> None:
    with pytest.raises(GuardModelError, match="no detector 'groundedness' of kind pair"):
        unsupported(GuardModel(shipped_models() / SHIPPED), [DOCUMENT], "x")
