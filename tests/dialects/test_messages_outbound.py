"""Chat requests to targets that speak Anthropic's Messages API, and back again."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dialects import chat
from appliance.dialects.answer import Outbound
from appliance.dialects.bedrock.outbound import Bedrock
from appliance.dialects.claude import version_of
from appliance.dialects.cohere_outbound import COHERE
from appliance.dialects.gemini_outbound import GEMINI
from appliance.dialects.messages.canonical import effort_for
from appliance.dialects.messages.outbound import AnthropicOutbound, count_body, counted
from appliance.dialects.messages.request import parse, parse_count
from appliance.dialects.openai_outbound import OpenAIOutbound
from appliance.dialects.responses.outbound import ResponsesOutbound
from appliance.errors import BadRequest, UnsupportedParameter, UpstreamFailed
from tests.dialects.anthropic_shapes import complaints

USER = {"role": "user", "content": "Hi"}
IMAGE = "data:image/png;base64,iVBORw0KGgo="
TOOL = {"type": "function", "function": {"name": "clock"}}
OLD, NEW = "claude-sonnet-4-5-20250929", "claude-opus-4-8"


def asked(messages: Any = None, **fields: Any) -> chat.ChatRequest:
    return chat.parse(json.dumps({"model": "m", "messages": messages or [USER], **fields}).encode())


def sent(request: chat.ChatRequest, model: str = OLD, *, stream: bool = False, **options: Any) -> dict[str, Any]:
    """The body as a target gets it, which is one that Anthropic describes."""
    ask = AnthropicOutbound(**options).ask(request, model, stream=stream)
    assert ask.path == "messages"
    body: dict[str, Any] = json.loads(ask.body)
    assert complaints("CreateMessageParams", body) == []
    return body


def refusal(request: chat.ChatRequest, model: str = OLD) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        AnthropicOutbound().ask(request, model, stream=False)
    return caught.value


# --- there and back ---------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda text: text.strip() == text)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(words, values, max_size=3).map(lambda found: msgspec.json.encode(found).decode())
marks = st.sampled_from([None, {"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}])
texts = st.builds(chat.TextPart, words, marks)
images = st.builds(chat.ImagePart, st.just(chat.ImageUrl(IMAGE)), marks)
pdf = st.just(chat.FilePart({"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}))


def short(parts: list[Any]) -> Any:
    plain = len(parts) == 1 and isinstance(parts[0], chat.TextPart) and parts[0].cache_control is None
    return parts[0].text if plain else parts


def content(*parts: Any) -> Any:
    return words | st.lists(st.one_of(*parts), min_size=1, max_size=3).map(short)


details = st.lists(
    st.builds(
        lambda text, signature: {"type": "reasoning.text", "text": text, "signature": signature},
        st.just("") | words,
        words,
    )
    | st.builds(lambda data: {"type": "reasoning.encrypted", "data": data}, words),
    min_size=1,
    max_size=3,
)


@st.composite
def answers(draw: st.DrawFn) -> list[Any]:
    """An assistant's message, and the results of what it called."""
    names = draw(st.lists(st.sampled_from(["clock", "weather"]), max_size=3))
    calls = [
        chat.ToolCall(f"call-{k}_{draw(st.integers(0, 99))}", chat.FunctionCall(name, draw(arguments)), "function")
        for k, name in enumerate(names)
    ]
    thoughts = draw(st.none() | details)
    thought = "\n\n".join(each["text"] for each in thoughts or () if each.get("text"))
    said = draw(content(texts) if not calls else st.none() | content(texts))
    message = chat.AssistantMessage(
        content=said, tool_calls=calls or None, reasoning_content=thought or None, reasoning_details=thoughts
    )
    results = [
        chat.ToolMessage(draw(st.just("") | content(texts, images)), call.id, is_error=draw(st.none() | st.booleans()))
        for call in calls
    ]
    return [message, *results]


