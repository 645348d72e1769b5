"""Who is speaking, and results of tools that come late: what each dialect makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dialects import chat
from appliance.dialects.answer import Outbound
from appliance.dialects.bedrock.outbound import Bedrock
from appliance.dialects.cohere_outbound import COHERE
from appliance.dialects.gemini_outbound import GEMINI
from appliance.dialects.messages.outbound import AnthropicOutbound
from appliance.dialects.openai_outbound import OpenAIOutbound, Quirks
from appliance.dialects.responses.outbound import ResponsesOutbound
from appliance.dialects.transcript import named, told
from tests.dialects.chat_requests import USER, asked

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
BOB = {"role": "user", "name": "bob", "content": "Hi"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
NAMELESS: dict[str, tuple[Outbound, str]] = {
    "anthropic": (AnthropicOutbound(), "claude-sonnet-4-5"),
    "bedrock": (Bedrock(), "anthropic.claude-sonnet-4-5-v1:0"),
    "cohere": (COHERE, "command-a"),
    "gemini": (GEMINI, "gemini-2.5-flash"),
    "openai without names": (OpenAIOutbound(Quirks(names=False)), "m"),
    "responses": (ResponsesOutbound(), "m"),
}


def body_of(outbound: Outbound, model: str, request: chat.ChatRequest) -> Any:
    return json.loads(outbound.ask(request, model, stream=False).body)


def messages_of(*shapes: dict[str, Any]) -> list[chat.Message]:
    return asked(list(shapes)).messages


@pytest.mark.parametrize("target", NAMELESS)
def test_who_is_speaking_is_told(target: str) -> None:
    instruction = {"role": "system", "name": "rules", "content": "Be kind."}
    parts = {"role": "user", "name": "eve", "content": [{"type": "text", "text": "Ho"}]}
    sent = json.dumps(body_of(*NAMELESS[target], asked([instruction, BOB, parts])))
    for words in ('"bob: Hi"', '"eve: Ho"', '"rules: Be kind."'):
        assert words in sent
    assert '"name"' not in sent


def test_who_knows_names_gets_them() -> None:
    assert body_of(OpenAIOutbound(), "m", asked([BOB]))["messages"] == [BOB]


def test_names_stand_before_the_first_words() -> None:
    shape = {
        "role": "user",
        "name": "bob",
        "content": [IMAGE, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
    }
    (message,) = named(messages_of(shape))
    assert [getattr(part, "text", None) for part in message.content or ()] == [None, "bob: a", "b"]
    (message,) = named(messages_of({"role": "user", "name": "bob", "content": [IMAGE]}))
    assert [getattr(part, "text", None) for part in message.content or ()] == [None, "bob:"]
    blank: list[chat.Message] = [chat.UserMessage(" ", "bob")]
    assert named(blank) == [chat.UserMessage(" ")]


def test_only_several_assistants_need_names() -> None:
    first, second = ({"role": "assistant", "name": name, "content": name.upper()} for name in ("a", "b"))
    silent = {"role": "assistant", "name": "c", "tool_calls": [call("1")]}
    alone = named(messages_of(USER, first, USER, first, USER))
    assert [message.content for message in alone if isinstance(message, chat.AssistantMessage)] == ["A", "A"]
    both = named(messages_of(USER, first, USER, second, silent, result("1"), USER))
    assert [message.content for message in both if isinstance(message, chat.AssistantMessage)] == ["a: A", "b: B", None]
    assert not any(message.name for message in (*alone, *both))


def test_most_lists_are_left_as_they_are() -> None:
    messages = messages_of(USER, {"role": "assistant", "content": "x"}, USER)
    assert named(messages) is messages
    assert told(messages) == list(enumerate(messages))


def call(id: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}}


def result(id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": f"r{id}", "name": "f"}


LATE = [
    USER,
    {"role": "assistant", "tool_calls": [call("1"), call("2")]},
    result("1"),
    {"role": "user", "content": "hmm"},
    result("2"),
]


def _anthropic(body: Any) -> list[str]:
    return [block["type"] for block in body["messages"][-1]["content"]]


def _bedrock(body: Any) -> list[str]:
    return [next(iter(block)) for block in body["messages"][-1]["content"]]


def _gemini(body: Any) -> list[str]:
    return [next(iter(part)) for turn in body["contents"][2:] for part in turn["parts"]]


def _cohere(body: Any) -> list[str]:
    return [message["role"] for message in body["messages"][2:]]


@pytest.mark.parametrize(
    ("target", "kinds", "expected"),
    [
        ("anthropic", _anthropic, ["tool_result", "tool_result", "text"]),
        ("bedrock", _bedrock, ["toolResult", "toolResult", "text"]),
        ("gemini", _gemini, ["functionResponse", "functionResponse", "text"]),
        ("cohere", _cohere, ["tool", "tool", "user"]),
    ],
)
def test_late_results_stand_with_the_others(
    target: str, kinds: Callable[[Any], list[str]], expected: list[str]
) -> None:
    assert kinds(body_of(*NAMELESS[target], asked(LATE, tools=[TOOL]))) == expected


roles = st.sampled_from(["user", "assistant", "tool", "system"])


@given(st.lists(roles, max_size=12))
def test_only_results_move_and_nothing_is_lost(said: list[str]) -> None:
    make: dict[str, Callable[[int], chat.Message]] = {
        "user": lambda i: chat.UserMessage(str(i)),
        "system": lambda i: chat.SystemMessage(str(i)),
        "assistant": lambda i: chat.AssistantMessage(str(i)),
        "tool": lambda i: chat.ToolMessage(str(i), "c"),
    }
    messages = [make[role](i) for i, role in enumerate(said)]
    found = told(messages)
    assert sorted(i for i, _ in found) == list(range(len(messages)))
    assert all(message is messages[i] for i, message in found)
    others = [i for i, message in found if not isinstance(message, chat.ToolMessage)]
    assert others == sorted(others)
    results = [i for i, message in found if isinstance(message, chat.ToolMessage)]
    assert results == sorted(results)
    for (_, before), (_, after) in pairwise(found):
        if isinstance(after, chat.ToolMessage):
            assert isinstance(before, chat.ToolMessage | chat.AssistantMessage)
