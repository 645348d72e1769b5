from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dialects import chat
from appliance.dialects.responses import request as responses
from appliance.dialects.responses.carry import carry, native_ask, outgoing_native
from appliance.dialects.responses.outbound import ResponsesOutbound
from appliance.dialects.responses.request import ResponsesRequest
from appliance.errors import UnsupportedParameter
from tests.dialects.responses_samples import mistakes, words

USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def canonical(**fields: Any) -> chat.ChatRequest:
    return chat.parse(json.dumps({"model": "m", "messages": [USER], **fields}).encode())


def asked(request: chat.ChatRequest, *, stream: bool = False, **settings: Any) -> dict[str, Any]:
    ask = ResponsesOutbound(**settings).ask(request, "gpt-up", stream=stream)
    assert ask.path == "responses"
    body: dict[str, Any] = json.loads(ask.body)
    assert mistakes(body, "CreateResponseBody") == []
    return body


def body_of(**fields: Any) -> dict[str, Any]:
    return asked(canonical(**fields))


def test_nothing_is_kept_at_the_target() -> None:
    assert body_of(stream=True) == {
        "model": "gpt-up", "store": False, "input": [{"type": "message", "role": "user", "content": "Hi"}],
    }  # fmt: skip
    assert asked(canonical(stream=True), stream=True)["stream"] is True


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"max_tokens": 20}, {"max_output_tokens": 20}),
        ({"max_completion_tokens": 20}, {"max_output_tokens": 20}),
        ({"temperature": 0.5, "top_p": 0.25}, {"temperature": 0.5, "top_p": 0.25}),
        ({"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
         {"tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}],
          "tool_choice": "required", "parallel_tool_calls": False}),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
         {"tool_choice": {"type": "function", "name": "f"}}),
        ({"verbosity": "low"}, {"text": {"verbosity": "low"}}),
        ({"reasoning_effort": "high"},
         {"reasoning": {"effort": "high"}, "include": ["reasoning.encrypted_content"]}),
        ({"reasoning_effort": "none"}, {"reasoning": {"effort": "none"}}),
        ({"reasoning": {"enabled": True}}, {"reasoning": {"summary": "auto"}}),
        ({"reasoning": {"effort": "low", "summary": "detailed"}},
         {"reasoning": {"effort": "low", "summary": "detailed"}}),
        ({"reasoning": {"max_tokens": 8000}}, {"reasoning": {"effort": "medium", "summary": "auto"}}),
        ({"reasoning": {"effort": "low", "summary": "auto", "exclude": True}}, {"reasoning": {"effort": "low"}}),
        ({"reasoning": {"enabled": False}}, {"reasoning": {"effort": "none"}}),
        ({"logprobs": True, "top_logprobs": 2},
         {"include": ["message.output_text.logprobs"], "top_logprobs": 2}),
        ({"metadata": {"a": "b"}, "user": "u", "prompt_cache_key": "k", "safety_identifier": "s"},
         {"metadata": {"a": "b"}, "user": "u", "prompt_cache_key": "k", "safety_identifier": "s"}),
    ],
)  # fmt: skip
def test_settings_as_they_are_called_there(fields: dict[str, Any], told: dict[str, Any]) -> None:
    body = body_of(**fields)
    assert {name: body.get(name) for name in told} == told


def test_a_schema() -> None:
    named = {"name": "n", "schema": {"type": "object"}, "strict": True}
    # Open Responses itself wants it so; its schema of the whole body does not say.
    request = canonical(response_format={"type": "json_schema", "json_schema": named})
    assert json.loads(ResponsesOutbound().ask(request, "m", stream=False).body)["text"] == {
        "format": {"type": "json_schema", **named}
    }