@st.composite
def conversations(draw: st.DrawFn) -> list[Any]:
    messages: list[Any] = []
    if draw(st.booleans()):
        messages.append(chat.SystemMessage(draw(content(texts))))
    for _ in range(draw(st.integers(0, 2))):
        messages.append(chat.UserMessage(draw(content(texts, images, pdf))))
        messages += draw(answers())
    return [*messages, chat.UserMessage(draw(content(texts, images, pdf)))]


tools = [
    chat.Tool(chat.Function("clock", None, {"type": "object", "properties": {}}, True), "function"),
    chat.Tool(chat.Function("weather", "Of a place.", {"type": "object"}), "function", {"type": "ephemeral"}),
]
schema = {"type": "object", "properties": {}, "additionalProperties": False}


def thinking(budget: int) -> dict[str, Any]:
    return {"enabled": True, "max_tokens": budget, "effort": effort_for(budget)}


options = st.fixed_dictionaries(
    {"max_completion_tokens": st.integers(4096, 9999)},
    optional={
        "temperature": st.floats(0, 1),
        "top_p": st.floats(0, 1),
        "top_k": st.integers(1, 100),
        "stop": st.lists(words, min_size=1, max_size=4),
        "user": words,
        "response_format": st.just(chat.JsonSchemaFormat(chat.NamedSchema("answer", schema, strict=True))),
        "reasoning": st.integers(1024, 4000).map(thinking),
    },
)
tool_options = st.fixed_dictionaries(
    {"tools": st.just(tools)},
    optional={
        "tool_choice": st.sampled_from(["auto", "required", chat.ToolChoice(chat.ChosenFunction("clock"), "function")])
    },
)


@settings(deadline=None)
@given(conversations(), options, st.just({}) | tool_options, st.booleans(), st.booleans())
def test_a_chat_request_means_the_same_there_and_back(
    messages: list[Any], fields: dict[str, Any], of_tools: dict[str, Any], alone: bool, stream: bool
) -> None:
    if "tool_choice" in of_tools and alone:
        of_tools = {**of_tools, "parallel_tool_calls": False}
    request = chat.ChatRequest(model="m", messages=messages, **fields, **of_tools)
    body = AnthropicOutbound().ask(request, "m", stream=stream).body
    assert complaints("CreateMessageParams", json.loads(body)) == []
    assert parse(body).request == msgspec.structs.replace(request, stream=True if stream else None)


# --- messages ---------------------------------------------------------------------------------------


def test_instructions_go_into_system() -> None:
    body = sent(asked([{"role": "system", "content": "A"}, USER, {"role": "developer", "content": "B"}]))
    assert body["system"] == [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]
    assert body["messages"] == [USER]
    assert sent(asked([{"role": "system", "content": "A"}, USER]))["system"] == "A"
    assert "system" not in sent(asked([{"role": "system", "content": " "}, USER]))
    assert refusal(asked([{"role": "system", "content": "A"}])).param == "messages"


def called(*ids: str, arguments: str = "{}") -> dict[str, Any]:
    calls = [{"id": id, "type": "function", "function": {"name": "clock", "arguments": arguments}} for id in ids]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def test_results_stand_at_the_head_of_one_turn() -> None:
    body = sent(
        asked(
            [
                USER,
                called("a", "b"),
                {"role": "user", "content": "Hm"},
                {"role": "tool", "tool_call_id": "b", "content": "2"},
                {"role": "tool", "tool_call_id": "a", "content": "1", "is_error": True},
                USER,
            ],
            tools=[TOOL],
        )
    )
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][2]["content"] == [
        {"type": "tool_result", "tool_use_id": "b", "content": "2"},
        {"type": "tool_result", "tool_use_id": "a", "content": "1", "is_error": True},
        {"type": "text", "text": "Hm"},
        {"type": "text", "text": "Hi"},
    ]
    assert body["tools"] == [{"name": "clock", "input_schema": {"type": "object", "properties": {}}}]


