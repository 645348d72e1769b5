"""What a GGUF header says about its model, and whether a loader may be given it.

The structure has been checked by `gguf`; here the values are: counts that agree with each other and
stay inside what the native loader was built for, so that none of its assertions can be reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from runtimes.catalogue.errors import FormatError
from runtimes.catalogue.gguf import Array, Header

Task = Literal["generate", "embed"]
Pooling = Literal["none", "mean", "cls", "last"]

MAX_LAYERS = 512
MAX_HEADS = 4096
MAX_WIDTH = 1 << 20
MAX_CONTEXT = 1 << 28
MAX_VOCABULARY = 1_000_000
POOLINGS: dict[int, Pooling] = {0: "none", 1: "mean", 2: "cls", 3: "last"}
RANK = 4
EMBEDDING_ARCHITECTURES = frozenset(
    {"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "eurobert",
     "gemma-embedding", "llama-embed", "t5encoder"}
)  # fmt: skip
NOT_MODELS = {"mmproj": "a projector for images or sound", "adapter": "an adapter", "imatrix": "an importance matrix"}


@dataclass(frozen=True, slots=True)
class Facts:
    """A model as its header describes it. Lengths are tokens, sizes bytes."""

    name: str
    architecture: str
    task: Task
    context_length: int
    embedding_length: int
    block_count: int
    vocabulary: int
    tokenizer: str
    pooling: Pooling | None
    chat_template: str | None
    native_tools: bool
    weights_bytes: int
    kv_bytes_per_token: int
    """With keys and values as 16-bit floats; 0 for models that keep none."""


def read_facts(header: Header, name: str) -> Facts:
    """Check the values of a header and gather what an engine needs. Raises FormatError."""
    look = _Look(header.metadata, name)
    kind = look.text("general.type", "model")
    if kind != "model":
        raise look.wrong(f"is {NOT_MODELS.get(kind, kind)!r}, not a model", "Give the model's own file.")
    if look.number("split.count", 1, 1, 1 << 16) > 1:
        raise look.wrong("is one part of a split model", "Join the parts with `llama-gguf-split --merge`.")
    if not header.tensors:
        raise look.wrong("holds no tensors", "Give the file with the weights.")
    arch = look.text("general.architecture")
    if not arch or len(arch) > 64 or not all(c.isalnum() or c in "-_." for c in arch):
        raise look.wrong(f"has the impossible architecture {arch!r}")
    blocks = look.number(f"{arch}.block_count", None, 1, MAX_LAYERS)
    width = look.number(f"{arch}.embedding_length", None, 1, MAX_WIDTH)
    pooling = _pooling(look, arch)
    task: Task = "embed" if arch in EMBEDDING_ARCHITECTURES or pooling not in (None, "none") else "generate"
    template = look.text("tokenizer.chat_template", "") or None
    return Facts(
        name=look.text("general.name", "") or name,
        architecture=arch,
        task=task,
        context_length=look.number(f"{arch}.context_length", None, 1, MAX_CONTEXT),
        embedding_length=width,
        block_count=blocks,
        vocabulary=_vocabulary(look, header),
        tokenizer=look.text("tokenizer.ggml.model"),
        pooling=pooling,
        chat_template=template,
        native_tools=template is not None and "tools" in template,
        weights_bytes=header.weights_bytes,
        kv_bytes_per_token=0 if task == "embed" and pooling != "last" else _kv_bytes(look, arch, blocks, width),
    )


class _Look:
    """Typed look-ups in the metadata, each with its bounds."""

    def __init__(self, metadata: dict[str, Any], name: str) -> None:
        self.metadata = metadata
        self.name = name

    def wrong(self, what: str, cure: str = "") -> FormatError:
        default = "No engine here can load it: get the file again, or convert the model again."
        return FormatError(f"{self.name}: {what}.", cure or default)

    def text(self, key: str, default: str | None = None) -> str:
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(f"{key} is {'missing' if key not in self.metadata else 'not a short text'}")
        return value

    def number(self, key: str, default: int | None, least: int, most: int) -> int:
        value = self.metadata.get(key, default)
        if value is None:
            raise self.wrong(f"{key} is missing")
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(f"{key} is {value!r}, not a whole number from {least:,} to {most:,}")
        return value

    def per_layer(self, key: str, default: list[int], layers: int, most: int) -> list[int]:
        """A number for all layers, or an array with one for each."""
        value = self.metadata.get(key)
        if value is None:
            return default
        if not isinstance(value, Array):
            return [self.number(key, None, 0, most)] * layers
        if value.values is None or value.length < layers:
            raise self.wrong(f"{key} has {value.length} values for {layers} layers")
        values = value.values[:layers]
        if any(isinstance(v, bool | float) or not 0 <= v <= most for v in values):
            raise self.wrong(f"{key} holds a value that is not a whole number from 0 to {most:,}")
        return [int(v) for v in values]


def _pooling(look: _Look, arch: str) -> Pooling | None:
    key = f"{arch}.pooling_type"
    if key not in look.metadata:
        return None
    value = look.number(key, None, 0, RANK)
    if value == RANK:
        raise look.wrong("is a reranker", "Outpost serves chat, completion and embedding models from GGUF files.")
    return POOLINGS[value]


def _vocabulary(look: _Look, header: Header) -> int:
    """The number of tokens; every array that runs beside the tokens must be as long."""
    tokens = look.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, Array) or tokens.type != "string" or not 1 <= tokens.length <= MAX_VOCABULARY:
        raise look.wrong("tokenizer.ggml.tokens is missing or not a list of texts")
    for key, types in (("scores", {"f32", "i32"}), ("token_type", {"i32", "u32"})):
        beside = look.metadata.get(f"tokenizer.ggml.{key}")
        if beside is None:
            continue
        if not isinstance(beside, Array) or beside.type not in types or beside.length != tokens.length:
            raise look.wrong(f"tokenizer.ggml.{key} does not have one number for each of {tokens.length:,} tokens")
    merges = look.metadata.get("tokenizer.ggml.merges")
    if merges is not None and (not isinstance(merges, Array) or merges.type != "string"):
        raise look.wrong("tokenizer.ggml.merges is not a list of texts")
    for key in look.metadata:
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            look.number(key, None, 0, 0xFFFFFFFF)
    embedding = next((t for t in header.tensors if t.name == "token_embd.weight"), None)
    if embedding is not None and (len(embedding.shape) != 2 or embedding.shape[1] != tokens.length):
        raise look.wrong(f"token_embd.weight has shape {embedding.shape} for {tokens.length:,} tokens")
    return tokens.length


def _kv_bytes(look: _Look, arch: str, layers: int, width: int) -> int:
    heads = look.per_layer(f"{arch}.attention.head_count", [0] * layers, layers, MAX_HEADS)
    heads_kv = look.per_layer(f"{arch}.attention.head_count_kv", heads, layers, MAX_HEADS)
    if not any(heads):
        return 0
    head = width // next(h for h in heads if h)
    key = look.number(f"{arch}.attention.key_length", head, 0, MAX_WIDTH)
    value = look.number(f"{arch}.attention.value_length", head, 0, MAX_WIDTH)
    return sum(heads_kv) * (key + value) * 2
