"""What a route changes reaches the client's own body, and nothing else in it changes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from appliance.dialects import chat
from appliance.dialects.asked import Asked
from appliance.dialects.messages.carry import carry, native_ask
from appliance.dialects.messages.request import parse, parse_count
from appliance.errors import UnsupportedParameter
from tests.dialects.anthropic_shapes import complaints

TOOLS: list[dict[str, Any]] = [
    {"name": "clock", "input_schema": {"type": "object"}, "input_examples": [{}]},
    {"type": "web_search_20250305", "name": "web_search", "max_uses": 3},
    {
        "name": "weather",
        "description": "Of a place.",
        "input_schema": {"type": "object"},
        "eager_input_streaming": True,
    },
]
MARK = {"type": "ephemeral", "ttl": "1h"}
CALLER = {"type": "direct"}
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "My name is Bob", "cache_control": MARK}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Bob", "signature": "s"},
            {"type": "text", "text": "Hi Bob", "citations": []},
            {
                "type": "tool_use",
                "id": "toolu_1",
                "name": "clock",
                "input": {"for": "Bob"},
                "caller": {"type": "direct"},
            },
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "Bob: 5"}]},
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Of Bob"}},
        ],
    },
]
PLAIN: dict[str, Any] = {"model": "m", "max_tokens": 4000, "messages": MESSAGES}
FULL: dict[str, Any] = {
    **PLAIN,
    "system": [{"type": "text", "text": "Bob is here", "cache_control": MARK}],
    "tools": TOOLS,
    "tool_choice": {"type": "auto"},
    "temperature": 1.0,
    "top_k": 5,
    "stop_sequences": ["x"],
    "metadata": {"user_id": "u"},
    "service_tier": "auto",
    "thinking": {"type": "enabled", "budget_tokens": 2048, "display": "summarized"},
    "output_config": {"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    "stream": True,
    "cache_control": MARK,
}


def asked(**fields: Any) -> Asked:
    return parse(json.dumps({**FULL, **fields}).encode())


def carried(found: Asked, **changes: Any) -> dict[str, Any]:
    """The body as it leaves, where a route changes these fields of the canonical request."""
    after = msgspec.structs.replace(found.request, **changes)
    ask = native_ask(carry(found.native, found.request, after), "theirs")
    assert ask.path == "messages"
    body: dict[str, Any] = json.loads(ask.body)
    assert complaints("CreateMessageParams", body) == []
    return body


def expected(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**FULL, "model": "theirs", **changes}.items() if value is not None}


def test_what_is_not_changed_passes_untouched() -> None:
    assert carried(asked()) == expected()
    found = asked()
    assert carry(found.native, found.request, found.request) is found.native


@pytest.mark.parametrize(
    ("changes", "native"),
    [
        ({"temperature": 0.5}, {"temperature": 0.5}),
        ({"top_k": None, "top_p": 0.5}, {"top_k": None, "top_p": 0.5}),
        ({"stop": ["y", "z"]}, {"stop_sequences": ["y", "z"]}),
        ({"stop": None, "user": None}, {"stop_sequences": None, "metadata": None}),
        ({"max_tokens": 3000, "max_completion_tokens": None}, {"max_tokens": 3000}),
        ({"parallel_tool_calls": False}, {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}),
        ({"tool_choice": "required"}, {"tool_choice": {"type": "any"}}),
        ({"response_format": None}, {"output_config": {"effort": "high"}}),
        ({"reasoning_effort": "minimal"}, {"output_config": {**FULL["output_config"], "effort": "low"}}),
        ({"reasoning": None}, {"thinking": None}),
        ({"reasoning": {"enabled": True}}, {"thinking": {"type": "adaptive"}}),
        (
            {"reasoning": {"max_tokens": 9, "exclude": True}},
            {"thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}},
        ),
        ({"n": 1, "store": False}, {}),
        ({"stream": None}, {"stream": None}),
    ],
)
def test_options(changes: dict[str, Any], native: dict[str, Any]) -> None:
    assert carried(asked(), **changes) == expected(**native)


def test_thinking_is_turned_off() -> None:
    body = carried(asked(), reasoning=None, reasoning_effort="none", response_format=None)
    assert body == expected(thinking={"type": "disabled"}, output_config=None)


@pytest.mark.parametrize(("limit", "budget"), [(2049, 2048), (2048, 1536), (1100, 1024), (1024, None), (10, None)])
def test_a_lower_limit_leaves_room_for_an_answer(limit: int, budget: int | None) -> None:
    body = carried(asked(), max_completion_tokens=limit)
    thinking = None if budget is None else {**FULL["thinking"], "budget_tokens": budget}
    assert body == expected(max_tokens=limit, thinking=thinking)


def test_tools_that_a_route_takes_away_changes_or_adds() -> None:
    found = asked()
    _, weather = found.request.tools
    function = msgspec.structs.replace(weather.function, description="Changed.")
    added = chat.Tool(chat.Function("added", None, {"type": "object"}), "function")
    body = carried(found, tools=[msgspec.structs.replace(weather, function=function), added])
    assert body["tools"] == [
        TOOLS[1],
        {**TOOLS[2], "description": "Changed."},
        {"name": "added", "input_schema": {"type": "object"}},
    ]


@pytest.mark.parametrize("changes", [{"seed": 1}, {"n": 2}, {"presence_penalty": 0.5}, {"temperature": 1.5}])
def test_what_the_dialect_does_not_know_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        carried(asked(), **changes)
    assert caught.value.param == next(iter(changes))


def masked(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("Bob", "[NAME]")
    if isinstance(value, list):
        return [masked(item) for item in value]
    return {name: masked(item) for name, item in value.items()} if isinstance(value, dict) else value


def masked_messages(request: chat.ChatRequest) -> list[chat.Message]:
    return msgspec.convert(masked(msgspec.to_builtins(request.messages)), list[chat.Message])


def test_texts_that_are_masked_keep_their_places_and_marks() -> None:
    found = asked()
    body = carried(found, messages=masked_messages(found.request))
    assert body == expected(messages=masked(MESSAGES), system=masked(FULL["system"]))
    assert "Bob" not in json.dumps(body)


def test_a_conversation_of_another_shape_is_made_anew() -> None:
    found = parse(json.dumps(PLAIN).encode())
    more = [chat.SystemMessage("Be kind."), *found.request.messages, chat.UserMessage("Now?")]
    body = carried(found, messages=more)
    assert body["system"] == "Be kind."
    assert body["messages"][0]["content"] == [{"type": "text", "text": "My name is Bob", "cache_control": MARK}]
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][2]["content"][-1] == {"type": "text", "text": "Now?"}


def test_a_mask_that_fits_no_single_text_makes_the_conversation_anew() -> None:
    document = {
        "type": "document",
        "title": "Of Bob",
        "source": {"type": "text", "media_type": "text/plain", "data": "B"},
    }
    found = parse(json.dumps({**PLAIN, "messages": [{"role": "user", "content": [document]}]}).encode())
    body = carried(found, messages=masked_messages(found.request))
    assert body["messages"] == [{"role": "user", "content": "Of [NAME]\nB"}]


def test_what_cannot_be_kept_then_is_refused_by_name() -> None:
    found = asked()
    with pytest.raises(UnsupportedParameter) as caught:
        carried(found, messages=[*found.request.messages, chat.UserMessage("Now?")])
    assert caught.value.param == "tools[0].input_examples"


def test_what_answers_of_other_targets_have_left_does_not_leave() -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "tool_use", "id": "f.clock:0", "name": "clock", "input": {}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "f.clock:0", "content": "5"}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""}]},
        {"role": "user", "content": "So?"},
    ]
    body = carried(parse(json.dumps({**PLAIN, "messages": messages}).encode()))
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user", "user"]
    (call,) = body["messages"][1]["content"]
    assert call["id"] == body["messages"][2]["content"][0]["tool_use_id"] != "f.clock:0"


def test_a_count_goes_where_counts_are_made() -> None:
    prompt = {name: FULL[name] for name in ("model", "messages", "system", "tools", "thinking")}
    found = parse_count(json.dumps(prompt).encode())
    after = msgspec.structs.replace(found.request, temperature=0.5, max_tokens=5)
    ask = native_ask(carry(found.native, found.request, after), "theirs")
    assert ask.path == "messages/count_tokens"
    assert json.loads(ask.body) == {**prompt, "model": "theirs"}
    assert complaints("CountMessageTokensParams", json.loads(ask.body)) == []
