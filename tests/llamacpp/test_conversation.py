from __future__ import annotations

from typing import Any

import msgspec
import pytest

from runtimes.engine import EngineError, InvalidRequest, Unsupported
from runtimes.llamacpp.conversation import (
    fit,
    generic_history,
    generic_offer,
    native_history,
    read_messages,
    with_system,
)
from runtimes.llamacpp.templates import TemplateInfo
from runtimes.llamacpp.tools import HERMES, MISTRAL, read_tools
from tests.llamacpp.template_shapes import MULTIPLY, WEATHER

INFO = TemplateInfo(system=True, alternates=False, tools=True, tool_history=True, arguments_as_text=False)
STRICT = TemplateInfo(system=False, alternates=True, tools=False, tool_history=False, arguments_as_text=False)


def say(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def call(arguments: str = '{"location": "Paris"}', number: str = "call_123456789") -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": number, "type": "function", "function": function}],
    }


HISTORY = [
    say("user", "Weather?"),
    call(),
    {"role": "tool", "tool_call_id": "call_123456789", "content": "22 C"},
    say("assistant", "It is 22 C."),
    say("user", "Thanks"),
]


def test_contents_become_text_and_roles_are_known() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read_messages([say("developer", "d"), say("user", parts), say("assistant", None)]) == [
        say("system", "d"),
        say("user", "ab"),
        say("assistant", ""),
    ]


@pytest.mark.parametrize(
    ("messages", "param", "kind"),
    [
        ([], "messages", InvalidRequest),
        ([say("user", "x"), say("robot", "x")], "messages[1].role", InvalidRequest),
        ([say("user", 5)], "messages[0].content", InvalidRequest),
        ([say("user", [{"type": "text", "text": "a"}, {"type": "image_url"}])], "messages[0].content[1]", Unsupported),
        ([call("{broken")], "messages[0].tool_calls[0].function.arguments", InvalidRequest),
        ([call("[1]")], "messages[0].tool_calls[0].function.arguments", InvalidRequest),
        ([{**call(), "tool_calls": [{}]}], "messages[0].tool_calls[0].function", InvalidRequest),
    ],
)
def test_what_is_refused(messages: Any, param: str, kind: type[EngineError]) -> None:
    with pytest.raises(kind) as caught:
        read_messages(messages)
    assert caught.value.param == param


def test_the_default_system_message_stands_in() -> None:
    chat = [say("user", "x")]
    assert with_system(chat, "Be brief.") == [say("system", "Be brief."), *chat]
    assert with_system(chat, "") == chat
    assert with_system([say("system", "Mine."), *chat], "Be brief.")[0] == say("system", "Mine.")
    # An empty system message is a wish for none, which the template must not fill by itself.
    assert with_system([say("system", ""), *chat], "Be brief.") == [say("system", ""), *chat]
    assert with_system([say("system", "A"), say("system", ""), say("system", "B"), *chat], "") == [
        say("system", "A\n\nB"),
        *chat,
    ]


def test_a_later_system_message_keeps_its_place_where_the_template_shows_it() -> None:
    turns = [say("user", "x"), say("assistant", "y")]
    chat = [say("system", "A"), *turns, say("system", "Now answer in French."), say("user", "z")]
    late = msgspec.structs.replace(INFO, late_system=True)
    assert with_system(chat, "Be brief.") == chat
    assert fit(chat, late) == chat
    assert fit(chat, INFO) == [say("system", "A\n\nNow answer in French."), *turns, say("user", "z")]
    assert fit(chat, STRICT) == [say("user", "A\n\nNow answer in French.\n\nx"), *turns[1:], say("user", "z")]
    # One that is only given later is no reason for another one at the front.
    assert with_system(chat[1:], "Be brief.") == chat[1:]
    assert fit(chat[1:], late) == chat[1:]
    assert fit(chat[1:], INFO) == [say("system", "Now answer in French."), *turns, say("user", "z")]


def test_a_template_without_system_and_with_strict_turns() -> None:
    chat = [say("system", "S"), say("user", "a"), say("user", "b"), say("assistant", "c"), say("user", "d")]
    assert fit(chat, STRICT) == [say("user", "S\n\na\n\nb"), say("assistant", "c"), say("user", "d")]
    assert fit([say("system", "S")], STRICT) == [say("user", "S")]
    assert fit(chat, INFO) == chat


