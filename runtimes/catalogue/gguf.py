"""Our own reader of GGUF headers, run over every file before a native loader may see it.

Every length is checked against what is left of the file before it is used, and nothing is kept that
an engine does not need, so that a hostile header costs little: at most `MAX_HEADER` bytes are looked
at through a window of `WINDOW` bytes, and at most `MAX_ELEMENTS` strings are walked. What the native
loader takes for granted (array lengths that agree, offsets without gaps, known types) is checked here.

Sizes and offsets are bytes. The reader covers little-endian GGUF versions 2 and 3.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from runtimes.catalogue.errors import FormatError

MAX_HEADER = 128 << 20
WINDOW = 256 << 10
MAX_PAIRS = 4096
MAX_TENSORS = 16384
MAX_KEY = 1024
MAX_NAME = 63
MAX_DIMENSIONS = 4
MAX_ELEMENTS = 1_200_000
MAX_KEPT_STRING = 1 << 20
MAX_KEPT_TOTAL = 4 << 20
MAX_KEPT_ARRAY = 1024
KEPT_ELEMENT = 40
MAX_ALIGNMENT = 1 << 16
DEFAULT_ALIGNMENT = 32

ReadAt = Callable[[int, int], bytes]
"""(offset, size) → at most `size` bytes from there, fewer only at the end of the file."""

STRING, ARRAY = 8, 9
SCALARS: dict[int, tuple[str, struct.Struct]] = {
    0: ("u8", struct.Struct("<B")),
    1: ("i8", struct.Struct("<b")),
    2: ("u16", struct.Struct("<H")),
    3: ("i16", struct.Struct("<h")),
    4: ("u32", struct.Struct("<I")),
    5: ("i32", struct.Struct("<i")),
    6: ("f32", struct.Struct("<f")),
    7: ("bool", struct.Struct("<B")),
    10: ("u64", struct.Struct("<Q")),
    11: ("i64", struct.Struct("<q")),
    12: ("f64", struct.Struct("<d")),
}
U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")

TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    # number: (name, elements a block, bytes a block)
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip


class Array(NamedTuple):
    """An array of a header. `values` is kept for short arrays of numbers only."""

    type: str
    length: int
    values: tuple[int | float | bool, ...] | None


class Tensor(NamedTuple):
    """Where one tensor lies: `offset` counts from the start of the data, `shape` is innermost first."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Header:
    """A header that has passed every structural check. Strings longer than 1 MiB are not kept (None)."""

    version: int
    alignment: int
    data_offset: int
    file_size: int
    metadata: dict[str, Any]
    """key → int | float | bool | str | None | Array"""
    tensors: tuple[Tensor, ...]

    @property
    def weights_bytes(self) -> int:
        return sum(t.size for t in self.tensors)


