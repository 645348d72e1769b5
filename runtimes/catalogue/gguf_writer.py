"""Writes GGUF version 3: the same metadata and tensors give the same bytes, on every machine and forever.

A manifest holds the hash of what a conversion gives, so the layout may not hang on a library's version.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtimes.catalogue.progress import Sink

ALIGNMENT = 32
Value = str | bool | int | float | Sequence[str] | Sequence[int]

_BLOCK = 32
_TYPES = {"F32": 0, "F16": 1, "Q8_0": 8}


class Encoded(NamedTuple):
    """A tensor in its file form: `shape` is outermost first, in elements."""

    name: str
    type: str
    shape: tuple[int, ...]
    data: bytes


def encode(name: str, values: NDArray[np.float32], kind: str) -> Encoded:
    """Turn 32-bit floats into F32, F16 or Q8_0. Raises ValueError for rows that Q8_0 cannot hold."""
    if kind == "F32":
        data = values.astype("<f4").tobytes()
    elif kind == "F16":
        data = values.astype("<f2").tobytes()
    elif kind == "Q8_0":
        data = _q8_0(values)
    else:
        raise ValueError(f"unknown tensor type {kind}")
    return Encoded(name, kind, values.shape, data)


def write_gguf(out: Sink, metadata: dict[str, Value], tensors: Sequence[Encoded]) -> None:
    """Write a whole file. Whole numbers become u32 (lists of them i32), fractions f32."""
    head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        head += _text(key) + _value(value)
    offset = 0
    for tensor in tensors:
        shape = tuple(reversed(tensor.shape))
        head += _text(tensor.name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", _TYPES[tensor.type], offset)
        offset += len(tensor.data) + _padding(len(tensor.data))
    out.write(bytes(head) + bytes(_padding(len(head))))
    for tensor in tensors:
        out.write(tensor.data)
        out.write(bytes(_padding(len(tensor.data))))


def _padding(size: int) -> int:
    return -size % ALIGNMENT


def _text(value: str) -> bytes:
    raw = value.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_text(str(v)) for v in value)
    return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *[int(v) for v in value])


def _q8_0(values: NDArray[np.float32]) -> bytes:
    """Blocks of 32: a 16-bit scale and 32 signed bytes, rounded half away from zero as the engine does."""
    if values.shape[-1] % _BLOCK:
        raise ValueError(f"rows of {values.shape[-1]} elements do not divide into blocks of {_BLOCK}")
    blocks = values.astype(np.float32).reshape(-1, _BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
    scaled = blocks * inverse
    whole = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)
    out = np.empty((len(blocks), 2 + _BLOCK), dtype=np.uint8)
    out[:, :2] = scale.astype("<f2").view(np.uint8)
    out[:, 2:] = whole.view(np.uint8)
    return out.tobytes()
