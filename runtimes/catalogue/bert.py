"""Converts a BERT sentence-embedding model from safetensors to the GGUF that llama.cpp reads.

Inputs: config.json, vocab.txt (WordPiece), pooling.json (the `1_Pooling` config), model.safetensors.
The words of the vocabulary change their marks on the way: `##piece` continues a word and becomes
`piece`, everything else starts one and becomes `▁word`; control tokens stay as they are.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.catalogue.errors import FormatError
from runtimes.catalogue.gguf_writer import Encoded, Value, encode, write_gguf
from runtimes.catalogue.progress import Sink
from runtimes.catalogue.safetensors import Stored, read_safetensors

INPUTS = ("config.json", "vocab.txt", "pooling.json", "model.safetensors")
MAX_JSON = 1 << 20
MAX_VOCABULARY = 16 << 20
NORMAL, CONTROL = 1, 3
SPECIAL = {"[PAD]": "padding", "[UNK]": "unknown", "[CLS]": "cls", "[SEP]": "seperator", "[MASK]": "mask"}
"""Token → the middle of its metadata key; the misspelling is the format's."""
POOLING_MODES = {"pooling_mode_mean_tokens": 1, "pooling_mode_cls_token": 2}
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7}

TABLES = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm": "token_embd_norm",
}
LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
KEPT_WHOLE = {"position_embd.weight", "token_types.weight"}
"""Small tables that are added, not multiplied: 32-bit in the engine's graph."""


