"""Addresses of images: nobody fetches them unless the settings let a provider do so."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.house import House, target_of

ADDRESS = "https://pictures.example/a.png"
CHAT = {
    "model": "m",
    "messages": [
        {
            "role": "user",
            "content": [{"type": "text", "text": "See."}, {"type": "image_url", "image_url": {"url": ADDRESS}}],
        }
    ],
}
MESSAGES = {
    "model": "m",
    "max_tokens": 50,
    "messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": ADDRESS}}]}],
}
RESPONSES = {
    "model": "m",
    "store": False,
    "input": [{"role": "user", "content": [{"type": "input_image", "image_url": ADDRESS}]}],
}
DIALECTS = [
    ("/v1/chat/completions", CHAT, "messages[0].content[1].image_url.url"),
    ("/v1/messages", MESSAGES, "messages[0].content[0].source.url"),
    ("/v1/responses", RESPONSES, "input"),
]
KINDS = [("openai", "gpt-5"), ("openai_compatible", "ok"), ("anthropic", "claude-sonnet-4-5")]


def route(house: House, kind: str, model: str, *, fetches_media: bool) -> None:
    house.route("m", target_of(house, kind, model, fetches_media=fetches_media))


@pytest.mark.parametrize(("path", "body", "field"), DIALECTS)
@pytest.mark.parametrize(("kind", "model"), KINDS)
async def test_an_address_is_refused_by_name_with_a_cure(
    house: House, kind: str, model: str, path: str, body: dict[str, Any], field: str
) -> None:
    route(house, kind, model, fetches_media=False)
    response = await house.post(path, body)
    assert response.status == 400
    message = (await response.json())["error"]["message"]
    assert message.startswith(f"{field}: the model m takes images only as data: URLs"), message
    assert "data:image/png;base64" in message
    assert "fetches_media" in message
    assert house.upstream.seen == []


@pytest.mark.parametrize(("path", "body", "field"), DIALECTS)
@pytest.mark.parametrize(("kind", "model"), KINDS)
async def test_it_reaches_a_provider_that_may_fetch(
    house: House, kind: str, model: str, path: str, body: dict[str, Any], field: str
) -> None:
    route(house, kind, model, fetches_media=True)
    response = await house.post(path, body)
    assert response.status == 200, await response.text()
    (seen,) = house.upstream.seen
    assert str(seen.body).count(ADDRESS) == 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://pictures.example/a.png", "a.png", "//x/a.png"])
async def test_what_is_no_address_goes_nowhere(house: House, url: str) -> None:
    route(house, "openai_compatible", "ok", fetches_media=True)
    part = {"type": "image_url", "image_url": {"url": url}}
    response = await house.post("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": [part]}]})
    assert response.status == 400
    error = (await response.json())["error"]
    assert error["param"] == "messages[0].content[0].image_url.url"
    assert "data: URL" in error["message"]
    assert house.upstream.seen == []


async def test_an_address_in_the_result_of_a_tool_is_one_too(house: House) -> None:
    route(house, "openai", "gpt-5", fetches_media=False)
    call = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": MESSAGES["messages"][0]["content"]}  # type: ignore[index]
    turns = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    ]
    tools = [{"name": "look", "input_schema": {"type": "object", "properties": {}}}]
    response = await house.post("/v1/messages", MESSAGES | {"messages": turns, "tools": tools})
    assert response.status == 400
    message = (await response.json())["error"]["message"]
    assert message.startswith("messages[2].content[0].content[0].source.url: the model m takes images only as"), message
    assert house.upstream.seen == []
