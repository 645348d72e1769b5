"""Choosing the next token: penalties and biases in numpy, the rest as a chain of llama.cpp's samplers.

Order: bias and penalties → top-k → temperature → top-p → min-p → draw. Temperature comes before
top-p as in vLLM and Transformers, so that `top_p` means the same share of the probability that is
drawn from. Temperature 0 is the arg-max and needs no chain.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from typing import Any

import llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

from runtimes.engine import Sampling

COLDEST = 1e-5
"""Below this temperature the most likely token has all of the probability, and dividing by it would overflow."""

_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Candidates:
    """Scratch space for one draw over the vocabulary; shared by all samplers of a decode thread."""

    def __init__(self, n_vocab: int) -> None:
        self.ids = np.arange(n_vocab, dtype=np.int32)
        self.data = np.zeros(n_vocab, dtype=_TOKEN_DATA)
        self._pointer = self.data.ctypes.data_as(llama.llama_token_data_p)
        self._array: Any = llama.llama_token_data_array()

    def draw(self, chain: Any, logits: NDArray[np.float32]) -> int:
        """Run a sampler chain over logits of shape (n_vocab,); the chosen token id."""
        self.data["id"] = self.ids  # a chain may have sorted the last ones
        self.data["logit"] = logits
        array = self._array
        array.data, array.size, array.selected, array.sorted = self._pointer, len(self.ids), -1, False
        llama.llama_sampler_apply(chain, ctypes.byref(array))
        return int(array.data[array.selected].id)


class Sampler:
    """The state of one choice: its chain, its generator, and the tokens that penalties look at."""

    def __init__(self, params: Sampling, candidates: Candidates, seed: int) -> None:
        self._candidates = candidates
        self._params = params
        self._counts: Counter[int] = Counter()
        self._bias = (
            (
                np.fromiter(params.logit_bias.keys(), np.int64),
                np.fromiter(params.logit_bias.values(), np.float32),
            )
            if params.logit_bias
            else None
        )
        self._penalised = bool(params.presence_penalty or params.frequency_penalty or params.repeat_penalty != 1.0)
        self._chain = None if params.temperature < COLDEST else _build_chain(params, seed)

    def close(self) -> None:
        """Free the native chain; safe to call twice."""
        chain, self._chain = self._chain, None
        if chain is not None:
            llama.llama_sampler_free(chain)

    def choose(self, logits: NDArray[np.float32], allowed: NDArray[np.bool_] | None = None) -> int:
        """The next token from raw logits of shape (n_vocab,), which are left as they are.

        `allowed` (same shape) rules tokens out; at least one must remain.
        """
        scores = self._adjusted(logits)
        if allowed is not None:
            scores = np.where(allowed, scores, np.float32(-np.inf))
        if self._chain is None:
            return int(scores.argmax())
        return self._candidates.draw(self._chain, scores)

    def accept(self, token: int) -> None:
        """Tell the penalties what was chosen."""
        if self._penalised:
            self._counts[token] += 1

    def _adjusted(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._bias is None and not self._counts:
            return logits
        scores = logits.copy()
        if self._bias is not None:
            scores[self._bias[0]] += self._bias[1]
        if self._counts:
            p = self._params
            ids = np.fromiter(self._counts.keys(), np.int64)
            seen = np.fromiter(self._counts.values(), np.float32)
            picked = scores[ids]
            if p.repeat_penalty != 1.0:
                picked = np.where(picked > 0, picked / p.repeat_penalty, picked * p.repeat_penalty)
            scores[ids] = picked - seen * p.frequency_penalty - p.presence_penalty
        return scores


def _build_chain(params: Sampling, seed: int) -> Any:
    # 0xFFFFFFFF would mean "a random seed" to the library, hence the modulus below.
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    add = llama.llama_sampler_chain_add
    if params.top_k > 0:
        add(chain, llama.llama_sampler_init_top_k(params.top_k))
    add(chain, llama.llama_sampler_init_temp(params.temperature))
    if params.top_p < 1.0:
        add(chain, llama.llama_sampler_init_top_p(params.top_p, 1))
    if params.min_p > 0.0:
        add(chain, llama.llama_sampler_init_min_p(params.min_p, 1))
    add(chain, llama.llama_sampler_init_dist(seed % 0xFFFFFFFF))
    return chain


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Natural logarithms of the model's own distribution (before penalties and temperature), (n_vocab,)."""
    shifted = logits - logits.max()
    result: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(dtype=np.float64)).astype(np.float32)
    return result
