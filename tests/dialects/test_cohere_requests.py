from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as how

from appliance.dialects import chat, embeddings
from appliance.dialects.cohere_outbound import COHERE, FEATURES
from appliance.dialects.wire import encode
from appliance.errors import BadRequest, UnsupportedParameter, UpstreamFailed
from tests.dialects.chat_requests import CLOCK, PIXEL, USER, WEATHER, asked, requests
from tests.dialects.vendor_shapes import openapi, unknown

URL = f"data:image/png;base64,{PIXEL}"
CALLED: dict[str, Any] = {
    "role": "assistant",
    "reasoning_content": "I look it up.",
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}},
        {"id": "c2", "type": "function", "function": {"name": "clock", "arguments": ""}},
    ],
}


def sent(request: chat.ChatRequest, *, stream: bool = False) -> dict[str, Any]:
    ask = COHERE.ask(request, "command-a-03-2025", stream=stream)
    assert (ask.path, dict(ask.headers)) == ("chat", {})
    body: dict[str, Any] = json.loads(ask.body)
    return body


def settings(**fields: Any) -> dict[str, Any]:
    body = sent(asked(**fields))
    return {name: value for name, value in body.items() if name not in ("model", "messages")}


def test_the_least_request() -> None:
    least = {"model": "command-a-03-2025", "messages": [{"role": "user", "content": "Hi"}]}
    assert sent(asked()) == least
    assert sent(asked(stream=True), stream=True) == {**least, "stream": True}


def test_a_conversation_with_everything() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "name": "Ann",
            "content": [
                {"type": "text", "text": "See", "cache_control": {"type": "ephemeral"}},
                {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
                {"type": "image_url", "image_url": {"url": URL}},
            ],
        },
        CALLED,
        {"role": "tool", "tool_call_id": "c1", "content": "cold", "is_error": True},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "12:00"}]},
        {
            "role": "assistant",
            "reasoning_content": "Hm.",
            "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}],
        },
        {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "kind."}]},
        USER,
    ]
    assert sent(asked(messages))["messages"] == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Ann: See"},
                {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
                {"type": "image_url", "image_url": {"url": URL}},
            ],
        },
        {
            "role": "assistant",
            "tool_plan": "I look it up.",
            "tool_calls": [
                CALLED["tool_calls"][0],
                {"id": "c2", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "cold"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "12:00"}]},
        {"role": "assistant", "content": "a\nb"},
        {"role": "system", "content": "Be\nkind."},
        {"role": "user", "content": "Hi"},
    ]


def test_the_settings() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert settings(
        max_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        stop="a",
        n=1,
        seed=-1,
        logprobs=True,
        top_logprobs=0,
        user="u",
        response_format={"type": "json_schema", "json_schema": {"name": "s", "description": "D", "schema": schema}},
    ) == {
        "max_tokens": 7,
        "temperature": 0.5,
        "p": 0.9,
        "k": 3,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "stop_sequences": ["a"],
        "seed": 2**63 - 1,
        "logprobs": True,
        "response_format": {"type": "json_object", "json_schema": {**schema, "description": "D"}},
    }
    assert settings(response_format={"type": "json_object"}) == {"response_format": {"type": "json_object"}}
    assert settings(top_k=-1, top_p=1, response_format={"type": "text"}) == {"k": 0, "p": 0.99}
    assert settings(top_k=501, top_p=0) == {"k": 500, "p": 0.01}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, (["weather", "clock"], None)),
        ("auto", (["weather", "clock"], None)),
        ("none", (["weather", "clock"], "NONE")),
        ("required", (["weather", "clock"], "REQUIRED")),
        ({"type": "function", "function": {"name": "clock"}}, (["clock"], "REQUIRED")),
    ],
)
def test_tools(choice: Any, expected: tuple[list[str], str | None]) -> None:
    found = settings(tools=[WEATHER, CLOCK], tool_choice=choice)
    assert ([tool["function"]["name"] for tool in found["tools"]], found.get("tool_choice")) == expected
    assert found["tools"][-1]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert "strict_tools" not in found
    strict = {"type": "function", "function": {"name": "clock", "strict": True}}
    assert settings(tools=[strict])["strict_tools"] is True
    assert "strict_tools" not in settings(tools=[strict, WEATHER])


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({}, None),
        ({"reasoning": {"exclude": True}}, None),
        ({"reasoning_effort": "none"}, {"type": "disabled"}),
        ({"reasoning": {"enabled": False, "max_tokens": 9}}, {"type": "disabled"}),
        ({"reasoning": {"enabled": True}}, {"type": "enabled"}),
        ({"reasoning": {"max_tokens": 9}}, {"type": "enabled", "token_budget": 9}),
        ({"reasoning": {"effort": "high"}}, {"type": "enabled"}),
        ({"reasoning_effort": "low"}, {"type": "enabled", "token_budget": 1024}),
    ],
)
def test_thinking(fields: dict[str, Any], thinking: dict[str, Any] | None) -> None:
    assert settings(**fields).get("thinking") == thinking


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"min_p": 0.1}, "min_p"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"verbosity": "low"}, "verbosity"),
        ({"temperature": 1.5}, "temperature"),
        ({"presence_penalty": -0.5}, "presence_penalty"),
        ({"frequency_penalty": 1.5}, "frequency_penalty"),
        ({"logprobs": True, "top_logprobs": 1}, "top_logprobs"),
    ],
)
def test_what_it_has_no_notion_for_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedParameter, match=param) as caught:
        sent(asked(**fields))
    assert caught.value.param == param
    assert all(feature not in FEATURES for feature, field, _ in chat.needs(asked(**fields)) if field == param)


