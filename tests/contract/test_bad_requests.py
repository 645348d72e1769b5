"""JSON that is no request: whatever is wrong, the refusal names the field, comes in time, and does no harm."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.contract.ask import CHAT_PATH, COMPLETION_PATH, EMBEDDING_PATH
from tests.contract.wrong import ASKED_CALL, HI, KINDS, VALID, post, refusal, schema, tool
from tests.gateway import CHAT

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("healthy_after")]

NEVER_RIGHT: list[Any] = [{"a": {"b": 1}}, [[[1]]], "\ud800", ["\udfff"], -(10**30), 10**400, [None], [True], [{}]]


@pytest.mark.parametrize("path", VALID)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(http: httpx.Client, path: str) -> None:
    for field in KINDS[path].__struct_fields__:
        for value in NEVER_RIGHT:
            if field == "reasoning" and isinstance(value, dict):
                continue  # an object is what it is; which models can do it is another question
            error = refusal(post(http, path, {**VALID[path], field: value}), 400, 404)
            named = error["param"] or error["message"]
            assert named.startswith(field), (field, value, error)


@pytest.mark.parametrize("path", VALID)
def test_lone_surrogates_are_refused_wherever_they_stand(http: httpx.Client, path: str) -> None:
    for bad in ("\ud800", "a\udfffb", "\udc00\ud800"):
        for field in ("user", "model", "nothing"):
            error = refusal(post(http, path, {**VALID[path], field: bad}))
            assert error["param"] == field
        error = refusal(post(http, path, {**VALID[path], bad: 1}))
        assert "surrogate" in error["message"]
    error = refusal(post(http, path, b'{"user": "\\ud83d\\ude00", "model": "\\ude00\\ud83d"}'))
    assert error["param"] == "model"


@pytest.mark.parametrize(
    ("where", "body"),
    {
        "messages[0].content": {"messages": [{"role": "user", "content": "\ud800"}]},
        "messages[0].content[0].text": {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]
        },
        "messages[0].name": {"messages": [{"role": "user", "content": "a", "name": "\ud800"}]},
        "stop[1]": {"messages": HI, "stop": ["a", "\ud800"]},
        "tools[0].function.description": {
            "messages": HI,
            "tools": [{"type": "function", "function": {"name": "f", "description": "\ud800"}}],
        },
        "tools[0].function.parameters.properties": {
            "messages": HI,
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"\ud800": {}}}}}],
        },
        "metadata.a": {"messages": HI, "metadata": {"a": "\ud800"}},
        "response_format.json_schema.schema.enum[0]": {
            "messages": HI,
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"enum": ["\ud800"]}}},
        },
    }.items(),
)
def test_a_lone_surrogate_is_told_with_its_place(http: httpx.Client, where: str, body: dict[str, Any]) -> None:
    assert refusal(post(http, CHAT_PATH, {"model": CHAT, **body}))["param"] == where


def deep_schema(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "boolean"}
    for _ in range(levels):
        inner = {"type": "array", "items": inner}
    return inner


# field that must be named → requests beside model and messages
CHATS: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"messages": []}),
    ("messages", {"messages": None}),
    ("messages", {"messages": "Hi"}),
    ("messages", {"messages": {"role": "user", "content": "Hi"}}),
    ("messages", {"messages": HI * 100_000}),
    ("messages[0]", {"messages": ["Hi"]}),
    ("messages[0].role", {"messages": [{"content": "Hi"}]}),
    ("messages[0].role", {"messages": [{"role": "king", "content": "Hi"}]}),
    ("messages[0].role", {"messages": [{"role": None, "content": "Hi"}]}),
    ("messages[0].content", {"messages": [{"role": "user"}]}),
    ("messages[0].content", {"messages": [{"role": "user", "content": None}]}),
    ("messages[0].content", {"messages": [{"role": "user", "content": []}]}),
    ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [{"text": "a"}]}]}),
    ("messages[0].content[0].type", {"messages": [{"role": "user", "content": [{"type": "smell"}]}]}),
    ("messages[0].content[0].text", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
    (
        "messages[0].content[0]",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
    ),
    (
        "messages[0].content[0]",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}]}]},
    ),
    ("messages[0].colour", {"messages": [{"role": "user", "content": "Hi", "colour": "red"}]}),
    ("messages[0].content", {"messages": [{"role": "assistant"}]}),
    ("messages[0].tool_call_id", {"messages": [{"role": "tool", "content": "a", "tool_call_id": "1"}]}),
    ("messages[1].tool_call_id", {"messages": [ASKED_CALL, {"role": "tool", "content": "a"}]}),
    (
        "messages[0].tool_calls[0].id",
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": ""}}]}]},
    ),
    ("messages[0].name", {"messages": [{"role": "user", "content": "a", "name": "a b<|im_end|>"}]}),
    ("max_tokens", {"max_tokens": -1}),
    ("max_tokens", {"max_tokens": 0}),
    ("max_tokens", {"max_tokens": 1.5}),
    ("max_tokens", {"max_tokens": "10"}),
    ("max_tokens", {"max_tokens": 2**31}),
    ("max_tokens", {"max_tokens": 5, "max_completion_tokens": 6}),
    ("max_completion_tokens", {"max_completion_tokens": -1}),
    ("n", {"n": 0}),
    ("n", {"n": -1}),
    ("n", {"n": 129}),
    ("n", {"n": True}),
    ("temperature", {"temperature": -0.1}),
    ("temperature", {"temperature": 2.1}),
    ("temperature", {"temperature": 1e308}),
    ("temperature", {"temperature": "hot"}),
    ("top_p", {"top_p": -1e-9}),
    ("top_p", {"top_p": 1.5}),
    ("top_k", {"top_k": -2}),
    ("min_p", {"min_p": 2}),
    ("presence_penalty", {"presence_penalty": 2.5}),
    ("frequency_penalty", {"frequency_penalty": -3}),
    ("repetition_penalty", {"repetition_penalty": 0}),
    ("repetition_penalty", {"repetition_penalty": -1}),
    ("seed", {"seed": 1.5}),
    ("seed", {"seed": 2**63}),
    ("stop", {"stop": ["a"] * 5}),
    ("stop", {"stop": ""}),
    ("stop", {"stop": [""]}),
    ("stop", {"stop": "a" * 5000}),
    ("stop", {"stop": 1}),
    ("logit_bias", {"logit_bias": {"a": 1}}),
    ("logit_bias", {"logit_bias": {"-1": 1}}),
    ("logit_bias", {"logit_bias": {"1.5": 1}}),
    ("logit_bias", {"logit_bias": {"1": 101}}),
    ("logit_bias", {"logit_bias": {"1": "a"}}),
    ("logit_bias", {"logit_bias": {"999999999": 1}}),
    ("logit_bias", {"logit_bias": {str(i): 1 for i in range(100_000)}}),
    ("logit_bias", {"logit_bias": []}),
    ("logprobs", {"logprobs": 5}),
    ("top_logprobs", {"logprobs": True, "top_logprobs": 21}),
    ("top_logprobs", {"top_logprobs": 2}),
    ("stream", {"stream": "yes"}),
    ("stream_options", {"stream_options": {"include_usage": True}}),
    ("stream_options.colour", {"stream": True, "stream_options": {"colour": 1}}),
    ("tools[0].type", {"tools": [{"function": {"name": "f"}}]}),
    ("tools[0].type", {"tools": [{"type": "retrieval", "function": {"name": "f"}}]}),
    ("tools[0].function", {"tools": [{"type": "function"}]}),
    ("tools[0].function.name", {"tools": tool(name="")}),
    ("tools[0].function.name", {"tools": tool(name="a b")}),
    ("tools[0].function.name", {"tools": tool(name="a" * 65)}),
    ("tools[0].function.name", {"tools": tool(name='a", "x": "')}),
    ("tools[0].function.name", {"tools": tool(name="<|im_end|>")}),
    ("tools[1].function.name", {"tools": tool() * 2}),
    ("tools", {"tools": tool() * 129}),
    ("tools[0].function.parameters", {"tools": tool(parameters=[])}),
    ("tools[0].function.parameters", {"tools": tool(parameters={"type": "array"})}),
    ("tools[0].function.parameters", {"tools": tool(parameters={"type": "object", "properties": []})}),
    ("tools[0].function.parameters", {"tools": tool(parameters={"type": "object", "properties": {"a": 1}})}),
    ("tools[0].function.parameters", {"tools": tool(parameters={"type": "object", "description": "x" * 100_000})}),
    ("tool_choice", {"tools": tool(), "tool_choice": "maybe"}),
    ("tool_choice", {"tools": tool(), "tool_choice": {"type": "function"}}),
    ("tool_choice", {"tool_choice": "required"}),
    ("response_format", {"response_format": "json"}),
    ("response_format.type", {"response_format": {}}),
    ("response_format.type", {"response_format": {"type": "xml"}}),
    ("response_format.json_schema", {"response_format": {"type": "json_schema"}}),
    ("response_format.json_schema.name", {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}),
    ("response_format.json_schema.schema", {"response_format": {"type": "json_schema", "json_schema": {"name": "s"}}}),
    ("response_format.json_schema.schema", schema(deep_schema(50))),
    ("response_format.json_schema.schema", schema({"type": "string", "pattern": "a" * 100_000})),
    ("response_format.json_schema.schema", schema({"type": "string", "pattern": "("})),
    ("response_format.json_schema.schema", schema({"type": "string", "pattern": "(a)\\1"})),
    ("response_format.json_schema.schema", schema({"type": "array", "minItems": "a"})),
    ("response_format.json_schema.schema", schema({"type": "integer", "minimum": "a"})),
    ("response_format.json_schema.schema", schema({"type": "integer", "minimum": 10**400})),
    ("response_format.json_schema.schema", schema({"enum": []})),
    ("response_format.json_schema.schema", schema({"enum": [f"{i:05}" * 3 for i in range(4_000)]})),
    ("response_format.json_schema.schema", schema({"$ref": "#"})),
    (
        "response_format.json_schema.schema",
        schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
    ),
    ("response_format.json_schema.schema", schema({"$ref": "file:///etc/passwd"})),
    ("response_format.json_schema.schema", schema({"$ref": "http://127.0.0.1/s.json"})),
    ("response_format.json_schema.schema", schema({"anyOf": []})),
    (
        "response_format.json_schema.schema",
        schema({"type": "object", "properties": {f"p{i}": {} for i in range(2_000)}}),
    ),
    ("response_format.json_schema.schema", schema({"not": {}})),
    ("reasoning_effort", {"reasoning_effort": "low"}),
    ("reasoning_effort", {"reasoning_effort": "extreme"}),
    ("modalities", {"modalities": ["text", "audio"]}),
    ("audio", {"audio": {"voice": "alloy", "format": "wav"}}),
    ("functions", {"functions": [{"name": "f"}]}),
    ("function_call", {"function_call": "auto"}),
    ("prompt", {"prompt": "Hi"}),
    ("store", {"store": True}),
    ("service_tier", {"service_tier": "flex"}),
    ("metadata", {"metadata": {"a": 1}}),
    ("metadata", {"metadata": {str(i): "x" for i in range(17)}}),
    ("user", {"user": 1}),
    ("colour", {"colour": "red"}),
    ("model", {"model": ""}),
    ("model", {"model": "x" * 300}),
    ("model", {"model": "../../etc/passwd"}),
    ("model", {"model": None}),
    ("", {"": 1}),
]


@pytest.mark.parametrize("at", range(len(CHATS)), ids=lambda at: f"{at}-{CHATS[at][0]}")
def test_a_chat_that_cannot_be_is_refused_by_name(http: httpx.Client, at: int) -> None:
    field, fields = CHATS[at]
    error = refusal(post(http, CHAT_PATH, {"model": CHAT, "messages": HI, **fields}), 400, 404)
    assert (error["param"] or "").startswith(field), error


# Patterns and bounds that would cost another machine its memory or its afternoon.
BOMBS: dict[str, dict[str, Any]] = {
    "nested-repeats": {"type": "string", "pattern": "(a+)+$" * 200},
    "repeats-of-repeats": {"type": "string", "pattern": "((((a{1,99}){1,99}){1,99}){1,99}){1,99}"},
    "anything-of-anything": {"type": "string", "pattern": "(.*)*" * 300},
    "alternatives": {"type": "string", "pattern": "(a|aa|aaa|aaaa)*" * 100 + "b"},
    "a-far-look-back": {"type": "string", "pattern": "(a|b)*a(a|b){300}"},
    "unicode-classes": {"type": "string", "pattern": "[\\p{L}\\p{N}]{1,1000}" * 5},
    "many-items": {"type": "array", "minItems": 10**9, "items": {"type": "null"}},
    "many-characters": {"type": "string", "minLength": 10**9},
    "many-properties": {"type": "object", "minProperties": 10**9, "additionalProperties": {"type": "null"}},
    "odd-multiple": {"type": "integer", "multipleOf": 997, "minimum": 10**15},
    "wide-recursion": {
        "$ref": "#/$defs/n",
        "$defs": {"n": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/n"}}, {"type": "null"}] * 50}},
    },
    "all-of-many": {"allOf": [{"type": "string", "pattern": f"a{{{i},}}"} for i in range(1, 40)]},
    "one-of-many": {"oneOf": [{"type": "object", "properties": {f"k{i}": {"type": "null"}}} for i in range(200)]},
    "optional-properties": {"type": "object", "properties": {f"p{i}": {"type": "boolean"} for i in range(300)}},
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_costly_schema_is_refused_or_paid_for_in_time(http: httpx.Client, name: str) -> None:
    form = schema(BOMBS[name])
    response = post(http, CHAT_PATH, {"model": CHAT, "messages": HI, "max_tokens": 5, "temperature": 0, **form})
    if response.status_code != 200:
        assert refusal(response)["param"] == "response_format.json_schema.schema"
    strict = tool(parameters={"type": "object", "properties": {"x": BOMBS[name]}, "required": ["x"]}, strict=True)
    if "$defs" not in BOMBS[name]:
        body = {"model": CHAT, "messages": HI, "max_tokens": 5, "tools": strict, "tool_choice": "required"}
        response = post(http, CHAT_PATH, body)
        assert response.status_code == 200 or refusal(response)["param"].startswith("tools")


OTHERS: list[tuple[str, str, dict[str, Any]]] = [
    (COMPLETION_PATH, "prompt", {"prompt": None}),
    (COMPLETION_PATH, "prompt", {"prompt": []}),
    (COMPLETION_PATH, "prompt", {"prompt": [""] * 129}),
    (COMPLETION_PATH, "prompt", {"prompt": {"text": "a"}}),
    (COMPLETION_PATH, "prompt", {"prompt": ["a", 1]}),
    (COMPLETION_PATH, "prompt", {"prompt": [[1], "a"]}),
    (COMPLETION_PATH, "prompt", {"prompt": [-1]}),
    (COMPLETION_PATH, "prompt", {"prompt": [10**6]}),
    (COMPLETION_PATH, "prompt", {"prompt": [2**40]}),
    (COMPLETION_PATH, "prompt", {"prompt": [1] * 10_000}),
    (COMPLETION_PATH, "prompt", {"prompt": "word " * 10_000}),
    (COMPLETION_PATH, "prompt", {"prompt": [[]]}),
    (COMPLETION_PATH, "max_tokens", {"max_tokens": -5}),
    (COMPLETION_PATH, "logprobs", {"logprobs": 6}),
    (COMPLETION_PATH, "logprobs", {"logprobs": True}),
    (COMPLETION_PATH, "best_of", {"best_of": 3}),
    (COMPLETION_PATH, "suffix", {"suffix": "end"}),
    (COMPLETION_PATH, "echo", {"echo": True, "logprobs": 1}),
    (COMPLETION_PATH, "messages", {"messages": HI}),
    (COMPLETION_PATH, "tools", {"tools": []}),
    (COMPLETION_PATH, "logit_bias", {"logit_bias": {"50000000": 1}}),
    (EMBEDDING_PATH, "input", {"input": None}),
    (EMBEDDING_PATH, "input", {"input": ""}),
    (EMBEDDING_PATH, "input", {"input": []}),
    (EMBEDDING_PATH, "input", {"input": ["a", ""]}),
    (EMBEDDING_PATH, "input", {"input": ["a"] * 2049}),
    (EMBEDDING_PATH, "input", {"input": [1, "a"]}),
    (EMBEDDING_PATH, "input", {"input": [-1]}),
    (EMBEDDING_PATH, "input", {"input": [10**8]}),
    (EMBEDDING_PATH, "input", {"input": [[]]}),
    (EMBEDDING_PATH, "input", {"input": "word " * 50_000}),
    (EMBEDDING_PATH, "input", {"input": [1] * 10_000}),
    (EMBEDDING_PATH, "input", {"input": {"a": 1}}),
    (EMBEDDING_PATH, "encoding_format", {"encoding_format": "hex"}),
    (EMBEDDING_PATH, "dimensions", {"dimensions": 0}),
    (EMBEDDING_PATH, "dimensions", {"dimensions": 10**9}),
    (EMBEDDING_PATH, "dimensions", {"dimensions": 100}),
    (EMBEDDING_PATH, "stream", {"stream": True}),
    (EMBEDDING_PATH, "colour", {"colour": "red"}),
]


@pytest.mark.parametrize("at", range(len(OTHERS)), ids=lambda at: f"{at}-{OTHERS[at][1]}")
def test_other_requests_that_cannot_be_are_refused_by_name(http: httpx.Client, at: int) -> None:
    path, field, fields = OTHERS[at]
    error = refusal(post(http, path, {**VALID[path], **fields}))
    assert (error["param"] or "").startswith(field), error
    assert field in error["message"], error
