"""Routes with `drop_unsupported` send a request again without a field whose value the target refuses; others refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fakes.behaviours import Behaviour, ok
from tests.fakes.house import House, target_of
from tests.fakes.replies import Reply, Seen

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
SONNET = "claude-sonnet-4-5"
THINKS = {"reasoning_effort": "low", "max_tokens": 9000}


DROPPED = [
    ("anthropic", SONNET, {**THINKS, "temperature": 0.5}, "temperature"),
    ("anthropic", SONNET, {**THINKS, "temperature": 0.5, "top_k": 5}, "temperature"),
    ("anthropic", SONNET, {"stop": [" ", "END"]}, "stop[0]"),
    ("anthropic", "claude-opus-4-7", {"reasoning": {"max_tokens": 5000}}, "reasoning.max_tokens"),
    ("anthropic", SONNET, {"temperature": 1.5}, "temperature"),
    ("openai", "gpt-5", {"top_k": 5}, "top_k"),
]


@pytest.mark.parametrize(("kind", "model", "fields", "param"), DROPPED)
async def test_a_value_that_is_refused_is_left_out(
    house: House, kind: str, model: str, fields: dict[str, Any], param: str
) -> None:
    house.route("strict", target_of(house, kind, model))
    house.route("lax", target_of(house, kind, model), drop_unsupported=True)
    response = await house.post("/v1/chat/completions", {"model": "strict", **HI, **fields})
    assert (response.status, (await response.json())["error"]["param"]) == (400, param)
    assert house.upstream.seen == []
    response = await house.post("/v1/chat/completions", {"model": "lax", **HI, **fields})
    assert response.status == 200, await response.text()
    (seen,) = house.upstream.seen
    assert not {"temperature", "top_k"} & set(seen.body)
    assert seen.body.get("stop_sequences") == (["END"] if "stop" in fields else None)


async def test_the_conversation_and_its_tools_never_go(house: House) -> None:
    house.route("lax", target_of(house, "anthropic", "claude-opus-5-5"), drop_unsupported=True)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    fields = {"tools": [tool], "tool_choice": "required"}
    response = await house.post("/v1/chat/completions", {"model": "lax", **HI, **fields})
    assert (response.status, (await response.json())["error"]["param"]) == (400, "tool_choice")


def refusing(*fields: str, code: str = "unsupported_value") -> Behaviour:
    """A model that takes none of these, and names one of them at a time."""

    def reply(seen: Seen) -> Reply:
        for field in fields:
            if field in seen.body:
                error = {"message": f"Unsupported value: '{field}'", "type": "invalid_request_error", "param": field}
                return Reply(400, {}, json.dumps({"error": {**error, "code": code}}).encode())
        return ok(seen)

    return reply


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**HI, "seed": 5}),
        ("/v1/messages", {**HI, "max_tokens": 50}),
        ("/v1/responses", {"input": "Hi", "store": False}),
    ],
)
async def test_so_is_one_that_the_target_itself_refuses(
    house: House, path: str, body: dict[str, Any], stream: bool
) -> None:
    house.upstream.behave("picky", refusing("temperature", "top_p"))
    house.route("strict", target_of(house, "openai", "picky"))
    house.route("lax", target_of(house, "openai", "picky"), drop_unsupported=True)
    fields = {**body, "temperature": 0.5, "top_p": 0.5, "stream": stream}
    response = await house.post(path, {"model": "strict", **fields})
    assert response.status == 400
    assert len(house.upstream.seen) == 1
    response = await house.post(path, {"model": "lax", **fields})
    assert response.status == 200, await response.text()
    assert response.headers["x-outpost-attempts"] == "1"
    assert len(house.upstream.seen) == 4
    last = house.upstream.seen[-1].body
    assert not {"temperature", "top_p"} & set(last)
    assert last.get("seed") == body.get("seed")


async def test_a_target_that_refuses_without_end_is_asked_four_times(house: House) -> None:
    fields = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")
    house.upstream.behave("picky", refusing(*fields))
    house.route("lax", target_of(house, "openai", "picky"), drop_unsupported=True)
    response = await house.post("/v1/chat/completions", {"model": "lax", **HI, **dict.fromkeys(fields, 1)})
    assert (response.status, (await response.json())["error"]["param"]) == (400, "presence_penalty")
    assert len(house.upstream.seen) == 4


async def test_a_clients_own_mistake_is_told(house: House) -> None:
    house.upstream.behave("picky", refusing("temperature", code="invalid_value"))
    house.route("lax", target_of(house, "openai", "picky"), drop_unsupported=True)
    response = await house.post("/v1/chat/completions", {"model": "lax", **HI, "temperature": 0.5})
    assert response.status == 400
    assert len(house.upstream.seen) == 1


async def test_a_refusal_names_fields_as_the_client_wrote_them(house: House) -> None:
    house.route("claude", target_of(house, "bedrock", "anthropic.claude-sonnet-4-5"))
    house.route("cohere", target_of(house, "cohere", "command-a-03-2025"))
    stops = {"model": "claude", **HI, "max_tokens": 50, "temperature": 0.5, "top_p": 0.5}
    told = await (await house.post("/v1/messages", stops)).json()
    assert told["error"]["message"].startswith("top_p is not supported by this target")
    effort = {
        "model": "claude",
        **HI,
        "max_tokens": 50,
        "output_config": {"format": {"type": "json_schema", "schema": BAD}},
    }
    told = await (await house.post("/v1/messages", effort)).json()
    assert told["error"]["message"].startswith("output_config.format: "), told
    text = {"format": {"type": "json_schema", "name": "a", "schema": BAD}}
    told = await (await house.post("/v1/responses", {"model": "claude", "input": "Hi", "text": text})).json()
    assert told["error"]["param"].startswith("text.format.json_schema.schema"), told
    assert told["error"]["message"].startswith("text.format.json_schema.schema"), told


BAD = {"type": "object", "properties": {"a": {"$ref": "https://example.com/schema"}}}
