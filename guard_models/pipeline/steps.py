"""How the inputs of linear layers become 8-bit: what `ranges` chooses, `quantised` trains with and `export` writes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVELS = 255
REACH = 64
"""Quantised weights are -REACH to REACH: twice that would let pairs of products overflow 16 bits on AVX2."""


@dataclass(frozen=True, slots=True)
class Steps:
    """The input of one layer: divided by `smooth` [channels], then `low` to `high` in LEVELS steps."""

    low: float
    high: float
    smooth: NDArray[np.float32]

    @property
    def step(self) -> float:
        return max(1e-8, (self.high - self.low) / LEVELS)

    @property
    def zero(self) -> int:
        """The level that stands for 0."""
        return round(-self.low / self.step)