def test_native_history_keeps_calls_as_data() -> None:
    out = native_history(read_messages(HISTORY), HERMES, INFO)
    assert out[1]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": {"location": "Paris"}}
    assert out[2] == {"role": "tool", "content": "22 C", "tool_call_id": "call_123456789", "name": "get_weather"}


def test_native_history_with_short_ids_and_text_arguments() -> None:
    info = TemplateInfo(system=True, alternates=True, tools=True, tool_history=True, arguments_as_text=True)
    out = native_history(read_messages(HISTORY), MISTRAL, info)
    made = out[1]["tool_calls"][0]
    assert made["function"]["arguments"] == '{"location": "Paris"}'
    assert len(made["id"]) == 9
    assert made["id"].isalnum()
    assert out[2]["tool_call_id"] == made["id"]
    kept = native_history(read_messages([call(number="abcDEF123")]), MISTRAL, info)
    assert kept[0]["tool_calls"][0]["id"] == "abcDEF123"


def test_generic_history_is_text_in_the_form_that_is_asked_for() -> None:
    assert generic_history(read_messages(HISTORY), decided=True) == [
        say("user", "Weather?"),
        say("assistant", 'Tool: get_weather {"location": "Paris"}'),
        say("user", "Result of get_weather: 22 C"),
        say("assistant", "Tool: none\nIt is 22 C."),
        say("user", "Thanks"),
    ]
    assert generic_history(read_messages(HISTORY), decided=False)[3] == say("assistant", "It is 22 C.")


def test_results_of_parallel_calls_stand_together() -> None:
    two = call()
    two["tool_calls"] = [call(number=n)["tool_calls"][0] for n in ("a", "b")]
    results = [{"role": "tool", "tool_call_id": n, "content": c} for n, c in (("a", "1"), ("b", "2"))]
    out = generic_history(read_messages([say("user", "x"), two, *results]), decided=True)
    assert [m["role"] for m in out] == ["user", "assistant", "user"]
    assert out[1]["content"].count("Tool: get_weather") == 2
    assert out[2]["content"] == "Result of get_weather: 1\nResult of get_weather: 2"


def test_the_generic_offer_names_every_tool_and_keeps_the_conversation() -> None:
    plan = read_tools([WEATHER, MULTIPLY], "auto", True)
    assert plan is not None
    chat = [say("system", "Be kind."), say("user", "Hi")]
    out = generic_offer(plan, chat, after_result=False)
    assert out[0]["role"] == "system"
    assert out[0]["content"].startswith("Be kind.\n\n")
    shown = "\n".join(m["content"] for m in out)
    for name in ("get_weather", "multiply"):
        assert name in out[0]["content"]
        assert f"Tool: {name}" in shown
    assert "Tool: none\n" in shown
    assert out[-1] == chat[-1]
    roles = [m["role"] for m in out[1:]]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    assert generic_offer(plan, chat[1:], after_result=False)[0]["role"] == "system"


def test_tools_beyond_the_examples_are_described_in_words() -> None:
    many = [
        {"type": "function", "function": {"name": f"tool_{i}", "description": f"Does number {i}."}} for i in range(9)
    ]
    plan = read_tools(many, "auto", True)
    assert plan is not None
    shown = "\n".join(m["content"] for m in generic_offer(plan, [say("user", "Hi")], after_result=False))
    for i in range(9):
        assert f"tool_{i}" in shown
        assert f"Does number {i}" in shown


def test_after_a_result_the_last_example_puts_one_into_words() -> None:
    plan = read_tools([WEATHER], "auto", True)
    assert plan is not None
    history = generic_history(read_messages(HISTORY[:3]), decided=True)
    out = generic_offer(plan, history, after_result=True)
    examples = out[1 : -len(history)]
    assert examples[-2]["content"].startswith("Result of ")
    assert examples[-1]["content"].startswith("Tool: none\n")
    assert examples != generic_offer(plan, history, after_result=False)[1 : -len(history)]
