"""What Anthropic's models refuse is refused by name or left out, at Anthropic and on Bedrock alike."""

from __future__ import annotations

import json
from typing import Any

import pytest

from appliance.dialects.bedrock.outbound import Bedrock
from appliance.dialects.claude import OTHER, claude_of, version_of
from appliance.dialects.messages.carry import native_ask
from appliance.dialects.messages.outbound import AnthropicOutbound
from appliance.dialects.messages.request import parse
from appliance.errors import UnsupportedParameter
from tests.dialects.chat_requests import CLOCK, USER, asked

SIGNED = {"type": "reasoning.text", "text": "hm", "signature": "sig"}
CALL = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "5"}


def thinking(model: str, messages: Any = None, **fields: Any) -> Any:
    """How Anthropic and Bedrock are told to think, who are told the same."""
    request = asked(messages, **fields)
    body = json.loads(AnthropicOutbound().ask(request, model, stream=False).body)
    converse = json.loads(Bedrock().ask(request, f"anthropic.{model}", stream=False).body)
    told = body.get("thinking")
    assert converse.get("additionalModelRequestFields", {}).get("thinking") == told
    return told


def refusal(model: str, **fields: Any) -> list[str | None]:
    found = []
    for outbound, name in ((AnthropicOutbound(), model), (Bedrock(), f"anthropic.{model}")):
        with pytest.raises(UnsupportedParameter) as caught:
            outbound.ask(asked(**fields), name, stream=False)
        found.append(caught.value.param)
    return found


def called(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [CALL], **fields}


BUDGET = {"type": "enabled", "budget_tokens": 2048}


@pytest.mark.parametrize(
    ("messages", "fields", "told"),
    [
        ([USER, called(reasoning_details=[SIGNED]), RESULT], {}, BUDGET),
        ([USER, called(), RESULT], {}, None),
        ([USER, called(reasoning_details=[{**SIGNED, "signature": "gemini:text::x"}]), RESULT], {}, None),
        # Text beside the results belongs to the same turn.
        ([USER, called(), RESULT, USER], {}, None),
        # What was thought at the beginning of the turn holds for the calls after it.
        ([USER, called(reasoning_details=[SIGNED]), RESULT, called(), RESULT], {}, BUDGET),
        # A turn that is over asks for nothing any more.
        ([USER, called(), RESULT, {"role": "assistant", "content": "5"}, USER], {}, BUDGET),
        ([USER, {"role": "assistant", "content": "It is"}], {}, None),
        (None, {"tool_choice": "required"}, None),
        (None, {"tool_choice": {"type": "function", "function": {"name": "clock"}}}, None),
        (None, {"tool_choice": "none"}, BUDGET),
    ],
)
def test_a_budget_for_thinking_goes_only_where_it_can(messages: Any, fields: dict[str, Any], told: Any) -> None:
    body = {"reasoning": {"max_tokens": 2048}, "tools": [CLOCK], **fields}
    if fields.get("tool_choice") == "none":  # which Converse does not know
        assert json.loads(AnthropicOutbound().ask(asked(messages, **body), "claude-opus-4-5", stream=False).body)[
            "thinking"
        ] == {**BUDGET}
        return
    assert thinking("claude-opus-4-5", messages, **body) == told


def test_models_that_see_by_themselves_think_in_the_middle_of_calls() -> None:
    messages = [USER, called(), RESULT]
    assert thinking("claude-opus-4-8", messages, tools=[CLOCK], reasoning_effort="low")["type"] == "adaptive"


@pytest.mark.parametrize("model", ["claude-opus-5-5", "claude-fable-5-1", "claude-sonnet-5-5"])
def test_the_newest_cannot_be_made_to_call(model: str) -> None:
    assert refusal(model, tools=[CLOCK], tool_choice="required") == ["tool_choice"] * 2
    assert thinking(model, tools=[CLOCK], tool_choice="auto") is None


@pytest.mark.parametrize(
    ("model", "fields", "param"),
    [
        ("claude-opus-4-8", {"temperature": 0.5}, "temperature"),
        ("claude-sonnet-5", {"top_p": 0.97}, "top_p"),
        ("claude-opus-4-7", {"top_k": 5}, "top_k"),
        ("claude-opus-4-6", {"temperature": 0.5, "reasoning_effort": "low"}, "temperature"),
        ("claude-opus-4-5", {"top_p": 0.9, "reasoning_effort": "low"}, "top_p"),
        ("claude-3-7-sonnet", {"top_k": 5, "reasoning_effort": "low"}, "top_k"),
        ("claude-haiku-4-5", {"temperature": 0.5, "top_p": 0.5}, "top_p"),
    ],
)
def test_sampling_that_a_model_does_not_take_is_refused_by_name(model: str, fields: Any, param: str) -> None:
    assert refusal(model, **fields) == [param] * 2


