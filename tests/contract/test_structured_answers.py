"""Answers and tool arguments that must follow a schema: judged by jsonschema, whatever the model would rather say."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator, FormatChecker

from tests.contract.ask import CHAT_PATH, chat_choices, refused, whole
from tests.gateway import CHAT

pytestmark = pytest.mark.engine

SHORT_TEXT = {"type": "string", "maxLength": 12}


def closed(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An object that has exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **more,
    }


SCHEMAS: dict[str, dict[str, Any]] = {
    "one-string": closed({"name": SHORT_TEXT}),
    "every-type": closed(
        {"s": SHORT_TEXT, "i": {"type": "integer", "maximum": 999}, "b": {"type": "boolean"}, "n": {"type": "null"}}
    ),
    "enum": closed({"colour": {"type": "string", "enum": ["red", "grün", 'qu"ote', "back\\slash"]}}),
    "enum-of-mixed": closed({"value": {"enum": [1, "one", None, True, [1, 2], {"a": 1}]}}),
    "const": closed({"kind": {"const": "fixed"}, "version": {"const": 3}}),
    "nested": closed({"a": closed({"b": closed({"c": {"type": "boolean"}})})}),
    "array": closed(
        {"items": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 4}}
    ),
    "array-bounds": closed({"items": {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 3}}),
    "array-of-objects": closed(
        {"people": {"type": "array", "items": closed({"n": SHORT_TEXT}), "minItems": 2, "maxItems": 2}}
    ),
    "tuple": closed(
        {
            "pair": {
                "type": "array",
                "prefixItems": [{"type": "integer", "maximum": 99}, {"type": "boolean"}],
                "items": False,
                "minItems": 2,
            }
        }
    ),
    "top-level-array": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 5},
    "top-level-enum": {"enum": ["yes", "no"]},
    "definitions": closed(
        {"home": {"$ref": "#/$defs/place"}, "work": {"$ref": "#/$defs/place"}},
        **{"$defs": {"place": closed({"city": SHORT_TEXT})}},
    ),
    "recursion": closed(
        {"tree": {"$ref": "#/$defs/node"}},
        **{
            "$defs": {
                "node": closed(
                    {
                        "leaf": {"enum": [True]},
                        "more": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
                    }
                )
            }
        },
    ),
    "any-of": closed(
        {"id": {"anyOf": [{"type": "integer", "maximum": 99}, {"type": "string", "pattern": "^[a-z]{3}$"}]}}
    ),
    "any-of-objects": closed(
        {
            "shape": {
                "anyOf": [closed({"radius": {"type": "integer", "maximum": 9}}), closed({"side": {"type": "boolean"}})]
            }
        }
    ),
    "nullable": closed({"maybe": {"type": ["string", "null"], "maxLength": 12}}),
    "integer-bounds": closed({"year": {"type": "integer", "minimum": 1990, "maximum": 2030}}),
    "exclusive-bounds": closed({"n": {"type": "integer", "exclusiveMinimum": 10, "exclusiveMaximum": 13}}),
    "number-bounds": closed({"ratio": {"type": "number", "minimum": 0, "maximum": 1}}),
    "multiple": closed({"n": {"type": "integer", "multipleOf": 25, "minimum": 0, "maximum": 100}}),
    "pattern": closed({"plate": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}}),
    "length": closed({"code": {"type": "string", "minLength": 3, "maxLength": 5}}),
    "formats": closed({"day": {"type": "string", "format": "date"}, "address": {"type": "string", "format": "ipv4"}}),
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    },
    "typed-additions": {
        "type": "object",
        "additionalProperties": {"type": "boolean"},
        "maxProperties": 3,
        "minProperties": 1,
    },
    "all-of": closed({"n": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]}}),
    "unicode-names": closed(
        {"größe": {"type": "integer", "maximum": 99}, "名前": {"type": "boolean"}, 'a "b"': {"type": "null"}}
    ),
    "notes": closed(
        {"a": {"type": "boolean", "title": "A", "description": "yes or no", "default": True, "examples": [True]}},
        title="T",
    ),
}


# A hot sample may spend its limit on the digits, items or levels that these allow without a bound.
ENDLESS = ("recursion", "number-bounds", "typed-additions", "formats", "top-level-array")


def judge(schema: dict[str, Any], text: str) -> None:
    value = json.loads(text)
    faults = [
        error.message for error in Draft202012Validator(schema, format_checker=FormatChecker()).iter_errors(value)
    ]
    assert faults == [], text


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_answer_follows_its_schema(http: httpx.Client, name: str) -> None:
    schema = SCHEMAS[name]
    body = {
        "model": CHAT,
        "messages": [{"role": "user", "content": "Make something up."}],
        "max_tokens": 150,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "made_up", "strict": True, "schema": schema},
        },
    }
    calm = whole(http, CHAT_PATH, {**body, "temperature": 0})
    wild = whole(http, CHAT_PATH, {**body, "temperature": 1.5, "seed": 1, "n": 2})
    ended = [choice for answer in (calm, wild) for choice in chat_choices(answer) if choice["finish_reason"] == "stop"]
    for choice in ended:
        judge(schema, choice["content"])
    assert len(ended) == 3 or (ended and name in ENDLESS)


@pytest.mark.parametrize("schema", [{}, {"type": "object"}, {"type": "object", "properties": {}}])
def test_an_open_schema_still_gives_json(http: httpx.Client, schema: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "any", "schema": schema}}
    said = [{"role": "user", "content": "Give me a short JSON object."}]
    body = {"model": CHAT, "messages": said, "temperature": 0, "max_tokens": 200, "response_format": form}
    choice = chat_choices(whole(http, CHAT_PATH, body))[0]
    if choice["finish_reason"] == "stop":
        judge(schema, choice["content"])
    else:
        assert choice["content"][:1] in '{["-0123456789tfn'


# What cannot be enforced is refused by its name, never ignored: an answer that looks right by luck is worse.
UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "not": (closed({"a": {"not": {"type": "string"}}}), "not"),
    "if": (closed({"a": {"if": {"type": "string"}, "then": {"maxLength": 1}}}), "if"),
    "uniqueItems": (closed({"a": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}}), "uniqueItems"),
    "contains": (closed({"a": {"type": "array", "contains": {"type": "integer"}}}), "contains"),
    "propertyNames": ({"type": "object", "propertyNames": {"maxLength": 3}}, "propertyNames"),
    "dependentRequired": ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    "unevaluatedProperties": ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
    "a-typing-error": (closed({"a": {"type": "string", "maxlength": 3}}), "maxlength"),
    "unknown-format": (closed({"a": {"type": "string", "format": "isbn"}}), "isbn"),
    "unknown-type": (closed({"a": {"type": "str"}}), "str"),
    "outside-reference": (closed({"a": {"$ref": "https://example.com/s.json"}}), "$ref"),
    "dangling-reference": (closed({"a": {"$ref": "#/$defs/none"}}), "$ref"),
    "impossible": (closed({"a": {"type": "integer", "minimum": 5, "maximum": 1}}), "*"),
    "bad-pattern": (closed({"a": {"type": "string", "pattern": "(["}}), "*"),
    "look-behind": (closed({"a": {"type": "string", "pattern": "(?<=a)b"}}), "*"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_schema_that_cannot_be_held_is_refused_by_name(http: httpx.Client, name: str) -> None:
    schema, word = UNSUPPORTED[name]
    said = [{"role": "user", "content": "Make something up."}]
    form = {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": schema}}
    error = refused(http, CHAT_PATH, {"model": CHAT, "messages": said, "response_format": form, "max_tokens": 5})
    assert error["param"] == "response_format.json_schema.schema"
    assert word == "*" or word in error["message"]
    strict = {"name": "make", "strict": True, "parameters": closed({"x": schema})}
    body = {"model": CHAT, "messages": said, "tools": [{"type": "function", "function": strict}], "max_tokens": 5}
    if "reference" not in name:  # a reference that is moved into a property is another one
        error = refused(http, CHAT_PATH, {**body, "tool_choice": "required"})
        assert error["param"].startswith("tools")
        assert word == "*" or word in error["message"]


def shape(kind: str, size: str) -> dict[str, Any]:
    return closed({"kind": {"const": kind, "type": "string"}, size: {"type": "integer", "maximum": 9}})


# As Pydantic writes a set, a path and a union with a discriminator.
PYDANTIC = closed(
    {
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2, "uniqueItems": True},
        "file": {"type": "string", "format": "path", "maxLength": 12},
        "shape": {
            "discriminator": {"propertyName": "kind", "mapping": {"c": "#/$defs/C", "s": "#/$defs/S"}},
            "oneOf": [{"$ref": "#/$defs/C"}, {"$ref": "#/$defs/S"}],
        },
    },
    **{"$defs": {"C": shape("c", "radius"), "S": shape("s", "side")}},
)


@pytest.mark.parametrize("strict", [{}, {"strict": False}, {"strict": None}], ids=repr)
def test_a_schema_that_is_not_strict_is_held_as_far_as_it_can_be(http: httpx.Client, strict: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "made_up", "schema": PYDANTIC, **strict}}
    said = [{"role": "user", "content": "Make something up."}]
    body = {"model": CHAT, "messages": said, "max_tokens": 150, "response_format": form}
    calm = whole(http, CHAT_PATH, {**body, "temperature": 0})
    wild = whole(http, CHAT_PATH, {**body, "temperature": 1.5, "seed": 1, "n": 2})
    # That the tags differ is the one thing that no grammar can see to.
    enforced = {**PYDANTIC, "properties": {**PYDANTIC["properties"], "tags": {"items": {"enum": ["a", "b"]}}}}
    for choice in [*chat_choices(calm), *chat_choices(wild)]:
        assert choice["finish_reason"] == "stop"
        judge(enforced, choice["content"])
    form["json_schema"]["strict"] = True
    assert refused(http, CHAT_PATH, body)["param"] == "response_format.json_schema.schema"


TOOLS: dict[str, dict[str, Any]] = {
    "no-parameters": {},
    "empty-object": {"type": "object", "properties": {}},
    "closed": closed({"city": SHORT_TEXT, "days": {"type": "integer", "minimum": 1, "maximum": 7}}),
    "optional": {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "boolean"}}},
    "nested": closed(
        {
            "where": closed(
                {
                    "x": {"type": "integer", "maximum": 99},
                    "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
                }
            )
        }
    ),
    "definitions": closed(
        {"p": {"$ref": "#/$defs/q"}}, **{"$defs": {"q": {"type": "string", "pattern": "^[a-z]{2,4}$"}}}
    ),
    "pydantic": {
        "$defs": {"Kind": {"enum": ["small", "large"], "title": "Kind", "type": "string"}},
        "title": "Order",
        "type": "object",
        "properties": {
            "kind": {"$ref": "#/$defs/Kind"},
            "count": {
                "anyOf": [{"type": "integer", "maximum": 99}, {"type": "null"}],
                "default": None,
                "title": "Count",
            },
        },
        "required": ["kind"],
    },
    "loose": {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 9, "uniqueItems": True, "x-order": 1}},
    },
}


@pytest.mark.parametrize("name", TOOLS)
def test_tool_arguments_follow_the_tools_schema(http: httpx.Client, name: str) -> None:
    parameters = TOOLS[name]
    function = {"name": "act", "description": "Do it.", **({"parameters": parameters} if parameters else {})}
    body = {
        "model": CHAT,
        "messages": [{"role": "user", "content": "Please act."}],
        "max_tokens": 250,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "act"}},
        "parallel_tool_calls": False,
    }
    calm = whole(http, CHAT_PATH, {**body, "temperature": 0})
    wild = whole(http, CHAT_PATH, {**body, "temperature": 1.5, "seed": 2, "n": 2})
    for choice in [*chat_choices(calm), *chat_choices(wild)]:
        assert choice["finish_reason"] == "tool_calls"
        assert [called for called, _ in choice["tool_calls"]] == ["act"]
        judge(parameters or closed({}), choice["tool_calls"][0][1])


def test_required_calls_only_what_was_offered_and_may_call_several(http: httpx.Client) -> None:
    names = ["get_weather", "get_time", "send-mail", "x" * 64]
    tools = [
        {"type": "function", "function": {"name": name, "parameters": closed({"q": SHORT_TEXT})}} for name in names
    ]
    body = {
        "model": CHAT,
        "messages": [{"role": "user", "content": "Get the weather and the time, then send a mail."}],
        "max_tokens": 400,
        "tools": tools,
        "tool_choice": "required",
        "temperature": 1.2,
        "seed": 3,
        "n": 4,
    }
    choices = chat_choices(whole(http, CHAT_PATH, body))
    for choice in choices:
        if choice["finish_reason"] == "length":
            continue
        assert choice["finish_reason"] == "tool_calls" and choice["tool_calls"]
        for called, arguments in choice["tool_calls"]:
            assert called in names
            judge(closed({"q": SHORT_TEXT}), arguments)
    assert any(choice["finish_reason"] == "tool_calls" for choice in choices)


def test_a_conversation_with_tool_results_goes_on(http: httpx.Client) -> None:
    tool = {
        "type": "function",
        "function": {"name": "lookup", "parameters": closed({"city": {"enum": ["Paris", "Rome"]}})},
    }
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Look up Paris."}]
    body = {"model": CHAT, "tools": [tool], "temperature": 0, "max_tokens": 100}
    first = whole(http, CHAT_PATH, {**body, "messages": messages, "tool_choice": "required"})
    message = first["choices"][0]["message"]
    assert message["tool_calls"]
    messages.append(message)
    messages += [
        {"role": "tool", "tool_call_id": call["id"], "content": "Population 2.1 million."}
        for call in message["tool_calls"]
    ]
    last = whole(http, CHAT_PATH, {**body, "messages": messages, "tool_choice": "none"})
    assert last["choices"][0]["message"]["content"]
    without = whole(http, CHAT_PATH, {**body, "messages": messages[:1], "tool_choice": "none"})
    assert last["usage"]["prompt_tokens"] > without["usage"]["prompt_tokens"] + 10


def test_a_tool_choice_must_fit_the_tools(http: httpx.Client) -> None:
    said = [{"role": "user", "content": "Hi"}]
    named = {"type": "function", "function": {"name": "other"}}
    tool = {"type": "function", "function": {"name": "act"}}
    error = refused(http, CHAT_PATH, {"model": CHAT, "messages": said, "tools": [tool], "tool_choice": named})
    assert error["param"] == "tool_choice.function.name" and "other" in error["message"] and "act" in error["message"]
    error = refused(http, CHAT_PATH, {"model": CHAT, "messages": said, "tool_choice": "required"})
    assert error["param"] == "tool_choice"