def test_ids_that_anthropic_does_not_take_are_the_same_for_call_and_result() -> None:
    body = sent(
        asked(
            [
                USER,
                called("functions.clock:0", "ünder"),
                {"role": "tool", "tool_call_id": "functions.clock:0", "content": "1"},
            ]
        )
    )
    first, second = (block["id"] for block in body["messages"][1]["content"])
    assert body["messages"][2]["content"][0]["tool_use_id"] == first != second


def test_texts_without_characters_are_left_out() -> None:
    body = sent(
        asked(
            [
                {"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "\n"}]},
                {"role": "assistant", "content": ""},
                {"role": "user", "content": "B"},
                {"role": "assistant", "content": "The answer is (\n"},
            ]
        )
    )
    assert body["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]},
        {"role": "assistant", "content": "The answer is ("},
    ]


def test_thoughts_of_others_are_not_sent() -> None:
    said = {
        "role": "assistant",
        "content": "So",
        "reasoning_content": "hm",
        "reasoning_details": [
            {"type": "reasoning.text", "text": "unsigned"},
            {"type": "reasoning.text", "text": "x", "signature": "s", "format": "google-gemini-v1"},
            {"type": "reasoning.text", "text": "y", "signature": "t", "format": "anthropic-claude-v1"},
            {"type": "reasoning.summary", "summary": "z"},
        ],
    }
    body = sent(asked([USER, said, USER]))
    assert body["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "y", "signature": "t"},
        {"type": "text", "text": "So"},
    ]


def test_refusals_come_back_as_text() -> None:
    parts = [{"type": "refusal", "refusal": "No"}]
    body = sent(asked([USER, {"role": "assistant", "content": parts}, USER, {"role": "assistant", "refusal": "Never"}]))
    assert [turn["content"] for turn in body["messages"]] == ["Hi", "No", "Hi", "Never"]


def file(kind: str, data: bytes, name: str | None = None) -> dict[str, Any]:
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "file", "file": {"file_data": url, **({"filename": name} if name else {})}}


def test_files() -> None:
    parts = [
        file("application/pdf", b"%PDF", "a.pdf"),
        file("text/markdown", "# ü".encode()),
        file("image/gif", b"GIF"),
    ]
    body = sent(asked([{"role": "user", "content": parts}]))
    assert body["messages"][0]["content"] == [
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="},
            "title": "a.pdf",
        },
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "# ü"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "R0lG"}},
    ]


def part(found: dict[str, Any]) -> chat.ChatRequest:
    return asked([{"role": "user", "content": [found]}])


def image(url: str) -> chat.ChatRequest:
    return part({"type": "image_url", "image_url": {"url": url}})


