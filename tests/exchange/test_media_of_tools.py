"""Images and files in the results of tools, as Claude Code and Codex send them, at targets of every dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes.house import House, target_of

PNG, PDF = "iVBORw0KGgo=", "JVBERi0xLjQK"
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
DOCUMENT = {
    "type": "document",
    "title": "a.pdf",
    "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
}
TOOL = {"name": "read", "input_schema": {"type": "object", "properties": {}}}


def asked(*media: Any) -> dict[str, Any]:
    call = {"type": "tool_use", "id": "toolu_1", "name": "read", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "see"}, *media]}
    return {
        "model": "m",
        "max_tokens": 50,
        "tools": [TOOL],
        "messages": [
            {"role": "user", "content": "Read it."},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ],
    }


def route(house: House, kind: str, model: str) -> None:
    versions = {"gemini": f"{house.upstream.root}/v1beta", "bedrock": house.upstream.root}
    house.route("m", target_of(house, kind, model, base_url=versions.get(kind)))


KINDS = [
    ("anthropic", "claude-sonnet-4-5"),
    ("openai", "gpt-5"),
    ("openrouter", "some/model"),
    ("gemini", "gemini-3-flash-preview"),
    ("gemini", "gemini-2.5-pro"),
    ("bedrock", "anthropic.claude-sonnet-4-5"),
]


@pytest.mark.parametrize(("kind", "model"), KINDS)
async def test_both_reach_who_takes_files(house: House, kind: str, model: str) -> None:
    route(house, kind, model)
    response = await house.post("/v1/messages", asked(IMAGE, DOCUMENT))
    assert response.status == 200, await response.text()
    (seen,) = house.upstream.seen
    sent = json.dumps(seen.body)
    assert sent.count(PNG) == sent.count(PDF) == 1


async def test_images_reach_who_takes_them(house: House) -> None:
    route(house, "openai_compatible", "ok")
    assert (await house.post("/v1/messages", asked(IMAGE))).status == 200
    tool, follows = house.upstream.seen[0].body["messages"][-2:]
    assert tool["content"] == [{"type": "text", "text": "see"}]
    assert [part["type"] for part in follows["content"]] == ["text", "image_url"]


@pytest.mark.parametrize("kind", ["openai_compatible", "cohere", "deepseek"])
async def test_files_are_refused_by_name_elsewhere(house: House, kind: str) -> None:
    route(house, kind, "ok")
    response = await house.post("/v1/messages", asked(DOCUMENT))
    assert response.status == 400
    message = (await response.json())["error"]["message"]
    assert message.startswith("messages[2].content[0].content[1]: the model m cannot take files"), message
    assert house.upstream.seen == []
