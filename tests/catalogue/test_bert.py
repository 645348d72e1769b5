"""The conversion of BERT models: right for made-up weights, and right for the model that is bundled."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_embedder import NativeEmbedder
from numpy_bert import NumpyBert

from runtimes.catalogue import Catalogue, FormatError
from runtimes.catalogue.bert import convert_bert
from runtimes.catalogue.facts import read_facts
from runtimes.catalogue.gguf import parse_header, read_header
from runtimes.catalogue.gguf_writer import encode, write_gguf

WIDTH, INNER, HEADS, LAYERS, POSITIONS = 64, 96, 4, 2, 32
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "sat", "s", "!", "é", "##a", "a"]
CONFIG: dict[str, Any] = {
    "model_type": "bert", "hidden_act": "gelu", "vocab_size": len(WORDS), "hidden_size": WIDTH,
    "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
}  # fmt: skip
POOLING = {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


def made_up_weights(rng: np.random.Generator) -> dict[str, np.ndarray]:
    def some(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    weights = {
        "embeddings.position_ids": np.arange(POSITIONS)[None],
        "embeddings.word_embeddings.weight": some(len(WORDS), WIDTH),
        "embeddings.position_embeddings.weight": some(POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": some(2, WIDTH),
        "pooler.dense.weight": some(WIDTH, WIDTH),
    }
    shapes = {"attention.self.query": (WIDTH, WIDTH), "attention.self.key": (WIDTH, WIDTH),
              "attention.self.value": (WIDTH, WIDTH), "attention.output.dense": (WIDTH, WIDTH),
              "intermediate.dense": (INNER, WIDTH), "output.dense": (WIDTH, INNER)}  # fmt: skip
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            weights[f"encoder.layer.{layer}.{name}.weight"] = some(*shape)
            weights[f"encoder.layer.{layer}.{name}.bias"] = some(shape[0])
        norms += [f"encoder.layer.{layer}.{part}.LayerNorm" for part in ("attention.output", "output")]
    for name in norms:
        weights[f"{name}.weight"] = 1 + some(WIDTH)
        weights[f"{name}.bias"] = some(WIDTH)
    return weights


def write_safetensors(path: Path, weights: dict[str, np.ndarray]) -> None:
    kinds = {"float32": "F32", "int64": "I64", "float16": "F16"}
    table, at = {}, 0
    for name, values in weights.items():
        table[name] = {
            "dtype": kinds[str(values.dtype)],
            "shape": list(values.shape),
            "data_offsets": [at, at + values.nbytes],
        }
        at += values.nbytes
    head = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(v.tobytes() for v in weights.values()))


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pooling.json").write_text(json.dumps(POOLING))
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    write_safetensors(tmp_path / "model.safetensors", made_up_weights(np.random.default_rng(5)))
    return {name: tmp_path / name for name in ("config.json", "pooling.json", "vocab.txt", "model.safetensors")}


def converted(inputs: dict[str, Path], weights: str = "F32") -> bytes:
    out = io.BytesIO()
    convert_bert(inputs, out, name="made-up", licence="apache-2.0", weights=weights)
    return out.getvalue()


@pytest.mark.parametrize(("weights", "least"), [("F32", 0.999999), ("F16", 0.99999), ("Q8_0", 0.999)])
def test_made_up_model(inputs: dict[str, Path], tmp_path: Path, weights: str, least: float) -> None:
    """Random weights: a swapped or transposed tensor anywhere shows at once."""
    path = tmp_path / "made-up.gguf"
    path.write_bytes(converted(inputs, weights))
    facts = read_facts(read_header(path), path.name)
    assert (facts.architecture, facts.task, facts.pooling) == ("bert", "embed", "mean")
    assert (facts.context_length, facts.embedding_length, facts.vocabulary) == (POSITIONS, WIDTH, len(WORDS))
    native = NativeEmbedder(path, context=POSITIONS)
    try:
        assert native.tokens("The CATS sat!") == [2, 5, 6, 7, 8, 10, 3]
        assert native.tokens("É cata dog") == [2, 1, 6, 12, 1, 3]
        reference = NumpyBert(inputs["model.safetensors"], HEADS)
        for ids in ([2, 5, 6, 7, 8, 10, 3], [2, 3], [2, *range(5, 14), *range(5, 14), 3]):
            assert float(native.embed(ids) @ reference.embed(ids)) > least
    finally:
        native.close()


def test_same_inputs_give_the_same_bytes(inputs: dict[str, Path]) -> None:
    for weights in ("F32", "F16", "Q8_0"):
        assert converted(inputs, weights) == converted(inputs, weights)
    assert converted(inputs, "F32") != converted(inputs, "F16")


def test_writer_and_reader_agree() -> None:
    out = io.BytesIO()
    values = np.arange(64, dtype=np.float32).reshape(2, 32)
    metadata = {"a": "text é", "b": 7, "c": 0.5, "d": True, "e": ["x", "ÿ"], "f": [1, -2, 3]}
    write_gguf(out, metadata, [encode("t", values, "Q8_0"), encode("u", values, "F16"), encode("v", values[0], "F32")])
    raw = out.getvalue()
    header = parse_header(lambda offset, size: raw[offset : offset + size], len(raw))
    assert {k: header.metadata[k] for k in "abcd"} == {"a": "text é", "b": 7, "c": 0.5, "d": True}
    assert (header.metadata["e"].length, header.metadata["f"].values) == (2, (1, -2, 3))
    assert [(t.name, t.type, t.shape, t.size) for t in header.tensors] == [
        ("t", "Q8_0", (32, 2), 68), ("u", "F16", (32, 2), 128), ("v", "F32", (32,), 128),
    ]  # fmt: skip
    start = header.data_offset + header.tensors[1].offset
    assert (np.frombuffer(raw[start : start + 128], "<f2").reshape(2, 32) == values).all()
    block = raw[header.data_offset : header.data_offset + 34]
    scale = float(np.frombuffer(block[:2], "<f2")[0])
    restored = np.frombuffer(block[2:], np.int8) * scale
    assert np.abs(restored - values[0]).max() <= scale


def broken_weights(change: str) -> dict[str, np.ndarray]:
    weights = made_up_weights(np.random.default_rng(5))
    if change == "missing":
        del weights["encoder.layer.1.output.dense.bias"]
    elif change == "nan":
        weights["embeddings.LayerNorm.bias"][3] = np.nan
    else:
        name = "encoder.layer.0.intermediate.dense.weight"
        weights[name] = np.ascontiguousarray(weights[name].T)
    return weights


@pytest.mark.parametrize(
    ("change", "what"),
    [("missing", "output.dense.bias is missing"), ("nan", "no numbers"), ("turned", "blk.0.ffn_up.weight has shape")],
)
def test_wrong_weights(inputs: dict[str, Path], change: str, what: str) -> None:
    write_safetensors(inputs["model.safetensors"], broken_weights(change))
    with pytest.raises(FormatError) as caught:
        converted(inputs)
    assert what in caught.value.message


@pytest.mark.parametrize(
    ("file", "text", "what"),
    [
        ("config.json", json.dumps({**CONFIG, "model_type": "gpt2"}), "not a BERT model"),
        ("config.json", json.dumps({**CONFIG, "hidden_act": "relu"}), "not a BERT model"),
        ("config.json", json.dumps({**CONFIG, "position_embedding_type": "relative_key"}), "not absolute"),
        ("config.json", json.dumps({**CONFIG, "vocab_size": 99}), "14 words"),
        ("config.json", json.dumps({**CONFIG, "num_hidden_layers": 10**9}), "num_hidden_layers"),
        ("config.json", json.dumps({**CONFIG, "num_attention_heads": 5}), "num_attention_heads"),
        ("config.json", json.dumps({**CONFIG, "hidden_size": "64"}), "hidden_size"),
        ("config.json", "[" * 100_000, "not proper JSON"),
        ("config.json", "[]", "not a table"),
        ("pooling.json", json.dumps({"pooling_mode_max_tokens": True}), "pooling_mode_max_tokens"),
        ("pooling.json", "{}", "no pooling"),
        ("vocab.txt", "\n".join([*WORDS[:-1], "##a"]), "comes twice"),
        ("vocab.txt", "\n".join([*WORDS[1:], "z"]), "lacks [PAD]"),
    ],
)
def test_wrong_inputs(inputs: dict[str, Path], file: str, text: str, what: str) -> None:
    inputs[file].write_text(text)
    with pytest.raises(FormatError) as caught:
        converted(inputs)
    assert what in caught.value.message


def test_missing_input(inputs: dict[str, Path]) -> None:
    del inputs["vocab.txt"]
    with pytest.raises(FormatError, match=r"vocab\.txt"):
        converted(inputs)


@pytest.fixture(scope="module")
def minilm(catalogue: Catalogue) -> Iterator[NativeEmbedder]:
    native = NativeEmbedder(catalogue.resolve("all-minilm-l6-v2").main)
    yield native
    native.close()


@pytest.fixture(scope="module")
def reference() -> list[dict[str, Any]]:
    data = json.loads(Path(__file__).with_name("minilm_reference.json").read_text())
    assert len(data["entries"]) > 50
    entries: list[dict[str, Any]] = data["entries"]
    return entries


def test_bundled_file_is_the_one_that_the_manifest_names(catalogue: Catalogue) -> None:
    files = catalogue.resolve("all-minilm-l6-v2")
    assert hashlib.sha256(files.main.read_bytes()).hexdigest() == files.manifest.main.sha256
    assert (files.facts.pooling, files.facts.embedding_length, files.facts.context_length) == ("mean", 384, 512)


def test_bundled_tokens(minilm: NativeEmbedder, reference: list[dict[str, Any]]) -> None:
    """Ids are those of the `tokenizers` library, but for the texts whose difference is known and named."""
    wrong = {e["text"]: minilm.tokens(e["text"]) for e in reference if minilm.tokens(e["text"]) != e["ids"]}
    assert set(wrong) == {e["text"] for e in reference if "unlike" in e}


def test_bundled_vectors(minilm: NativeEmbedder, reference: list[dict[str, Any]]) -> None:
    compared = [e for e in reference if "vector" in e]
    assert len(compared) > 40
    for entry in compared:
        expected = np.frombuffer(base64.b64decode(entry["vector"]), "<f2").astype(np.float64)
        cosine = float(minilm.embed(entry["ids"]) @ expected) / float(np.linalg.norm(expected))
        assert cosine > 0.9999, entry["text"]


def test_related_sentences_are_closer(minilm: NativeEmbedder) -> None:
    groups = [
        ("A man is eating food.", "Someone is having a meal."),
        ("How do I reset my password?", "I forgot my login credentials and cannot sign in."),
        ("The stock market fell sharply on Monday.", "Shares dropped at the start of the week."),
    ]
    vectors = [[minilm.embed(minilm.tokens(text)) for text in group] for group in groups]
    related = [float(a @ b) for a, b in vectors]
    unrelated = [float(vectors[i][0] @ vectors[j][1]) for i in range(3) for j in range(3) if i != j]
    assert min(related) > max(unrelated) + 0.2
