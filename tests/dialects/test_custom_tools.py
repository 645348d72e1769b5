"""Custom tools as functions, and their calls back again: alone, in chats, and in responses."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.dialects import chat, custom_tools
from appliance.dialects.answer import Frame
from appliance.dialects.assemble import assemble
from appliance.dialects.custom_tools import Input, arguments_of, input_of
from appliance.dialects.kinds import CHAT, RESPONSES
from appliance.dialects.openai_outbound import OpenAIOutbound
from appliance.dialects.openai_reader import OpenAIReader, read_whole
from appliance.dialects.responses.names import Name, flat, names_of
from appliance.dialects.responses.outbound import ResponsesOutbound
from appliance.dialects.responses.reader import ResponsesReader, read_events
from appliance.dialects.responses.resuming import refit
from appliance.dialects.tally import Tally
from appliance.errors import BadRequest, UnsupportedParameter
from appliance.providers.catalogue import row
from appliance.providers.kinds import capabilities_of
from appliance.providers.upstream import Call, Capabilities
from appliance.routing.fit import fit
from runtimes.engine import Delta, Event, Finished, ToolCallDelta, Usage
from tests.dialects.chat_requests import CLOCK, USER, asked
from tests.dialects.responses_samples import events_of
from tests.fakes import openai_schema as schema

GRAMMAR = 'start: "*** Begin Patch" /(.|\\n)+/'
CUSTOM: dict[str, Any] = {"name": "apply_patch", "description": "Changes files."}
IN_CHAT = {
    "type": "custom",
    "custom": {**CUSTOM, "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": GRAMMAR}}},
}
IN_RESPONSES = {"type": "custom", **CUSTOM, "format": {"type": "grammar", "syntax": "lark", "definition": GRAMMAR}}
PATCH = '*** Begin Patch\n+ "ß" \\ 🌍\n*** End Patch'
CALLED = {"id": "c1", "type": "custom", "custom": {"name": "apply_patch", "input": PATCH}}
DONE = {"role": "tool", "tool_call_id": "c1", "content": "Done"}
HISTORY = [USER, {"role": "assistant", "tool_calls": [CALLED]}, DONE]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
spaces = st.sampled_from(["", " ", "\n  "])


def cut(text: str, data: st.DataObject) -> list[str]:
    at = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[start:end] for start, end in zip([0, *at], [*at, len(text)], strict=True)]


def fed(pieces: list[str]) -> str:
    text = Input()
    return "".join([text.feed(piece) for piece in pieces]) + text.end()


# --- the text of a call ---------------------------------------------------------------------------


@given(texts, spaces, st.booleans(), st.data())
def test_the_text_is_the_same_however_it_is_written_and_cut(
    text: str, space: str, ascii: bool, data: st.DataObject
) -> None:
    said = json.dumps(text, ensure_ascii=ascii)
    written = f'{space}{{{space}"input"{space}:{space}{said}{space}}}{space}'
    assert fed(cut(written, data)) == text
    assert input_of(written) == text


@given(texts)
def test_arguments_and_inputs_are_each_others(text: str) -> None:
    assert input_of(arguments_of(text)) == text
    assert fed(list(arguments_of(text))) == text


@given(st.text(st.sampled_from('{}"input:\\u0dD8abcnx \n'), max_size=40), st.data())
@example('{"input":"\\ud83d', None)
@example('{"input":"\\ud83d\\u0041"}', None)
@example('{"input":"\\q\\u12"}', None)
def test_whatever_comes_is_read_the_same_whole_and_in_pieces(rest: str, data: st.DataObject | None) -> None:
    for written in (rest, f'{{"input":"{rest}'):
        pieces = list(written) if data is None else cut(written, data)
        assert fed(pieces) == fed([written])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"patch": "x"}', '{"patch": "x"}'),
        ('"x"', "x"),
        ("plain", "plain"),
        ('{"input": {"a": 1}}', '{"a":1}'),
        ('{"other": 1, "input": "x"}', "x"),
        ('{"input":"half', "half"),
        ('{"input":"lone \\ud800 half"}', "lone \ufffd half"),
        ('{"input":"no escape: \\q"}', "no escape: \\q"),
        ('{"input":"a"}, {"input":"b"}', "a"),
        ("", ""),
    ],
)
def test_arguments_of_another_form(arguments: str, text: str) -> None:
    assert fed([arguments]) == fed(list(arguments)) == text


# --- requests -------------------------------------------------------------------------------------


def body(outbound: Any, request: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(outbound.ask(request, "m", stream=False).body)
    return found


def test_a_target_that_knows_them_gets_custom_tools_as_they_came() -> None:
    choice = {"type": "custom", "custom": {"name": "apply_patch"}}
    sent = body(OpenAIOutbound(custom_tools=True), asked(HISTORY, tools=[IN_CHAT, CLOCK], tool_choice=choice))
    assert (sent["messages"], sent["tools"], sent["tool_choice"]) == (HISTORY, [IN_CHAT, CLOCK], choice)
    assert schema.complaints("CreateChatCompletionRequest", sent) == []


def test_all_others_get_a_function_with_one_string() -> None:
    choice = {"type": "custom", "custom": {"name": "apply_patch"}}
    sent = body(OpenAIOutbound(), asked(HISTORY, tools=[IN_CHAT, CLOCK], tool_choice=choice))
    function = sent["tools"][0]["function"]
    assert sent["tools"][0] == {"type": "function", "function": function}
    assert function["description"].startswith("Changes files.\n\n")
    assert GRAMMAR in function["description"]
    assert function["parameters"] == custom_tools.PARAMETERS
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "apply_patch"}}
    (call,) = sent["messages"][1]["tool_calls"]
    assert (call["type"], json.loads(call["function"]["arguments"])) == ("function", {"input": PATCH})
    assert "custom" not in call
    assert schema.complaints("CreateChatCompletionRequest", sent) == []


def test_openais_newest_models_know_them() -> None:
    for model, knows in (("gpt-5.4", True), ("gpt-4o", False), ("o3", False), ("unheard-of", True)):
        assert ("custom_tools" in row("openai").facts(model).features) is knows
    assert "custom_tools" not in row("groq").facts("m").features


@pytest.mark.parametrize("openai", [True, False])
def test_marks_and_details_that_only_openai_knows(openai: bool) -> None:
    mark = {"prompt_cache_breakpoint": {"mode": "explicit"}}
    image = {"url": "data:image/png;base64,", "detail": "original"}
    parts = [{"type": "text", "text": "a", **mark}, {"type": "image_url", "image_url": image, **mark}]
    request = asked([{"role": "user", "content": parts}])
    sent = body(OpenAIOutbound(row("openai" if openai else "groq").quirks), request)["messages"][0]["content"]
    if openai:
        assert sent == parts
    else:
        high = {"type": "image_url", "image_url": {**image, "detail": "high"}}
        assert sent == [{"type": "text", "text": "a"}, high]


ALLOWED = {
    "type": "allowed_tools",
    "allowed_tools": {
        "mode": "required",
        "tools": [
            {"type": "custom", "custom": {"name": "apply_patch"}},
            {"type": "function", "function": {"name": "b"}},
        ],
    },
}


def test_only_allowed_tools() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("a", "b")]
    parsed = CHAT.parse(
        json.dumps({"model": "m", "messages": HISTORY, "tools": [*tools, IN_CHAT], "tool_choice": ALLOWED}).encode(), 64
    )
    openai = capabilities_of(row("openai"), "gpt-5.4")
    kept = fit(parsed, CHAT, openai, drop=False, model="m")
    assert body(OpenAIOutbound(custom_tools=True), kept)["tool_choice"] == ALLOWED
    other = Capabilities(kinds=frozenset({"chat.completions"}), features=frozenset({"tools"}))
    sent = body(OpenAIOutbound(), fit(parsed, CHAT, other, drop=False, model="m"))
    assert [tool["function"]["name"] for tool in sent["tools"]] == ["b", "apply_patch"]
    assert sent["tool_choice"] == "required"


@pytest.mark.parametrize(("field", "value"), [("store", True), ("service_tier", "flex")])
def test_what_only_openai_does_is_refused_by_name_or_dropped(field: str, value: Any) -> None:
    parsed = CHAT.parse(json.dumps({"model": "m", "messages": [USER], field: value}).encode(), 64)
    plain = Capabilities(kinds=frozenset({"chat.completions"}))
    with pytest.raises(UnsupportedParameter) as caught:
        fit(parsed, CHAT, plain, drop=False, model="m")
    assert caught.value.param == field
    assert caught.value.message.startswith(f"{field}: ")
    assert getattr(fit(parsed, CHAT, plain, drop=True, model="m"), field) is None
    openai = capabilities_of(row("openai"), "gpt-5.4")
    if field == "store":
        with pytest.raises(UnsupportedParameter):
            fit(parsed, CHAT, openai, drop=False, model="m")
    else:
        assert (
            body(OpenAIOutbound(row("openai").quirks), fit(parsed, CHAT, openai, drop=False, model="m"))[field] == value
        )


# --- answers in chats -----------------------------------------------------------------------------


def called(*pieces: str, name: str = "apply_patch") -> list[Event]:
    """A call as a target makes it that takes it for a function, and a second one of a real function."""
    return [
        Delta(text="See."),
        Delta(tool_calls=[ToolCallDelta(0, "c1", name)]),
        *[Delta(tool_calls=[ToolCallDelta(0, arguments=piece)]) for piece in pieces],
        Delta(tool_calls=[ToolCallDelta(1, "c2", "clock", "{}")]),
        Finished("tool_calls"),
        Usage(5, 9),
    ]


def call_for(kind: Any, native: Any, request: chat.ChatRequest) -> Call:
    return Call("1", 1_700_000_000, kind, request, "m", "", 1.0, Tally(), native=native)


def in_chat(**fields: Any) -> Call:
    return call_for(CHAT, None, asked(tools=[IN_CHAT, CLOCK], **fields))


CLOCKED = {"id": "c2", "type": "function", "function": {"name": "clock", "arguments": "{}"}}


def streamed(call: Call, events: list[Event]) -> bytes:
    renderer = call.renderer()
    return b"".join([renderer.feed([event]) for event in events]) + renderer.end()


@given(st.data())
def test_calls_come_back_as_custom_ones(data: st.DataObject) -> None:
    events = called(*cut(arguments_of(PATCH), data))
    whole = in_chat().whole_renderer()
    whole.feed(events)
    made = json.loads(whole.body())
    assert made["choices"][0]["message"]["tool_calls"] == [CALLED, CLOCKED]
    assert schema.complaints("CreateChatCompletionResponse", made) == []
    together = json.loads(assemble([streamed(in_chat(stream=True), events)]))
    assert together["choices"][0]["message"]["tool_calls"] == [CALLED, CLOCKED]


def test_what_a_client_was_sent_is_read_as_it_was_said() -> None:
    """For a rescue: a custom call's text is compared, not how a target has written it down."""
    sent = streamed(in_chat(stream=True), called(arguments_of(PATCH)))
    read = OpenAIReader("t", asked()).feed(sent)
    pieces = [piece for item in read if isinstance(item, Delta) for piece in item.tool_calls]
    assert "".join([piece.arguments for piece in pieces if piece.index == 0]) == PATCH
    assert {piece.index: piece.custom for piece in pieces} == {0: True, 1: False}
    assert streamed(in_chat(stream=True), read).count(b'"type":"custom"') == 1


