"""BERT's forward pass written out in float64, straight from its safetensors: what an engine is compared with."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np

_erf = np.vectorize(math.erf)


class NumpyBert:
    """`embed(ids)` gives the unit-length mean of the last layer. Knows nothing of GGUF."""

    def __init__(self, path: Path, heads: int, epsilon: float = 1e-12) -> None:
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        table = json.loads(raw[8 : 8 + length])
        table.pop("__metadata__", None)
        self.weights = {}
        for name, entry in table.items():
            if entry["dtype"] == "F32":
                start, end = (8 + length + at for at in entry["data_offsets"])
                values = np.frombuffer(raw[start:end], dtype="<f4").reshape(entry["shape"])
                self.weights[name] = values.astype(np.float64)
        self.layers = 1 + max(int(n.split(".")[2]) for n in self.weights if n.startswith("encoder.layer."))
        self.heads = heads
        self.epsilon = epsilon

    def embed(self, ids: list[int]) -> np.ndarray:
        w = self.weights
        x = w["embeddings.word_embeddings.weight"][ids]
        x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(self.layers):
            name = f"encoder.layer.{layer}."
            attended = self._linear(self._attention(x, name + "attention.self."), name + "attention.output.dense")
            x = self._norm(x + attended, name + "attention.output.LayerNorm")
            inner = self._linear(x, name + "intermediate.dense")
            inner = inner * 0.5 * (1 + _erf(inner / math.sqrt(2)))
            x = self._norm(x + self._linear(inner, name + "output.dense"), name + "output.LayerNorm")
        mean = x.mean(axis=0)
        return mean / np.linalg.norm(mean)

    def _attention(self, x: np.ndarray, name: str) -> np.ndarray:
        size = x.shape[1] // self.heads
        q, k, v = (
            self._linear(x, name + part).reshape(len(x), self.heads, size).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(size)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        return (scores @ v).transpose(1, 0, 2).reshape(x.shape)

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.epsilon)
        return centred / deviation * self.weights[name + ".weight"] + self.weights[name + ".bias"]
