"""The reader of safetensors headers: only what fits its file without gaps comes through."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.catalogue.errors import FormatError
from runtimes.catalogue.safetensors import Stored, parse_safetensors, read_safetensors

GOOD: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "b": {"dtype": "F16", "shape": [2, 3], "data_offsets": [16, 28]},
    "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
}


def entry(**change: Any) -> dict[str, Any]:
    return {**GOOD, "a": {**GOOD["a"], **change}}


def test_good(tmp_path: Path) -> None:
    head = json.dumps(GOOD).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(28))
    start = 8 + len(head)
    assert read_safetensors(path) == {"b": Stored("F16", (2, 3), start + 16, 12), "a": Stored("F32", (4,), start, 16)}


WRONG = {
    "unknown type": entry(dtype="OBJECT"),
    "type is a list": entry(dtype=[]),
    "negative shape": entry(shape=[-4]),
    "true shape": entry(shape=[True, 4]),
    "fractional shape": entry(shape=[4.0]),
    "huge shape": entry(shape=[2**40, 2**40]),
    "wrong size": entry(shape=[5]),
    "backwards": entry(data_offsets=[16, 0]),
    "three offsets": entry(data_offsets=[0, 16, 28]),
    "past the end": entry(data_offsets=[1000, 1016]),
    "overlap": entry(data_offsets=[12, 28]),
    "more fields": entry(code="import os"),
    "gap": {"a": GOOD["a"]},
    "no table": [],
    "tensor is a list": {"a": []},
    "many dimensions": entry(shape=[4, 1, 1, 1, 1, 1, 1, 1, 1]),
}


@pytest.mark.parametrize("table", WRONG.values(), ids=WRONG)
def test_wrong(table: Any) -> None:
    with pytest.raises(FormatError) as caught:
        parse_safetensors(json.dumps(table).encode(), 28, "m.safetensors")
    assert caught.value.message.startswith("m.safetensors: ")


@pytest.mark.parametrize(
    "raw",
    [b"", b"\x10", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 100) + b"{}", struct.pack("<Q", 0) + b"{}"],
)
def test_wrong_length(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw)
    with pytest.raises(FormatError):
        read_safetensors(path)


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"a": 1, "a": 2}', b"\xff\xff", b"nonsense", b'{"a": NaN}'])
def test_wrong_json(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_safetensors(raw, 0, "m.safetensors")


@given(st.binary(max_size=200))
def test_arbitrary(raw: bytes) -> None:
    try:
        assert parse_safetensors(raw, 0, "m") == {}
    except FormatError as e:
        assert e.cure


def test_mutations() -> None:
    head = json.dumps(GOOD).encode()
    rng = random.Random(3)
    for _ in range(5000):
        raw = bytearray(head)
        for _ in range(rng.choice((1, 2, 4))):
            at = rng.randrange(len(raw))
            raw[at : at + rng.randrange(2)] = rng.choice((b"9", b"-", b"]", b'"', b"0", b",", b"", b"e"))
        try:
            tensors = parse_safetensors(bytes(raw), 28, "m")
        except FormatError:
            continue
        assert sum(t.size for t in tensors.values()) == 28
        assert all(8 + len(raw) <= t.start <= t.start + t.size <= 8 + len(raw) + 28 for t in tensors.values())
