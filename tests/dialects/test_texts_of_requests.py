"""Nothing that a model reads is left out of what is counted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.dialects.kinds import CHAT, COMPLETIONS, EMBEDDINGS
from appliance.dialects.texts import reading

CANARY = "canary-text"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": CANARY}}
TOOL = {"type": "function", "function": {"name": "f", "description": CANARY, "parameters": {"type": "object"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "description": CANARY, "schema": {"type": "object"}}}
HI = {"role": "user", "content": "Hi"}
CALLING = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}


@pytest.mark.parametrize(
    "fields",
    [{"messages": [{"role": role, "content": CANARY}]} for role in ("system", "developer", "user", "assistant")]
    + [
        {"messages": [{"role": "user", "content": [{"type": "text", "text": CANARY}, IMAGE]}]},
        {"messages": [{"role": "user", "content": "x", "name": CANARY}]},
        {"messages": [HI, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
        {"messages": [HI, {"role": "assistant", "content": "x", "refusal": CANARY}]},
        {"messages": [HI, CALLING, {"role": "tool", "tool_call_id": "c", "content": CANARY}]},
        {"messages": [HI], "tools": [TOOL]},
        {"messages": [HI], "response_format": SCHEMA},
    ],
)
def test_every_channel_of_a_chat_is_read(fields: dict[str, Any]) -> None:
    request = CHAT.parse(json.dumps({"model": "m", **fields}).encode(), 64).request
    read = reading(request)
    assert any(CANARY in text for text in read.texts)
    assert read.messages == len(fields["messages"])
    assert read.files == ("image_url" in json.dumps(fields))


@pytest.mark.parametrize(
    ("given", "texts", "tokens"),
    [(CANARY, [CANARY], 0), ([CANARY, "b"], [CANARY, "b"], 0), ([1, 2, 3], [], 3), ([[1], [2, 3]], [], 3)],
)
def test_prompts_and_inputs(given: Any, texts: list[str], tokens: int) -> None:
    for kind, field in ((COMPLETIONS, "prompt"), (EMBEDDINGS, "input")):
        read = reading(kind.parse(json.dumps({"model": "m", field: given}).encode(), 64).request)
        assert (read.texts, read.tokens, read.messages) == (texts, tokens, 0)