@pytest.mark.parametrize(
    ("model", "fields", "sent"),
    [
        ("claude-opus-4-8", {"temperature": 1, "top_p": 1, "top_k": -1}, {}),
        ("claude-opus-4-5", {"temperature": 0.5, "reasoning_effort": "none"}, {"temperature": 0.5}),
        ("claude-opus-4-5", {"temperature": 0.5, "top_p": 1}, {"temperature": 0.5}),
        ("claude-opus-4-5", {"temperature": 1, "top_p": 0.5}, {"top_p": 0.5}),
        ("claude-opus-4-5", {"top_p": 0.97, "reasoning_effort": "low"}, {"top_p": 0.97}),
        # There is no room for thinking: nothing stands against it.
        ("claude-opus-4-5", {"temperature": 0.5, "reasoning_effort": "low", "max_tokens": 100}, {"temperature": 0.5}),
        ("claude-3-7-sonnet", {"temperature": 0.5, "top_p": 0.5}, {"temperature": 0.5, "top_p": 0.5}),
    ],
)
def test_sampling_that_goes_together_is_sent(model: str, fields: Any, sent: dict[str, Any]) -> None:
    body = json.loads(AnthropicOutbound().ask(asked(**fields), model, stream=False).body)
    assert {name: body[name] for name in ("temperature", "top_p", "top_k") if name in body} == sent
    converse = json.loads(Bedrock().ask(asked(**fields), f"anthropic.{model}", stream=False).body)
    settings = converse.get("inferenceConfig", {})
    assert (settings.get("temperature"), settings.get("topP")) == (sent.get("temperature"), sent.get("top_p"))


def test_who_is_no_claude_is_not_judged_as_one() -> None:
    assert claude_of("kimi-k2") is OTHER
    ask = AnthropicOutbound().ask(asked(reasoning_effort="low", temperature=0.5), "kimi-k2", stream=False)
    assert json.loads(ask.body)["temperature"] == 0.5


@pytest.mark.parametrize(
    "model", ["claude-opus-6", "claude-next", "anthropic.claude-ultra-preview", "claude-fast-opus-7-1"]
)
def test_one_that_nobody_knows_has_the_rules_of_the_newest(model: str) -> None:
    assert claude_of(model) == claude_of("claude-opus-5-5") != claude_of("claude-opus-5")


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("anthropic.claude-v2:1", (2, 0)),
        ("anthropic.claude-instant-v1", (1, 0)),
        ("claude-3-5-haiku-20241022", (3, 5)),
        ("us.anthropic.claude-opus-4-20250514-v1:0", (4, 0)),
        ("anthropic/claude-opus-4.7", (4, 7)),
        ("claude-haiku-5-5", (5, 5)),
        ("claude-mythos-preview", (0, 0)),
    ],
)
def test_a_name_tells_the_version(model: str, version: tuple[int, int]) -> None:
    assert version_of(model) == version


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("claude-sonnet-5-5", {"type": "between_tools"}),
        ("claude-haiku-5-5", {"type": "disabled"}),
        ("claude-opus-5", {"type": "disabled"}),
        ("claude-opus-4-8", None),
        ("claude-opus-5-5", {"type": "adaptive", "display": "omitted"}),
        ("claude-fable-5", {"type": "adaptive", "display": "omitted"}),
        ("claude-mythos-preview", {"type": "adaptive", "display": "omitted"}),
    ],
)
def test_each_has_its_own_way_of_thinking_least(model: str, told: Any) -> None:
    assert thinking(model, reasoning_effort="none") == told


def test_haiku_can_be_made_to_call() -> None:
    body = AnthropicOutbound().ask(asked(tools=[CLOCK], tool_choice="required"), "claude-haiku-5-5", stream=False).body
    assert json.loads(body)["tool_choice"] == {"type": "any"}


# --- clients of the Messages API itself ---------------------------------------------------------------


def passed(blocks: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    body = {
        "model": "m",
        "max_tokens": 4096,
        "thinking": {"type": "enabled", "budget_tokens": 2048},
        "tools": [{"name": "clock", "input_schema": {"type": "object"}}],
        "messages": [
            USER,
            {"role": "assistant", "content": [*blocks, {"type": "tool_use", "id": "t", "name": "clock", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "5"}]},
        ],
        **fields,
    }
    found: dict[str, Any] = json.loads(native_ask(parse(json.dumps(body).encode()).native, "claude").body)
    return found


def test_what_another_target_has_thought_does_not_pass() -> None:
    for block in (
        {"type": "redacted_thinking", "data": "gemini:call:t:c2ln"},
        {"type": "redacted_thinking", "data": "openai-responses:rs_1:abc"},
        {"type": "thinking", "thinking": "hm", "signature": ""},
    ):
        body = passed([block])
        assert [each["type"] for each in body["messages"][1]["content"]] == ["tool_use"]
        # Nor can the turn be gone on with in thoughts.
        assert "thinking" not in body
        assert passed([block], thinking={"type": "adaptive"})["thinking"] == {"type": "adaptive"}


def test_what_anthropic_has_thought_passes() -> None:
    own = [
        {"type": "thinking", "thinking": "hm", "signature": "sig"},
        {"type": "redacted_thinking", "data": "EuoB"},
    ]
    body = passed(own)
    assert body["messages"][1]["content"][:2] == own
    assert body["thinking"] == {"type": "enabled", "budget_tokens": 2048}
