"""Thousands of requests that are almost right: each is answered or refused, none breaks anything."""

from __future__ import annotations

import asyncio
import json
import random
import string
from typing import Any

import httpx
import pytest

from tests.contract.ask import CHAT_PATH, COMPLETION_PATH, EMBEDDING_PATH
from tests.contract.wrong import ASKED_CALL, KINDS, VALID, tool
from tests.gateway import Gateway

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("healthy_after")]

WORDS = ["", "a", "\u0000", "🐎", "a" * 300, "-1", "1e9", "null", "<|im_end|>", "../..", "%s%n", "{{7*7}}", "\u202e"]
SCALARS: list[Any] = [None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, 5e-324]


class Mutator:
    """Requests that are almost right, from one seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def value(self, depth: int = 3) -> Any:
        kind = self._random.random()
        if kind < 0.35 or not depth:
            return self._random.choice(SCALARS)
        if kind < 0.6:
            return self._random.choice([*WORDS, "".join(self._random.choices(string.printable, k=5))])
        if kind < 0.8:
            return [self.value(depth - 1) for _ in range(self._random.randrange(4))]
        return {self._random.choice(NAMES): self.value(depth - 1) for _ in range(self._random.randrange(4))}

    def request(self, start: dict[str, Any]) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(json.dumps(start))
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            self._change(body)
        return body

    def _change(self, body: dict[str, Any]) -> None:
        at: Any = body
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys or self._random.random() < 0.15:
                break
            key = self._random.choice(keys)
            if not isinstance(at[key], (dict, list)) or self._random.random() < 0.3:
                at[key] = self.value()
                return
            at = at[key]
        if isinstance(at, dict):
            at[self._random.choice(NAMES)] = self.value()
        else:
            at.append(self.value())


RICH: dict[str, dict[str, Any]] = {
    CHAT_PATH: {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            ASKED_CALL,
            {"role": "tool", "tool_call_id": "1", "content": "x"},
        ],
        "max_tokens": 1,
        "temperature": 0.5,
        "stop": ["a"],
        "logit_bias": {"5": 1},
        "tools": tool(parameters={"type": "object", "properties": {"a": {"type": "string", "enum": ["x"]}}}),
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
        "stream": True,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 1,
        "metadata": {"a": "b"},
    },
    COMPLETION_PATH: {"prompt": ["Hi", "Ho"], "max_tokens": 1, "logprobs": 1, "stop": ["a"], "logit_bias": {"5": 1}},
    EMBEDDING_PATH: {"input": ["Hi", "Ho"], "encoding_format": "float", "dimensions": 384},
}
NAMES = sorted(
    {field for kind in KINDS.values() for field in kind.__struct_fields__} | {"type", "role", "name", "x", "$ref"}
)


async def _fire(gateway: Gateway, requests: list[tuple[str, dict[str, Any]]], at_once: int) -> dict[int, int]:
    """Send them all; give how often each status came. Fails on the first answer that is neither 200 nor 4xx."""
    seen: dict[int, int] = {}
    gate = asyncio.Semaphore(at_once)

    async def one(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
        async with gate:
            data = json.dumps(body).encode("utf-8", "surrogatepass")
            response = await http.post(path, content=data, headers={"Content-Type": "application/json"})
        shown = f"{path} {data[:2000]!r} → {response.status_code} {response.text[:500]}"
        assert response.status_code == 200 or 400 <= response.status_code < 500, shown
        if response.status_code == 200 and body.get("stream") is True:
            assert response.text.endswith("data: [DONE]\n\n"), shown
        elif response.status_code != 200:
            assert response.json()["error"]["message"], shown
        seen[response.status_code] = seen.get(response.status_code, 0) + 1

    async with gateway.async_http(timeout=100.0) as http, asyncio.TaskGroup() as group:
        for path, body in requests:
            group.create_task(one(http, path, body))
    return seen


async def test_thousands_of_almost_right_requests_through_the_gateway(gateway: Gateway) -> None:
    mutator, paths = Mutator(1), list(RICH)
    # The fake upstream answers what is let through, so that only the gateway's own work is in question.
    requests = [(path, {"model": "fake-ok", **mutator.request(RICH[path])}) for path in paths * 1000]
    for path, body in requests:
        if path == COMPLETION_PATH:
            body.pop("stream", None)  # which the fake upstream does for chats only
    seen = await _fire(gateway, requests, at_once=16)
    assert sum(seen.values()) == 3000
    assert seen[400] > 1000 and seen[200] > 100


async def test_hundreds_of_almost_right_requests_through_the_engine(gateway: Gateway) -> None:
    mutator, paths = Mutator(2), list(RICH)
    requests = []
    for path in paths * 80:
        body = {**mutator.request(RICH[path]), "model": VALID[path]["model"]}
        if path != EMBEDDING_PATH:
            body |= {"max_tokens": 1, "n": 1}
            body.pop("max_completion_tokens", None)
        requests.append((path, body))
    seen = await _fire(gateway, requests, at_once=8)
    assert seen[400] > 20 and seen[200] > 20
