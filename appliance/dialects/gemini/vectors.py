"""Embeddings of Google's models, as OpenAI's requests and answers. Pure.

Gemini's own service takes many texts at once (`:batchEmbedContents`). Vertex takes them through `:predict`, which is
older than Gemini, and does not know its newest models there: those take one text a request (`:embedContent`).
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from appliance.dialects.answer import Ask
from appliance.dialects.embeddings import EmbeddingRequest
from appliance.dialects.gemini.model import resource
from appliance.dialects.passing import BAD_JSON
from appliance.dialects.translating import counted
from appliance.dialects.vectors import Vectors, packed, texts_of
from appliance.dialects.wire import encode
from appliance.errors import UpstreamFailed

MOST_TEXTS = 100
"""Of one request to Gemini's own service."""
_ONE_AT_A_TIME = re.compile(r"gemini-embedding-(?!001)")


class _Values(msgspec.Struct, frozen=True):
    values: list[float]


class _Usage(msgspec.Struct, frozen=True, rename="camel"):
    prompt_token_count: int | None = None


class _Statistics(msgspec.Struct, frozen=True):
    token_count: float | None = None


class _PredictedValues(msgspec.Struct, frozen=True):
    values: list[float]
    statistics: _Statistics | None = None


class _Prediction(msgspec.Struct, frozen=True):
    embeddings: _PredictedValues


class _Body(msgspec.Struct, frozen=True, rename="camel"):
    """An answer of any of the three operations."""

    embeddings: list[_Values] | None = None
    embedding: _Values | None = None
    predictions: list[_Prediction] | None = None
    usage_metadata: _Usage | None = None


_decode = msgspec.json.Decoder(_Body).decode


def ask_gemini(request: EmbeddingRequest, model: str) -> Ask:
    path = resource(model)
    size = {"outputDimensionality": request.dimensions} if request.dimensions is not None else {}
    asked = [{"model": path, "content": {"parts": [{"text": text}]}, **size} for text in texts_of(request, MOST_TEXTS)]
    return Ask(f"{path}:batchEmbedContents", encode({"requests": asked}))


def ask_vertex(request: EmbeddingRequest, model: str) -> Ask:
    body: dict[str, Any]
    if _ONE_AT_A_TIME.search(model):
        text = texts_of(request, 1)[0]
        body = {"content": {"parts": [{"text": text}]}, "autoTruncate": False}
        if request.dimensions is not None:
            body["outputDimensionality"] = request.dimensions
        return Ask(f"{resource(model)}:embedContent", encode(body))
    parameters: dict[str, Any] = {"autoTruncate": False}
    if request.dimensions is not None:
        parameters["outputDimensionality"] = request.dimensions
    body = {"instances": [{"content": text} for text in texts_of(request, None)], "parameters": parameters}
    return Ask(f"{resource(model)}:predict", encode(body))


def read(body: bytes, target: str, request: EmbeddingRequest) -> Vectors:
    """The vectors of an answer. Raises UpstreamFailed."""
    try:
        found = _decode(body)
    except BAD_JSON:
        raise UpstreamFailed(f"{target} gave an answer that is not of the expected form.") from None
    tokens = counted(found.usage_metadata.prompt_token_count) if found.usage_metadata is not None else None
    values = [each.values for each in found.embeddings or ()]
    if found.embedding is not None:
        values = [found.embedding.values]
    if found.predictions is not None:
        values = [each.embeddings.values for each in found.predictions]
        counts = [each.embeddings.statistics for each in found.predictions]
        tokens = sum(counted(each.token_count) for each in counts if each is not None) if any(counts) else None
    return Vectors(packed(values, len(request.inputs()), target), tokens)
