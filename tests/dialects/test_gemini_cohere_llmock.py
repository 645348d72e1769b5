"""What llmock sends in Gemini's and Cohere's place, taken by our readers. Its application runs in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest
from llmock.chaos import ChaosSettings
from llmock.main import create_app
from llmock.simulation import MockResponseSettings

from appliance.dialects.answer import Ask, Outbound
from appliance.dialects.cohere_outbound import COHERE
from appliance.dialects.gemini_outbound import GEMINI
from appliance.errors import UpstreamFailed
from runtimes.engine import Delta, Finished, Usage
from tests.dialects.chat_requests import USER, WEATHER, asked

TARGETS: list[tuple[Outbound, str, str]] = [
    (GEMINI, "gemini-2.5-pro", "/gemini/v1beta/"),
    (COHERE, "command-r-plus", "/cohere/v2/"),
]
CONVERSATION = [
    USER,
    {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "weather", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "cold"},
]


async def post(base: str, ask: Ask) -> tuple[int, list[bytes]]:
    """Status and body, in the pieces that came."""
    app = create_app(chaos=ChaosSettings(), responses=MockResponseSettings())
    path, _, query = (base + ask.path).partition("?")
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(b"content-type", b"application/json"), (b"host", b"mock"), (b"authorization", b"Bearer k")],
        "client": ("127.0.0.1", 1),
        "server": ("mock", 80),
    }
    status, pieces = 0, []

    bodies: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": ask.body, "more_body": False}]

    async def receive() -> MutableMapping[str, Any]:
        if not bodies:
            await asyncio.Event().wait()  # a client that stays
        return bodies.pop()

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            pieces.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, pieces


@pytest.mark.parametrize(("outbound", "model", "base"), TARGETS)
@pytest.mark.parametrize("messages", [None, CONVERSATION])
async def test_a_whole_answer(outbound: Outbound, model: str, base: str, messages: Any) -> None:
    request = asked(messages, tools=[WEATHER], temperature=0.5)
    status, pieces = await post(base, outbound.ask(request, model, stream=False))
    assert status == 200, pieces
    events = outbound.read_whole(b"".join(pieces), "mock", request)
    # Whoever names tools is given a call until there is a result.
    if messages is None:
        assert any(isinstance(item, Delta) and item.tool_calls for item in events)
        assert events[-2] == Finished("tool_calls")
    else:
        assert any(isinstance(item, Delta) and item.text for item in events)
        assert events[-2] == Finished("stop")
    assert isinstance(events[-1], Usage)
    assert events[-1].completion_tokens > 0


@pytest.mark.parametrize(("outbound", "model", "base"), TARGETS)
async def test_a_streamed_answer_and_each_of_its_beginnings(outbound: Outbound, model: str, base: str) -> None:
    request = asked(stream=True)
    status, pieces = await post(base, outbound.ask(request, model, stream=True))
    assert status == 200, pieces
    pieces = [piece for piece in pieces if piece]
    reader = outbound.reader("mock", request)
    events = [item for piece in pieces for item in reader.feed(piece)]
    assert reader.done
    assert len([item for item in events if isinstance(item, Delta) and item.text]) > 1
    assert isinstance(events[-1], Usage)
    assert events[-1].completion_tokens > 0
    for kept in range(len(pieces)):
        reader = outbound.reader("mock", request)
        for piece in pieces[:kept]:
            reader.feed(piece)
        assert not reader.done
        with pytest.raises(UpstreamFailed):
            reader.feed(b"")


@pytest.mark.parametrize(("outbound", "model", "base"), TARGETS)
async def test_our_body_is_what_it_takes(outbound: Outbound, model: str, base: str) -> None:
    status, pieces = await post(base, Ask(outbound.ask(asked(), model, stream=False).path, b"{}"))
    assert status == 422, json.loads(b"".join(pieces))
