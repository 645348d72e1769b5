"""A bounds-checking reader of safetensors headers: eight bytes of length, JSON, then the tensors without gaps."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

from runtimes.catalogue.errors import FormatError

MAX_HEADER = 16 << 20
MAX_TENSORS = 16384
MAX_DIMENSIONS = 8
ELEMENT_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
CURE = "The file is damaged or was made to do harm: get it again from where it was published."


class Stored(NamedTuple):
    """One tensor: `shape` is outermost first, `start` and `size` are bytes from the start of the file."""

    type: str
    shape: tuple[int, ...]
    start: int
    size: int


def read_safetensors(path: Path) -> dict[str, Stored]:
    """Read the header of the file at `path`. Raises FormatError and OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise FormatError(f"{path.name}: is too short for a safetensors file.", CURE)
        (length,) = struct.unpack("<Q", prefix)
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise FormatError(f"{path.name}: says that its header has {length:,} bytes.", CURE)
        return parse_safetensors(file.read(length), size - 8 - length, path.name)


def parse_safetensors(header: bytes, data_size: int, name: str) -> dict[str, Stored]:
    """Check a JSON header against the `data_size` bytes that follow it. Raises FormatError only."""
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as e:
        raise FormatError(f"{name}: its header is not proper JSON ({type(e).__name__}).", CURE) from None
    if not isinstance(entries, dict) or len(entries) > MAX_TENSORS:
        raise FormatError(f"{name}: its header is not a table of at most {MAX_TENSORS:,} tensors.", CURE)
    entries.pop("__metadata__", None)
    tensors = {key: _tensor(key, value, 8 + len(header), name) for key, value in entries.items()}
    at = 8 + len(header)
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if tensor.start != at:
            raise FormatError(f"{name}: tensor {key!r} overlaps another one or leaves a gap.", CURE)
        at += tensor.size
    if at != 8 + len(header) + data_size:
        raise FormatError(f"{name}: its tensors need {at:,} bytes, the file has another size.", CURE)
    return tensors


def _tensor(key: str, value: Any, data_start: int, name: str) -> Stored:
    wrong = FormatError(f"{name}: tensor {key!r} is not described properly.", CURE)
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise wrong
    kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(kind, str) or kind not in ELEMENT_BYTES:
        raise wrong
    if not _whole(shape) or len(shape) > MAX_DIMENSIONS or not _whole(offsets) or len(offsets) != 2:
        raise wrong
    size = ELEMENT_BYTES[kind]
    for length in shape:
        size *= length
    if offsets[1] - offsets[0] != size:
        raise wrong
    return Stored(kind, tuple(shape), data_start + offsets[0], size)


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 48 for v in values)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name comes twice")
    return table
