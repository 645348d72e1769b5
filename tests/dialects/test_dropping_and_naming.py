"""Refusals in the client's own words, and requests without one field more."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dialects import chat, dropping, naming
from appliance.dialects.messages.canonical import field_name as messages_name
from appliance.dialects.responses.request import field_name as responses_name
from appliance.errors import UnsupportedParameter

SENTENCE = "{} is not supported by this target: {}"


@pytest.mark.parametrize(
    ("param", "in_messages", "in_responses"),
    [
        ("temperature", "temperature", "temperature"),
        ("stop[1]", "stop_sequences[1]", "stop[1]"),
        ("max_completion_tokens", "max_tokens", "max_output_tokens"),
        ("reasoning.max_tokens", "thinking.budget_tokens", "reasoning.max_tokens"),
        ("reasoning.effort", "output_config.effort", "reasoning.effort"),
        ("reasoning_effort", "output_config.effort", "reasoning.effort"),
        ("reasoning", "thinking", "reasoning"),
        ("reasoning.enabled", "thinking", "reasoning.enabled"),
        ("response_format.json_schema.schema", "output_config.format", "text.format.json_schema.schema"),
        ("messages[3].content[0].file", "messages", "input"),
        ("messages", "messages", "input"),
        (
            "tools[0].function.parameters.properties.a",
            "tools[0].input_schema.properties.a",
            "tools[0].parameters.properties.a",
        ),
        ("tools[2].function.name", "tools[2].name", "tools[2].name"),
        ("tools[2].function", "tools[2]", "tools[2]"),
        ("tool_choice", "tool_choice", "tool_choice"),
        ("user", "metadata.user_id", "user"),
        ("parallel_tool_calls", "tool_choice.disable_parallel_tool_use", "parallel_tool_calls"),
    ],
)
def test_a_refusal_names_the_field_as_the_client_wrote_it(param: str, in_messages: str, in_responses: str) -> None:
    for name, known in ((messages_name, in_messages), (responses_name, in_responses), (str, param)):
        error = UnsupportedParameter(SENTENCE.format(param, "leave it out."), param=param)
        naming.told(error, name)
        assert (error.param, error.message) == (known, SENTENCE.format(known, "leave it out."))


def test_so_does_its_cure() -> None:
    error = UnsupportedParameter(
        "reasoning.max_tokens is not supported; use reasoning_effort. The reasoning of a user may stop messages.",
        param="reasoning.max_tokens",
    )
    naming.told(error, messages_name)
    assert error.message == (
        "thinking.budget_tokens is not supported; use output_config.effort. The reasoning of a user may stop messages."
    )


# --- one field less -----------------------------------------------------------------------------------


def request(**fields: Any) -> chat.ChatRequest:
    return chat.ChatRequest(model="m", messages=[chat.UserMessage("Hi")], **fields)


@pytest.mark.parametrize(
    ("fields", "param", "left"),
    [
        ({"temperature": 0.5, "top_p": 0.5}, "temperature", {"top_p": 0.5}),
        ({"stop": ["a", " ", "b"]}, "stop[1]", {"stop": ["a", "b"]}),
        ({"stop": [" "]}, "stop[0]", {}),
        ({"stop": " "}, "stop", {}),
        ({"logprobs": True, "top_logprobs": 3}, "logprobs", {}),
        ({"logprobs": True, "top_logprobs": 3}, "top_logprobs", {"logprobs": True}),
        ({"reasoning": {"max_tokens": 5, "enabled": True}}, "reasoning.max_tokens", {"reasoning": {"enabled": True}}),
        ({"reasoning": {"max_tokens": 5}}, "reasoning.max_tokens", {}),
        ({"reasoning": {"effort": "low"}}, "reasoning", {}),
    ],
)
def test_what_a_refusal_names_goes(fields: Any, param: str, left: Any) -> None:
    assert dropping.without(request(**fields), param) == request(**left)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "temperature"),
        ({"temperature": 1.0}, None),
        ({"temperature": 1.0}, ""),
        ({"temperature": 1.0}, "temperature[0]"),
        ({"temperature": 1.0}, "temperature.x"),
        ({"stop": ["a", "b", "c", "d", "e", "f"]}, "stop"),
        ({"stop": ["a"]}, "stop[1]"),
        ({"reasoning": {"effort": "low"}}, "reasoning.max_tokens"),
        ({}, "messages[0].content"),
        ({"n": 2}, "n"),
        ({"tool_choice": "auto", "tools": []}, "tool_choice"),
        ({"response_format": chat.JsonObjectFormat()}, "response_format"),
        ({}, "no_such_field"),
    ],
)
def test_nothing_else_goes(fields: Any, param: str | None) -> None:
    assert dropping.without(request(**fields), param) is None


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 2),
        "stop": st.lists(st.text(min_size=1, max_size=3), max_size=4),
        "reasoning": st.dictionaries(st.sampled_from(["max_tokens", "effort", "enabled"]), st.integers(1, 9)),
        "logprobs": st.booleans(),
        "seed": st.integers(0, 9),
    },
)
PARAMS = st.sampled_from(
    ["temperature", "stop", "stop[0]", "stop[3]", "reasoning", "reasoning.effort", "logprobs", "seed"]
)


@given(FIELDS, st.lists(PARAMS, max_size=64))
def test_it_comes_to_an_end_and_never_touches_what_is_asked(fields: dict[str, Any], params: list[str]) -> None:
    now, steps = request(**fields), 0
    for param in params * 2:
        fewer = dropping.without(now, param)
        if fewer is not None:
            assert fewer != now
            assert fewer.messages is now.messages
            now, steps = fewer, steps + 1
    assert steps <= 5 + 4 + 3
