from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dialects import chat
from appliance.dialects.responses import request as responses
from appliance.dialects.responses.request import ResponsesRequest, canonical, native_needs, references, resolve
from appliance.errors import BadRequest, OutpostError, UnsupportedParameter

USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "42"}
SEARCH = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}}


def asked(**fields: Any) -> Any:
    return responses.parse(json.dumps({"model": "m", "input": "Hi", **fields}).encode())


def parse(**fields: Any) -> chat.ChatRequest:
    request = asked(**fields).request
    assert isinstance(request, chat.ChatRequest)
    return request


def native(**fields: Any) -> ResponsesRequest:
    made = asked(**fields).native
    assert isinstance(made, ResponsesRequest)
    return made


def needs(**fields: Any) -> list[tuple[str, str, bool]]:
    return list(native_needs(native(**fields)))


ACCEPTED: list[dict[str, Any]] = [
    {},
    {"input": [USER]},
    {"input": [{"type": "message", "role": "developer", "content": "Be brief."}, USER]},
    {"input": [{"role": "assistant", "phase": "commentary", "content": "Hm."}, USER]},
    {"input": [{"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
                "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}]}, USER]},
    {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"},
                                            {"type": "input_image", "image_url": "data:image/png;base64,x"},
                                            {"type": "input_file", "filename": "a.pdf", "file_data": "data:x"}]}]},
    {"input": [USER, CALL, OUTPUT], "tools": [TOOL]},
    {"input": [USER, CALL, {**OUTPUT, "output": [{"type": "input_text", "text": "a"}]}]},
    {"input": [USER, {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "e"}, CALL, OUTPUT]},
    {"input": [USER, {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "content": None}, CALL,
               OUTPUT]},
    {"input": [USER, SEARCH]},
    {"input": [{"type": None, "id": "msg_1"}]},
    {"input": [{"id": "msg_1", "type": "item_reference"}]},
    {"input": [{"type": "compaction", "encrypted_content": "x"}, USER]},
    {"instructions": "Be kind.", "temperature": 0.5, "top_p": 1, "max_output_tokens": 16.0},
    {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_tool_calls": 3},
    {"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}},
    {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto",
                                      "tools": [{"type": "function", "name": "f"}]}},
    {"tools": [TOOL, {"type": "web_search"}], "tool_choice": {"type": "web_search_preview"}},
    {"tools": [], "tool_choice": "auto"},
    {"text": {"format": {"type": "text"}}},
    {"text": {"format": {"type": "json_object"}, "verbosity": "low"}},
    {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}},
    {"reasoning": {"effort": "low", "summary": "auto"}, "include": ["reasoning.encrypted_content"]},
    {"include": ["message.output_text.logprobs"], "top_logprobs": 3},
    {"stream": True, "stream_options": {"include_obfuscation": False}},
    {"store": False, "background": False, "truncation": "disabled", "service_tier": "auto"},
    {"store": True, "background": True, "metadata": {"a": "b"}, "user": "u", "safety_identifier": "s"},
    {"previous_response_id": "resp_1", "input": [OUTPUT]},
    {"previous_response_id": "resp_1", "input": None},
    {"conversation": None, "prompt": None, "prompt_cache_key": "k", "prompt_cache_retention": "24h"},
    {"presence_penalty": 1, "frequency_penalty": -1},
]  # fmt: skip


@pytest.mark.parametrize("fields", ACCEPTED, ids=lambda f: ",".join(f) or "plain")
def test_accepted(fields: dict[str, Any]) -> None:
    assert parse(**fields).model == "m"


