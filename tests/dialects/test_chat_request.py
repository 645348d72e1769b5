from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dialects import chat, parameters
from appliance.errors import BadRequest, OutpostError, UnsupportedParameter

USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CALL: dict[str, Any] = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
GRAMMAR = {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /x+/"}}
PATCH = {"type": "custom", "custom": {"name": "patch", "description": "Changes files.", "format": GRAMMAR}}
PATCHED = {"id": "c1", "type": "custom", "custom": {"name": "patch", "input": "*** Begin"}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def parse(**fields: Any) -> chat.ChatRequest:
    return chat.parse(json.dumps({"model": "m", "messages": [USER], **fields}).encode())


ACCEPTED: list[dict[str, Any]] = [
    {},
    {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
    {"max_tokens": 5},
    {"max_tokens": 5, "max_completion_tokens": 5},
    {"temperature": 0, "top_p": 1, "presence_penalty": -2, "frequency_penalty": 2, "n": 3, "seed": -(2**63)},
    {"top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1},
    {"stop": "a"},
    {"stop": ["a", "b", "c", "d"]},
    {"stop": None, "temperature": None, "tools": None, "logprobs": False, "response_format": None},
    {"logit_bias": {"0": -100, "50256": 100.0}},
    {"logprobs": True, "top_logprobs": 20},
    {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
    {"tools": [{"type": "function", "function": {"name": "no_arguments", "strict": True}}]},
    {"tool_choice": "none"},
    {"response_format": {"type": "text"}},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}},
    {"user": "u", "metadata": {"a": "b"}, "store": False, "safety_identifier": "s", "prompt_cache_key": "k"},
    {"service_tier": "auto"},
    {"service_tier": "default"},
    {"modalities": ["text"]},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": "x"}, USER]},
    {"messages": [{"role": "user", "name": "ann", "content": [{"type": "text", "text": "a"}]}]},
    {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None,
                         "annotations": [], "audio": None, "function_call": None},
                  {"role": "tool", "tool_call_id": "c1", "content": "42"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png,"}}]}]},
    {"audio": None, "prediction": None, "functions": None},
    {"max_tokens": 16.0, "n": 1.0, "temperature": 1.0},
    {"reasoning_effort": "none"},
    {"tools": [PATCH, TOOL], "tool_choice": {"type": "custom", "custom": {"name": "patch"}}},
    {"tools": [{"type": "custom", "custom": {"name": "p", "format": {"type": "text"}}}]},
    {"tools": [PATCH, TOOL], "tool_choice": allowed("required", "f")},
    {"messages": [USER, {"role": "assistant", "tool_calls": [PATCHED]},
                  {"role": "tool", "tool_call_id": "c1", "content": "Done"}]},
    {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,", "detail": "original"}}]}]},
    {"service_tier": "flex", "store": True, "prompt_cache_options": {"mode": "explicit"}},
]  # fmt: skip


@pytest.mark.parametrize("fields", ACCEPTED, ids=lambda f: ",".join(f) or "plain")
def test_accepted(fields: dict[str, Any]) -> None:
    assert parse(**fields).model == "m"


def test_an_answer_as_an_sdk_sends_it_back_is_history() -> None:
    """The SDKs' parsed answers and naively gathered streams carry fields that no request has."""
    call = {**CALL, "index": 0, "function": {**CALL["function"], "parsed_arguments": {"x": 1}}}
    said: dict[str, Any] = {"role": "assistant", "content": "{}", "parsed": {"a": 1}, "annotations": []}
    said["refusal"] = None
    request = parse(
        messages=[
            USER,
            said,
            USER,
            {"role": "assistant", "content": None, "parsed": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
        ]
    )
    sent: Any = msgspec.to_builtins(request)["messages"]
    assert sent[1] == {"role": "assistant", "content": "{}"}
    assert sent[3] == {"role": "assistant", "tool_calls": [{**CALL, "type": "function"}]}


def test_only_harmless_habits_are_taken_leniently() -> None:
    for fields, param in (
        ({"audio": {}, "prediction": None}, "audio"),
        ({"nonsense": None}, "nonsense"),
        ({"max_tokens": 16.5, "audio": None}, "max_tokens"),
        ({"max_tokens": "16"}, "max_tokens"),
    ):
        with pytest.raises(BadRequest) as caught:
            parse(**fields)
        assert caught.value.param == param
    with pytest.raises(BadRequest):
        chat.parse(
            b'{"temperature": 1e400, "audio": null, "model": "m", "messages": [{"role": "user", "content": ""}]}'
        )
    assert parse(max_tokens=16.0).max_tokens == 16


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": None}, "messages", "array"),
    ({"messages": "x"}, "messages", "an array, not a string"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "required"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "a string or an array"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "at least 1"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "Use system, developer"),
    ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role", "tool"),
    ({"messages": [{"role": "system", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
     "messages[0].content[0].type", "image_url"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "required"),
    ({"messages": [{"role": "assistant"}]}, "messages[0].content", "without tool_calls"),
    ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "y"}]}, "messages[0].tool_call_id", "before it"),
    ({"messages": [{"role": "tool", "content": "y"}]}, "messages[0].tool_call_id", "required"),
    ({"max_tokens": -1}, "max_tokens", "at least 1"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_tokens": 1.5}, "max_tokens", "whole number"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "differ"),
    ({"temperature": 2.1}, "temperature", "at most 2"),
    ({"temperature": "hot"}, "temperature", "a number or null, not a string"),
    ({"top_p": -0.1}, "top_p", "at least 0"),
    ({"presence_penalty": 3}, "presence_penalty", "at most 2"),
    ({"n": 0}, "n", "at least 1"),
    ({"n": 129}, "n", "at most 128"),
    ({"seed": 2**63}, "seed", "at most"),
    ({"seed": 10**40}, "seed", ""),
    ({"stop": ["a"] * 5}, "stop", "at most 4"),
    ({"stop": ""}, "stop", "at least 1"),
    ({"stop": ["a", ""]}, "stop[1]", "at least 1"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "not a token id"),
    ({"logit_bias": {"-1": 1}}, "logit_bias", "not a token id"),
    ({"logit_bias": {"5": 101}}, "logit_bias", "between -100 and 100"),
    ({"logit_bias": {"5": "a"}}, "logit_bias[...]", "a number"),
    ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "at most 20"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
    ({"tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice", "Use none, auto"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
     "tool_choice.function.name", "no tool g"),
    ({"tools": [TOOL, TOOL]}, "tools[1].function.name", "twice"),
    ({"tools": [{"type": "function", "function": {"name": "sp ace"}}]}, "tools[0].function.name", "pattern"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": "x"}}]},
     "tools[0].function.parameters", "object"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
     "tools[0].function.parameters.type", "object"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"required": 5}}}]},
     "tools[0].function.parameters.required", "array"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"description": "x" * 70_000}}}]},
     "tools[0].function.parameters", "bytes"),
    ({"tools": [{"type": "mcp", "function": {"name": "f"}}]}, "tools[0].type", "Use function or custom"),
    ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type", "is required. Use function or custom"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "is required"),
    ({"tools": [{"type": "custom", "function": {"name": "f"}}]}, "tools[0].function", "does not go with"),
    ({"tools": [{"type": "custom"}]}, "tools[0].custom", "is required"),
    ({"tools": [PATCH, PATCH]}, "tools[1].custom.name", "twice"),
    ({"tools": [{"type": "custom", "custom": {"name": "f", "format": {"type": "bnf"}}}]},
     "tools[0].custom.format.type", "Use text or grammar"),
    ({"tools": [TOOL], "tool_choice": {"function": {"name": "f"}}}, "tool_choice.type", "allowed_tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "g"}}},
     "tool_choice.custom.name", "there is no tool g"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
     "tool_choice.allowed_tools.tools", "at least 1"),
    ({"tools": [TOOL], "tool_choice": allowed("some", "f")}, "tool_choice.allowed_tools.mode", "Use auto or required"),
    ({"tools": [TOOL], "tool_choice": allowed("auto", "f", "g")},
     "tool_choice.allowed_tools.tools[1].function.name", "there is no tool g"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools",
                                       "allowed_tools": {"mode": "auto", "tools": [{"type": "mcp"}]}}},
     "tool_choice.allowed_tools.tools[0].function.name", "is required"),
    ({"tool_choice": allowed("auto", "f")}, "tool_choice", "needs tools"),
    ({"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "c1", "type": "custom"}]}]},
     "messages[1].tool_calls[0].custom", "is required"),
    ({"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "c1"}]}]},
     "messages[1].tool_calls[0].function", "is required"),
    ({"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "c1", "custom": {"name": "f", "input": ""}}]}]},
     "messages[1].tool_calls[0].type", "is required"),
    ({"response_format": {"type": "yaml"}}, "response_format.type", "Use text"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"properties": 1}}}},
     "response_format.json_schema.schema.properties", "object"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "says"), REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_refused_by_name(fields: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    error = caught.value
    assert error.status == 400
    assert error.param == param
    assert error.message.startswith(param.split("[")[0].split(".")[0])
    assert says in error.message


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("audio", {"voice": "alloy", "format": "wav"}, "no model here speaks"),
        ("modalities", ["text", "audio"], "text"),
        ("prediction", {"type": "content", "content": "x"}, "leave it out"),
        ("web_search_options", {}, "searches the web"),
        ("functions", [{"name": "f"}], "use tools"),
        ("function_call", "auto", "use tool_choice"),
        ("chat_template", "{{ x }}", "templates"),
        ("mm_processor_kwargs", {}, "not a known parameter"),
        ("completely_new", 1, "not a known parameter"),
    ],
)
def test_unsupported_fields_are_refused_by_name_with_the_cure(field: str, value: Any, says: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        parse(**{field: value})
    assert caught.value.code == "unsupported_parameter"
    assert caught.value.param == field
    assert says in caught.value.message


def test_unknown_fields_inside_are_refused_too() -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        parse(messages=[{**USER, "prefix": True}])
    assert caught.value.param == "messages[0].prefix"


def test_a_missing_model_is_named() -> None:
    with pytest.raises(BadRequest) as caught:
        chat.parse(b'{"messages":[]}')
    assert caught.value.param in ("model", "messages")


def test_a_long_name_is_cut_in_the_message() -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        parse(**{"x" * 10_000: 1})
    assert len(caught.value.message) < 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from([*chat.ChatRequest.__struct_fields__, *chat.REFUSED, "other"])
parts = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["system", "user", "assistant", "tool", "developer", "x"]) | json_values,
        "content": json_values,
        "tool_calls": json_values,
        "tool_call_id": json_values,
        "name": json_values,
    },
)


