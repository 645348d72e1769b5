"""The three dialects that clients chat in, read as strictly as their descriptions have them: what a stream said,
whether it ended cleanly, and the error that it told of."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Heard:
    """A streamed answer as its client understands it."""

    text: str = ""
    clean: bool = False
    """It ended as a complete answer ends."""
    error: dict[str, Any] | None = None
    models: set[str] = field(default_factory=set)
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True)
class Inbound:
    name: str
    path: str
    body: Callable[[str, str, bool], dict[str, Any]]
    """From a model, what is said, and whether to stream."""
    text: Callable[[dict[str, Any]], str]
    """Of a whole answer."""
    hear: Callable[[str], Heard]
    """Reads a whole stream; AssertionError for what is not as it should be."""
    error: Callable[[dict[str, Any]], dict[str, Any]]
    """The error object of a body; AssertionError for one of another dialect."""


def _events(stream: str) -> list[tuple[str, str]]:
    """Name and data of each event; comments are left out."""
    assert stream.endswith("\n\n"), f"the stream ends within an event: …{stream[-80:]!r}"
    found = []
    for block in stream.removesuffix("\n\n").split("\n\n"):
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        if not lines:
            continue
        name = "".join(line.removeprefix("event: ") for line in lines if line.startswith("event: "))
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert len(data) == 1, block
        found.append((name, data[0]))
    return found


# --- OpenAI chat ----------------------------------------------------------------------------------


def _chat_body(model: str, said: str, stream: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": said}]}
    return {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body


def _chat_text(answer: dict[str, Any]) -> str:
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion"
    assert choice["finish_reason"] == "stop"
    text: str = choice["message"]["content"]
    return text


def _hear_chat(stream: str) -> Heard:
    heard, ids, finishes = Heard(), set(), 0
    events = _events(stream)
    for i, (name, data) in enumerate(events):
        assert name == ""
        if data == "[DONE]":
            assert i == len(events) - 1, "something comes after the end"
            heard.clean = True
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            heard.error = chunk["error"]
            continue
        assert heard.error is None, "the answer goes on after an error"
        ids.add(chunk["id"])
        heard.models.add(chunk["model"])
        for choice in chunk["choices"]:
            assert finishes == 0, "the choice goes on after its end"
            heard.text += choice["delta"].get("content") or ""
            finishes += choice["finish_reason"] is not None
        if chunk.get("usage"):
            heard.prompt_tokens = chunk["usage"]["prompt_tokens"]
            heard.completion_tokens = chunk["usage"]["completion_tokens"]
    assert len(ids) <= 1, f"one answer has several ids: {ids}"
    if heard.clean:
        assert heard.error is None, "an error, and then a clean end"
        assert finishes == 1, "a clean end, but nothing says why the answer ended"
    return heard


def _openai_error(body: dict[str, Any]) -> dict[str, Any]:
    assert set(body) == {"error"}
    assert {"message", "type", "code", "param"} <= set(body["error"])
    error: dict[str, Any] = body["error"]
    return error


# --- Anthropic Messages ---------------------------------------------------------------------------


def _messages_body(model: str, said: str, stream: bool) -> dict[str, Any]:
    body = {"model": model, "max_tokens": 500, "messages": [{"role": "user", "content": said}]}
    return {**body, "stream": True} if stream else body


def _messages_text(answer: dict[str, Any]) -> str:
    assert (answer["type"], answer["role"], answer["stop_reason"]) == ("message", "assistant", "end_turn")
    (block,) = answer["content"]
    text: str = block["text"]
    return text


def _hear_messages(stream: str) -> Heard:
    heard, open_block, next_block, state = Heard(), None, 0, "before"
    for name, data in _events(stream):
        event = json.loads(data)
        kind = event["type"]
        assert kind == name, "the name of an event is its type"
        assert state != "over", f"{kind} comes after the end"
        if kind == "ping":
            continue
        if kind == "error":
            assert {"type", "message"} <= set(event["error"])
            heard.error, state = event["error"], "over"
        elif kind == "message_start":
            assert state == "before"
            state = "open"
            heard.models.add(event["message"]["model"])
        elif kind == "content_block_start":
            assert (state, open_block, event["index"]) == ("open", None, next_block)
            open_block, next_block = event["index"], next_block + 1
        elif kind == "content_block_delta":
            assert event["index"] == open_block
            heard.text += event["delta"].get("text", "")
        elif kind == "content_block_stop":
            assert event["index"] == open_block
            open_block = None
        elif kind == "message_delta":
            assert (state, open_block) == ("open", None)
            assert event["delta"]["stop_reason"] == "end_turn"
            usage, state = event["usage"], "told"
            heard.completion_tokens = usage["output_tokens"]
        elif kind == "message_stop":
            assert state == "told"
            heard.clean, state = True, "over"
        else:
            raise AssertionError(f"no event of a message: {kind}")
    return heard


def _messages_error(body: dict[str, Any]) -> dict[str, Any]:
    assert body["type"] == "error"
    assert {"type", "message"} <= set(body["error"])
    error: dict[str, Any] = body["error"]
    return error


# --- OpenAI Responses -----------------------------------------------------------------------------


def _responses_body(model: str, said: str, stream: bool) -> dict[str, Any]:
    return {"model": model, "input": said, "stream": stream, "store": False}


def _output_text(response: dict[str, Any]) -> str:
    (item,) = [item for item in response["output"] if item["type"] != "reasoning"]
    (part,) = item["content"]
    text: str = part["text"]
    return text


def _responses_text(answer: dict[str, Any]) -> str:
    assert (answer["object"], answer["status"]) == ("response", "completed")
    return _output_text(answer)


def _hear_responses(stream: str) -> Heard:
    heard, ids, over = Heard(), set(), False
    begun: list[str] = []
    for number, (name, data) in enumerate(_events(stream)):
        event = json.loads(data)
        kind = event["type"]
        assert kind == name, "the name of an event is its type"
        assert event["sequence_number"] == number, "the events are numbered without a gap"
        assert not over, f"{kind} comes after the end"
        begun.append(kind)
        if "response" in event:
            ids.add(event["response"]["id"])
            heard.models.add(event["response"]["model"])
        if kind == "response.output_text.delta":
            heard.text += event["delta"]
        elif kind == "response.output_text.done":
            assert event["text"] == heard.text
        elif kind == "response.completed":
            assert event["response"]["status"] == "completed"
            assert _output_text(event["response"]) == heard.text
            heard.clean, over = True, True
            usage = event["response"]["usage"]
            heard.prompt_tokens, heard.completion_tokens = usage["input_tokens"], usage["output_tokens"]
        elif kind == "response.failed":
            assert event["response"]["status"] == "failed"
            heard.error, over = event["response"]["error"], True
        elif kind == "error":
            heard.error, over = event, True
    assert begun[:2] == ["response.created", "response.in_progress"] or begun == ["error"]
    for kind in ("response.output_item.added", "response.content_part.added"):
        assert begun.count(kind) <= 1, f"{kind} comes more than once"
    assert len(ids) <= 1, f"one answer has several ids: {ids}"
    return heard


INBOUND = {
    each.name: each
    for each in (
        Inbound("chat", "/v1/chat/completions", _chat_body, _chat_text, _hear_chat, _openai_error),
        Inbound("messages", "/v1/messages", _messages_body, _messages_text, _hear_messages, _messages_error),
        Inbound("responses", "/v1/responses", _responses_body, _responses_text, _hear_responses, _openai_error),
    )
}