REFUSED: list[tuple[dict[str, Any], type[BadRequest], str]] = [
    ({"model": None}, BadRequest, "model"),
    ({"input": None}, BadRequest, "input"),
    ({"input": []}, BadRequest, "input"),
    ({"input": 5}, BadRequest, "input"),
    ({"input": ["x"]}, BadRequest, "input[0]"),
    ({"nonsense": 1}, UnsupportedParameter, "nonsense"),
    ({"conversation": "conv_1"}, UnsupportedParameter, "conversation"),
    ({"prompt": {"id": "p"}}, UnsupportedParameter, "prompt"),
    ({"stop": ["a"]}, UnsupportedParameter, "stop"),
    ({"messages": []}, UnsupportedParameter, "messages"),
    ({"max_tokens": 3}, UnsupportedParameter, "max_tokens"),
    ({"service_tier": "gold"}, BadRequest, "service_tier"),
    ({"stream_options": {}}, BadRequest, "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": True}}, UnsupportedParameter, "stream_options.include_usage"),
    ({"background": True, "store": False}, BadRequest, "background"),
    ({"temperature": 3}, BadRequest, "temperature"),
    ({"reasoning": {"effort": "huge"}}, BadRequest, "reasoning.effort"),
    ({"include": ["all"]}, BadRequest, "include[0]"),
    ({"input": [{"role": "user"}]}, BadRequest, "input[0].content"),
    ({"input": [USER, {"role": "robot", "content": "x"}]}, BadRequest, "input[1].role"),
    ({"input": [{**USER, "name": "x"}]}, UnsupportedParameter, "input[0].name"),
    ({"input": [{"type": "dance"}]}, UnsupportedParameter, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "video"}]}]}, BadRequest, "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "output_text", "text": "x"}]}]}, BadRequest,
     "input[0].content[0].type"),
    ({"input": [{"role": "assistant", "content": [{"type": "input_image", "image_url": "data:x"}]}]}, BadRequest,
     "input[0].content[0].type"),
    ({"input": [{"role": "system", "content": [{"type": "input_image", "image_url": "data:x"}]}]}, BadRequest,
     "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": []}]}, BadRequest, "input[0].content"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, BadRequest,
     "input[0].content[0].image_url"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, BadRequest, "input[0].content[0].file_data"),
    ({"input": [USER, OUTPUT]}, BadRequest, "input[1].call_id"),
    ({"input": [USER, {**CALL, "call_id": ""}]}, BadRequest, "input[1].call_id"),
    ({"tools": [{"name": "f"}]}, BadRequest, "tools[0].type"),
    ({"tools": [{"type": "rocket"}]}, UnsupportedParameter, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, UnsupportedParameter, "tools[0].function"),
    ({"tools": [TOOL, TOOL]}, BadRequest, "tools[1].name"),
    ({"tools": [{**TOOL, "parameters": {"type": "string"}}]}, BadRequest, "tools[0].parameters.type"),
    ({"tool_choice": "required"}, BadRequest, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "some"}, BadRequest, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, BadRequest, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"name": "g"}}, BadRequest, "tool_choice.type"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, BadRequest,
     "tool_choice.tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto",
                                       "tools": [{"type": "function", "name": "g"}]}}, BadRequest,
     "tool_choice.tools[0].name"),
    ({"text": {"format": {"type": "json_schema", "name": "n"}}}, BadRequest, "text.format.schema"),
    ({"text": {"format": {"type": "xml"}}}, BadRequest, "text.format.type"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "error", "param"), REFUSED, ids=lambda v: str(v)[:60])
def test_refused_by_name(fields: dict[str, Any], error: type[BadRequest], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        asked(**fields)
    assert type(caught.value) is error
    assert caught.value.param == param
    assert param in caught.value.message


def test_a_text_and_instructions_become_messages() -> None:
    request = parse(instructions="Be kind.")
    assert request.messages == [chat.SystemMessage("Be kind."), chat.UserMessage("Hi")]


def test_parallel_calls_become_one_message() -> None:
    other = {**CALL, "call_id": "c2"}
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    said = {"role": "assistant", "content": "Let me look."}
    items = [USER, thought, said, CALL, other, {**OUTPUT, "call_id": "c2"}, OUTPUT]
    user, assistant, *outputs = parse(input=items).messages
    assert user == chat.UserMessage("Hi")
    assert isinstance(assistant, chat.AssistantMessage)
    assert assistant.content == "Let me look."
    assert [call.id for call in assistant.tool_calls or ()] == ["c1", "c2"]
    assert assistant.reasoning_content == "hm"
    assert assistant.reasoning_details == [{"type": "reasoning.text", "text": "hm"}]
    assert outputs == [chat.ToolMessage("42", "c2"), chat.ToolMessage("42", "c1")]


def test_calls_one_after_the_other_stay_so() -> None:
    items = [USER, CALL, OUTPUT, {**CALL, "call_id": "c2"}, {**OUTPUT, "call_id": "c2"}]
    assert [type(message).__name__ for message in parse(input=items).messages] == [
        "UserMessage", "AssistantMessage", "ToolMessage", "AssistantMessage", "ToolMessage",
    ]  # fmt: skip


def test_reasoning_between_parallel_calls_keeps_them_together() -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "e"}
    items = [USER, thought, CALL, thought, {**CALL, "call_id": "c2"}, OUTPUT, {**OUTPUT, "call_id": "c2"}]
    messages = parse(input=items).messages
    assert [type(message).__name__ for message in messages[1:3]] == ["AssistantMessage", "ToolMessage"]
    assert len(messages) == 4