DEEP = '{"a":' + "[" * 999 + "]" * 999 + "}"
ARGUMENTS = "messages[1].tool_calls[0].function.arguments"


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (part(file("application/zip", b"PK")), "messages[0].content[0].file.file_data"),
        (part(file("text/plain", b"\xff")), "messages[0].content[0].file.file_data"),
        (part({"type": "file", "file": {"file_id": "f"}}), "messages[0].content[0].file.file_id"),
        (
            part({"type": "image_url", "image_url": {"url": "data:image/bmp;base64,AA=="}}),
            "messages[0].content[0].image_url.url",
        ),
        (
            part({"type": "image_url", "image_url": {"url": "data:image/png,AA"}}),
            "messages[0].content[0].image_url.url",
        ),
        (part({"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}), "messages[0].content[0]"),
        (asked([USER, called("a", arguments="[1]")]), ARGUMENTS),
        (asked([USER, called("a", arguments='{"a":')]), ARGUMENTS),
        (
            asked([USER, called("a", arguments='{"a":' + "[" * 999 + "]" * 999 + "}")]),
            "messages[1].tool_calls[0].function.arguments",
        ),
        (asked(n=2), "n"),
        (asked(seed=0), "seed"),
        (asked(temperature=1.2), "temperature"),
        (asked(stop=" "), "stop"),
        (asked(stop=["END", "\n\n"]), "stop[1]"),
        (asked(logprobs=True), "logprobs"),
        (asked(presence_penalty=0.1), "presence_penalty"),
        (asked(frequency_penalty=-1), "frequency_penalty"),
        (asked(repetition_penalty=1.1), "repetition_penalty"),
        (asked(min_p=0.1), "min_p"),
        (asked(logit_bias={"1": 2}), "logit_bias"),
        (asked(verbosity="low"), "verbosity"),
        (asked(response_format={"type": "json_object"}), "response_format"),
        (asked(response_format={"type": "json_schema", "json_schema": {"name": "a"}}), "response_format"),
        (asked(reasoning={"max_tokens": 5000}, max_tokens=5000), "reasoning.max_tokens"),
    ],
)
def test_what_has_no_notion_is_refused_by_name(request_: chat.ChatRequest, param: str) -> None:
    assert refusal(request_).param == param


def test_what_changes_nothing_is_left_out() -> None:
    body = sent(
        asked(
            n=1,
            logprobs=False,
            presence_penalty=0,
            repetition_penalty=1,
            top_k=-1,
            stop=["END"],
            store=False,
            metadata={"a": "b"},
            response_format={"type": "text"},
        )
    )
    assert body == {"model": OLD, "max_tokens": 4096, "messages": [USER], "stop_sequences": ["END"]}


def test_an_address_of_an_image_is_passed_on_where_it_was_allowed() -> None:
    body = sent(image("https://e.example/a.png"))
    assert body["messages"][0]["content"][0]["source"] == {"type": "url", "url": "https://e.example/a.png"}


# --- tools and thinking -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "choice"),
    [
        ({}, None),
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"parallel_tool_calls": True}, None),
        (
            {"tool_choice": {"type": "function", "function": {"name": "clock"}}, "parallel_tool_calls": False},
            {"type": "tool", "name": "clock", "disable_parallel_tool_use": True},
        ),
    ],
)
def test_choices(fields: dict[str, Any], choice: Any) -> None:
    assert sent(asked(tools=[TOOL], **fields)).get("tool_choice") == choice


@pytest.mark.parametrize(
    ("fields", "model", "thinking", "effort", "max_tokens"),
    [
        ({}, NEW, None, None, 4096),
        ({"reasoning_effort": "none"}, OLD, None, None, 4096),
        ({"reasoning_effort": "none"}, NEW, None, None, 4096),
        ({"reasoning_effort": "none"}, "claude-opus-5", {"type": "disabled"}, None, 4096),
        ({"reasoning_effort": "none"}, "claude-opus-5-5", {"type": "adaptive", "display": "omitted"}, "low", 4096),
        ({"reasoning_effort": "none"}, "claude-fable-5", {"type": "adaptive", "display": "omitted"}, "low", 4096),
        ({"reasoning_effort": "xhigh"}, "claude-opus-4-6", {"type": "adaptive", "display": "summarized"}, "high", 4096),
        ({"reasoning_effort": "max"}, "claude-sonnet-4-6", {"type": "adaptive", "display": "summarized"}, "max", 4096),
        ({"reasoning_effort": "medium"}, OLD, {"type": "enabled", "budget_tokens": 8192}, None, 12_288),
        ({"reasoning_effort": "high", "max_tokens": 4000}, OLD, {"type": "enabled", "budget_tokens": 2000}, None, 4000),
        ({"reasoning_effort": "high", "max_tokens": 2000}, OLD, None, None, 2000),
        ({"reasoning_effort": "minimal"}, NEW, {"type": "adaptive", "display": "summarized"}, "low", 4096),
        (
            {"reasoning": {"effort": "xhigh", "exclude": True}},
            NEW,
            {"type": "adaptive", "display": "omitted"},
            "xhigh",
            4096,
        ),
        ({"reasoning": {"enabled": True}}, NEW, {"type": "adaptive", "display": "summarized"}, None, 4096),
        ({"reasoning": {"max_tokens": 10}}, OLD, {"type": "enabled", "budget_tokens": 1024}, None, 5120),
        (
            {"reasoning": {"max_tokens": 2048, "summary": "auto"}, "max_completion_tokens": 2049},
            "claude-opus-4-6",
            {"type": "enabled", "budget_tokens": 2048, "display": "summarized"},
            None,
            2049,
        ),
        ({"reasoning_effort": "low"}, "kimi-k2", {"type": "enabled", "budget_tokens": 2048}, None, 6144),
    ],
)
def test_thinking(fields: dict[str, Any], model: str, thinking: Any, effort: Any, max_tokens: int) -> None:
    body = sent(asked(**fields), model)
    assert (body.get("thinking"), body.get("output_config", {}).get("effort")) == (thinking, effort)
    assert body["max_tokens"] == max_tokens


