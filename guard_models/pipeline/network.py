"""The network: one small BERT encoder, read by three heads (injection, toxicity, personal data).

The encoder is all-MiniLM-L6-v2: 6 layers, width 384, 12 heads, a lower-cased WordPiece vocabulary of 30,522. Since that
vocabulary forgets capitals, which names live by, BERT's two token types, of which the base model uses one, become
`SHAPES` that say how a word is written (see `features.shapes_of`); it costs nothing at run time.

Written out rather than taken from a library because the graph that is exported is the product: each operation here is
one that the quantised runtime runs fast, and rows of a batch never meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from appliance.guards.features import SHAPES


@dataclass(frozen=True)
class Size:
    """What fixes the encoder's shape; the defaults are the base model's."""

    vocabulary: int = 30522
    width: int = 384
    layers: int = 6
    heads: int = 12
    inner: int = 1536
    positions: int = 512
    dropout: float = 0.1


class Layer(nn.Module):
    """One transformer layer, normalised after each half as BERT does."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads, self.dropout = size.heads, size.dropout
        self.qkv = nn.Linear(size.width, 3 * size.width)
        self.out = nn.Linear(size.width, size.width)
        self.norm_attention = nn.LayerNorm(size.width, eps=1e-12)
        self.up = nn.Linear(size.width, size.inner)
        self.down = nn.Linear(size.inner, size.width)
        self.norm_inner = nn.LayerNorm(size.width, eps=1e-12)
        self.drop = nn.Dropout(size.dropout)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """`hidden` [rows, tokens, width], `bias` [rows, 1, 1, tokens] (0 or very negative) to [rows, tokens, width]."""
        rows, tokens, width = hidden.shape
        qkv = self.qkv(hidden).view(rows, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=self.dropout if self.training else 0.0
        )
        attended = attended.transpose(1, 2).reshape(rows, tokens, width)
        hidden = self.norm_attention(hidden + self.drop(self.out(attended)))
        return self.norm_inner(hidden + self.drop(self.down(F.gelu(self.up(hidden)))))


class Encoder(nn.Module):
    """Token ids to one vector of `size.width` a token."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.words = nn.Embedding(size.vocabulary, size.width)
        self.places = nn.Embedding(size.positions, size.width)
        self.shapes = nn.Embedding(SHAPES, size.width)
        self.norm = nn.LayerNorm(size.width, eps=1e-12)
        self.drop = nn.Dropout(size.dropout)
        self.layers = nn.ModuleList(Layer(size) for _ in range(size.layers))

    def forward(self, ids: Tensor, mask: Tensor, shapes: Tensor) -> Tensor:
        """`ids`, `mask` (1 for a token, 0 for padding) and `shapes`, each [rows, tokens], to [rows, tokens, width]."""
        places = torch.arange(ids.shape[1], device=ids.device)
        hidden = self.words(ids) + self.places(places)[None] + self.shapes(shapes)
        hidden = self.drop(self.norm(hidden))
        bias = (1.0 - mask[:, None, None, :].to(hidden.dtype)) * -1e4
        for layer in self.layers:
            hidden = layer(hidden, bias)
        return hidden


class Pooled(nn.Module):
    """A verdict on the whole text: learned attention over its tokens, then a small perceptron."""

    def __init__(self, width: int, outputs: int, *, queries: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.score = nn.Linear(width, queries)
        self.inner = nn.Linear(width * queries, width)
        self.out = nn.Linear(width, outputs)
        self.drop = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[rows, tokens, width] and [rows, tokens] to logits [rows, outputs]."""
        scores = self.score(hidden) + (1.0 - mask[:, :, None].to(hidden.dtype)) * -1e4
        weights = scores.softmax(dim=1).transpose(1, 2)
        pooled = (weights @ hidden).flatten(1)
        return self.out(self.drop(torch.tanh(self.inner(self.drop(pooled)))))


class Guard(nn.Module):
    """The shared encoder and its heads; `tags` and `labels` are the numbers of outputs."""

    def __init__(self, size: Size, *, labels: int, tags: int) -> None:
        super().__init__()
        self.encoder = Encoder(size)
        self.injection = Pooled(size.width, 1, dropout=size.dropout)
        self.planted = nn.Linear(size.width, 1)
        self.toxicity = Pooled(size.width, labels, dropout=size.dropout)
        self.pii = nn.Linear(size.width, tags)
        self.drop = nn.Dropout(size.dropout)

    def forward(self, ids: Tensor, mask: Tensor, shapes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits: injection [rows, 1], planted [rows, tokens], toxicity [rows, labels], pii [rows, tokens, tags]."""
        hidden = self.encoder(ids, mask, shapes)
        dropped = self.drop(hidden)
        return (
            self.injection(hidden, mask),
            self.planted(dropped).squeeze(-1),
            self.toxicity(hidden, mask),
            self.pii(dropped),
        )


def load_base(encoder: Encoder, path: Path) -> None:
    """Fill `encoder` from the base model's safetensors file; raises KeyError or RuntimeError if it is another's."""
    base = load_file(path)
    state = {
        "words.weight": base["embeddings.word_embeddings.weight"],
        "places.weight": base["embeddings.position_embeddings.weight"],
        # Every text of the base model had type 0: all shapes begin as that one.
        "shapes.weight": base["embeddings.token_type_embeddings.weight"][:1].repeat(SHAPES, 1),
        "norm.weight": base["embeddings.LayerNorm.weight"],
        "norm.bias": base["embeddings.LayerNorm.bias"],
    }
    for number in range(len(encoder.layers)):
        theirs, ours = f"encoder.layer.{number}.", f"layers.{number}."
        for kind in ("weight", "bias"):
            parts = [base[f"{theirs}attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"{ours}qkv.{kind}"] = torch.cat(parts)
            state[f"{ours}out.{kind}"] = base[f"{theirs}attention.output.dense.{kind}"]
            state[f"{ours}norm_attention.{kind}"] = base[f"{theirs}attention.output.LayerNorm.{kind}"]
            state[f"{ours}up.{kind}"] = base[f"{theirs}intermediate.dense.{kind}"]
            state[f"{ours}down.{kind}"] = base[f"{theirs}output.dense.{kind}"]
            state[f"{ours}norm_inner.{kind}"] = base[f"{theirs}output.LayerNorm.{kind}"]
    encoder.load_state_dict(state)


class Reader(nn.Module):
    """The encoder alone, for what compares the vectors of texts."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.encoder = Encoder(size)

    def forward(self, ids: Tensor, mask: Tensor, shapes: Tensor) -> Tensor:
        """[rows, tokens] each to [rows, tokens, width]."""
        vectors: Tensor = self.encoder(ids, mask, shapes)
        return vectors