@pytest.mark.parametrize(
    ("part", "param"),
    [
        (
            {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}},
            "messages[0].content[0].image_url.url",
        ),
        ({"type": "image_url", "image_url": {"url": "data:image/png,x"}}, "messages[0].content[0].image_url.url"),
        ({"type": "file", "file": {"file_data": URL}}, "messages[0].content[0]"),
        ({"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}, "messages[0].content[0]"),
    ],
)
def test_media_that_it_does_not_take(part: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        sent(asked([{"role": "user", "content": [part]}]))
    assert caught.value.param == param


def test_results_hold_no_images() -> None:
    result = {"role": "tool", "tool_call_id": "c1", "content": [{"type": "image_url", "image_url": {"url": URL}}]}
    with pytest.raises(UnsupportedParameter, match=r"messages\[2\].content\[0\]"):
        sent(asked([USER, CALLED, result]))


def meaning(messages: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    said: list[tuple[str, ...]] = []
    for message in messages:
        role = "system" if message["role"] == "developer" else message["role"]
        content: Any = message.get("content") or []
        parts: list[dict[str, Any]] = [{"text": content}] if isinstance(content, str) else content
        for part in parts:
            said.append((role, message.get("tool_call_id", ""), part.get("text") or part["image_url"]["url"]))
        for call in message.get("tool_calls") or ():
            said.append(("call", call["id"], call["function"]["name"], call["function"]["arguments"]))
    return said


@given(requests())
def test_nothing_that_was_said_is_lost(request: chat.ChatRequest) -> None:
    given_: list[dict[str, Any]] = json.loads(encode(request.messages))
    assert meaning(sent(request)["messages"]) == meaning(given_)


@how(deadline=None)  # the first one reads the description
@given(requests())
def test_every_body_is_one_that_cohere_describes(request: chat.ChatRequest) -> None:
    found = openapi("cohere")
    schema = found["paths"]["/v2/chat"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert unknown(sent(request, stream=True), schema, found["components"]["schemas"]) == []


def vectors(input: Any, **fields: Any) -> embeddings.EmbeddingRequest:
    return embeddings.parse(json.dumps({"model": "m", "input": input, **fields}).encode())


def test_embeddings() -> None:
    ask = COHERE.embed_ask(vectors(["a", "b"], dimensions=256), "embed-v4.0")
    body = json.loads(ask.body)
    assert (ask.path, body) == (
        "embed",
        {
            "model": "embed-v4.0",
            "texts": ["a", "b"],
            "input_type": "search_document",
            "embedding_types": ["float"],
            "truncate": "NONE",
            "output_dimension": 256,
        },
    )
    found = openapi("cohere")
    schema = found["paths"]["/v2/embed"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert unknown(body, schema, found["components"]["schemas"]) == []
    answer = {
        "id": "x",
        "embeddings": {"float": [[3, 4], [1, 0]]},
        "texts": ["a", "b"],
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 2.0}},
    }
    read = COHERE.read_vectors(json.dumps(answer).encode(), "up", vectors(["a", "b"]))
    rendered = json.loads(embeddings.render("m", read.vectors, read.prompt_tokens or 0, as_base64=False))
    assert [[round(x, 6) for x in each["embedding"]] for each in rendered["data"]] == [[0.6, 0.8], [1.0, 0.0]]
    assert read.prompt_tokens == 2


def test_embeddings_that_it_does_not_take() -> None:
    with pytest.raises(UnsupportedParameter, match="token ids"):
        COHERE.embed_ask(vectors([[1, 2]]), "m")
    with pytest.raises(UnsupportedParameter, match="at most 96 texts"):
        COHERE.embed_ask(vectors(["a"] * 97), "m")


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"embeddings":{}}', b'{"embeddings":{"float":[]}}', b'{"embeddings":{"float":[["a"]]}}']
)
def test_vectors_that_are_not_sound(body: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        COHERE.read_vectors(body, "up", vectors("a"))


def test_vectors_that_nobody_counted() -> None:
    assert COHERE.read_vectors(b'{"embeddings":{"float":[[1]]}}', "up", vectors("a")).prompt_tokens is None