def test_a_conversation_with_calls_and_pictures() -> None:
    thought = [{"type": "reasoning.encrypted", "data": "openai-responses:rs_1:ENC"},
               {"type": "reasoning.encrypted", "data": "another maker's"}]  # fmt: skip
    body = body_of(
        messages=[
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Look:"},
                                         {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
                                         {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:x"}}]},
            {"role": "assistant", "content": "Hm.", "tool_calls": [CALL], "reasoning_details": thought},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "42"},
                                                               {"type": "image_url", "image_url": {"url": PIXEL}}]},
            {"role": "assistant", "content": None, "refusal": "No."},
            {"role": "developer", "content": "Go on."},
        ]
    )  # fmt: skip
    assert body["input"] == [
        {"type": "message", "role": "system", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "Look:"},
            {"type": "input_image", "image_url": PIXEL, "detail": "low"},
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:x"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "ENC"},
        {"type": "message", "role": "assistant",
         "content": [{"type": "output_text", "text": "Hm.", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [
            {"type": "input_text", "text": "42"}, {"type": "input_image", "image_url": PIXEL, "detail": "auto"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"type": "message", "role": "developer", "content": "Go on."},
    ]  # fmt: skip


def test_plain_thoughts_go_to_who_takes_them() -> None:
    messages = [USER, {"role": "assistant", "content": "a", "reasoning_content": "hm"}, USER]
    assert [item["type"] for item in body_of(messages=messages)["input"]] == ["message"] * 3
    request = canonical(messages=messages)
    item = json.loads(ResponsesOutbound(reasoning_text=True).ask(request, "m", stream=False).body)["input"][1]
    assert item == {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}


def test_a_target_may_refuse_fields() -> None:
    assert "metadata" not in asked(canonical(metadata={"a": "b"}), drop=frozenset({"metadata"}))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"stop": "x"}, "stop"),
        ({"seed": 1}, "seed"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"top_k": 3}, "top_k"),
        ({"min_p": 0.1}, "min_p"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"messages": [{"role": "user", "content": [
            {"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}]}]}, "messages[0].content[0]"),
    ],
)  # fmt: skip
def test_what_it_cannot_say_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        body_of(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize("fields", [{"n": 1}, {"presence_penalty": 0}, {"stop": []}, {"logit_bias": {}}])
def test_what_asks_for_nothing_is_no_matter(fields: dict[str, Any]) -> None:
    assert body_of(**fields) == body_of()


# --- there and back --------------------------------------------------------------------------------------------------

_texts = st.one_of(
    words, st.lists(st.builds(chat.TextPart, words), min_size=2, max_size=3)
)  # a list of one text comes back as that text
_images = st.builds(chat.ImagePart, st.builds(chat.ImageUrl, st.just(PIXEL), st.sampled_from(["auto", "low", "high"])))
_files = st.builds(chat.FilePart, st.fixed_dictionaries({"filename": words, "file_data": st.just("data:x")}))
_media = st.lists(st.one_of(st.builds(chat.TextPart, words), _images, _files), min_size=2, max_size=4)


@st.composite
def _turns(draw: st.DrawFn, at: int) -> list[chat.Message]:
    """An assistant's turn, with the results of its calls."""
    ids = [f"call_{at}_{i}" for i in range(draw(st.integers(0, 2)))]
    calls = [chat.ToolCall(id, chat.FunctionCall("f", draw(words)), "function") for id in ids]
    content: Any = draw(st.one_of(st.none() if calls else words, _texts))
    if isinstance(content, list) and draw(st.booleans()):
        content = [*content, chat.RefusalPart(draw(words))]
    details = [{"type": "reasoning.encrypted", "data": f"openai-responses:rs_{at}:E"}] if draw(st.booleans()) else None
    said = chat.AssistantMessage(content=content, tool_calls=calls or None, reasoning_details=details)
    parts = st.lists(st.one_of(st.builds(chat.TextPart, words), _images), min_size=2, max_size=2)
    # Words and then calls are one turn there, however many messages they were.
    return [said, *(chat.ToolMessage(draw(st.one_of(words, parts)), id) for id in ids), chat.UserMessage("Go on.")]


@st.composite
def _requests(draw: st.DrawFn) -> chat.ChatRequest:
    messages: list[chat.Message] = []
    for at in range(draw(st.integers(1, 4))):
        messages += draw(
            st.one_of(
                st.builds(chat.SystemMessage, _texts).map(lambda m: [m]),
                st.builds(chat.DeveloperMessage, _texts).map(lambda m: [m]),
                st.builds(chat.UserMessage, st.one_of(_texts, _media)).map(lambda m: [m]),
                _turns(at),
            )
        )
    tools = [chat.Tool(chat.Function("f", "d", {"type": "object"}, draw(st.booleans())), "function")]
    has_tools = draw(st.booleans())
    choice: Any = draw(st.sampled_from(["auto", "required", "none", _CHOSEN])) if has_tools else None
    logprobs = draw(st.sampled_from([None, True]))
    effort: Any = draw(st.sampled_from([None, "none", "low", "xhigh"]))
    return chat.ChatRequest(
        model="m",
        messages=messages,
        max_completion_tokens=draw(st.sampled_from([None, 16, 4096])),
        temperature=draw(st.sampled_from([None, 0.0, 1.5])),
        top_p=draw(st.sampled_from([None, 0.5])),
        tools=tools if has_tools else None,
        tool_choice=choice,
        parallel_tool_calls=draw(st.sampled_from([None, False, True])),
        response_format=draw(st.sampled_from([None, chat.JsonObjectFormat(), _SCHEMA])),
        verbosity=draw(st.sampled_from([None, "low"])),
        reasoning_effort=effort,
        reasoning=draw(st.sampled_from([None, {"summary": "auto"}])),
        logprobs=logprobs,
        top_logprobs=3 if logprobs else None,
        user=draw(st.sampled_from([None, "u"])),
        metadata=draw(st.sampled_from([None, {"a": "b"}])),
    )


_CHOSEN = chat.ToolChoice(chat.ChosenFunction("f"), "function")
_SCHEMA = chat.JsonSchemaFormat(chat.NamedSchema("n", {"type": "object"}, "d", True))


@settings(max_examples=80, deadline=None)
@given(_requests())
def test_a_request_keeps_its_meaning_there_and_back(request: chat.ChatRequest) -> None:
    body = ResponsesOutbound().ask(request, "m", stream=False).body
    back = responses.parse(body)
    assert back.request == request
    assert list(responses.native_needs(back.native)) == []


# --- a client's own body on its way to the same dialect --------------------------------------------------------------

THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "ENC"}
NATIVE: dict[str, Any] = {
    "instructions": "Be kind.",
    "input": [
        USER,
        THOUGHT,
        {"type": "message", "id": "msg_1", "role": "assistant", "phase": "commentary", "content": "Hm."},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "42"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
    ],
    "tools": [{"type": "web_search"}, {"type": "function", "name": "f"}],
    "truncation": "auto",
    "include": ["web_search_call.results"],
}


def native(**fields: Any) -> tuple[chat.ChatRequest, ResponsesRequest]:
    both = responses.parse(json.dumps({"model": "m", **NATIVE, **fields}).encode())
    return both.request, both.native


def test_a_native_body_goes_on_as_it_came() -> None:
    _, body = native(metadata={"a": "b"}, text={"verbosity": "low"})
    assert outgoing_native(body, "gpt-up") == {
        **NATIVE, "metadata": {"a": "b"}, "text": {"verbosity": "low"}, "model": "gpt-up", "store": False,
    }  # fmt: skip
    assert json.loads(native_ask(body, "gpt-up").body) == outgoing_native(body, "gpt-up")


def test_what_is_kept_here_is_not_told_there() -> None:
    _, body = native(previous_response_id="resp_1", background=True, store=True, stream=True)
    told = outgoing_native(body, "gpt-up")
    assert "previous_response_id" not in told
    assert "background" not in told
    assert (told["store"], told["stream"]) == (False, True)


def test_reasoning_is_asked_for_in_a_form_that_can_be_sent_back() -> None:
    _, body = native(reasoning={"effort": "low"})
    assert outgoing_native(body, "m")["include"] == ["web_search_call.results", "reasoning.encrypted_content"]
    assert outgoing_native(body, "m", encrypted=False)["include"] == ["web_search_call.results"]
    _, body = native(reasoning={"effort": "none"})
    assert outgoing_native(body, "m")["include"] == ["web_search_call.results"]


@pytest.mark.parametrize(
    "thought",
    [
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "s"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "outpost-signature:x"},
    ],
)
def test_reasoning_that_the_target_cannot_read_stays_here(thought: dict[str, Any]) -> None:
    items = [USER, thought, *NATIVE["input"][2:5]]
    _, body = native(input=items)
    told = outgoing_native(body, "m")["input"]
    assert [item.get("type") for item in told] == [None, "message", "function_call", "function_call_output"]
    assert not any("id" in item for item in told)


def test_changes_of_a_route_are_carried_and_nothing_else() -> None:
    before, body = native(max_output_tokens=100, reasoning={"effort": "low", "summary": "auto"})
    assert carry(body, before, before) is body
    after = msgspec.structs.replace(
        before, temperature=0.5, max_completion_tokens=50, reasoning=None, reasoning_effort=None, verbosity="low"
    )
    carried = carry(body, before, after)
    assert carried.temperature == 0.5
    assert carried.max_output_tokens == 50
    assert carried.reasoning is None
    assert carried.text is not None
    assert carried.text.verbosity == "low"
    assert (carried.input, carried.tools, carried.truncation) == (body.input, body.tools, body.truncation)


def test_changed_tools_leave_those_of_the_target_alone() -> None:
    before, body = native()
    carried = carry(body, before, msgspec.structs.replace(before, tools=None))
    assert carried.tools == [{"type": "web_search"}]
    choice = msgspec.structs.replace(before, tool_choice="required")
    assert carry(body, before, choice).tool_choice == "required"


def test_a_changed_text_changes_its_items_alone() -> None:
    before, body = native()
    messages = list(before.messages)
    assert [type(message).__name__ for message in messages] == [
        "SystemMessage", "UserMessage", "AssistantMessage", "ToolMessage",
    ]  # fmt: skip
    messages[0] = chat.SystemMessage("Be ***.")
    messages[2] = msgspec.structs.replace(messages[2], content="***")
    carried = carry(body, before, msgspec.structs.replace(before, messages=messages))
    assert carried.instructions == "Be ***."
    assert carried.items() == [
        USER,
        THOUGHT,
        {"type": "message", "role": "assistant",
         "content": [{"type": "output_text", "text": "***", "annotations": []}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        *NATIVE["input"][4:],
    ]  # fmt: skip
    assert carry(body, before, msgspec.structs.replace(before, messages=before.messages[:2])).items() == [
        {"type": "message", "role": "system", "content": "Be kind."},
        {"type": "message", "role": "user", "content": "Hi"},
    ]


@settings(max_examples=50, deadline=None)
@given(_requests(), st.data())
def test_what_was_carried_reads_as_what_it_was_changed_to(request: chat.ChatRequest, data: st.DataObject) -> None:
    before, body = responses.parse(ResponsesOutbound().ask(request, "m", stream=False).body)
    other = data.draw(_requests())
    fields = data.draw(st.sets(st.sampled_from(_CHANGEABLE)))
    after = msgspec.structs.replace(before, **{field: getattr(other, field) for field in fields})
    if after.tool_choice is not None and not after.tools:
        after = msgspec.structs.replace(after, tool_choice=None)
    if after.top_logprobs is not None and not after.logprobs:
        after = msgspec.structs.replace(after, top_logprobs=None)
    assert responses.parse(msgspec.json.encode(carry(body, before, after))).request == after


_CHANGEABLE = (
    "messages",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "verbosity",
    "reasoning_effort",
    "reasoning",
    "logprobs",
    "top_logprobs",
    "user",
    "metadata",
)
