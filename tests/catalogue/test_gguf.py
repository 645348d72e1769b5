"""The header reader: reads what is right, refuses everything else by name, and cheaply."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from gguf_samples import DATA, PAIRS, TENSORS, array, build, scalar, string, tensor, text
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes.catalogue.errors import FormatError
from runtimes.catalogue.facts import read_facts
from runtimes.catalogue.gguf import WINDOW, Array, Header, parse_header, read_header

MUTATIONS = int(os.environ.get("OUTPOST_MUTATIONS", "20000"))
"""Raise it for a long run: OUTPOST_MUTATIONS=1000000 pytest tests/catalogue/test_gguf.py"""


def parse(raw: bytes) -> Header:
    return parse_header(lambda offset, size: raw[offset : offset + size], len(raw), "sample.gguf")


def test_sample_is_read() -> None:
    header = parse(build())
    assert header.metadata["general.name"] == "A sample"
    assert header.metadata["llama.rope.freq_base"] == 10000.0
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    assert header.metadata["tokenizer.ggml.tokens"] == Array("string", 8, None)
    assert header.metadata["tokenizer.ggml.token_type"].values == (3, 3, 1, 1, 1, 1, 1, 1)
    assert [t.name for t in header.tensors] == ["token_embd.weight", "output_norm.weight", "blk.0.attn_q.weight"]
    assert header.tensors[2].type == "Q8_0"
    assert header.tensors[2].size == 32 * 34
    assert header.weights_bytes == DATA
    assert header.data_offset % 32 == 0
    assert header.data_offset + DATA == header.file_size


def test_real_header(model_store: Path, catalogue) -> None:
    files = catalogue.resolve("smollm2-135m-instruct")
    header = read_header(files.main)
    facts = files.facts
    assert (header.version, header.alignment, header.data_offset, len(header.tensors)) == (3, 32, 1_785_664, 272)
    assert (facts.architecture, facts.task, facts.context_length, facts.block_count) == ("llama", "generate", 8192, 30)
    assert (facts.embedding_length, facts.vocabulary, facts.tokenizer) == (576, 49152, "gpt2")
    assert facts.kv_bytes_per_token == 2 * 30 * 3 * 64 * 2
    assert facts.weights_bytes == 96_576_768
    assert facts.chat_template is not None
    assert "<|im_start|>" in facts.chat_template
    assert not facts.native_tools


def without(key: str) -> bytes:
    return build({key: None})


HUGE = 2**64 - 1
REFUSED = {
    "empty": (b"", "past the end"),
    "other magic": (build(magic=b"GGML"), "does not start with GGUF"),
    "version 1": (build(version=1), "version 1"),
    "version 4": (build(version=4), "version 4"),
    "big-endian": (build(version=0x03000000), "version 50331648"),
    "too many tensors": (build(tensor_count=HUGE), "number of tensors"),
    "more tensors than bytes": (build(tensor_count=16000), "more than the file can hold"),
    "too many pairs": (build(pair_count=HUGE), "number of metadata pairs"),
    "one pair too many": (build(pair_count=len(PAIRS) + 1), ""),
    "empty key": (build({"": scalar("u8", 1)}), "empty"),
    "control key": (build({"a\nb": scalar("u8", 1)}), "control"),
    "long key": (build({"k" * 2000: scalar("u8", 1)}), "2,000 bytes long"),
    "key past the end": (build(tail=struct.pack("<Q", HUGE), pair_count=len(PAIRS) + 1), "more than 1,024"),
    "key not UTF-8": (build(tail=text(b"\xff\xfe") + scalar("u8", 1), pair_count=len(PAIRS) + 1), "UTF-8"),
    "doubled key": (
        build(tail=text("general.name") + string("again"), pair_count=len(PAIRS) + 1),
        "'general.name' comes twice",
    ),
    "unknown type": (build({"x": struct.pack("<I", 13)}), "type of 'x' is 13"),
    "string past the end": (build({"x": struct.pack("<IQ", 8, HUGE)}), "value of 'x' reaches past"),
    "string just past the end": (build({"x": struct.pack("<IQ", 8, 5000)}), "value of 'x' reaches past"),
    "text not UTF-8": (build({"x": string(b"\xc3(")}), "value of 'x' is not valid UTF-8"),
    "boolean 2": (build({"x": struct.pack("<IB", 7, 2)}), "neither true nor false"),
    "booleans 2": (build({"x": array("bool", [0, 1, 2])}), "neither true nor false"),
    "nested array": (build({"x": struct.pack("<IIQIQ", 9, 9, 1, 9, 1)}), "array of arrays"),
    "array of unknown": (build({"x": struct.pack("<IIQ", 9, 77, 1)}), "element type of 'x' is 77"),
    "array too long": (build({"x": struct.pack("<IIQ", 9, 0, HUGE)}), "length of 'x'"),
    "array past the end": (build({"x": struct.pack("<IIQ", 9, 12, 1_000_000)}), "more than the file can hold"),
    "strings past the end": (build({"x": struct.pack("<IIQQ", 9, 8, 2, HUGE)}), "reaches past"),
    "more strings than bytes": (build({"x": struct.pack("<IIQ", 9, 8, 1_000_000)}), "more than the file can hold"),
    "alignment 0": (build({"general.alignment": scalar("u32", 0)}), "general.alignment"),
    "alignment 48": (build({"general.alignment": scalar("u32", 48)}), "general.alignment"),
    "alignment huge": (build({"general.alignment": scalar("u32", 1 << 31)}), "general.alignment"),
    "alignment text": (build({"general.alignment": string("32")}), "general.alignment"),
    "alignment true": (build({"general.alignment": scalar("bool", 1)}), "general.alignment"),
    "no tensor name": (build(tensors=[tensor("", (8,), 0)]), "empty"),
    "long tensor name": (build(tensors=[tensor("n" * 64, (8,), 0)]), "64 bytes long"),
    "doubled tensor": (build(tensors=[tensor("t", (8,), 0), tensor("t", (8,), 32)]), "used twice"),
    "no dimensions": (build(tensors=[text("t") + struct.pack("<IIQQ", 0, 0, 0, 0)]), "0 dimensions"),
    "five dimensions": (build(tensors=[tensor("t", (1, 1, 1, 1, 1), 0)]), "5 dimensions"),
    "zero dimension": (build(tensors=[tensor("t", (8, 0), 0)]), "impossible shape"),
    "overflowing shape": (build(tensors=[tensor("t", (2**33, 2**33), 0)]), "impossible shape"),
    "negative dimension": (build(tensors=[tensor("t", (HUGE,), 0)]), "impossible shape"),
    "unknown tensor type": (build(tensors=[tensor("t", (32,), 0, kind=99)]), "type 99"),
    "removed tensor type": (build(tensors=[tensor("t", (32,), 0, kind=4)]), "type 4"),
    "broken block": (build(tensors=[tensor("t", (33,), 0, kind=8)]), "not a multiple of 32"),
    "tensor too large": (build(tensors=[tensor("t", (1 << 40,), 0)]), "would take"),
    "gap": (build(tensors=[tensor("a", (8,), 0), tensor("b", (8,), 64)]), "starts at 64 of the data, not at 32"),
    "overlap": (build(tensors=[tensor("a", (8,), 0), tensor("b", (8,), 0)]), "starts at 0 of the data, not at 32"),
    "offset past the end": (build(tensors=[tensor("t", (8,), HUGE)]), "starts at"),
    "data cut short": (build(data=DATA - 1), "the tensors need"),
    "many middling texts": (build({f"x{i}": string("a" * (1 << 20)) for i in range(5)}), "more than 4 MiB"),
    "many numbers": (build({f"x{i}": array("i64", [2**40] * 1024) for i in range(120)}), "more than 4 MiB"),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "what"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name(raw: bytes, what: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse(raw)
    assert what in caught.value.message
    assert caught.value.message.startswith("sample.gguf: ")
    assert caught.value.cure


def test_every_cut_is_refused() -> None:
    raw = build()
    for length in range(len(raw)):
        with pytest.raises(FormatError):
            parse(raw[:length])


def test_a_file_that_shrinks_while_it_is_read_is_refused() -> None:
    raw = build()
    with pytest.raises(FormatError, match="cut short"):
        parse_header(lambda offset, size: raw[offset : offset + size][:40], len(raw), "sample.gguf")


def test_strings_around_the_window() -> None:
    """The walk over a long array meets the edge of the window at every possible place."""
    for extra in range(24):
        words = ["x" * 11] * (WINDOW // 19 + 5)
        header = parse(build({"filler": string("f" * extra), "words": array("string", words), "end": scalar("u8", 7)}))
        assert header.metadata["words"] == Array("string", len(words), None)
        assert header.metadata["end"] == 7


def test_long_texts_are_passed_over() -> None:
    header = parse(build({"big": string("x" * (3 << 20)), "end": scalar("u8", 7)}))
    assert header.metadata["big"] is None
    assert header.metadata["end"] == 7


@given(st.binary(max_size=400))
def test_arbitrary_bytes(raw: bytes) -> None:
    for candidate in (raw, b"GGUF\x03\0\0\0" + raw, build()[:24] + raw):
        survives_or_refused(candidate)


@settings(max_examples=200)
@given(st.integers(0, len(build()) - 1), st.integers(0, 255))
def test_any_one_byte(position: int, value: int) -> None:
    raw = bytearray(build())
    raw[position] = value
    survives_or_refused(bytes(raw))


def survives_or_refused(raw: bytes) -> bool:
    """Whatever comes through both checks lies inside the file. Gives whether it came through."""
    try:
        header = parse(raw)
        facts = read_facts(header, "sample.gguf")
    except FormatError:
        return False
    assert all(0 < t.size <= len(raw) for t in header.tensors)
    assert all(header.data_offset + t.offset + t.size <= len(raw) for t in header.tensors)
    assert all(t.offset % header.alignment == 0 for t in header.tensors)
    assert 1 <= facts.block_count <= 512
    assert 0 < facts.vocabulary <= len(raw)
    assert 0 <= facts.kv_bytes_per_token < 1 << 50
    return True


INTERESTING = [0, 1, 2, 7, 8, 9, 12, 13, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, HUGE]


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """One to four changes of the kinds that break parsers: bits, lengths, cuts, insertions, copies."""
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(out) - 8)
        kind = rng.randrange(7)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + 8] = struct.pack("<Q", rng.choice(INTERESTING))
        elif kind == 2:
            out[at : at + 4] = struct.pack("<I", rng.choice(INTERESTING) & 0xFFFFFFFF)
        elif kind == 3:
            out[at : at + 8] = struct.pack("<Q", (len(out) - at + rng.randrange(-32, 32)) % 2**64)
        elif kind == 4:
            del out[at : at + rng.randrange(1, 64)]
        elif kind == 5:
            out[at:at] = rng.randbytes(rng.randrange(1, 32))
        else:
            source = rng.randrange(len(out))
            out[at:at] = out[source : source + rng.randrange(1, 128)]
        if len(out) < 32:
            break
    return bytes(out)


@pytest.mark.timeout(600 + MUTATIONS // 100)
def test_mutations() -> None:
    # The data of the tensors is not read, so only changes in front of it matter.
    raw = build()
    head, data = raw[: len(raw) - DATA], raw[len(raw) - DATA :]
    rng = random.Random(20261123)
    refused, slowest = 0, 0.0
    for _ in range(MUTATIONS):
        candidate = mutated(head, rng) + data
        start = time.process_time()
        refused += not survives_or_refused(candidate)
        slowest = max(slowest, time.process_time() - start)
    assert slowest < 1.0
    assert MUTATIONS * 0.5 < refused < MUTATIONS


def test_mutations_of_the_real_header(model_store: Path, catalogue) -> None:
    path = catalogue.resolve("smollm2-135m-instruct").main
    header = read_header(path)
    raw = path.read_bytes()[: header.data_offset]
    rng = random.Random(7)
    for _ in range(40):
        candidate = mutated(raw[:2000], rng) + raw[2000:]
        start = time.process_time()
        try:
            parse_header(lambda offset, size, c=candidate: c[offset : offset + size], header.file_size, "mutated.gguf")
        except FormatError as e:
            assert e.message.startswith("mutated.gguf: ")
        assert time.process_time() - start < 1.0


HOSTILE = {
    "strings": lambda: build({"x": struct.pack("<IIQ", 9, 8, 1_190_000) + bytes(8 * 1_190_000)}),
    "wide texts": lambda: build({f"x{i}": string("😀" + "a" * ((1 << 20) - 8)) for i in range(3)}),
    "numbers": lambda: build({f"x{i}": array("i64", [2**40 + i] * 1024) for i in range(100)}),
    "tensors": lambda: build(
        tensors=[tensor(f"{'t' * 50}{i}", (1, 1, 1, 1), i * 32) for i in range(16384)], data=32 * 16384 + 32
    ),
    "pairs": lambda: build({f"{'k' * 900}{i}": scalar("f64", i / 3) for i in range(4096 - len(PAIRS))}),
    "one text": lambda: build({"x": string("a" * (100 << 20))}),
}  # fmt: skip
PROBE = """
import json, pathlib, resource, sys, time
from runtimes.catalogue.errors import FormatError
from runtimes.catalogue.facts import read_facts
from runtimes.catalogue.gguf import read_header
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before, start = peak(), time.process_time()
try:
    read_facts(read_header(pathlib.Path(sys.argv[1])), "hostile")
    said = "read"
