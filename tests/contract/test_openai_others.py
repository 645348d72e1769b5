"""Completions, embeddings, the list of models and error bodies against OpenAI's own OpenAPI document."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

import httpx
import pytest

from tests.contract.ask import (
    CHAT_PATH,
    COMPLETION_PATH,
    EMBEDDING_PATH,
    check_frames,
    refused,
    streamed,
    usage_of,
    whole,
)
from tests.fakes.openai_schema import COMPLETION, EMBEDDINGS, ERROR, MODEL, MODELS, complaints
from tests.gateway import CHAT, EMBEDDER, Gateway

pytestmark = pytest.mark.engine

# --- completions ----------------------------------------------------------------------------------

ONCE = {"prompt": "Once upon a time", "max_tokens": 12}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "plain": ONCE,
    "default-limit": {"prompt": "Once upon a time"},
    "one-token": {**ONCE, "max_tokens": 1},
    "empty-prompt": {**ONCE, "prompt": ""},
    "two-prompts": {**ONCE, "prompt": ["Once upon a time", "The capital of France is"]},
    "token-ids": {**ONCE, "prompt": [1, 4093, 198]},
    "several-token-ids": {**ONCE, "prompt": [[1, 4093, 198], [504]]},
    "choices": {**ONCE, "n": 3, "temperature": 0.8, "seed": 4},
    "choices-of-prompts": {**ONCE, "prompt": ["A", "B"], "n": 2, "temperature": 0.8, "seed": 4},
    "best-of-n": {**ONCE, "n": 2, "best_of": 2},
    "echo": {**ONCE, "echo": True},
    "echo-only": {**ONCE, "echo": True, "max_tokens": 0},
    "stop": {**ONCE, "stop": [",", "."]},
    "logprobs-0": {**ONCE, "logprobs": 0},
    "logprobs-5": {**ONCE, "logprobs": 5},
    "logprobs-unicode": {"prompt": "🐎🐎🐎🐎", "max_tokens": 8, "logprobs": 1},
    "sampling": {
        **ONCE,
        "temperature": 0.9,
        "top_p": 0.8,
        "top_k": 50,
        "min_p": 0.01,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "seed": 12,
        "logit_bias": {"50": -100},
    },
    "labels": {**ONCE, "user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "default"},
}


@pytest.mark.parametrize("name", COMPLETIONS)
def test_whole_and_streamed_completions_are_valid_and_agree(http: httpx.Client, name: str) -> None:
    body = {"model": CHAT, "temperature": 0, **COMPLETIONS[name]}
    answer = whole(http, COMPLETION_PATH, body)
    chunks = streamed(http, COMPLETION_PATH, {**body, "stream_options": {"include_usage": True}})
    assert complaints(COMPLETION, answer) == []
    # The document has no schema of its own for chunks: they are completions whose choices may lack an end.
    assert [fault for chunk in chunks for fault in complaints(COMPLETION, _ended(chunk))] == []
    assert answer["id"].startswith("cmpl-") and chunks[0]["id"].startswith("cmpl-")

    choices = [_plain(choice) for choice in answer["choices"]]
    merged = _merge(chunks)
    assert [{**c, "logprobs": None} for c in choices] == [{**c, "logprobs": None} for c in merged]
    prompts = body["prompt"] if isinstance(body["prompt"], list) and not isinstance(body["prompt"][0], int) else [""]
    assert [choice["index"] for choice in choices] == list(range(body.get("n", 1) * len(prompts)))
    for choice, other in zip(choices, merged, strict=True):
        _check_logprobs(body, choice, other)
        if body.get("echo"):
            assert choice["text"].startswith(body["prompt"])
        assert not any(stop in choice["text"] for stop in body.get("stop", ()))
    usage, counted = usage_of(chunks), answer["usage"]
    assert counted["total_tokens"] == counted["prompt_tokens"] + counted["completion_tokens"]
    for field in ("prompt_tokens", "completion_tokens"):
        assert usage[field] == counted[field]
    assert counted["completion_tokens"] <= body.get("max_tokens", 16) * len(choices)
    if isinstance(body["prompt"], list) and isinstance(body["prompt"][0], int):
        assert counted["prompt_tokens"] == len(body["prompt"])


def _ended(chunk: dict[str, Any]) -> dict[str, Any]:
    choices = [{**c, "finish_reason": c["finish_reason"] or "stop"} for c in chunk["choices"]]
    return {**{k: v for k, v in chunk.items() if k != "usage" or v is not None}, "choices": choices}


def _plain(choice: dict[str, Any]) -> dict[str, Any]:
    return {field: choice[field] for field in ("index", "text", "logprobs", "finish_reason")}


def _merge(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    check_frames(chunks)
    merged: dict[int, dict[str, Any]] = {}
    for piece in (choice for chunk in chunks for choice in chunk["choices"]):
        choice = merged.setdefault(piece["index"], {"index": piece["index"], "text": "", "logprobs": None})
        choice["text"] += piece["text"]
        choice["finish_reason"] = piece["finish_reason"]
        if piece["logprobs"] is not None:
            lists = choice["logprobs"] = choice["logprobs"] or {name: [] for name in piece["logprobs"]}
            for name, values in piece["logprobs"].items():
                lists[name] += values
    return [merged[index] for index in sorted(merged)]


def _check_logprobs(body: dict[str, Any], choice: dict[str, Any], streamed: dict[str, Any]) -> None:
    shown, other = choice["logprobs"], streamed["logprobs"]
    if body.get("logprobs") is None:
        assert shown is None and other is None
        return
    lists = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    assert {len(shown[name]) for name in lists} == {len(shown["tokens"])} != {0}
    assert (shown["tokens"], shown["text_offset"]) == (other["tokens"], other["text_offset"])
    assert shown["token_logprobs"] == pytest.approx(other["token_logprobs"], abs=0.05)
    assert shown["text_offset"] == sorted(shown["text_offset"])
    for token, offset, top in zip(shown["tokens"], shown["text_offset"], shown["top_logprobs"], strict=True):
        assert len(top) <= body["logprobs"] + 1
        if "\ufffd" not in token and not token.startswith("bytes:"):
            assert choice["text"][offset : offset + len(token)] == token


# --- embeddings -----------------------------------------------------------------------------------

EMBEDDED: dict[str, Any] = {
    "text": "Hello",
    "texts": ["Hello", "world", "žluťoučký kůň 🐎"],
    "one-text-in-a-list": ["Hello"],
    "token-ids": [101, 7592, 102],
    "several-token-ids": [[101, 7592, 102], [101, 2088, 102]],
    "blank": [" "],
    "many": [f"Text number {i}" for i in range(64)],
}


def _vectors(answer: dict[str, Any]) -> list[tuple[float, ...]]:
    return [tuple(item["embedding"]) for item in answer["data"]]


def _cosine(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", EMBEDDED)
def test_embeddings_are_valid_and_the_same_in_both_encodings(http: httpx.Client, name: str) -> None:
    given = EMBEDDED[name]
    plain = whole(http, EMBEDDING_PATH, {"model": EMBEDDER, "input": given, "user": "u"})
    assert complaints(EMBEDDINGS, plain) == []
    packed = whole(http, EMBEDDING_PATH, {"model": EMBEDDER, "input": given, "encoding_format": "base64"})
    assert plain["model"] == packed["model"] == EMBEDDER
    count = len(given) if isinstance(given, list) and not isinstance(given[0], int) else 1
    assert [item["index"] for item in plain["data"]] == list(range(count))
    assert plain["usage"] == packed["usage"]
    assert plain["usage"]["total_tokens"] == plain["usage"]["prompt_tokens"] > 0
    for vector, item in zip(_vectors(plain), packed["data"], strict=True):
        assert len(vector) == 384
        assert math.isclose(_cosine(vector, vector), 1.0, abs_tol=1e-3)
        assert struct.unpack("<384f", base64.b64decode(item["embedding"])) == pytest.approx(vector, abs=1e-4)


def test_an_embedding_does_not_depend_on_what_stands_beside_it(http: httpx.Client) -> None:
    texts = ["The cat sleeps.", "Interest rates rose by a quarter point.", "a"]
    together = _vectors(whole(http, EMBEDDING_PATH, {"model": EMBEDDER, "input": texts}))
    alone = [_vectors(whole(http, EMBEDDING_PATH, {"model": EMBEDDER, "input": text}))[0] for text in texts]
    assert all(_cosine(a, b) > 0.9999 for a, b in zip(together, alone, strict=True))


def test_texts_that_mean_the_same_are_closer(http: httpx.Client) -> None:
    texts = [
        "A cat is sleeping on the sofa.",
        "The kitten naps on the couch.",
        "Interest rates rose by a quarter point.",
    ]
    cat, kitten, rates = _vectors(whole(http, EMBEDDING_PATH, {"model": EMBEDDER, "input": texts}))
    assert _cosine(cat, kitten) > 0.5 > _cosine(cat, rates) + 0.2


def test_a_text_longer_than_the_embedder_reads_is_refused_with_its_place(http: httpx.Client) -> None:
    error = refused(http, EMBEDDING_PATH, {"model": EMBEDDER, "input": ["short", "word " * 3000]})
    assert (error["code"], error["param"][:5]) == ("context_length_exceeded", "input")
    assert "input[1]" in error["message"]


def test_dimensions_may_only_be_those_of_the_model(http: httpx.Client) -> None:
    assert len(_vectors(whole(http, EMBEDDING_PATH, {"model": EMBEDDER, "input": "a", "dimensions": 384}))[0]) == 384
    error = refused(http, EMBEDDING_PATH, {"model": EMBEDDER, "input": "a", "dimensions": 64})
    assert error["param"] == "dimensions" and "384" in error["message"]


# --- models ---------------------------------------------------------------------------------------


def test_models_are_listed_and_shown_one_by_one(gateway: Gateway, http: httpx.Client) -> None:
    listed = http.get("/v1/models")
    assert listed.status_code == 200
    assert complaints(MODELS, listed.json()) == []
    found = {model["id"]: model for model in listed.json()["data"]}
    assert {CHAT, EMBEDDER, "fake-ok"} <= set(found)
    one = http.get(f"/v1/models/{CHAT}").json()
    assert complaints(MODEL, one) == []
    assert one == found[CHAT]
    assert http.get("/v1/models", headers={"Authorization": f"Bearer {gateway.user_key}"}).status_code == 200


# --- errors ---------------------------------------------------------------------------------------

HELLO = {"messages": [{"role": "user", "content": "Hi"}]}
# name → method, path, body, key, then status, code, param
ERRORS: dict[str, tuple[str, str, Any, str | None, int, str, str | None]] = {
    "no-key": ("POST", CHAT_PATH, {"model": CHAT, **HELLO}, None, 401, "invalid_api_key", None),
    "bad-key": ("POST", CHAT_PATH, {"model": CHAT, **HELLO}, "op-wrong", 401, "invalid_api_key", None),
    "bad-key-for-models": ("GET", "/v1/models", None, "op-wrong", 401, "invalid_api_key", None),
    "unknown-model": ("POST", CHAT_PATH, {"model": "gpt-9", **HELLO}, "user", 404, "model_not_found", "model"),
    "unknown-model-shown": ("GET", "/v1/models/gpt-9", None, "user", 404, "model_not_found", "model"),
    "embedder-asked-to-chat": ("POST", CHAT_PATH, {"model": EMBEDDER, **HELLO}, "user", 400, "*", "model"),
    "chat-asked-to-embed": ("POST", EMBEDDING_PATH, {"model": CHAT, "input": "a"}, "user", 400, "*", "model"),
    "missing-model": ("POST", CHAT_PATH, HELLO, "user", 400, "missing_required_parameter", "model"),
    "missing-prompt": ("POST", COMPLETION_PATH, {"model": CHAT}, "user", 400, "missing_required_parameter", "prompt"),
    "unknown-path": ("GET", "/v1/nothing", None, "user", 404, "*", None),
    "wrong-method": ("GET", CHAT_PATH, None, "user", 405, "method_not_allowed", None),
    "later-path": ("POST", "/v1/audio/speech", {"model": CHAT, "input": "Hi"}, "user", 404, "*", None),
    "upstream-busy": ("POST", CHAT_PATH, {"model": "fake-429", **HELLO}, "user", 429, "*", None),
    "upstream-broken": ("POST", CHAT_PATH, {"model": "fake-500", **HELLO}, "user", 502, "*", None),
    "upstream-unavailable": ("POST", CHAT_PATH, {"model": "fake-503", **HELLO}, "user", 503, "*", None),
    "upstream-refuses-our-key": ("POST", CHAT_PATH, {"model": "fake-401", **HELLO}, "user", 502, "*", None),
    "nobody-listens": ("POST", CHAT_PATH, {"model": "refused", **HELLO}, "user", 502, "*", None),
}


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_has_the_documented_shape(gateway: Gateway, name: str) -> None:
    method, path, body, key, status, code, param = ERRORS[name]
    headers = {"Authorization": f"Bearer {gateway.user_key if key == 'user' else key}"} if key else {}
    with gateway.http(headers=headers) as http:
        response = http.request(method, path, json=body)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json"), response.text
    assert response.headers["x-request-id"]
    assert complaints(ERROR, response.json()) == []
    error = response.json()["error"]
    assert error["param"] == param
    assert code in ("*", error["code"])
    assert error["message"].endswith(".") and "sk-" not in error["message"]


def test_an_unknown_model_is_answered_with_those_there_are(http: httpx.Client) -> None:
    error = refused(http, CHAT_PATH, {"model": "gpt-9", **HELLO}, 404)
    assert "gpt-9" in error["message"] and CHAT in error["message"]


def test_a_stream_that_breaks_ends_with_an_error_and_without_done(http: httpx.Client, upstream: Any) -> None:
    upstream.call(upstream.fake.release.set)
    response = http.post(CHAT_PATH, json={"model": "fake-cut", "stream": True, **HELLO})
    assert response.status_code == 200
    *_, last = response.text.removesuffix("\n\n").split("\n\n")
    assert last.startswith("data: ") and "[DONE]" not in response.text
    assert complaints(ERROR, json.loads(last.removeprefix("data: "))) == []