def test_models_without_budgets_take_none() -> None:
    assert refusal(asked(reasoning={"max_tokens": 2000}), NEW).param == "reasoning.max_tokens"
    both = sent(asked(reasoning={"max_tokens": 2000, "effort": "low"}), NEW)
    assert (both["thinking"]["type"], both["output_config"]) == ("adaptive", {"effort": "low"})
    assert sent(asked(reasoning_effort="low"), "mine", effort=True)["output_config"] == {"effort": "low"}


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("claude-3-5-sonnet-20241022", (3, 5)),
        ("claude-3-opus-20240229", (3, 0)),
        ("claude-sonnet-4-20250514", (4, 0)),
        ("claude-opus-4-1-20250805", (4, 1)),
        ("claude-haiku-4-5@20251001", (4, 5)),
        ("anthropic.claude-opus-4-6-v1:0", (4, 6)),
        ("claude-opus-5", (5, 0)),
        ("claude-sonnet-4.6", (4, 6)),
        ("gpt-4o", (0, 0)),
    ],
)
def test_generations(model: str, version: tuple[int, int]) -> None:
    assert version_of(model) == version


def test_the_default_limit_is_the_operators() -> None:
    assert sent(asked(), max_tokens=77)["max_tokens"] == 77
    assert sent(asked(max_completion_tokens=5), max_tokens=77)["max_tokens"] == 5
    assert sent(asked(), stream=True)["stream"] is True


def test_counting() -> None:
    request = asked([{"role": "system", "content": "s"}, USER], tools=[TOOL], temperature=0.5)
    ask = AnthropicOutbound().count(request, "claude")
    assert ask.path == "messages/count_tokens"
    assert complaints("CountMessageTokensParams", json.loads(ask.body)) == []
    assert parse_count(ask.body).request.messages == request.messages
    assert counted(count_body(12), "up") == 12
    for bad in (b"", b"{}", b'{"input_tokens":"1"}', b"\xff"):
        with pytest.raises(UpstreamFailed):
            counted(bad, "up")


def test_refusals_are_for_other_targets_to_take() -> None:
    assert isinstance(refusal(asked(seed=1)), UnsupportedParameter)


@pytest.mark.parametrize(
    "outbound",
    [OpenAIOutbound(), ResponsesOutbound(), Bedrock(), GEMINI, COHERE, AnthropicOutbound()],
    ids=lambda outbound: outbound.name,
)
def test_a_budget_for_thinking_is_understood_by_targets_of_every_dialect(outbound: Outbound) -> None:
    """Clients of the Messages API can give no effort on models that take budgets."""
    body = {
        "model": "m",
        "max_tokens": 4096,
        "messages": [USER],
        "thinking": {"type": "enabled", "budget_tokens": 2048},
    }
    request = parse(json.dumps(body).encode()).request
    for model in ("m", "anthropic.claude-opus-4-8"):
        asked_for = outbound.ask(request, model, stream=True).body.lower()
        assert b"2048" in asked_for or b"low" in asked_for
