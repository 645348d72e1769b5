"""Cohere's chat and embeddings (API v2), as targets speak them. Pure. The base URL ends with the version (`…/v2`)."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.dialects.answer import Ask
from appliance.dialects.chat import ChatRequest
from appliance.dialects.cohere import asking
from appliance.dialects.cohere.reading import CohereReader
from appliance.dialects.embeddings import EmbeddingRequest
from appliance.dialects.passing import BAD_JSON
from appliance.dialects.translating import counted, refuse
from appliance.dialects.vectors import Vectors, packed, texts_of
from appliance.dialects.wire import encode
from appliance.errors import UpstreamFailed
from runtimes.engine import Event

FEATURES = frozenset(("tools", "json_object", "json_schema", "logprobs", "top_k", "images", "reasoning"))
"""What the dialect has a notion for; a single model may be able to do less."""

MOST_TEXTS = 96
"""Of one request for embeddings."""

_REFUSED = {
    "n": "it gives one choice; send as many requests.",
    "logit_bias": "leave it out.",
    "min_p": "use top_p or top_k.",
    "repetition_penalty": "use presence_penalty or frequency_penalty.",
    "verbosity": "ask for the length you want in a message.",
}


class _Embeddings(msgspec.Struct, frozen=True, rename={"floats": "float"}):
    floats: list[list[float]]


class _Billed(msgspec.Struct, frozen=True):
    input_tokens: float | None = None


class _Meta(msgspec.Struct, frozen=True):
    tokens: _Billed | None = None
    billed_units: _Billed | None = None


class _Vectors(msgspec.Struct, frozen=True):
    embeddings: _Embeddings
    meta: _Meta | None = None


_decode = msgspec.json.Decoder(_Vectors).decode


class Cohere:
    """`Outbound` for Cohere; `embed_ask` and `read_vectors` are for embeddings."""

    name = "cohere"

    def unknown(self, model: str) -> frozenset[str]:
        """Fields that the model has no notion for, and without which it answers all the same."""
        return frozenset(_REFUSED)

    def ask(self, request: ChatRequest, model: str, *, stream: bool) -> Ask:
        refuse(request, _REFUSED)
        return Ask("chat", encode(asking.body(request, model, stream=stream)))

    def reader(self, target: str, request: ChatRequest) -> CohereReader:
        thoughts = not (request.reasoning or {}).get("exclude")
        return CohereReader(target, thoughts=thoughts, logprobs=bool(request.logprobs))

    def read_whole(self, body: bytes, target: str, request: ChatRequest) -> list[Event]:
        return self.reader(target, request).whole(body)

    def embed_ask(self, request: EmbeddingRequest, model: str) -> Ask:
        """Raises UnsupportedParameter for token ids, and for more texts than the target takes at once."""
        body: dict[str, Any] = {
            "model": model,
            "texts": texts_of(request, MOST_TEXTS),
            "input_type": "search_document",
            "embedding_types": ["float"],
            # What is too long is an error with OpenAI; by itself this one would leave out the end.
            "truncate": "NONE",
        }
        if request.dimensions is not None:
            body["output_dimension"] = request.dimensions
        return Ask("embed", encode(body))

    def read_vectors(self, body: bytes, target: str, request: EmbeddingRequest) -> Vectors:
        """The vectors of a whole answer, for `embeddings.render`. Raises UpstreamFailed."""
        try:
            found = _decode(body)
        except BAD_JSON:
            raise UpstreamFailed(f"{target} gave an answer that is not of the expected form.") from None
        tokens = None
        if found.meta is not None and (used := found.meta.tokens or found.meta.billed_units) is not None:
            tokens = counted(used.input_tokens)
        return Vectors(packed(found.embeddings.floats, len(request.inputs()), target), tokens)


COHERE = Cohere()