def read_header(path: Path) -> Header:
    """Read the header of the file at `path`. Raises FormatError (what is wrong and where) and OSError."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size

        def read_at(offset: int, count: int) -> bytes:
            return os.pread(file.fileno(), count, offset)

        return parse_header(read_at, size, name=path.name)


def parse_header(read_at: ReadAt, size: int, name: str = "the file") -> Header:
    """Read a header through `read_at` from a file of `size` bytes. Raises FormatError only."""
    cursor = _Cursor(read_at, size, name)
    if cursor.take(4, "the magic number") != b"GGUF":
        raise cursor.wrong("does not start with GGUF", "Give a model in GGUF format.")
    version = cursor.number(U32, "the version")
    if version not in (2, 3):
        cure = "Convert the model again with a current converter for little-endian machines."
        raise cursor.wrong(f"has GGUF version {version}, not 2 or 3", cure)
    tensor_count = cursor.count(U64, "the number of tensors", MAX_TENSORS, smallest=24)
    pair_count = cursor.count(U64, "the number of metadata pairs", MAX_PAIRS, smallest=13)
    metadata = _read_pairs(cursor, pair_count)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not _is_int(alignment) or alignment & (alignment - 1) or not 8 <= alignment <= MAX_ALIGNMENT:
        raise cursor.wrong("general.alignment is not a power of two between 8 and 65,536")
    tensors, data_offset = _read_tensors(cursor, tensor_count, alignment)
    return Header(version, alignment, data_offset, size, metadata, tensors)


class _Cursor:
    """A position in the header and a window of bytes around it; refuses to move past the end."""

    def __init__(self, read_at: ReadAt, size: int, name: str) -> None:
        self.read_at = read_at
        self.size = size
        self.end = min(size, MAX_HEADER)
        self.name = name
        self.position = 0
        self.base = 0
        self.window = b""
        self.elements = 0
        self.kept = 0

    def wrong(self, what: str, cure: str = "") -> FormatError:
        default = "The file is damaged or was made to do harm: get it again from where it was published."
        return FormatError(f"{self.name}: {what} (near byte {self.position:,}).", cure or default)

    def take(self, count: int, what: str) -> bytes:
        if count > self.end - self.position:
            raise self.wrong(f"{what} reaches past the end of the header")
        start = self.position - self.base
        if start + count > len(self.window):
            self._fill(count, what)
            start = 0
        self.position += count
        return self.window[start : start + count]

    def skip(self, count: int, what: str) -> None:
        if count > self.end - self.position:
            raise self.wrong(f"{what} reaches past the end of the header")
        self.position += count
        if self.position - self.base > len(self.window):
            self.base, self.window = self.position, b""

    def number(self, form: struct.Struct, what: str) -> Any:
        return form.unpack(self.take(form.size, what))[0]

    def count(self, form: struct.Struct, what: str, most: int, smallest: int) -> int:
        """A count of things that take at least `smallest` bytes each."""
        value: int = self.number(form, what)
        if value > most:
            raise self.wrong(f"{what} is {value:,}, more than {most:,}")
        if value * smallest > self.end - self.position:
            raise self.wrong(f"{what} is {value:,}, more than the file can hold")
        return value

    def keep(self, size: int) -> None:
        """Account for memory that a value will hold; many middling values must not add up."""
        self.kept += size
        if self.kept > MAX_KEPT_TOTAL:
            raise self.wrong(f"the metadata holds more than {MAX_KEPT_TOTAL >> 20} MiB of texts and numbers")

    def text(self, what: str, most: int) -> str:
        length = self.number(U64, f"the length of {what}")
        if length > most:
            raise self.wrong(f"{what} is {length:,} bytes long, more than {most:,}")
        return self.decode(self.take(length, what), what)

    def decode(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.wrong(f"{what} is not valid UTF-8") from None

    def skip_strings(self, count: int, what: str) -> None:
        """Walk over `count` strings without keeping them; this loop is the whole cost of a header."""
        self.elements += count
        if self.elements > MAX_ELEMENTS:
            raise self.wrong(f"there are more than {MAX_ELEMENTS:,} strings in arrays")
        unpack = U64.unpack_from
        while count:
            if self.end - self.position < 8 * count:
                raise self.wrong(f"{what} reaches past the end of the header")
            if self.position + 8 > self.base + len(self.window):
                self._fill(8, what)
            window, at = self.window, self.position - self.base
            last = len(window) - 8
            while count and at <= last:
                at += 8 + unpack(window, at)[0]
                count -= 1
            self.position = self.base + at
            if self.position > self.end:
                raise self.wrong(f"{what} reaches past the end of the header")

    def _fill(self, count: int, what: str) -> None:
        self.base = self.position
        self.window = self.read_at(self.position, min(max(count, WINDOW), self.end - self.position))
        if len(self.window) < count:
            raise self.wrong(f"{what} is cut short")


def _read_pairs(cursor: _Cursor, count: int) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for index in range(count):
        key = cursor.text(f"metadata key {index}", MAX_KEY)
        if not key or not key.isprintable():
            raise cursor.wrong(f"metadata key {index} is empty or holds control characters")
        if key in pairs:
            raise cursor.wrong(f"metadata key {key!r} comes twice")
        pairs[key] = _read_value(cursor, key, cursor.number(U32, f"the type of {key!r}"))
    return pairs


def _read_value(cursor: _Cursor, key: str, kind: int) -> Any:
    if kind == STRING:
        length = cursor.number(U64, f"the length of {key!r}")
        if length > MAX_KEPT_STRING:
            cursor.skip(length, f"the value of {key!r}")
            return None
        cursor.keep(length)
        return cursor.decode(cursor.take(length, f"the value of {key!r}"), f"the value of {key!r}")
    if kind == ARRAY:
        return _read_array(cursor, key)
    if kind not in SCALARS:
        raise cursor.wrong(f"the type of {key!r} is {kind}, which does not exist")
    name, form = SCALARS[kind]
    value = cursor.number(form, f"the value of {key!r}")
    return _boolean(cursor, key, value) if name == "bool" else value


def _read_array(cursor: _Cursor, key: str) -> Array:
    kind = cursor.number(U32, f"the element type of {key!r}")
    if kind == STRING:
        count = cursor.count(U64, f"the length of {key!r}", MAX_ELEMENTS, smallest=8)
        cursor.skip_strings(count, f"the value of {key!r}")
        return Array("string", count, None)
    if kind == ARRAY:
        raise cursor.wrong(f"{key!r} is an array of arrays, which no model needs and no loader reads")
    if kind not in SCALARS:
        raise cursor.wrong(f"the element type of {key!r} is {kind}, which does not exist")
    name, form = SCALARS[kind]
    count = cursor.count(U64, f"the length of {key!r}", MAX_ELEMENTS, smallest=form.size)
    if count > MAX_KEPT_ARRAY:
        cursor.skip(count * form.size, f"the value of {key!r}")
        return Array(name, count, None)
    cursor.keep(count * KEPT_ELEMENT)
    values = tuple(v for (v,) in form.iter_unpack(cursor.take(count * form.size, f"the value of {key!r}")))
    if name == "bool":
        values = tuple(_boolean(cursor, key, v) for v in values)
    return Array(name, count, values)


def _boolean(cursor: _Cursor, key: str, value: int) -> bool:
    if value > 1:
        raise cursor.wrong(f"{key!r} is neither true nor false")
    return bool(value)


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> tuple[tuple[Tensor, ...], int]:
    tensors: list[Tensor] = []
    seen: set[str] = set()
    expected = 0
    for index in range(count):
        name = cursor.text(f"the name of tensor {index}", MAX_NAME)
        if not name or name in seen:
            raise cursor.wrong(f"the name of tensor {index} is {'used twice' if name else 'empty'}")
        seen.add(name)
        tensor = _read_tensor(cursor, name)
        if tensor.offset != expected:
            raise cursor.wrong(f"tensor {name!r} starts at {tensor.offset:,} of the data, not at {expected:,}")
        tensors.append(tensor)
        expected += -(-tensor.size // alignment) * alignment
    data_offset = -(-cursor.position // alignment) * alignment
    if tensors and data_offset + tensors[-1].offset + tensors[-1].size > cursor.size:
        needed = data_offset + tensors[-1].offset + tensors[-1].size
        raise cursor.wrong(
            f"the tensors need {needed:,} bytes and the file has {cursor.size:,}",
            "The file is not complete: get it again.",
        )
    return tuple(tensors), data_offset


def _read_tensor(cursor: _Cursor, name: str) -> Tensor:
    dimensions = cursor.number(U32, f"the dimensions of {name!r}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise cursor.wrong(f"tensor {name!r} has {dimensions} dimensions, not 1 to {MAX_DIMENSIONS}")
    shape = tuple(cursor.number(U64, f"the shape of {name!r}") for _ in range(dimensions))
    elements = 1
    for length in shape:
        elements *= length
    if not 0 < elements < 1 << 62:
        raise cursor.wrong(f"tensor {name!r} has the impossible shape {shape}")
    kind = cursor.number(U32, f"the type of tensor {name!r}")
    if kind not in TENSOR_TYPES:
        raise cursor.wrong(f"tensor {name!r} has type {kind}, which does not exist or is no longer read")
    type_name, block, block_bytes = TENSOR_TYPES[kind]
    if shape[0] % block:
        raise cursor.wrong(f"tensor {name!r} has rows of {shape[0]} elements, not a multiple of {block}")
    size = elements // block * block_bytes
    if size > cursor.size:
        raise cursor.wrong(f"tensor {name!r} would take {size:,} bytes and the file has {cursor.size:,}")
    return Tensor(name, type_name, shape, cursor.number(U64, f"the offset of {name!r}"), size)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
