"""How far an answer is from documents: piece by piece, by the directions that an encoder gives them.

An answer that speaks of what the documents speak of has, for each of its pieces, one like it there, also in other words
(late interaction, Khattab and Zaharia 2020). A wrong number or a "not" too many changes hardly anything.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from appliance.guards.features import windows

Array = NDArray[np.float32]

PART = 32
"""Pieces of an answer that are judged together: one strange sentence is not outweighed by many others."""
_LEAST = 0.1
"""The share of a part's pieces that count: those which are least like anything in the documents."""
_AT_ONCE = 512
FURTHEST = 2.0


def strangeness(answer: Array, documents: Array) -> float:
    """0 (each piece is there) to 2, that of the strangest part of the answer; [pieces, width] vectors of any length.

    An empty answer says nothing strange; without documents everything is."""
    if not len(answer):
        return 0.0
    if not len(documents):
        return FURTHEST
    mine, theirs = _directions(answer), _directions(documents).T
    nearest = np.concatenate([(mine[at : at + _AT_ONCE] @ theirs).max(axis=1) for at in range(0, len(mine), _AT_ONCE)])
    worst = 0.0
    for part in windows(len(nearest), size=PART, overlap=PART // 2):
        ordered = np.sort(nearest[part.start : part.end])
        worst = max(worst, 1.0 - float(ordered[: max(1, round(_LEAST * len(ordered)))].mean()))
    return worst


def _directions(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9), np.float32)
