"""Sending what is wrong, and judging the refusal."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx

from appliance.dialects.chat import ChatRequest
from appliance.dialects.completions import CompletionRequest
from appliance.dialects.embeddings import EmbeddingRequest
from tests.contract.ask import CHAT_PATH, COMPLETION_PATH, EMBEDDING_PATH
from tests.fakes.openai_schema import ERROR, complaints
from tests.gateway import CHAT, EMBEDDER

HI = [{"role": "user", "content": "Hi"}]
VALID: dict[str, dict[str, Any]] = {
    CHAT_PATH: {"model": CHAT, "messages": HI, "max_tokens": 1},
    COMPLETION_PATH: {"model": CHAT, "prompt": "Hi", "max_tokens": 1},
    EMBEDDING_PATH: {"model": EMBEDDER, "input": "Hi"},
}
LONGEST_S = 20.0
"""No refusal may take longer, on a machine that has much else to do."""
KINDS = {CHAT_PATH: ChatRequest, COMPLETION_PATH: CompletionRequest, EMBEDDING_PATH: EmbeddingRequest}

ASKED_CALL = {
    "role": "assistant",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}


def post(http: httpx.Client, path: str, body: bytes | dict[str, Any], **headers: str) -> httpx.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8", "surrogatepass")
    began = time.monotonic()
    response = http.post(path, content=data, headers={"Content-Type": "application/json", **headers}, timeout=60.0)
    assert time.monotonic() - began < LONGEST_S
    return response


def refusal(response: httpx.Response, *statuses: int) -> dict[str, Any]:
    """The error object of a response that must be a refusal with one of these statuses (400 by default)."""
    assert response.status_code in (statuses or (400,)), f"{response.status_code}: {response.text[:300]}"
    assert complaints(ERROR, response.json()) == []
    error: dict[str, Any] = response.json()["error"]
    assert error["message"] and len(error["message"]) < 1000
    return error


def tool(**function: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", **function}}]


def schema(body: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": body}}}
