"""Logits to probabilities, and thresholds: from rows that neither train nor judge."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from appliance.guards.manifest import LabelScale, Rate
from appliance.guards.metrics import threshold_at

RATES: Mapping[Rate, float] = {"0.1%": 0.001, "0.5%": 0.005, "1%": 0.01}
Values = NDArray[np.float64]


def platt(logits: Values, goals: Values, *, steps: int = 100) -> tuple[float, float]:
    """The slope and offset of a logistic curve through (logit, goal), by Newton's method with a weak prior at (1, 0).

    `goals` are 0 to 1. The slope is kept positive: a calibration must never turn an order round.
    """
    slope, offset = 1.0, 0.0
    for _ in range(steps):
        chance = 1.0 / (1.0 + np.exp(-np.clip(slope * logits + offset, -60, 60)))
        error = chance - goals
        gradient = np.array([(error * logits).sum() + 0.1 * (slope - 1), error.sum() + 0.01 * offset])
        spread = chance * (1 - chance)
        second = np.array(
            [
                [(spread * logits * logits).sum() + 0.1, (spread * logits).sum()],
                [(spread * logits).sum(), spread.sum() + 0.01],
            ]
        )
        step = np.linalg.solve(second, gradient)
        slope, offset = slope - float(np.clip(step[0], -0.5, 0.5)), offset - float(np.clip(step[1], -1, 1))
        if np.abs(step).max() < 1e-6:
            break
    return max(0.05, slope), offset


def scaled(logits: Values, goals: Values) -> LabelScale:
    """The scale of one label, with its thresholds."""
    slope, offset = platt(logits, goals)
    chances = 1.0 / (1.0 + np.exp(-np.clip(slope * logits + offset, -60, 60)))
    honest = chances[goals < 0.5]
    return LabelScale(
        slope=slope,
        offset=offset,
        # Never rounded: a threshold between two scores has to stay between them.
        thresholds={name: min(1.0, threshold_at(honest, rate)) for name, rate in RATES.items()},
    )