def test_a_target_that_knows_them_is_read() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [CALLED, CLOCKED]}
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    whole = in_chat().whole_renderer()
    whole.feed(read_whole(json.dumps(answer).encode(), "t", asked()))
    assert json.loads(whole.body())["choices"][0]["message"]["tool_calls"] == [CALLED, CLOCKED]


# --- one call at a time ---------------------------------------------------------------------------


def test_one_call_at_a_time_is_one_call() -> None:
    events = [*called("{}", name="clock")[:-2], Finished("tool_calls", 0), Usage(5, 9)]
    both = call_for(CHAT, None, asked(tools=[CLOCK])).whole_renderer()
    one = call_for(CHAT, None, asked(tools=[CLOCK], parallel_tool_calls=False)).whole_renderer()
    for renderer, number in ((both, 2), (one, 1)):
        renderer.feed(events)
        (choice,) = json.loads(renderer.body())["choices"]
        assert (len(choice["message"]["tool_calls"]), choice["finish_reason"]) == (number, "tool_calls")
        assert choice["message"]["content"] == "See."
    sent = streamed(call_for(CHAT, None, asked(tools=[CLOCK], parallel_tool_calls=False, stream=True)), events)
    assert [call["id"] for call in json.loads(assemble([sent]))["choices"][0]["message"]["tool_calls"]] == ["c1"]
    assert b"c2" not in sent


