"""Embeddings of targets that do not speak OpenAI's dialect: what they are given, and what comes back. Pure."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

from appliance.dialects.embeddings import EmbeddingRequest
from appliance.errors import UnsupportedParameter, UpstreamFailed


class Vectors(NamedTuple):
    """One vector an input, in their order, as `embeddings.render` takes them."""

    vectors: list[bytes]
    prompt_tokens: int | None
    """None where the target does not count."""


def texts_of(request: EmbeddingRequest, most: int | None) -> list[str]:
    """The inputs, all of them texts and not more than `most`. Raises UnsupportedParameter."""
    inputs = request.inputs()
    texts = [item for item in inputs if isinstance(item, str)]
    if len(texts) != len(inputs):
        raise UnsupportedParameter("input: this target takes texts, not token ids.", param="input")
    if most is not None and len(texts) > most:
        raise UnsupportedParameter(
            f"input: this target takes at most {most} texts in one request, not {len(texts)}.", param="input"
        )
    return texts


def packed(values: Sequence[Sequence[float]], expected: int, target: str) -> list[bytes]:
    """Vectors as little-endian float32 bytes, of length 1 as OpenAI's are: Google's are not once they are shortened.

    Raises UpstreamFailed unless there are `expected` of them.
    """
    if len(values) != expected or not all(values):
        raise UpstreamFailed(f"{target} gave {len(values)} vectors for {expected} inputs.")
    return [struct.pack(f"<{len(vector)}f", *_unit(vector, target)) for vector in values]


def _unit(vector: Sequence[float], target: str) -> Sequence[float]:
    length = math.hypot(*vector)
    if not math.isfinite(length):
        raise UpstreamFailed(f"{target} gave a vector that is out of range.")
    return [value / length for value in vector] if length > 0.0 else vector