def test_phases_are_messages_of_their_own_and_kept() -> None:
    items = [{"role": "assistant", "phase": p, "content": p} for p in ("commentary", "final_answer")]
    both = asked(input=[*items, USER])
    assert [message.content for message in both.request.messages] == ["commentary", "final_answer", "Hi"]
    assert both.native.input[0]["phase"] == "commentary"


def test_what_an_sdk_left_in_is_taken_out() -> None:
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a", "parsed": {}}]}
    items = native(input=[USER, said, {**CALL, "parsed_arguments": {}}, OUTPUT]).items()
    assert "parsed" not in items[1]["content"][0]
    assert "parsed_arguments" not in items[2]


def test_only_allowed_tools_are_given() -> None:
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]}
    request = parse(tools=[TOOL, {"type": "function", "name": "g"}], tool_choice=choice)
    assert [tool.function.name for tool in request.tools or ()] == ["g"]
    assert request.tool_choice == "required"


def test_settings_of_the_text() -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "description": "d"}
    request = parse(text={"format": form, "verbosity": "low"}, reasoning={"effort": "high", "generate_summary": "auto"})
    assert request.response_format == chat.JsonSchemaFormat(chat.NamedSchema("n", {"type": "object"}, "d"))
    assert (request.verbosity, request.reasoning_effort, request.reasoning) == ("low", "high", {"summary": "auto"})


def test_a_medium_verbosity_asks_for_nothing() -> None:
    """Codex sends it always; targets without the notion give no other answer for it."""
    found = asked(text={"verbosity": "medium"})
    assert found.request.verbosity is None and not list(responses.needs(found))
    assert found.native.text.verbosity == "medium"


def test_a_function_output_may_answer_a_call_of_the_targets_own_tool() -> None:
    shell = {"type": "local_shell_call", "call_id": "c1", "status": "completed", "action": {"type": "exec"}}
    assert native(input=[USER, shell, OUTPUT]).items()[2] == OUTPUT
    assert ("responses_items", "input[1]", False) in needs(input=[USER, shell, OUTPUT])
    with pytest.raises(BadRequest):
        asked(input=[USER, {**shell, "call_id": "other"}, OUTPUT])
    with pytest.raises(BadRequest):
        asked(input=[USER, {"type": "shell_call_output", "call_id": "c1", "output": []}, OUTPUT])


def test_logprobs_need_an_include_or_a_number() -> None:
    assert parse().logprobs is None
    assert parse(top_logprobs=0).logprobs is None
    assert parse(top_logprobs=2).top_logprobs == 2
    assert parse(include=["message.output_text.logprobs"]).logprobs is True


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tools": [{"type": "mcp", "server_label": "x"}, TOOL]}, ("responses_tools", "tools[0]", True)),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, ("responses_tools", "tools[0]", False)),
        ({"tools": [TOOL, {"type": "web_search"}], "tool_choice": {"type": "web_search_preview"}},
         ("responses_tools", "tools[1]", False)),
        ({"tools": [TOOL, {"type": "web_search"}], "tool_choice": {"type": "web_search_preview"}},
         ("responses_tools", "tool_choice", False)),
        ({"input": [USER, SEARCH]}, ("responses_items", "input[1]", False)),
        ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, ("responses_items", "input[0]", False)),
        ({"truncation": "auto"}, ("truncation", "truncation", True)),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file_1"}]}]},
         ("file_ids", "input[0].content[0].file_id", False)),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]}]},
         ("file_ids", "input[0].content[0].file_id", False)),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "http://x/y"}]}]},
         ("file_addresses", "input[0].content[0].file_url", False)),
    ],
)  # fmt: skip
def test_what_only_the_same_dialect_can_do(fields: dict[str, Any], expected: tuple[str, str, bool]) -> None:
    assert expected in needs(**fields)


def test_plain_requests_need_nothing_more() -> None:
    assert needs(tools=[TOOL], input=[USER, CALL, OUTPUT], truncation="disabled", max_tool_calls=3) == []


def test_addresses_of_images_are_seen_by_the_canonical_needs() -> None:
    request = parse(input=[{"role": "user", "content": [{"type": "input_image", "image_url": "https://x/y.png"}]}])
    assert "image_addresses" in [feature for feature, _, _ in chat.needs(request)]


