"""Whatever is sent, the answer is a refusal that names the field: never a 5xx, never silence, never a lasting harm."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import string
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from appliance.dialects.chat import ChatRequest
from appliance.dialects.completions import CompletionRequest
from appliance.dialects.embeddings import EmbeddingRequest
from tests.contract.ask import CHAT_PATH, COMPLETION_PATH, EMBEDDING_PATH, whole
from tests.fakes.openai_schema import ERROR, complaints
from tests.gateway import CHAT, EMBEDDER, Gateway

pytestmark = pytest.mark.engine

HI = [{"role": "user", "content": "Hi"}]
VALID: dict[str, dict[str, Any]] = {
    CHAT_PATH: {"model": CHAT, "messages": HI, "max_tokens": 1},
    COMPLETION_PATH: {"model": CHAT, "prompt": "Hi", "max_tokens": 1},
    EMBEDDING_PATH: {"model": EMBEDDER, "input": "Hi"},
}
LONGEST_S = 20.0
"""No refusal may take longer, on a machine that has much else to do."""


@pytest.fixture(autouse=True)
def _healthy_after(gateway: Gateway) -> Iterator[None]:
    """After each test the gateway is up, has logged no failure of its own, and its engine process is the same."""
    log, pids = len(gateway.log()), [replica["pid"] for replica in gateway.replicas()]
    yield
    with gateway.http() as http:
        assert http.get("/healthz").status_code == 200
        assert http.get("/readyz").status_code == 200
        whole(http, CHAT_PATH, VALID[CHAT_PATH])
    assert '"exception"' not in gateway.log()[log:]
    assert [replica["pid"] for replica in gateway.replicas()] == pids


def post(http: httpx.Client, path: str, body: bytes | dict[str, Any], **headers: str) -> httpx.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode("utf-8", "surrogatepass")
    began = time.monotonic()
    response = http.post(path, content=data, headers={"Content-Type": "application/json", **headers}, timeout=60.0)
    assert time.monotonic() - began < LONGEST_S
    return response


def refusal(response: httpx.Response, *statuses: int) -> dict[str, Any]:
    """The error object of a response that must be a refusal with one of these statuses (400 by default)."""
    assert response.status_code in (statuses or (400,)), f"{response.status_code}: {response.text[:300]}"
    assert complaints(ERROR, response.json()) == []
    error: dict[str, Any] = response.json()["error"]
    assert error["message"] and len(error["message"]) < 1000
    return error


# --- bodies that are no JSON ----------------------------------------------------------------------

NO_STRING: dict[str, bytes] = {
    "bad-escape": b'"\\x41"',
    "short-escape": b'"\\u12"',
    "escape-with-letters": b'"\\u00zz"',
    "capital-escape": b'"\\U0041"',
    "raw-newline": b'"a\nb"',
    "raw-null": b'"a\x00b"',
    "raw-tab": b'"a\tb"',
    "raw-control": b'"\x1f"',
    "invalid-utf-8": b'"\xff\xfe"',
    "continuation-alone": b'"\x80"',
    "overlong": b'"\xc0\xaf"',
    "surrogate-as-utf-8": b'"\xed\xa0\x80"',
    "beyond-unicode": b'"\xf4\x90\x80\x80"',
    "latin-1": '"é"'.encode("latin-1"),
    "single-quotes": b"'a'",
    "no-quotes": b"a",
    "true-in-capitals": b"True",
    "none": b"None",
    "undefined": b"undefined",
    "half-null": b"nul",
    "nothing": b"",
    "open": b'"a',
    "comment": b'/* a */ "a"',
    "line-comment": b'// a\n"a"',
}
NO_NUMBER: dict[str, bytes] = {
    "nan": b"NaN",
    "infinity": b"Infinity",
    "minus-infinity": b"-Infinity",
    "leading-zero": b"01",
    "minus-leading-zero": b"-01",
    "plus": b"+1",
    "hexadecimal": b"0x1",
    "octal": b"0o7",
    "underscores": b"1_000",
    "no-fraction": b"1.",
    "no-integer": b".5",
    "no-exponent": b"1e",
    "exponent-sign": b"1e+",
    "two-points": b"1.2.3",
    "double-minus": b"--1",
    "minus-alone": b"-",
    "letters": b"1a",
    "full-width": "\uff11".encode(),
}


def not_json(valid: bytes, number: bytes) -> Iterator[tuple[str, bytes]]:
    """A valid body, made invalid in one place; `number` is a field that takes whole numbers."""
    inside = valid[1:]
    for name, text in NO_STRING.items():
        yield name, b'{"user": ' + text + b", " + inside
    for name, text in NO_NUMBER.items():
        yield name, b'{"' + number + b'": ' + text + b", " + inside
    yield "empty", b""
    yield "blank", b" \n\t "
    yield "word", b"hello"
    yield "two-values", valid + b" {}"
    yield "trailing-word", valid + b"x"
    yield "trailing-null", valid + b"\x00"
    yield "trailing-brace", valid + b"}"
    yield "trailing-comma", valid[:-1] + b",}"
    yield "leading-comma", b"{," + inside
    yield "no-colon", b'{"user" "a", ' + inside
    yield "two-colons", b'{"user":: "a", ' + inside
    yield "no-comma", b'{"user": "a" ' + inside
    yield "two-commas", b'{"user": "a",, ' + inside
    yield "no-key", b'{: "a", ' + inside
    yield "number-key", b'{1: "a", ' + inside
    yield "bare-key", b'{user: "a", ' + inside
    yield "wrong-bracket", valid[:-1] + b"]"
    yield "null-between", b'{"user"\x00: "a", ' + inside
    yield "form-feed-between", b'{"user":\x0c "a", ' + inside
    yield "hard-space-between", b'{"user":\xc2\xa0"a", ' + inside
    yield "byte-order-mark", b"\xef\xbb\xbf" + valid
    yield "utf-16", valid.decode().encode("utf-16")
    yield "utf-32", valid.decode().encode("utf-32")
    yield "gzip", gzip.compress(valid)
    yield "yaml", b"model: a\nprompt: b\n"
    for at in range(1, len(valid)):
        yield f"cut-at-{at}", valid[:at]


NOT_AN_OBJECT = (b"null", b"true", b"0", b"-1.5e3", b'"text"', b"[]", b"[{}]", b'[["a"]]', b"[")
NUMBERS = {CHAT_PATH: b"seed", COMPLETION_PATH: b"seed", EMBEDDING_PATH: b"dimensions"}


@pytest.mark.parametrize("path", VALID)
def test_a_body_that_is_no_json_is_told_where(http: httpx.Client, path: str) -> None:
    for name, body in not_json(json.dumps(VALID[path]).encode(), NUMBERS[path]):
        error = refusal(post(http, path, body))
        if name in NO_NUMBER and error["code"] != "invalid_json":
            # The number's beginning was one, and of the wrong kind; the rest was not looked at.
            assert error["param"] == NUMBERS[path].decode(), name
            continue
        assert error["code"] == "invalid_json", name
        assert error["message"].startswith("The body"), name
    for body in NOT_AN_OBJECT:
        error = refusal(post(http, path, body))
        assert error["code"] == "invalid_type" and "an object" in error["message"], body


@pytest.mark.parametrize(
    "start",
    [
        b' \r\n\t{ "user" : "a" , ',
        b'{"user": "\\u00e9\\ud83d\\ude00\\/\\"\\\\\\b\\f\\n\\r\\t\\u0000", ',
        b'{"\\u0075ser": "\xf4\x8f\xbf\xbf\x7f\xe2\x80\xa8", ',
        b'{"temperature": 1E0, "top_p": 1e-1, "seed": -0, ',
        b'{"temperature": 0.10000000000000000000000000000000000001, "top_p": 1e-400, ',
        b'{"seed": 9223372036854775807, "temperature": 2, "metadata": {"": ""}, ',
        b'{"user": null, "stop": [ ], "metadata": { }, ',
    ],
)
def test_json_as_it_may_be_written_is_read(http: httpx.Client, start: bytes) -> None:
    valid = json.dumps({"model": "fake-ok", "messages": HI}).encode()
    assert post(http, CHAT_PATH, start + valid[1:] + b" \n").status_code == 200


def test_numbers_beyond_what_is_counted_with_are_refused_by_name(http: httpx.Client) -> None:
    for number in (b"1e400", b"-1e400", b"123123e100000", b"1" * 400):
        for field in ("temperature", "presence_penalty", "seed", "top_logprobs"):
            body = b'{"%b": %b, ' % (field.encode(), number) + json.dumps(VALID[CHAT_PATH]).encode()[1:]
            assert refusal(post(http, CHAT_PATH, body))["param"] == field


@pytest.mark.parametrize("path", VALID)
def test_deep_nesting_is_refused(http: httpx.Client, path: str) -> None:
    for depth in (65, 1_000, 10_000, 1_000_000):
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")):
            middle = b"1"
            for body in (
                opening * depth + middle + closing * depth,
                b'{"model": "a", "metadata": ' + opening * depth + middle + closing * depth + b"}",
                opening * depth,
            ):
                if len(body) <= 20 << 20:
                    error = refusal(post(http, path, body))
                    assert error["code"] == "json_too_deep" and "64" in error["message"]


# --- bodies that are no requests ------------------------------------------------------------------

KINDS = {CHAT_PATH: ChatRequest, COMPLETION_PATH: CompletionRequest, EMBEDDING_PATH: EmbeddingRequest}
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


def tool(**function: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", **function}}]


def schema(body: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": body}}}


def deep_schema(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "boolean"}
    for _ in range(levels):
        inner = {"type": "array", "items": inner}
    return inner


ASKED_CALL = {
    "role": "assistant",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
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
        "messages[0].content[0].image_url.url",
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


# --- bodies that are too large, too slow to read, or of another kind ------------------------------


@pytest.mark.parametrize("path", VALID)
def test_fifty_megabytes_are_refused(http: httpx.Client, path: str) -> None:
    body = json.dumps({**VALID[path], "user": "x" * (50 << 20)}).encode()
    for content in (body, (body[at : at + (1 << 20)] for at in range(0, len(body), 1 << 20))):
        try:
            response = http.post(path, content=content, headers={"Content-Type": "application/json"})
        except (httpx.WriteError, httpx.ReadError):
            continue  # the gateway has hung up on an upload that it had refused; its answer was lost on the way
        error = refusal(response, 413)
        assert error["code"] == "request_too_large" and "20" in error["message"]


def test_a_large_body_is_refused_before_it_is_sent(gateway: Gateway) -> None:
    import socket

    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        head = (
            f"POST {CHAT_PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.key}\r\n"
            "Content-Type: application/json\r\nContent-Length: 52428800\r\nExpect: 100-continue\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("path", VALID)
def test_forms_are_refused(http: httpx.Client, path: str) -> None:
    given = {"model": CHAT, "messages": "Hi"}
    for response in (
        http.post(path, data=given),
        http.post(path, files={"messages": b"Hi"}, data={"model": CHAT}),
        http.post(path, content=b"", headers={"Content-Type": "application/x-www-form-urlencoded"}),
    ):
        assert refusal(response)["code"] == "invalid_json"


def test_json_is_taken_by_any_name(http: httpx.Client) -> None:
    """As `curl -d` sends it: the credential is a header that no web page can add, so the type guards nothing."""
    for kind in (
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/x-www-form-urlencoded",
        "nonsense",
    ):
        for path, body in VALID.items():
            response = http.post(path, content=json.dumps(body), headers={"Content-Type": kind})
            assert response.status_code == 200


def test_a_compressed_body_is_refused_or_read_but_never_blown_up(http: httpx.Client) -> None:
    bomb = gzip.compress(b'{"model": "' + b"a" * (60 << 20) + b'"}')
    for body in (bomb, b"not gzip at all"):
        response = http.post(
            CHAT_PATH, content=body, headers={"Content-Type": "application/json", "Content-Encoding": "gzip"}
        )
        refusal(response, 400, 413, 415)


def test_keys_that_come_twice_are_read_as_one(http: httpx.Client) -> None:
    said = json.dumps(HI).encode()
    body = b'{"model": "%b", "model": "gpt-9", "messages": %b, "max_tokens": 1}' % (CHAT.encode(), said)
    assert refusal(post(http, CHAT_PATH, body), 400, 404)["param"] == "model"


# --- anything at all ------------------------------------------------------------------------------

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