def convert_bert(inputs: Mapping[str, Path], out: Sink, *, name: str, licence: str, weights: str) -> None:
    """Write the model to `out`; `weights` is F32, F16 or Q8_0. Raises FormatError for inputs of another kind."""
    missing = [part for part in INPUTS if part not in inputs]
    if missing:
        raise FormatError(f"{name}: the conversion lacks {', '.join(missing)}.", "Add it to inputs in the manifest.")
    config = _read_json(inputs["config.json"])
    words = _read_words(inputs["vocab.txt"])
    metadata = _metadata(config, _read_json(inputs["pooling.json"]), words, name, licence, weights)
    path = inputs["model.safetensors"]
    stored = read_safetensors(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        tensors = [
            _tensor(path.name, data, stored, source, target, weights)
            for source, target in _names(metadata["bert.block_count"])
        ]
    _check_shapes(path.name, tensors, metadata, len(words), config)
    write_gguf(out, metadata, tensors)


def _metadata(
    config: dict[str, Any], pooling: dict[str, Any], words: list[str], name: str, licence: str, weights: str
) -> dict[str, Any]:
    if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
        raise FormatError("config.json: is not a BERT model with the GELU activation.", "Convert it elsewhere to GGUF.")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise FormatError("config.json: positions are not absolute.", "Convert it elsewhere to GGUF.")
    if config.get("vocab_size") != len(words):
        raise FormatError(f"vocab.txt: has {len(words)} words, config.json says {config.get('vocab_size')}.")
    modes = [mode for mode, on in pooling.items() if mode.startswith("pooling_mode") and on]
    if len(modes) != 1 or modes[0] not in POOLING_MODES:
        raise FormatError(f"pooling.json: asks for {', '.join(modes) or 'no pooling'}; mean and cls are known.")
    missing = [token for token in SPECIAL if token not in words]
    if missing:
        raise FormatError(f"vocab.txt: lacks {', '.join(missing)}.")
    kinds = [CONTROL if w in SPECIAL else NORMAL for w in words]
    metadata: dict[str, Value] = {
        "general.architecture": "bert",
        "general.type": "model",
        "general.name": name,
        "general.license": licence,
        "general.file_type": FILE_TYPES[weights],
        "general.quantization_version": 2,
        "bert.block_count": _whole(config, "num_hidden_layers", 512),
        "bert.context_length": _whole(config, "max_position_embeddings", 1 << 20),
        "bert.embedding_length": _whole(config, "hidden_size", 1 << 16),
        "bert.feed_forward_length": _whole(config, "intermediate_size", 1 << 18),
        "bert.attention.head_count": _whole(config, "num_attention_heads", 1024),
        "bert.attention.layer_norm_epsilon": float(config.get("layer_norm_eps", 1e-12)),
        "bert.attention.causal": False,
        "bert.pooling_type": POOLING_MODES[modes[0]],
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.token_type_count": _whole(config, "type_vocab_size", 64),
        "tokenizer.ggml.tokens": [_marked(w) for w in words],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": words.index("[CLS]"),
        "tokenizer.ggml.eos_token_id": words.index("[SEP]"),
        **{f"tokenizer.ggml.{key}_token_id": words.index(token) for token, key in SPECIAL.items()},
        "tokenizer.ggml.normalizer.lowercase": True,
        "tokenizer.ggml.normalizer.strip_accents": True,
    }
    return dict(metadata)


def _marked(word: str) -> str:
    if word in SPECIAL:
        return word
    return word[2:] if word.startswith("##") else "\u2581" + word


def _names(layers: int) -> list[tuple[str, str]]:
    """(name in safetensors, name in GGUF) of every tensor, in the order of the file."""
    names: list[tuple[str, str]] = []
    for source, target in TABLES.items():
        if source.endswith(".weight"):
            names.append((source, target))
        else:
            names += [(f"{source}.{part}", f"{target}.{part}") for part in ("weight", "bias")]
    for layer in range(layers):
        for source, target in LAYER.items():
            for part in ("weight", "bias"):
                names.append((f"encoder.layer.{layer}.{source}.{part}", f"blk.{layer}.{target}.{part}"))
    return names


def _tensor(file: str, data: mmap.mmap, stored: dict[str, Stored], source: str, target: str, weights: str) -> Encoded:
    found = stored.get(source) or stored.get(f"bert.{source}")
    if found is None or found.type not in ("F32", "F16"):
        raise FormatError(f"{file}: {source} is missing or not made of 32- or 16-bit floats.")
    raw = np.frombuffer(data[found.start : found.start + found.size], dtype="<f4" if found.type == "F32" else "<f2")
    values: NDArray[np.float32] = raw.astype(np.float32).reshape(found.shape)
    if not np.isfinite(values).all():
        raise FormatError(f"{file}: {source} holds values that are no numbers.")
    whole = values.ndim == 1 or target in KEPT_WHOLE
    return encode(target, values, "F32" if whole else weights)


def _check_shapes(file: str, tensors: list[Encoded], metadata: dict[str, Any], words: int, config: Any) -> None:
    width, inner = metadata["bert.embedding_length"], metadata["bert.feed_forward_length"]
    if width % metadata["bert.attention.head_count"]:
        raise FormatError("config.json: hidden_size is not a multiple of num_attention_heads.")
    tables = {
        "token_embd.weight": (words, width),
        "position_embd.weight": (metadata["bert.context_length"], width),
        "token_types.weight": (metadata["tokenizer.ggml.token_type_count"], width),
        "ffn_up.weight": (inner, width),
        "ffn_up.bias": (inner,),
        "ffn_down.weight": (width, inner),
    }
    for tensor in tensors:
        part = tensor.name.split(".", 2)[2] if tensor.name.startswith("blk.") else tensor.name
        square = part in ("attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight")
        expected = tables.get(part, (width, width) if square else (width,))
        if tensor.shape != expected:
            raise FormatError(f"{file}: {tensor.name} has shape {tensor.shape}, config.json asks for {expected}.")


def _whole(config: dict[str, Any], key: str, most: int) -> int:
    value = config.get(key)
    if type(value) is not int or not 1 <= value <= most:
        raise FormatError(f"config.json: {key} is {value!r}, not a whole number from 1 to {most:,}.")
    return value


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_JSON:
        raise FormatError(f"{path.name}: is larger than {MAX_JSON >> 20} MiB.")
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        raise FormatError(f"{path.name}: is not proper JSON.") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path.name}: is not a table.")
    return value


def _read_words(path: Path) -> list[str]:
    if path.stat().st_size > MAX_VOCABULARY:
        raise FormatError(f"{path.name}: is larger than {MAX_VOCABULARY >> 20} MiB.")
    text = path.read_bytes().decode("utf-8", "strict")
    words = text.removesuffix("\n").split("\n")
    if len(set(words)) != len(words):
        raise FormatError(f"{path.name}: a word comes twice.")
    return words