except FormatError as e:
    said = str(e)
print(json.dumps({"mib": peak() - before, "cpu_s": time.process_time() - start, "said": said}))
"""


@pytest.mark.parametrize("kind", HOSTILE)
def test_the_worst_that_a_header_may_cost(kind: str, tmp_path: Path) -> None:
    """Each cap driven to its limit, in a process of its own: under 64 MiB and a second of CPU."""
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE[kind]())
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(path)], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    cost = json.loads(done.stdout)
    assert cost["mib"] < 64, cost
    assert cost["cpu_s"] < 1.0, cost


def facts_of(pairs: dict[str, bytes | None], **more):
    return read_facts(parse(build(pairs, **more)), "sample.gguf")


def test_facts_of_the_sample() -> None:
    facts = facts_of({})
    assert (facts.task, facts.context_length, facts.vocabulary) == ("generate", 1024, 8)
    assert facts.kv_bytes_per_token == 2 * 2 * 2 * 8 * 2
    assert not facts.native_tools


def test_facts_infer() -> None:
    assert facts_of({"tokenizer.chat_template": string("{% if tools %}x{% endif %}")}).native_tools
    assert facts_of({"tokenizer.chat_template": None}).chat_template is None
    per_layer = facts_of({"llama.attention.head_count_kv": array("i32", [2, 0])})
    assert per_layer.kv_bytes_per_token == 2 * 16 * 2
    wide = facts_of({"llama.attention.key_length": scalar("u32", 24), "llama.attention.value_length": scalar("u32", 8)})
    assert wide.kv_bytes_per_token == 2 * 2 * 32 * 2
    embedder = facts_of({"llama.pooling_type": scalar("u32", 3)})
    assert (embedder.task, embedder.pooling) == ("embed", "last")
    assert embedder.kv_bytes_per_token > 0
    assert facts_of({"llama.attention.head_count": None, "llama.attention.head_count_kv": None}).kv_bytes_per_token == 0


WRONG_FACTS = {
    "projector": ({"general.type": string("mmproj")}, "projector"),
    "adapter": ({"general.type": string("adapter")}, "adapter"),
    "split": ({"split.count": scalar("u16", 3)}, "split model"),
    "reranker": ({"llama.pooling_type": scalar("u32", 4)}, "reranker"),
    "unknown pooling": ({"llama.pooling_type": scalar("u32", 9)}, "pooling_type"),
    "no architecture": ({"general.architecture": None}, "general.architecture is missing"),
    "odd architecture": ({"general.architecture": string("../x")}, "impossible architecture"),
    "other architecture": ({"general.architecture": string("qwen")}, "qwen.block_count is missing"),
    "no context": ({"llama.context_length": None}, "llama.context_length is missing"),
    "zero context": ({"llama.context_length": scalar("u32", 0)}, "llama.context_length is 0"),
    "too many layers": ({"llama.block_count": scalar("u32", 513)}, "llama.block_count is 513"),
    "negative width": ({"llama.embedding_length": scalar("i32", -1)}, "llama.embedding_length is -1"),
    "fractional heads": ({"llama.attention.head_count": scalar("f32", 4.0)}, "head_count is 4.0"),
    "true heads": ({"llama.attention.head_count": scalar("bool", 1)}, "head_count is True"),
    "too few heads": ({"llama.attention.head_count": array("i32", [4])}, "1 values for 2 layers"),
    "negative heads": ({"llama.attention.head_count": array("i32", [4, -4])}, "head_count holds"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is missing"),
    "tokens of numbers": ({"tokenizer.ggml.tokens": array("i32", [1])}, "not a list of texts"),
    "short scores": ({"tokenizer.ggml.scores": array("f32", [0.0])}, "tokenizer.ggml.scores"),
    "odd scores": ({"tokenizer.ggml.scores": array("u8", [0] * 8)}, "tokenizer.ggml.scores"),
    "short types": ({"tokenizer.ggml.token_type": array("i32", [1])}, "tokenizer.ggml.token_type"),
    "odd merges": ({"tokenizer.ggml.merges": array("u8", [1])}, "tokenizer.ggml.merges"),
    "odd end": ({"tokenizer.ggml.eos_token_id": string("2")}, "eos_token_id"),
    "large template": ({"tokenizer.chat_template": string("x" * (2 << 20))}, "tokenizer.chat_template"),
    "more words than rows": ({"tokenizer.ggml.tokens": array("string", ["a"] * 8 + ["b"]),
                              "tokenizer.ggml.scores": None, "tokenizer.ggml.token_type": None}, "token_embd.weight"),
}  # fmt: skip


@pytest.mark.parametrize(("pairs", "what"), WRONG_FACTS.values(), ids=WRONG_FACTS)
def test_wrong_facts(pairs: dict[str, bytes | None], what: str) -> None:
    with pytest.raises(FormatError) as caught:
        facts_of(pairs)
    assert what in caught.value.message
    assert caught.value.cure


def test_no_tensors() -> None:
    with pytest.raises(FormatError, match="no tensors"):
        facts_of({}, tensors=[])
    assert len(TENSORS) == 3
