"""Sampling over a small made-up vocabulary, with the real native chains."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.engine import Sampling
from runtimes.llamacpp.sampler import Candidates, Sampler, log_probabilities

N = 50
CANDIDATES = Candidates(N)


def logits(**peaks: float) -> np.ndarray:
    values = np.zeros(N, dtype=np.float32)
    for name, value in peaks.items():
        values[int(name[1:])] = value
    return values


def draws(params: Sampling, values: np.ndarray, count: int, seed: int = 7) -> list[int]:
    sampler = Sampler(params, CANDIDATES, seed)
    try:
        return [sampler.choose(values) for _ in range(count)]
    finally:
        sampler.close()


def test_temperature_zero_takes_the_best() -> None:
    assert draws(Sampling(temperature=0.0), logits(t7=3.0, t9=2.0), 5) == [7] * 5


def test_a_seed_repeats_itself_and_seeds_differ() -> None:
    flat = logits()
    assert draws(Sampling(), flat, 30, seed=1) == draws(Sampling(), flat, 30, seed=1)
    assert draws(Sampling(), flat, 30, seed=1) != draws(Sampling(), flat, 30, seed=2)


@pytest.mark.parametrize("seed", [0, -1, -(2**63), 2**63 - 1, 2**32 - 1])
def test_any_64_bit_seed_repeats_itself(seed: int) -> None:
    assert draws(Sampling(), logits(), 10, seed=seed) == draws(Sampling(), logits(), 10, seed=seed)


def test_draws_follow_the_distribution() -> None:
    values = np.full(N, -30.0, dtype=np.float32)
    values[3], values[4] = math.log(0.75), math.log(0.25)
    counts = Counter(draws(Sampling(), values, 4000))
    assert set(counts) == {3, 4}
    assert 0.70 < counts[3] / 4000 < 0.80


def test_top_k_top_p_and_min_p_cut_the_tail() -> None:
    values = logits(t1=5.0, t2=4.5, t3=1.0)
    assert set(draws(Sampling(top_k=2), values, 200)) == {1, 2}
    assert set(draws(Sampling(top_p=0.5), values, 200)) == {1}
    assert set(draws(Sampling(min_p=0.3), values, 200)) == {1, 2}


def test_temperature_comes_before_top_p() -> None:
    # At temperature 4 the tail holds most of the probability, so a top_p of 0.9 must reach into it.
    assert len(set(draws(Sampling(temperature=4.0, top_p=0.9), logits(t1=5.0, t2=4.5), 300))) > 10


def test_bias_bans_and_forces() -> None:
    values = logits(t1=9.0, t2=8.0)
    assert draws(Sampling(temperature=0.0, logit_bias={1: -100.0}), values, 1) == [2]
    assert draws(Sampling(temperature=0.0, logit_bias={40: 100.0}), values, 1) == [40]


def test_penalties_push_what_was_said() -> None:
    values = logits(t1=2.0, t2=1.5, t3=1.2)
    for params in (Sampling(temperature=0.0, presence_penalty=0.6), Sampling(temperature=0.0, repeat_penalty=1.5)):
        sampler = Sampler(params, CANDIDATES, 0)
        said = []
        for _ in range(3):
            said.append(sampler.choose(values))
            sampler.accept(said[-1])
        sampler.close()
        assert said[:2] == [1, 2], params
    frequent = Sampler(Sampling(temperature=0.0, frequency_penalty=0.3), CANDIDATES, 0)
    frequent.accept(1)
    assert frequent.choose(values) == 1
    frequent.accept(1)
    assert frequent.choose(values) == 2


def test_raw_logits_are_left_alone() -> None:
    values = logits(t1=2.0)
    before = values.copy()
    sampler = Sampler(Sampling(logit_bias={1: -5.0}, presence_penalty=1.0), CANDIDATES, 0)
    sampler.accept(1)
    sampler.choose(values, np.arange(N) > 10)
    sampler.close()
    sampler.close()  # twice is fine
    assert (values == before).all()


@given(st.lists(st.booleans(), min_size=N, max_size=N).filter(any), st.sampled_from([0.0, 1.0]), st.integers(0, 99))
def test_only_what_is_allowed_is_chosen(allowed: list[bool], temperature: float, seed: int) -> None:
    sampler = Sampler(Sampling(temperature=temperature, top_p=0.9), CANDIDATES, seed)
    token = sampler.choose(logits(t1=5.0, t2=4.0), np.array(allowed))
    sampler.close()
    assert allowed[token]


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=60))
def test_log_probabilities_sum_to_one(values: list[float]) -> None:
    result = log_probabilities(np.array(values, dtype=np.float32))
    assert math.isclose(float(np.exp(result.astype(np.float64)).sum()), 1.0, rel_tol=1e-4)
    assert result.max() <= 1e-6
