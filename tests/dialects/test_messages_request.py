"""POST /v1/messages: what is taken, what it means in the canonical form, and what is refused with which words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dialects import chat
from appliance.dialects.asked import Asked
from appliance.dialects.messages.body import CountRequest, MessagesRequest
from appliance.dialects.messages.canonical import field_name, native_needs, needs
from appliance.dialects.messages.carry import native_ask
from appliance.dialects.messages.request import parse, parse_count
from appliance.errors import BadRequest, UnsupportedParameter
from tests.dialects.anthropic_shapes import complaints

USER = {"role": "user", "content": "Hi"}
TOOL: dict[str, Any] = {
    "name": "weather",
    "description": "Of a place.",
    "input_schema": {"type": "object", "properties": {}},
}
MARK = {"type": "ephemeral"}
PIXEL = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="}


def body(messages: Any = None, **fields: Any) -> bytes:
    return json.dumps({"model": "m", "max_tokens": 9, "messages": messages or [USER], **fields}).encode()


def asked(messages: Any = None, **fields: Any) -> Asked:
    raw = body(messages, **fields)
    assert complaints("CreateMessageParams", json.loads(raw)) == []
    return parse(raw)


def refusal(raw: bytes, read: Any = parse) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        read(raw)
    return caught.value


def calls(*names: str) -> dict[str, Any]:
    blocks = [{"type": "tool_use", "id": f"toolu_{name}", "name": name, "input": {"n": name}} for name in names]
    return {"role": "assistant", "content": blocks}


def result(name: str, content: Any = None, **fields: Any) -> dict[str, Any]:
    said = {} if content is None else {"content": content}
    return {"type": "tool_result", "tool_use_id": f"toolu_{name}", **said, **fields}


def test_options_keep_their_meaning() -> None:
    request, native = asked(
        system="Be kind.",
        stream=True,
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        stop_sequences=["a", "b", "c", "d", "e"],
        metadata={"user_id": "u"},
        service_tier="standard_only",
        tools=[{**TOOL, "type": "custom", "strict": True, "cache_control": MARK}],
        tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
    )
    assert isinstance(native, MessagesRequest)
    assert request == chat.ChatRequest(
        model="m",
        messages=[chat.SystemMessage("Be kind."), chat.UserMessage("Hi")],
        stream=True,
        max_completion_tokens=9,
        temperature=0.5,
        top_p=0.9,
        top_k=5,
        stop=["a", "b", "c", "d", "e"],
        user="u",
        tools=[chat.Tool(chat.Function("weather", "Of a place.", TOOL["input_schema"], True), "function", dict(MARK))],
        tool_choice=chat.ToolChoice(chat.ChosenFunction("weather"), "function"),
        parallel_tool_calls=False,
    )


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, ("auto", None)),
        ({"type": "any", "disable_parallel_tool_use": True}, ("required", False)),
        ({"type": "any", "disable_parallel_tool_use": False}, ("required", True)),
        ({"type": "none"}, ("none", None)),
    ],
)
def test_choices_of_tools(choice: dict[str, Any], expected: tuple[Any, Any]) -> None:
    request = asked(tools=[TOOL], tool_choice=choice).request
    assert (request.tool_choice, request.parallel_tool_calls) == expected


@pytest.mark.parametrize(
    ("fields", "effort", "reasoning"),
    [
        (
            {"max_tokens": 9999, "thinking": {"type": "enabled", "budget_tokens": 4097}},
            None,
            {"enabled": True, "max_tokens": 4097, "effort": "medium"},
        ),
        (
            {
                "max_tokens": 9999,
                "thinking": {"type": "enabled", "budget_tokens": 2048},
                "output_config": {"effort": "max"},
            },
            "max",
            {"enabled": True, "max_tokens": 2048},
        ),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, None, {"enabled": True, "exclude": True}),
        ({"thinking": {"type": "adaptive", "display": "summarized"}}, None, {"enabled": True, "summary": "auto"}),
        ({"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}}, "none", None),
        ({"output_config": {"effort": "xhigh"}}, "xhigh", None),
    ],
)
def test_thinking(fields: dict[str, Any], effort: Any, reasoning: Any) -> None:
    request = asked(**fields).request
    assert (request.reasoning_effort, request.reasoning) == (effort, reasoning)


def test_structured_output_by_either_name() -> None:
    closed = {"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "schema": closed}
    new = asked(output_config={"format": form})
    old = parse(body(output_format=form))
    assert new == old
    assert new.request.response_format == chat.JsonSchemaFormat(chat.NamedSchema("answer", closed, strict=True))
    lax = asked(output_config={"format": {**form, "schema": {**closed, "required": []}}}).request
    assert lax.response_format.json_schema.strict is None
    other = {"type": "json_schema", "schema": {"type": "string"}}
    assert refusal(body(output_format=form, output_config={"format": other})).param == "output_format"


def test_a_turn_of_results_and_words() -> None:
    request = asked(
        [
            USER,
            calls("a", "b"),
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look:"},
                    result("b", [{"type": "text", "text": "two"}, PIXEL], is_error=True),
                    PIXEL,
                    result("a", "one"),
                ],
            },
        ],
        tools=[TOOL],
    ).request
    url = "data:image/png;base64,iVBORw0KGgo="
    assert request.messages[1:] == [
        chat.AssistantMessage(
            tool_calls=[
                chat.ToolCall("toolu_a", chat.FunctionCall("a", '{"n":"a"}'), "function"),
                chat.ToolCall("toolu_b", chat.FunctionCall("b", '{"n":"b"}'), "function"),
            ]
        ),
        chat.ToolMessage([chat.TextPart("two"), chat.ImagePart(chat.ImageUrl(url))], "toolu_b", is_error=True),
        chat.ToolMessage("one", "toolu_a"),
        chat.UserMessage([chat.TextPart("Look:"), chat.ImagePart(chat.ImageUrl(url))]),
    ]


def test_results_without_content_and_turns_of_results_alone() -> None:
    request = asked([USER, calls("a"), {"role": "user", "content": [result("a")]}], tools=[TOOL]).request
    assert request.messages[2:] == [chat.ToolMessage("", "toolu_a")]


def test_thoughts_keep_what_their_maker_wants_back() -> None:
    blocks = [
        {"type": "thinking", "thinking": "hm", "signature": "s1"},
        {"type": "redacted_thinking", "data": "xyz"},
        {"type": "thinking", "thinking": "", "signature": "s2"},
        {"type": "text", "text": "So:", "cache_control": MARK},
    ]
    (_, said) = asked([USER, {"role": "assistant", "content": blocks}]).request.messages
    assert said == chat.AssistantMessage(
        content=[chat.TextPart("So:", dict(MARK))],
        reasoning_content="hm",
        reasoning_details=[
            {"type": "reasoning.text", "text": "hm", "signature": "s1"},
            {"type": "reasoning.encrypted", "data": "xyz"},
            {"type": "reasoning.text", "text": "", "signature": "s2"},
        ],
    )


def test_thoughts_that_nobody_signed_are_text() -> None:
    blocks = [{"type": "thinking", "thinking": "hm", "signature": ""}]
    (_, said) = asked([USER, {"role": "assistant", "content": blocks}]).request.messages
    assert said == chat.AssistantMessage(content="", reasoning_content="hm")


def test_consecutive_turns_of_one_role_and_instructions_between_them() -> None:
    request = asked([USER, USER, {"role": "system", "content": "Now!"}, {"role": "assistant", "content": "So"}]).request
    assert [type(message).__name__ for message in request.messages] == [
        "UserMessage",
        "UserMessage",
        "SystemMessage",
        "AssistantMessage",
    ]


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        (
            {"type": "document", "source": PDF, "title": "a.pdf"},
            [chat.FilePart({"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="})],
        ),
        (
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Words"}, "title": "T"},
            "T\nWords",
        ),
        (
            {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "W"}, PIXEL]}},
            [chat.TextPart("W"), chat.ImagePart(chat.ImageUrl("data:image/png;base64,iVBORw0KGgo="))],
        ),
        (
            {"type": "search_result", "source": "S", "title": "T", "content": [{"type": "text", "text": "W"}]},
            "T\nS\nW",
        ),
    ],
)
def test_documents(block: dict[str, Any], parts: Any) -> None:
    assert asked([{"role": "user", "content": [block]}]).request.messages == [chat.UserMessage(parts)]


SERVER = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}
FOUND = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}


@pytest.mark.parametrize(
    ("messages", "fields", "expected"),
    [
        (
            None,
            {"tools": [SEARCH]},
            ("anthropic_tools", "tools[0].type"),
        ),
        (None, {"tools": [{**TOOL, "defer_loading": True}]}, ("anthropic_tools", "tools[0].defer_loading")),
        (
            [USER, {"role": "assistant", "content": [SERVER, FOUND]}],
            {},
            ("anthropic_content", "messages[1].content[0].type"),
        ),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "document", "source": {"type": "url", "url": "https://e.example/a"}}],
                }
            ],
            {},
            ("file_addresses", "messages[0].content[0].source.url"),
        ),
        (
            [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://e.example/a"}}]}],
            {},
            ("image_addresses", "messages[0].content[0].source.url"),
        ),
        (
            [USER, calls("a"), {"role": "user", "content": [result("a", [PIXEL])]}],
            {},
            ("tool_images", "messages[2].content[0].content[0]"),
        ),
        (
            [USER, calls("a"), {"role": "user", "content": [result("a", [{"type": "document", "source": PDF}])]}],
            {},
            ("tool_images", "messages[2].content[0].content[0]"),
        ),
    ],
)
def test_what_a_target_must_be_able_to_do(messages: Any, fields: dict[str, Any], expected: tuple[str, str]) -> None:
    found = parse(body(messages, **fields))
    assert (*expected, False) in list(native_needs(found.native))
    assert next(iter(needs(found)))[2] is False


FOUND = {"type": "search_result", "source": "S", "title": "T", "content": [{"type": "text", "text": "W"}]}
FILE = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "W"}}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("block", [FOUND, FILE], ids=["search", "document"])
def test_citations_may_be_done_without(block: dict[str, Any], inside: bool) -> None:
    """The texts are read all the same. What asks for none asks for nothing."""

    def told(citations: Any) -> list[Any]:
        cited = {**block, **({"citations": citations} if citations else {})}
        content = [result("a", [cited])] if inside else [cited]
        found = asked([USER, calls("a"), {"role": "user", "content": [result("a"), *content]}])
        assert "W" in repr(found.request.messages[-1].content)
        return list(needs(found))

    path = "messages[2].content[1]" + (".content[0]" if inside else "")
    assert told({"enabled": True}) == [("citations", f"{path}.citations", True)]
    assert told({"enabled": False}) == told({}) == []


def test_files_in_results_of_tools_are_files() -> None:
    document = {"type": "document", "source": PDF, "title": "a.pdf"}
    found = asked([USER, calls("a"), {"role": "user", "content": [result("a", [document])]}])
    data = "data:application/pdf;base64,JVBERg=="
    assert found.request.messages[-1].content == [chat.FilePart({"filename": "a.pdf", "file_data": data})]
    assert {feature for feature, _, _ in needs(found)} == {"files", "tool_images"}
    assert {path for _, path, _ in native_needs(found.native)} == {"messages[2].content[0].content[0]"}


def test_what_every_target_can_do_needs_nothing_of_its_own() -> None:
    found = asked([USER, calls("a"), {"role": "user", "content": [result("a", "x")]}], system="s")
    assert list(native_needs(found.native)) == []


@pytest.mark.parametrize(
    ("raw", "param", "words"),
    [
        (b'{"model":"m","messages":[{"role":"user","content":"x"}]}', "max_tokens", "max_tokens is required"),
        (b'{"max_tokens":1,"messages":[{"role":"user","content":"x"}]}', "model", "model is required"),
        (body([{"role": "tool", "content": "x"}]), "messages[0].role", "Use user or assistant"),
        (
            body([{"role": "user", "content": [{"type": "tool_use"}]}]),
            "messages[0].content[0].type",
            "in a user message",
        ),
        (body([{"role": "user", "content": []}]), "messages[0].content", "at least 1"),
        (body(temperature=1.5), "temperature", "at most 1"),
        (body(betas=["x"]), "betas", "belongs into the header anthropic-beta"),
        (body(anthropic_beta=["x"]), "anthropic_beta", "belongs into the header anthropic-beta"),
        (body(thinking={"type": "enabled", "budget_tokens": 2048}), "thinking.budget_tokens", "less than max_tokens"),
        (
            body(max_tokens=2048, thinking={"type": "enabled", "budget_tokens": 2048}),
            "thinking.budget_tokens",
            "less than max_tokens",
        ),
        (body(response_format={}), "response_format", "output_config"),
        (body(foo=1), "foo", "not a known parameter"),
        (body(tools=[{"name": "f", "input_schema": {}, "foo": 1}]), "tools[0].foo", "not a known parameter"),
        (body(tools=[{"name": "f"}]), "tools[0].input_schema", "required"),
        (body(tools=[{"name": "f", "input_schema": {"type": "array"}}]), "tools[0].input_schema.type", "object"),
        (body(tools=[{"name": "a b", "input_schema": {}}]), "tools[0].name", "pattern"),
        (body(tools=[{"type": "advisor_20260301"}]), "tools[0].type", "advisor_20260301"),
        (body(tools=[{"type": 5}]), "tools[0].type", "5"),
        (body(tools=[TOOL, TOOL]), "tools[1].name", "used twice"),
        (body(tool_choice={"type": "any"}), "tool_choice", "needs tools"),
        (body(tools=[TOOL], tool_choice={"type": "tool", "name": "x"}), "tool_choice.name", "there is weather"),
        (body([{"role": "user", "content": [result("a")]}]), "messages[0].content[0].tool_use_id", "tool_use"),
        (body(thinking={"type": "enabled", "budget_tokens": 9}), "thinking.budget_tokens", "at least 1024"),
        (body(thinking={"type": "loud"}), "thinking.type", "Use enabled, adaptive or disabled"),
        (body(stop_sequences=[""]), "stop_sequences[0]", "at least 1"),
    ],
)
def test_refusals_name_the_field(raw: bytes, param: str, words: str) -> None:
    error = refusal(raw)
    assert (error.param, words in error.message) == (param, True), error.message


@pytest.mark.parametrize(
    "edits", [None, [], [{"type": "clear_thinking_20251015", "keep": "all"}], [{"type": "clear_thinking_20251015"}]]
)
@pytest.mark.parametrize("read", [parse, parse_count])
def test_how_many_thoughts_are_kept_is_left_to_the_target(edits: Any, read: Any) -> None:
    """Claude Code sends this with every request; a target that cannot be told gets it without."""
    plain = {"model": "m", "messages": [USER], **({"max_tokens": 9} if read is parse else {})}
    found = read(json.dumps({**plain, "context_management": {} if edits is None else {"edits": edits}}).encode())
    without = read(json.dumps(plain).encode())
    assert found.request == without.request
    assert native_ask(found.native, "up") == native_ask(without.native, "up")
    assert list(native_needs(found.native)) == []


def test_edits_that_nobody_knows_are_refused() -> None:
    edits = [{"type": "clear_tool_uses_20250919"}, {"type": "compact_20260112"}]
    error = refusal(body(context_management={"edits": edits}))
    assert error.param == "context_management.edits[1].type" and "compact_20260112" in error.message


def test_the_scope_of_a_mark_is_forgotten() -> None:
    system = [{"type": "text", "text": "s", "cache_control": {**MARK, "ttl": "1h", "scope": "global"}}]
    tools = [{**TOOL, "cache_control": {**MARK, "scope": "global"}}]
    found = parse(body(system=system, tools=tools))
    sent = json.loads(native_ask(found.native, "up").body)
    assert sent["system"] == [{"type": "text", "text": "s", "cache_control": {**MARK, "ttl": "1h"}}]
    assert sent["tools"] == [{**TOOL, "cache_control": MARK}]
    assert found.request.tools[0].cache_control == MARK


def test_counting_takes_a_prompt_and_nothing_about_an_answer() -> None:
    raw = json.dumps({"model": "m", "messages": [USER], "system": "s", "tools": [TOOL]}).encode()
    request, native = parse_count(raw)
    assert type(native) is CountRequest
    assert request.token_limit is None
    assert len(request.messages) == 2
    for field in ("max_tokens", "stream", "temperature"):
        error = refusal(json.dumps({"model": "m", "messages": [USER], field: 1}).encode(), parse_count)
        assert isinstance(error, UnsupportedParameter)
        assert error.param == field


def test_fields_have_the_names_of_this_dialect() -> None:
    assert field_name("response_format") == "output_config.format"
    assert field_name("messages[3].content[1].image_url.url") == "messages"
    assert field_name("tools[0].x") == "tools[0].x"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["text", "tool_use", "user", "custom", "auto", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "role", "content", "source", "name", "text", "input", "id"]), inner)
    ),
    max_leaves=10,
)


@given(st.sampled_from([*MessagesRequest.__struct_fields__, "other"]), anything)
def test_whatever_comes_is_taken_or_refused(field: str, value: Any) -> None:
    raw = json.dumps({"model": "m", "max_tokens": 9, "messages": [USER], field: value}).encode()
    for read in (parse, parse_count):
        try:
            found = read(raw)
        except BadRequest as error:
            assert error.message
        else:
            list(needs(found))
            assert found.request.messages


@given(st.binary(max_size=40))
def test_bytes_that_are_no_json(raw: bytes) -> None:
    assert refusal(raw).status == 400
