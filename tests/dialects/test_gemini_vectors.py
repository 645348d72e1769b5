from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from appliance.dialects import embeddings
from appliance.dialects.gemini_outbound import GEMINI, VERTEX
from appliance.errors import UnsupportedParameter, UpstreamFailed
from tests.dialects.vendor_shapes import google, unknown


def asked(input: Any, **fields: Any) -> embeddings.EmbeddingRequest:
    return embeddings.parse(json.dumps({"model": "m", "input": input, **fields}).encode())


def floats(vectors: list[bytes]) -> list[list[float]]:
    return [[round(value, 6) for value in struct.unpack(f"<{len(each) // 4}f", each)] for each in vectors]


def test_gemini_takes_many_texts() -> None:
    ask = GEMINI.embed_ask(asked(["a", "b"], dimensions=2), "gemini-embedding-001")
    assert ask.path == "models/gemini-embedding-001:batchEmbedContents"
    body = json.loads(ask.body)
    assert body["requests"][1] == {
        "model": "models/gemini-embedding-001",
        "content": {"parts": [{"text": "b"}]},
        "outputDimensionality": 2,
    }
    assert unknown(body, google("gemini")["BatchEmbedContentsRequest"], google("gemini")) == []


def test_vertex_has_its_own_operations() -> None:
    ask = VERTEX.embed_ask(asked(["a", "b"], dimensions=2), "gemini-embedding-001")
    assert ask.path == "models/gemini-embedding-001:predict"
    assert json.loads(ask.body) == {
        "instances": [{"content": "a"}, {"content": "b"}],
        "parameters": {"autoTruncate": False, "outputDimensionality": 2},
    }
    ask = VERTEX.embed_ask(asked("a", dimensions=2), "gemini-embedding-2")
    assert ask.path == "models/gemini-embedding-2:embedContent"
    body = json.loads(ask.body)
    assert body == {"content": {"parts": [{"text": "a"}]}, "autoTruncate": False, "outputDimensionality": 2}
    assert unknown(body, google("vertex")["GoogleCloudAiplatformV1EmbedContentRequest"], google("vertex")) == []
    with pytest.raises(UnsupportedParameter, match="at most 1 texts"):
        VERTEX.embed_ask(asked(["a", "b"]), "gemini-embedding-2")


def test_what_it_does_not_take_is_refused_by_name() -> None:
    for outbound in (GEMINI, VERTEX):
        with pytest.raises(UnsupportedParameter, match="input"):
            outbound.embed_ask(asked([1, 2]), "m")
    with pytest.raises(UnsupportedParameter, match="at most 100 texts"):
        GEMINI.embed_ask(asked(["a"] * 101), "m")


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"embeddings": [{"values": [3, 4]}, {"values": [0, 0]}]}, None),
        ({"embeddings": [{"values": [3, 4]}, {"values": [0, 0]}], "usageMetadata": {"promptTokenCount": 7}}, 7),
        (
            {
                "predictions": [
                    {"embeddings": {"values": [3, 4], "statistics": {"token_count": 2, "truncated": False}}},
                    {"embeddings": {"values": [0, 0], "statistics": {"token_count": 3.0}}},
                ]
            },
            5,
        ),
        ({"predictions": [{"embeddings": {"values": [3, 4]}}, {"embeddings": {"values": [0, 0]}}]}, None),
    ],
)
def test_vectors_are_of_length_one(body: dict[str, Any], tokens: int | None) -> None:
    found = GEMINI.read_vectors(json.dumps(body).encode(), "up", asked(["a", "b"]))
    assert (floats(found.vectors), found.prompt_tokens) == ([[0.6, 0.8], [0.0, 0.0]], tokens)


def test_one_vector() -> None:
    body = b'{"embedding":{"values":[0.5]},"usageMetadata":{"promptTokenCount":2}}'
    found = VERTEX.read_vectors(body, "up", asked("a"))
    assert (floats(found.vectors), found.prompt_tokens) == ([[1.0]], 2)
    assert json.loads(embeddings.render("m", found.vectors, 2, as_base64=False))["data"][0]["embedding"] == [1.0]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"embeddings":[]}',
        b'{"embeddings":[{"values":[1]},{"values":[1]}]}',
        b'{"embeddings":[{"values":[]}]}',
        b'{"embeddings":[{"values":["a"]}]}',
        b'{"embeddings":[{}]}',
        b'{"embeddings":[{"values":[1e400]}]}',
    ],
)
def test_what_is_not_sound_fails(body: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        GEMINI.read_vectors(body, "up", asked("a"))