def test_earlier_items_come_in_front_and_instructions_are_of_this_request() -> None:
    mine = native(previous_response_id="resp_1", instructions="New.", input=[OUTPUT])
    assert mine.pending
    request = canonical(mine, [{"type": "message", "role": "user", "content": "first"}, CALL])
    assert [type(message).__name__ for message in request.messages] == [
        "SystemMessage", "UserMessage", "AssistantMessage", "ToolMessage",
    ]  # fmt: skip
    with pytest.raises(BadRequest) as caught:
        canonical(mine)
    assert caught.value.param == "input[0].call_id"


def test_references_are_put_in_their_place() -> None:
    mine = native(input=[{"type": "item_reference", "id": "msg_1"}, {"id": "msg_2"}, USER])
    assert references(mine) == ["msg_1", "msg_2"]
    stored = {"id": "msg_1", "type": "message", "role": "user", "content": "stored"}
    earlier = [{"id": "msg_2", "type": "message", "role": "user", "content": "earlier"}]
    resolved = resolve(mine, earlier, found={"msg_1": stored})
    assert [item["content"] for item in resolved.items()] == ["earlier", "stored", "earlier", "Hi"]
    with pytest.raises(BadRequest) as caught:
        resolve(mine)
    assert (caught.value.param, caught.value.code) == ("input[0].id", "item_not_found")


def test_compacted_conversations_are_opened() -> None:
    mine = native(input=[{"type": "compaction", "encrypted_content": "sealed"}, USER])
    assert mine.pending
    request = canonical(mine, opened={"sealed": "They agreed."}.get)
    assert isinstance(request.messages[0], chat.AssistantMessage)
    assert "They agreed." in str(request.messages[0].content)
    assert [item["type"] for item in resolve(mine).items()[:1]] == ["compaction"]


def test_a_native_request_is_written_as_it_was_read() -> None:
    body = {
        "model": "m",
        "input": [USER, SEARCH, CALL, OUTPUT, {"type": "message", "role": "user", "content": "x", "status": None}],
        "tools": [TOOL, {"type": "mcp", "server_label": "x", "headers": {"a": "b"}}],
        "metadata": {"a": "b"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
    }
    assert json.loads(msgspec.json.encode(native(**body))) == body


def test_files_of_functions_are_files() -> None:
    file = {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="}
    output = canonical(native(input=[USER, CALL, {**OUTPUT, "output": [file]}])).messages[-1].content
    assert output == [chat.FilePart({"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA=="})]


def test_fields_have_their_own_names_here() -> None:
    assert responses.field_name("messages[3].content[0]") == "input"
    assert responses.field_name("max_completion_tokens") == "max_output_tokens"
    assert responses.field_name("response_format.json_schema") == "text.format.json_schema"
    assert responses.field_name("tools[0].function.parameters") == "tools[0].parameters"


_scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5))
_names = st.sampled_from(
    ["type", "role", "content", "id", "text", "call_id", "name", "arguments", "output", "summary", "image_url", "mode",
     "tools", "function", "message", "user", "input_text", "function_call", "reasoning", "web_search", "allowed_tools",
     "compaction", "encrypted_content", "item_reference", "parsed", "format", "json_schema", "schema", "effort"]
)  # fmt: skip
_shapes = st.recursive(
    st.one_of(_scalars, _names),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_names, inner, max_size=4)),
    max_leaves=12,
)
_fields = st.sampled_from([*ResponsesRequest.__struct_fields__, "conversation", "nonsense"])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_fields, _shapes, max_size=3), st.one_of(st.just("Hi"), st.lists(_shapes, max_size=3)))
def test_whatever_is_sent_is_read_or_refused(fields: dict[str, Any], items: Any) -> None:
    try:
        both = responses.parse(json.dumps({"model": "m", "input": items, **fields}).encode())
    except OutpostError as error:
        assert error.status == 400
        return
    list(responses.needs(both))
    assert responses.parse(msgspec.json.encode(both.native)) == both


@pytest.mark.parametrize("where", ["tools", "tool_choice", "input"])
def test_a_type_that_is_no_word(where: str) -> None:
    shape: Any = {"type": ["function"]}
    with pytest.raises(BadRequest):
        asked(**{"tools": [TOOL], where: shape if where == "tool_choice" else [shape]})
