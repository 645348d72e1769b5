"""Small GGUF files, byte by byte, so that a test can make any part of one wrong."""

from __future__ import annotations

import struct
from typing import Any

TYPES = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i"),
         "f32": (6, "f"), "bool": (7, "B"), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d")}  # fmt: skip


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def scalar(kind: str, value: Any) -> bytes:
    number, form = TYPES[kind]
    return struct.pack(f"<I{form}", number, value)


def string(value: str | bytes) -> bytes:
    return struct.pack("<I", 8) + text(value)


def array(kind: str, values: list[Any]) -> bytes:
    if kind == "string":
        return struct.pack("<IIQ", 9, 8, len(values)) + b"".join(text(v) for v in values)
    number, form = TYPES[kind]
    return struct.pack(f"<IIQ{len(values)}{form}", 9, number, len(values), *values)


def tensor(name: str, shape: tuple[int, ...], offset: int, kind: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


WORDS = ["<s>", "</s>", "a", "b", "ab", "c", "d", "▁"]
PAIRS: dict[str, bytes] = {
    "general.architecture": string("llama"),
    "general.name": string("A sample"),
    "general.alignment": scalar("u32", 32),
    "llama.block_count": scalar("u32", 2),
    "llama.context_length": scalar("u32", 1024),
    "llama.embedding_length": scalar("u32", 32),
    "llama.attention.head_count": scalar("u32", 4),
    "llama.attention.head_count_kv": scalar("u32", 2),
    "llama.rope.freq_base": scalar("f32", 10000.0),
    "tokenizer.ggml.model": string("llama"),
    "tokenizer.ggml.tokens": array("string", WORDS),
    "tokenizer.ggml.scores": array("f32", [0.0] * len(WORDS)),
    "tokenizer.ggml.token_type": array("i32", [3, 3, 1, 1, 1, 1, 1, 1]),
    "tokenizer.ggml.bos_token_id": scalar("u32", 0),
    "tokenizer.ggml.add_bos_token": scalar("bool", 1),
    "tokenizer.chat_template": string("{% for m in messages %}{{ m.content }}{% endfor %}"),
}
TENSORS = [
    tensor("token_embd.weight", (32, 8), 0),
    tensor("output_norm.weight", (32,), 1024),
    tensor("blk.0.attn_q.weight", (32, 32), 1152, kind=8),
]
DATA = 1024 + 128 + 32 * 34


def build(
    pairs: dict[str, bytes | None] | None = None,
    tensors: list[bytes] | None = None,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    pair_count: int | None = None,
    data: int = DATA,
    tail: bytes = b"",
) -> bytes:
    """A whole file. `pairs` replaces or (None) removes entries of PAIRS; `tail` follows them as it is."""
    entries = {k: v for k, v in {**PAIRS, **(pairs or {})}.items() if v is not None}
    infos = TENSORS if tensors is None else tensors
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(infos) if tensor_count is None else tensor_count,
        len(entries) if pair_count is None else pair_count,
    )
    head += b"".join(text(k) + v for k, v in entries.items()) + tail + b"".join(infos)
    return head + bytes(-len(head) % 32) + bytes(data)
