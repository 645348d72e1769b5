"""Asking the gateway over HTTP and taking its answers apart, strictly: what is not as it should be fails here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx

CHAT_PATH = "/v1/chat/completions"
COMPLETION_PATH = "/v1/completions"
EMBEDDING_PATH = "/v1/embeddings"


def whole(http: httpx.Client, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer in one piece."""
    response = http.post(path, json=body)
    assert response.status_code == 200, f"{response.status_code}: {response.text}"
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert response.headers["x-outpost-attempts"] == "1"
    answer: dict[str, Any] = response.json()
    return answer


def streamed(http: httpx.Client, path: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a streamed answer, in order; the framing and the end marker are checked."""
    with http.stream("POST", path, json={**body, "stream": True}) as response:
        text = response.read().decode("utf-8")
        assert response.status_code == 200, f"{response.status_code}: {text}"
        assert response.headers["content-type"].split(";")[0] == "text/event-stream"
        assert response.headers["x-request-id"]
    assert text.endswith("data: [DONE]\n\n")
    events = text.removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    assert events.count("data: [DONE]") == 1
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def refused(http: httpx.Client, path: str, body: Mapping[str, Any], status: int = 400) -> dict[str, Any]:
    """The error object of a refusal."""
    response = http.post(path, json=body)
    assert response.status_code == status, f"{response.status_code}: {response.text[:500]}"
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    return error


def usage_of(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The usage of a stream that was asked for it: in its last chunk, alone, and nowhere else."""
    *others, last = chunks
    assert last["choices"] == []
    assert all("usage" in chunk and chunk["usage"] is None for chunk in others)
    usage: dict[str, Any] = last["usage"]
    return usage


def check_frames(chunks: list[dict[str, Any]]) -> None:
    """One answer, one id; every choice ends once, and nothing of it follows."""
    for field in ("id", "object", "created", "model"):
        assert len({chunk[field] for chunk in chunks}) == 1, f"{field} changes within a stream"
    ended: set[int] = set()
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        assert choice["index"] not in ended, "a choice goes on after its end"
        if choice["finish_reason"] is not None:
            ended.add(choice["index"])
    assert ended == {choice["index"] for chunk in chunks for choice in chunk["choices"]}


def merge_chat(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices of a streamed chat in the shape that a whole answer has, for comparison."""
    check_frames(chunks)
    choices: dict[int, dict[str, Any]] = {}
    for piece in (choice for chunk in chunks for choice in chunk["choices"]):
        index, delta = piece["index"], piece["delta"]
        if index not in choices:
            assert delta["role"] == "assistant", "a choice must begin with its role"
            choices[index] = {"index": index, "text": [], "calls": {}, "positions": [], "logprobs": False}
        else:
            assert "role" not in delta, "the role comes once"
        choice = choices[index]
        choice["text"].append(delta.get("content") or "")
        for call in delta.get("tool_calls", ()):
            _merge_call(choice["calls"], call)
        if piece["logprobs"] is not None:
            choice["logprobs"] = True
            choice["positions"] += piece["logprobs"]["content"] or []
        choice["finish_reason"] = piece["finish_reason"]
    return [_whole_choice(choices[index]) for index in sorted(choices)]


def _merge_call(calls: dict[int, dict[str, Any]], piece: dict[str, Any]) -> None:
    function = piece["function"]
    if piece["index"] not in calls:
        assert piece["index"] == len(calls), "calls are numbered from 0 as they come"
        assert piece["type"] == "function" and piece["id"] and function["name"]
        calls[piece["index"]] = {"id": piece["id"], "name": function["name"], "arguments": function["arguments"]}
        return
    assert "id" not in piece and "name" not in function, "id and name of a call come once"
    calls[piece["index"]]["arguments"] += function["arguments"]


def _whole_choice(choice: dict[str, Any]) -> dict[str, Any]:
    return {
        "index": choice["index"],
        "content": "".join(choice["text"]),
        "tool_calls": [(call["name"], call["arguments"]) for _, call in sorted(choice["calls"].items())],
        "logprobs": choice["positions"] if choice["logprobs"] else None,
        "finish_reason": choice["finish_reason"],
    }


def chat_choices(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of a whole chat answer, in the shape of `merge_chat`."""
    shaped = []
    for choice in answer["choices"]:
        message = choice["message"]
        assert message["role"] == "assistant"
        calls = message.get("tool_calls", [])
        assert len({call["id"] for call in calls}) == len(calls), "ids of calls differ"
        shaped.append(
            {
                "index": choice["index"],
                "content": message["content"] or "",
                "tool_calls": [(call["function"]["name"], call["function"]["arguments"]) for call in calls],
                "logprobs": choice["logprobs"] and choice["logprobs"]["content"],
                "finish_reason": choice["finish_reason"],
            }
        )
    return shaped


def check_usage(usage: dict[str, Any]) -> None:
    assert usage["prompt_tokens"] > 0
    assert usage["completion_tokens"] >= 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 <= usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]