@given(
    st.dictionaries(fields, json_values, max_size=6),
    st.lists(parts, max_size=3) | json_values,
    st.booleans(),
)
def test_any_json_is_a_request_or_a_clear_refusal(extra: dict[str, Any], messages: Any, plain: bool) -> None:
    body = {"model": "m", "messages": [USER] if plain else messages, **extra}
    try:
        request = chat.parse(json.dumps(body).encode())
    except OutpostError as error:
        assert error.status == 400
        assert error.message
    else:
        assert list(chat.needs(request)) is not None
        assert request.choices >= 1


@given(st.binary(max_size=80))
def test_any_bytes_are_a_request_or_a_clear_refusal(body: bytes) -> None:
    with pytest.raises(BadRequest):
        chat.parse(body)


def test_needs_name_feature_and_field() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    request = parse(
        tools=[TOOL],
        response_format={"type": "json_object"},
        reasoning_effort="low",
        reasoning={"summary": "auto"},
        logprobs=True,
        top_k=5,
        messages=[USER, {"role": "user", "content": [{"type": "text", "text": "x"}, image]}],
    )
    found = {(feature, field) for feature, field, _ in chat.needs(request)}
    assert found == {
        ("tools", "tools"),
        ("json_object", "response_format"),
        ("reasoning", "reasoning_effort"),
        ("reasoning", "reasoning"),
        ("logprobs", "logprobs"),
        ("top_k", "top_k"),
        ("images", "messages[1].content[1]"),
    }


def test_a_plain_request_needs_nothing() -> None:
    assert list(chat.needs(parse())) == []


def test_no_ops_are_fields_that_exist() -> None:
    assert set(parameters.ACCEPTED_NO_OPS) <= set(chat.ChatRequest.__struct_fields__)
