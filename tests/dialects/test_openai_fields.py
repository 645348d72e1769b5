"""Every field that OpenAI describes for chats and responses, one by one: taken, or refused by name with a cure."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params as response_params

from appliance.dialects.kinds import CHAT, RESPONSES
from appliance.errors import UnsupportedParameter
from tests.fakes import openai_schema as schema

USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}, "strict": False}
IN_CHAT = {"type": "function", "function": {"name": "f"}}
JSON = {"type": "json_object"}
BREAKPOINT = {"mode": "explicit", "ttl": "30m"}

BOTH: dict[str, Any] = {
    "model": "m",
    "metadata": {"a": "b"},
    "parallel_tool_calls": False,
    "prompt_cache_key": "k",
    "prompt_cache_options": BREAKPOINT,
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "service_tier": "flex",
    "store": True,
    "stream": True,
    "stream_options": {"include_obfuscation": False},
    "temperature": 1.0,
    "top_logprobs": 2,
    "top_p": 1.0,
    "user": "u",
}
RESPONSE: dict[str, Any] = {
    **BOTH,
    "background": True,
    "client_metadata": {"session_id": "1"},  # of Codex
    "include": ["reasoning.encrypted_content"],
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi", "prompt_cache_breakpoint": BREAKPOINT}]}
    ],
    "instructions": "x",
    "max_output_tokens": 10,
    "max_tool_calls": 1,
    "previous_response_id": "resp_1",
    "reasoning": {"effort": "low", "summary": "auto"},
    "text": {"format": {"type": "text"}, "verbosity": "low"},
    "tool_choice": "auto",
    "tools": [TOOL, {"type": "custom", "name": "c"}],
    "truncation": "auto",
}
CHATS: dict[str, Any] = {
    **BOTH,
    "frequency_penalty": 1.0,
    "logit_bias": {"1": 1},
    "logprobs": True,
    "max_completion_tokens": 5,
    "max_tokens": 5,
    "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "prompt_cache_breakpoint": BREAKPOINT}]}],
    "modalities": ["text"],
    "n": 2,
    "presence_penalty": 1.0,
    "reasoning_effort": "low",
    "response_format": JSON,
    "seed": 1,
    "stop": ["x"],
    "tool_choice": "auto",
    "tools": [IN_CHAT, {"type": "custom", "custom": {"name": "c"}}],
    "verbosity": "low",
}
NEEDS: dict[str, dict[str, Any]] = {
    "stream_options": {"stream": True},
    "tool_choice": {"tools": [IN_CHAT]},
    "top_logprobs": {"logprobs": True},
}
"""What a field of a chat goes with."""
REFUSED: dict[str, dict[str, Any]] = {
    "responses": {
        "access_programs": {"cyber": "standard"},
        "background_options": {"completion_window": "2h"},
        "context_management": [{"type": "compaction"}],
        "conversation": "conv_1",
        "image": {"context_compression": "auto"},
        "moderation": {"model": "m"},
        "prompt": {"id": "pmpt_1"},
    },
    "chat": {
        "audio": {"voice": "alloy", "format": "wav"},
        "function_call": "auto",
        "functions": [{"name": "f"}],
        "moderation": {"model": "m"},
        "prediction": {"type": "content", "content": "x"},
        "web_search_options": {},
    },
}


def described(name: str, params: Any) -> set[str]:
    """Fields of OpenAI's own description, and of its own client, which is newer."""
    return schema.properties(name) | set(params.__annotations__) | {"stream"}


def test_the_tables_have_every_field() -> None:
    assert described("CreateResponse", response_params.ResponseCreateParamsBase) <= {*RESPONSE, *REFUSED["responses"]}
    assert described("CreateChatCompletionRequest", chat_params.CompletionCreateParamsBase) <= {
        *CHATS,
        *REFUSED["chat"],
    }


@pytest.mark.parametrize("field", sorted(RESPONSE))
def test_a_field_of_a_response_is_taken(field: str) -> None:
    body = {"model": "m", "input": "Hi", "stream": field == "stream_options", field: RESPONSE[field]}
    assert getattr(RESPONSES.parse(json.dumps(body).encode(), 64).native, field) is not None


@pytest.mark.parametrize("field", sorted(CHATS))
def test_a_field_of_a_chat_is_taken(field: str) -> None:
    body = {"model": "m", "messages": [USER], **NEEDS.get(field, {}), field: CHATS[field]}
    assert getattr(CHAT.parse(json.dumps(body).encode(), 64).request, field) is not None


@pytest.mark.parametrize(("kind", "field"), [(kind, field) for kind, fields in REFUSED.items() for field in fields])
def test_all_others_are_refused_with_a_cure(kind: str, field: str) -> None:
    body = {
        "model": "m",
        field: REFUSED[kind][field],
        **({"input": "Hi"} if kind == "responses" else {"messages": [USER]}),
    }
    parse = (RESPONSES if kind == "responses" else CHAT).parse
    with pytest.raises(UnsupportedParameter) as caught:
        parse(json.dumps(body).encode(), 64)
    assert caught.value.param == field
    assert caught.value.message.startswith(f"{field} is not supported: ")
    assert "not a known parameter" not in caught.value.message
    parse(json.dumps({**body, field: None}).encode(), 64)  # asks for nothing


@pytest.mark.parametrize("parse", [CHAT.parse, RESPONSES.parse], ids=["chat", "responses"])
def test_what_nobody_knows_is_refused_by_name(parse: Any) -> None:
    body = {"model": "m", "input": "Hi"} if parse is RESPONSES.parse else {"model": "m", "messages": [USER]}
    with pytest.raises(UnsupportedParameter) as caught:
        parse(json.dumps({**body, "wholly_new": 1}).encode(), 64)
    assert (caught.value.param, caught.value.message) == (
        "wholly_new", "wholly_new is not a known parameter; remove it.",
    )  # fmt: skip
