"""What Codex sends, before every kind of provider: custom tools, namespaces, and tools of OpenAI's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.contract.able import KINDS, Able, lenient, route

GRAMMAR = 'start: begin hunk+ end\nbegin: "*** Begin Patch" LF\nend: "*** End Patch" LF?\n%import common.LF'
FUNCTION = {"type": "function", "strict": False, "description": "Runs a command.", "name": "exec_command"}
PARAMETERS = {"type": "object", "properties": {"cmd": {"type": "string"}}, "required": ["cmd"]}
SHELL = {**FUNCTION, "parameters": {**PARAMETERS, "additionalProperties": False}}
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edits files by patches.",
    "format": {"type": "grammar", "syntax": "lark", "definition": GRAMMAR},
}
TICKETS = {
    "type": "namespace",
    "name": "mcp__tracker",
    "description": "The tracker of the project.",
    "tools": [{**SHELL, "name": "find_ticket", "description": "Finds a ticket.", "defer_loading": True}],
}
SEARCH = {"type": "web_search", "external_web_access": False}
LATER = {"type": "tool_search", "execution": "client", "description": "Finds tools.", "parameters": PARAMETERS}
OWN = [SHELL, PATCH, TICKETS]

TRANSLATED = [kind for kind in KINDS if kind != "openai"]
translated = pytest.mark.parametrize("kind", TRANSLATED)


@pytest.fixture
def client(able: Able) -> Iterator[openai.OpenAI]:
    with able.gateway.openai() as client:
        yield client


def said(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def ask(client: openai.OpenAI, model: str, items: list[Any], tools: list[Any]) -> Any:
    """A turn as Codex takes it; gives the final response, and checks the stream on the way."""
    asked: dict[str, Any] = {
        "model": model,
        "instructions": "You are a coding agent.",
        "input": items,
        "tools": tools,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199a213-81c0-7800-8aa1-bbab2a035a53",
        "text": {"verbosity": "medium"},
        "service_tier": "auto",
        "extra_body": {"client_metadata": {"x-codex-installation-id": "1", "session_id": "2"}},
    }
    with client.responses.stream(**asked) as stream:
        for _ in stream:
            pass
        return stream.get_final_response()


def called(response: Any) -> Any:
    (call,) = [item for item in response.output if item.type.endswith("_call")]
    return call


@translated
def test_a_patch_and_what_came_of_it(client: openai.OpenAI, kind: str) -> None:
    asked = [said("Please apply_patch to the file")]
    response = ask(client, lenient(kind), asked, [*OWN, SEARCH, LATER])
    call = called(response)
    assert (call.type, call.name) == ("custom_tool_call", "apply_patch")
    assert call.input
    assert not call.input.startswith("{"), "plain text, not a function's arguments"
    items = [*asked, *[item.to_dict() for item in response.output]]
    items.append({"type": "custom_tool_call_output", "call_id": call.call_id, "output": "Success."})
    assert "The tool says: Success." in ask(client, lenient(kind), items, [*OWN, SEARCH, LATER]).output_text


@translated
def test_a_tool_of_a_namespace(client: openai.OpenAI, kind: str) -> None:
    asked = [said("Please find_ticket for the tracker")]
    response = ask(client, lenient(kind), asked, OWN)
    call = called(response)
    assert (call.type, call.name, call.namespace) == ("function_call", "find_ticket", "mcp__tracker")
    items = [*asked, *[item.to_dict() for item in response.output]]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "OUT-1"})
    assert "The tool says: OUT-1" in ask(client, lenient(kind), items, OWN).output_text


@translated
def test_tools_of_openais_own_are_refused_by_name_where_nothing_may_be_dropped(
    client: openai.OpenAI, kind: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, route(kind), [said("Hi")], [SHELL, SEARCH])
    assert (caught.value.param, caught.value.code) == ("tools[1]", "unsupported_parameter")


def test_openai_gets_all_as_it_came(client: openai.OpenAI, able: Able) -> None:
    items = [
        said("Hi"),
        {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": "*** Begin Patch"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "Success."},
    ]
    ask(client, route("openai"), items, [*OWN, SEARCH, LATER])
    seen = able.upstream.fake.asked("capable-openai")[-1].body
    assert seen["tools"] == [*OWN, SEARCH, LATER]
    assert seen["input"] == items
    assert seen["client_metadata"] == {"x-codex-installation-id": "1", "session_id": "2"}
    assert (seen["text"], seen["include"]) == ({"verbosity": "medium"}, ["reasoning.encrypted_content"])
    assert (seen["prompt_cache_key"], seen["service_tier"]) == ("0199a213-81c0-7800-8aa1-bbab2a035a53", "auto")