# --- responses ------------------------------------------------------------------------------------

LISTED = {"type": "function", "name": "list", "parameters": {"type": "object", "properties": {}}, "strict": False}
SPACE = {
    "type": "namespace",
    "name": "mcp__files",
    "description": "Files of the project.",
    "tools": [LISTED, {**IN_RESPONSES, "name": "edit"}],
}
OWN = {"type": "namespace", "name": "functions", "description": "All.", "tools": [{**LISTED, "name": "plan"}]}
ITEMS: list[dict[str, Any]] = [
    {"type": "message", "role": "user", "content": "Hi"},
    {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": PATCH, "status": "completed"},
    {"type": "custom_tool_call_output", "call_id": "c1", "output": "Done"},
    {"type": "function_call", "call_id": "c2", "name": "list", "namespace": "mcp__files", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c2", "output": "a"},
    {"type": "custom_tool_call", "call_id": "c3", "name": "edit", "namespace": "mcp__files", "input": "x"},
    {"type": "custom_tool_call_output", "call_id": "c3", "output": [{"type": "input_text", "text": "b"}]},
]


def responses(**fields: Any) -> Any:
    asked_for = {"model": "m", "input": "Hi", "tools": [IN_RESPONSES, SPACE, OWN], **fields}
    return RESPONSES.parse(json.dumps(asked_for).encode(), 64)


def test_tools_and_items_of_responses_in_the_middle() -> None:
    request = responses(input=ITEMS, tool_choice={"type": "custom", "name": "apply_patch"}).request
    names = ["apply_patch", "mcp__files__list", "mcp__files__edit", "plan"]
    assert [tool.function.name for tool in request.tools] == names
    assert [tool.custom is not None for tool in request.tools] == [True, False, True, False]
    assert request.tools[1].function.description == "About mcp__files: Files of the project."
    assert request.tool_choice.function.name == "apply_patch"
    calls = [call.function for message in request.messages for call in getattr(message, "tool_calls", None) or ()]
    assert [call.name for call in calls] == ["apply_patch", "mcp__files__list", "mcp__files__edit"]
    assert json.loads(calls[0].arguments) == {"input": PATCH}
    assert [message.content for message in request.messages if isinstance(message, chat.ToolMessage)] == [
        "Done", "a", "b",
    ]  # fmt: skip
    assert list(RESPONSES.needs(responses(input=ITEMS))) == [("tools", "tools", False)]


@given(st.text(max_size=100), st.text(max_size=100))
def test_names_of_functions_are_sound_and_their_own(namespace: str, name: str) -> None:
    made = flat(namespace, "x" + name)
    if namespace not in ("", "functions"):
        assert len(made) <= 64
        assert made.replace("-", "").replace("_", "").encode().isalnum() or set(made) <= set("-_")
        assert made != flat(namespace + "x", "x" + name)
    assert made == flat(namespace, "x" + name)


def test_names_that_are_the_clients_own() -> None:
    assert names_of([IN_RESPONSES, SPACE, OWN, {"type": "web_search"}, LISTED]) == {
        "apply_patch": Name("apply_patch", custom=True),
        "mcp__files__list": Name("list", "mcp__files"),
        "mcp__files__edit": Name("edit", "mcp__files", True),
    }


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{"type": "custom"}], "tools[0].name"),
        ([{"type": "custom", "name": "a", "format": {"type": "bnf"}}], "tools[0].format.type"),
        ([{"type": "custom", "name": "a", "custom": {}}], "tools[0].custom"),
        ([IN_RESPONSES, IN_RESPONSES], "tools[1].name"),
        ([{**SPACE, "tools": []}], "tools[0].tools"),
        ([{**SPACE, "tools": [{"type": "web_search"}]}], "tools[0].tools[0].type"),
        ([{**SPACE, "tools": [LISTED, LISTED]}], "tools[0].tools[1].name"),
        ([{**SPACE, "tools": [{**LISTED, "parameters": {"type": "array"}}]}], "tools[0].tools[0].parameters.type"),
    ],
)
def test_refused_by_name(tools: list[dict[str, Any]], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        responses(tools=tools)
    assert caught.value.param == param
    assert param in str(caught.value)


def spaced(*pieces: str) -> list[Event]:
    return [
        *called(*pieces)[:-3],
        Delta(tool_calls=[ToolCallDelta(1, "c2", "mcp__files__list", "{}")]),
        Delta(tool_calls=[ToolCallDelta(2, "c3", "mcp__files__edit", '{"input":"x"}')]),
        Finished("tool_calls"),
        Usage(5, 9),
    ]


def in_responses(**fields: Any) -> Call:
    found = responses(**fields)
    return call_for(RESPONSES, found.native, found.request)


@given(st.data())
def test_items_of_an_answer_are_called_as_the_client_does(data: st.DataObject) -> None:
    events = spaced(*cut(arguments_of(PATCH), data))
    whole = in_responses().whole_renderer()
    whole.feed(events)
    made = json.loads(whole.body())
    _, patch, listed, edit = made["output"]
    assert (patch["type"], patch["name"], patch["call_id"], patch["input"]) == (
        "custom_tool_call", "apply_patch", "c1", PATCH,
    )  # fmt: skip
    assert patch["id"].startswith("ctc_")
    assert (listed["type"], listed["namespace"], listed["name"]) == ("function_call", "mcp__files", "list")
    assert (edit["type"], edit["namespace"], edit["name"], edit["input"]) == (
        "custom_tool_call", "mcp__files", "edit", "x",
    )  # fmt: skip
    assert schema.complaints("CustomToolCallResource", patch) == []
    told = events_of(streamed(in_responses(stream=True), events))
    assert told[-1]["response"]["output"] == made["output"]
    deltas = [each["delta"] for each in told if each["type"] == "response.custom_tool_call_input.delta"]
    assert "".join(deltas) == PATCH + "x"
    done = [each for each in told if each["type"] == "response.custom_tool_call_input.done"]
    assert [each["input"] for each in done] == [PATCH, "x"]
    for name, kind in (("Delta", "delta"), ("Done", "done")):
        some = [each for each in told if each["type"] == f"response.custom_tool_call_input.{kind}"]
        assert [schema.complaints(f"ResponseCustomToolCallInput{name}Event", each) for each in some] == [[]] * len(some)


@given(st.data())
def test_a_response_that_broke_in_a_custom_call_goes_on(data: st.DataObject) -> None:
    call = in_responses(stream=True)
    events = spaced(*cut(arguments_of(PATCH), data))
    renderer = call.renderer()
    begun = b"".join([renderer.feed([event]) for event in events[: data.draw(st.integers(2, len(events) - 2))]])
    again = RESPONSES.make_stream(refit(call.frame(), [begun]), Tally())
    read = ResponsesReader("t").feed(begun)
    assert again.feed(read) == b""
    ended = events_of(begun + again.end())
    assert [each["sequence_number"] for each in ended] == list(range(len(ended)))
    sent = [piece for item in read if isinstance(item, Delta) for piece in item.tool_calls]
    assert all(piece.custom is (piece.index != 1) for piece in sent)
    assert json.loads(RESPONSES.assemble([begun]))["output"][1]["input"] == "".join(
        [piece.arguments for piece in sent if piece.index == 0]
    )


def test_a_target_of_the_same_dialect_is_asked_and_read_in_it() -> None:
    request = asked(HISTORY, tools=[IN_CHAT, CLOCK], tool_choice={"type": "custom", "custom": {"name": "apply_patch"}})
    sent = body(ResponsesOutbound(), request)
    assert sent["tools"][0] == IN_RESPONSES
    assert sent["tool_choice"] == {"type": "custom", "name": "apply_patch"}
    assert sent["input"][1:] == [
        {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": PATCH},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "Done"},
    ]
    output = [{"type": "custom_tool_call", "id": "ctc", "call_id": "c1", "name": "apply_patch", "input": PATCH}]
    events = read_events(json.dumps({"status": "completed", "output": output}).encode(), "t")
    whole = in_chat().whole_renderer()
    whole.feed(events)
    assert json.loads(whole.body())["choices"][0]["message"]["tool_calls"] == [CALLED]
    assert isinstance(call_for(CHAT, None, request).frame(), Frame)


def test_changed_tools_keep_their_forms() -> None:
    found = responses(input=ITEMS, tools=[{"type": "web_search"}, IN_RESPONSES, SPACE, OWN])
    before, native = found.request, found.native
    less = [tool for tool in before.tools if tool.function.name not in ("plan", "mcp__files__edit")]
    changed = RESPONSES.carry(native, before, msgspec.structs.replace(before, tools=less, tool_choice="required"))
    assert changed.tools == [{"type": "web_search"}, IN_RESPONSES, {**SPACE, "tools": [LISTED]}]
    assert changed.tool_choice == "required"
    messages = list(before.messages)
    messages[2] = chat.ToolMessage("***", "c1")
    messages[3] = msgspec.structs.replace(messages[3], content="x")
    told = RESPONSES.carry(native, before, msgspec.structs.replace(before, messages=messages)).items()
    assert told[2] == {"type": "custom_tool_call_output", "call_id": "c1", "output": "***"}
    assert told[4] == {
        "type": "function_call", "call_id": "c2", "name": "list", "namespace": "mcp__files", "arguments": "{}",
    }  # fmt: skip
