"""What is sent to Converse, judged by the service's own model that botocore ships."""

from __future__ import annotations

import itertools
import json
from functools import cache
from typing import Any
from urllib.parse import unquote

import pytest
from botocore.loaders import Loader
from botocore.model import ServiceModel, Shape
from botocore.validate import ParamValidator
from hypothesis import given
from hypothesis import strategies as st

from appliance.dialects import chat
from appliance.dialects.bedrock.families import FAMILIES, family_of
from appliance.dialects.bedrock.outbound import FEATURES, STREAM_TYPE, Bedrock
from appliance.errors import BadRequest, UnsupportedParameter

CLAUDE = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"
NEWER = "global.anthropic.claude-opus-4-7"
BOTH = "anthropic.claude-opus-4-6-v1"
NOVA = "amazon.nova-2-lite-v1:0"
OPENAI = "openai.gpt-oss-120b-1:0"
LLAMA = "meta.llama3-3-70b-instruct-v1:0"
ARN = "arn:aws:bedrock:eu-central-1:123456789012:application-inference-profile/abc123"
MODELS = [CLAUDE, NEWER, NOVA, OPENAI, LLAMA, ARN]

PNG = "data:image/png;base64,iVBORw0KGgo="
PDF = "data:application/pdf;base64,JVBERi0="
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}


@cache
def shape() -> Shape:
    model = ServiceModel(Loader().load_service_model("bedrock-runtime", "service-2"), "bedrock-runtime")
    return model.operation_model("Converse").input_shape


def body(*, model: str = CLAUDE, **fields: Any) -> dict[str, Any]:
    """The body for a request, found sound by the service's model."""
    raw = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], **fields}
    ask = Bedrock().ask(chat.parse(json.dumps(raw).encode()), model, stream=False)
    written: dict[str, Any] = json.loads(ask.body)
    report = ParamValidator().validate({"modelId": model, **written}, shape())
    assert not report.has_errors(), report.generate_report()
    return written


def refused(param: str, *, model: str = CLAUDE, **fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        body(model=model, **fields)
    assert caught.value.param == param
    assert param.split("[")[0].split(".")[0] in caught.value.message
    return caught.value


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("stream", "operation"), [(True, "converse-stream"), (False, "converse")])
def test_the_path_names_the_model_in_one_segment(model: str, stream: bool, operation: str) -> None:
    request = chat.parse(b'{"model":"m","messages":[{"role":"user","content":"x"}]}')
    ask = Bedrock().ask(request, model, stream=stream)
    first, middle, last = ask.path.split("/")
    assert (first, unquote(middle), last) == ("model", model, operation)
    assert ask.headers["Accept"] == (STREAM_TYPE if stream else "application/json")


def test_a_plain_request() -> None:
    assert body(
        model="anthropic.claude-3-7-sonnet-20250219-v1:0",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": [{"type": "text", "text": "In German."}]},
            {"role": "user", "content": "Hello"},
        ],
        max_completion_tokens=50,
        temperature=0.5,
        top_p=0.9,
        stop=["END", "STOP"],
        top_k=7,
        user="ann",
        metadata={"a": "b"},
        n=1,
        presence_penalty=0,
        stream=True,
    ) == {
        "system": [{"text": "Be brief."}, {"text": "In German."}],
        "messages": [{"role": "user", "content": [{"text": "Hello"}]}],
        "inferenceConfig": {"maxTokens": 50, "temperature": 0.5, "topP": 0.9, "stopSequences": ["END", "STOP"]},
        "additionalModelRequestFields": {"top_k": 7},
        "additionalModelResponseFieldPaths": ["/stop_sequence"],
    }


def test_a_conversation_with_tools() -> None:
    details = [
        {"type": "reasoning.text", "text": "Hm.", "signature": "sig"},
        {"type": "reasoning.text", "text": "unsigned"},
        {"type": "reasoning.encrypted", "data": "c2VhbGVk"},
        {"type": "reasoning.encrypted", "data": "c2VhbGVk", "format": "google-gemini-v1"},
        {"type": "reasoning.encrypted", "data": "not base64"},
        {"type": "reasoning.summary", "summary": "s"},
    ]
    second = {"id": "x" * 100, "type": "function", "function": {"name": "now", "arguments": ""}}
    written = body(
        messages=[
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "I look.", "tool_calls": [CALL, second], "reasoning_details": details},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
            {"role": "tool", "tool_call_id": "x" * 100, "content": "", "is_error": True},
            {"role": "user", "content": "And now?"},
        ],
        tools=[WEATHER, {"type": "function", "function": {"name": "now", "description": "Time", "strict": True}}],
        tool_choice="required",
    )
    user, assistant, results = written["messages"]
    assert user == {"role": "user", "content": [{"text": "Weather?"}]}
    other = assistant["content"][4]["toolUse"].pop("toolUseId")
    assert assistant["content"] == [
        {"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "sig"}}},
        {"reasoningContent": {"redactedContent": "c2VhbGVk"}},
        {"text": "I look."},
        {"toolUse": {"toolUseId": "call_1", "name": "weather", "input": {"city": "Bern"}}},
        {"toolUse": {"name": "now", "input": {}}},
    ]
    assert results["role"] == "user"
    assert results["content"] == [
        {"toolResult": {"toolUseId": "call_1", "content": [{"text": "sunny"}]}},
        {"toolResult": {"toolUseId": other, "content": [{"text": "(nothing)"}], "status": "error"}},
        {"text": "And now?"},
    ]
    assert written["toolConfig"] == {
        "tools": [
            {"toolSpec": {"name": "weather", "inputSchema": {"json": WEATHER["function"]["parameters"]}}},  # type: ignore[index]
            {
                "toolSpec": {
                    "name": "now",
                    "description": "Time",
                    "inputSchema": {"json": {"type": "object", "properties": {}, "additionalProperties": False}},
                    "strict": True,
                }
            },
        ],
        "toolChoice": {"any": {}},
    }


def test_choices_of_tools() -> None:
    assert "toolChoice" not in body(tools=[WEATHER])["toolConfig"]
    assert "toolChoice" not in body(tools=[WEATHER], tool_choice="auto")["toolConfig"]
    named = {"type": "function", "function": {"name": "weather"}}
    assert body(tools=[WEATHER], tool_choice=named)["toolConfig"]["toolChoice"] == {"tool": {"name": "weather"}}
    assert "toolConfig" not in body(tools=[WEATHER], tool_choice="none")


def test_calls_without_their_tools_are_refused() -> None:
    called = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [CALL]}]
    refused("tools", messages=called)
    refused("tool_choice", messages=called, tools=[WEATHER], tool_choice="none")


def test_one_call_at_a_time() -> None:
    one = {"type": "auto", "disable_parallel_tool_use": True}
    asked: dict[str, Any] = {"tools": [WEATHER], "parallel_tool_calls": False}
    assert body(**asked)["additionalModelRequestFields"]["tool_choice"] == one
    forced = body(**asked, tool_choice="required")
    assert forced["additionalModelRequestFields"]["tool_choice"] == {"disable_parallel_tool_use": True}
    assert "additionalModelRequestFields" not in body(model=LLAMA, **asked)
    assert "additionalModelRequestFields" not in body(model=LLAMA, tools=[WEATHER], parallel_tool_calls=True)
    assert "additionalModelRequestFields" not in body(parallel_tool_calls=False)


def test_images_files_and_sounds_travel_as_bytes() -> None:
    url = {"url": PNG, "detail": "low"}
    content = [
        {"type": "text", "text": "Look:"},
        {"type": "image_url", "image_url": url},
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        {"type": "file", "file": {"filename": "Über/bericht_2024.pdf", "file_data": PDF}},
        {"type": "file", "file": {"filename": "Über/bericht_2024.pdf", "file_data": PDF}},
        {"type": "file", "file": {"filename": "notes.md", "file_data": "data:text/plain;charset=utf-8;base64,SGk="}},
        {"type": "file", "file": {"filename": "table.csv", "file_data": "YSxi"}},
        {"type": "file", "file": {"file_data": PDF}},
    ]
    blocks = body(messages=[{"role": "user", "content": content}])["messages"][0]["content"]
    assert blocks[1] == {"image": {"format": "png", "source": {"bytes": "iVBORw0KGgo="}}}
    assert blocks[2] == {"audio": {"format": "wav", "source": {"bytes": "UklGRg=="}}}
    assert [(b["document"]["name"], b["document"]["format"]) for b in blocks[3:]] == [
        ("ber bericht 2024", "pdf"),
        ("ber bericht 2024 2", "pdf"),
        ("notes", "md"),
        ("table", "csv"),
        ("document", "pdf"),
    ]
    assert blocks[3]["document"]["source"] == {"bytes": "JVBERi0="}


def test_a_tool_may_answer_with_a_file() -> None:
    file = {"type": "file", "file": {"filename": "a.pdf", "file_data": PDF}}
    messages = [
        {"role": "user", "content": [file]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": [file]},
    ]
    turns = body(messages=messages, tools=[WEATHER])["messages"]
    (inner,) = turns[2]["content"][0]["toolResult"]["content"]
    # Names of documents differ in a whole request.
    assert (turns[0]["content"][0]["document"]["name"], inner["document"]["name"]) == ("a", "a 2")


def test_a_tool_may_answer_with_an_image() -> None:
    result = [{"type": "text", "text": "seen"}, {"type": "image_url", "image_url": {"url": PNG}}]
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": result},
    ]
    inner = body(messages=messages, tools=[WEATHER])["messages"][2]["content"][0]["toolResult"]["content"]
    assert [next(iter(block)) for block in inner] == ["text", "image"]


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, "image_url.url"),
        ({"type": "image_url", "image_url": {"url": "data:image/tiff;base64,AAAA"}}, "image_url.url"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,AAAA"}}, "image_url.url"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}, "image_url.url"),
        ({"type": "file", "file": {"file_id": "file-1"}}, "file.file_id"),
        ({"type": "file", "file": {}}, "file"),
        ({"type": "file", "file": {"file_data": "data:application/zip;base64,AAAA"}}, "file.file_data"),
        ({"type": "file", "file": {"filename": "a.zip", "file_data": "AAAA"}}, "file.file_data"),
    ],
)
def test_what_is_not_in_the_request_or_has_no_form_is_refused(part: dict[str, Any], field: str) -> None:
    refused(f"messages[0].content[0].{field}", messages=[{"role": "user", "content": [part]}])


def marked(text: str, **more: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "cache_control": {"type": "ephemeral", **more}}


def test_cache_points() -> None:
    messages = [
        {"role": "system", "content": [marked("Rules", ttl="1h")]},
        {"role": "user", "content": [marked("Text", ttl="5m"), {"type": "text", "text": "more"}]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": [marked("sunny")]},
    ]
    tools = [{**WEATHER, "cache_control": {"type": "ephemeral"}}]
    point = {"cachePoint": {"type": "default"}}
    claude = body(messages=messages, tools=tools)
    assert claude["system"] == [{"text": "Rules"}, {"cachePoint": {"type": "default", "ttl": "1h"}}]
    assert claude["messages"][0]["content"] == [{"text": "Text"}, point, {"text": "more"}]
    assert claude["messages"][2]["content"][1:] == [point]
    assert claude["toolConfig"]["tools"][1:] == [point]
    nova = body(messages=messages, tools=tools, model=NOVA)
    assert len(nova["toolConfig"]["tools"]) == 1
    assert nova["messages"] == claude["messages"]
    assert "cachePoint" not in json.dumps(body(messages=messages, tools=tools, model=LLAMA))


def test_structured_output() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    named = {"name": "answer", "schema": schema, "description": "The answer", "strict": True}
    written = body(response_format={"type": "json_schema", "json_schema": named})
    form = written["outputConfig"]["textFormat"]
    definition = form["structure"]["jsonSchema"]
    assert json.loads(definition.pop("schema")) == schema
    assert form == {
        "type": "json_schema",
        "structure": {"jsonSchema": {"name": "answer", "description": "The answer"}},
    }
    refused("response_format.type", response_format={"type": "json_object"})
    nothing = {"type": "json_schema", "json_schema": {"name": "answer"}}
    refused("response_format.json_schema.schema", response_format=nothing)
    assert "outputConfig" not in body(response_format={"type": "text"})


@pytest.mark.parametrize(
    ("model", "asked", "fields", "effort"),
    [
        (CLAUDE, {"reasoning_effort": "low"}, {"thinking": {"type": "enabled", "budget_tokens": 2048}}, None),
        (CLAUDE, {"reasoning": {"max_tokens": 5000}}, {"thinking": {"type": "enabled", "budget_tokens": 5000}}, None),
        (
            CLAUDE,
            {"reasoning": {"enabled": True}, "max_tokens": 4000},
            {"thinking": {"type": "enabled", "budget_tokens": 2000}},
            None,
        ),
        (CLAUDE, {"reasoning_effort": "high", "max_tokens": 100}, {}, None),
        (CLAUDE, {"reasoning_effort": "none"}, {}, None),
        (CLAUDE, {"reasoning": {"exclude": True}}, {}, None),
        (NEWER, {"reasoning_effort": "xhigh"}, {"thinking": {"type": "adaptive", "display": "summarized"}}, "xhigh"),
        (NEWER, {"reasoning_effort": "minimal"}, {"thinking": {"type": "adaptive", "display": "summarized"}}, "low"),
        (
            NEWER,
            {"reasoning": {"enabled": True, "exclude": True}},
            {"thinking": {"type": "adaptive", "display": "omitted"}},
            "high",
        ),
        (BOTH, {"reasoning": {"max_tokens": 100}}, {"thinking": {"type": "enabled", "budget_tokens": 1024}}, None),
        (BOTH, {"reasoning_effort": "low"}, {"thinking": {"type": "adaptive", "display": "summarized"}}, "low"),
        (NEWER, {"reasoning": {"enabled": False}}, {}, None),
        ("anthropic.claude-opus-5", {"reasoning": {"enabled": False}}, {"thinking": {"type": "disabled"}}, None),
        (
            "anthropic.claude-opus-5-5",
            {"reasoning_effort": "none"},
            {"thinking": {"type": "adaptive", "display": "omitted"}},
            "low",
        ),
        (
            NOVA,
            {"reasoning_effort": "max"},
            {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "high"}},
            None,
        ),
        (NOVA, {"reasoning_effort": "none"}, {"reasoningConfig": {"type": "disabled"}}, None),
        (OPENAI, {"reasoning": {"effort": "medium"}}, {"reasoning_effort": "medium"}, None),
        (OPENAI, {"reasoning": {"enabled": True}}, {}, None),
        (ARN, {"reasoning_effort": "medium"}, {}, "medium"),
        (LLAMA, {"reasoning": {"enabled": True}}, {}, None),
    ],
)
def test_reasoning_in_the_makers_words(
    model: str, asked: dict[str, Any], fields: dict[str, Any], effort: str | None
) -> None:
    written = body(model=model, **asked)
    assert written.get("additionalModelRequestFields", {}) == fields
    assert written.get("outputConfig", {}).get("effort") == effort


@pytest.mark.parametrize("model", [NEWER, NOVA, OPENAI, LLAMA, ARN])
def test_a_budget_is_refused_where_there_is_none(model: str) -> None:
    refused("reasoning.max_tokens", model=model, reasoning={"max_tokens": 5000})


def test_reasoning_that_cannot_be() -> None:
    refused("reasoning.max_tokens", reasoning={"max_tokens": 100}, max_tokens=1024)
    refused("reasoning.max_tokens", reasoning={"max_tokens": 4000}, max_tokens=4000)
    refused("reasoning.max_tokens", reasoning={"max_tokens": "4000"})
    refused("reasoning.max_tokens", reasoning={"max_tokens": True})
    refused("reasoning.effort", reasoning={"effort": "enormous"})
    refused("reasoning", model=LLAMA, reasoning_effort="none")


def test_top_k_in_the_makers_words() -> None:
    wanted = {CLAUDE: {"top_k": 5}, NOVA: {"inferenceConfig": {"topK": 5}}, "cohere.command-r-v1:0": {"k": 5}}
    for model, fields in wanted.items():
        assert body(model=model, top_k=5)["additionalModelRequestFields"] == fields
    assert "additionalModelRequestFields" not in body(top_k=-1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("logprobs", True),
        ("logit_bias", {"1": 5}),
        ("min_p", 0.1),
        ("presence_penalty", -0.5),
        ("frequency_penalty", 0.5),
        ("repetition_penalty", 1.1),
        ("seed", 0),
        ("verbosity", "low"),
        ("temperature", 1.5),
    ],
)
def test_what_converse_has_no_notion_for_is_refused_by_name(field: str, value: Any) -> None:
    assert isinstance(refused(field, **{field: value}), UnsupportedParameter)


def test_arguments_must_be_an_object() -> None:
    for arguments in ("[1]", "{", "5"):
        call = {**CALL, "function": {"name": "weather", "arguments": arguments}}
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
        refused("messages[1].tool_calls[0].function.arguments", messages=messages, tools=[WEATHER])


def test_who_says_nothing_is_left_out_and_who_asks_nothing_is_told() -> None:
    silent = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": " "}]},
    ]
    assert body(messages=silent)["messages"] == [{"role": "user", "content": [{"text": "a"}, {"text": "b"}]}]
    refused("messages[1].content", messages=[silent[0], {"role": "user", "content": " \n"}])
    refused("messages", messages=[{"role": "system", "content": "Be brief."}])


def test_a_refusal_that_was_given_is_text() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "refusal": "No."}]
    assert body(messages=messages)["messages"][1]["content"] == [{"text": "No."}]


@pytest.mark.parametrize(
    ("model", "row"),
    [
        ("anthropic.claude-3-7-sonnet-20250219-v1:0", 0),
        ("us.anthropic.claude-opus-4-20250514-v1:0", 0),
        ("anthropic.claude-opus-4-1-20250805-v1:0", 0),
        ("global.anthropic.claude-haiku-4-5-20251001-v1:0", 0),
        ("anthropic.claude-sonnet-4", 0),
        ("anthropic.claude-opus-4-5", 0),
        ("anthropic.claude-v2:1", 0),
        ("anthropic.claude-opus-4-10", 2),
        ("anthropic.claude-opus-4-6-v1", 1),
        ("anthropic.claude-sonnet-4-6", 1),
        ("anthropic.claude-sonnet-5-20270101-v1:0", 2),
        (f"arn:aws:bedrock:us-east-1:123456789012:inference-profile/{NEWER}", 2),
        (NOVA, 3),
        (OPENAI, 4),
        (ARN, len(FAMILIES) - 1),
    ],
)
def test_families(model: str, row: int) -> None:
    assert family_of(model) is FAMILIES[row]


def test_what_may_be_needed_is_either_a_feature_or_refused() -> None:
    everything = {"logprobs", "logit_bias", "top_k", "min_p", "repetition_penalty", "reasoning", "verbosity"}
    assert everything - FEATURES == {"logprobs", "logit_bias", "min_p", "repetition_penalty", "verbosity"}


# --- whatever is asked, the service's model finds it sound ---------------------------------------

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.sampled_from(["weather", "now", "f-1"])
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)
user_parts = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text}, words),
    st.just({"type": "image_url", "image_url": {"url": PNG}}),
    st.builds(lambda name: {"type": "file", "file": {"filename": name, "file_data": PDF}}, words),
)
users = st.builds(
    lambda content: {"role": "user", "content": [*content, {"type": "text", "text": "x"}]}, st.lists(user_parts)
)
systems = st.builds(lambda text: {"role": "system", "content": text}, words)


@st.composite
def rounds(draw: st.DrawFn) -> list[dict[str, Any]]:
    """An assistant's message and the answers to its calls."""
    made = draw(st.lists(st.tuples(ids, names), max_size=3, unique_by=lambda call: call[0]))
    calls = [{"id": i, "type": "function", "function": {"name": n, "arguments": "{}"}} for i, n in made]
    answers = [{"role": "tool", "tool_call_id": i, "content": draw(words)} for i, _ in made]
    said: dict[str, Any] = {"role": "assistant", "content": draw(words)}
    return [said | ({"tool_calls": calls} if calls else {}), *answers]


@given(st.lists(systems, max_size=2), users, st.lists(st.tuples(rounds(), users), max_size=4), st.sampled_from(MODELS))
def test_conversations_keep_their_words_and_take_turns(
    before: list[dict[str, Any]],
    first: dict[str, Any],
    more: list[tuple[list[dict[str, Any]], dict[str, Any]]],
    model: str,
) -> None:
    messages = [*before, first]
    for answers, next_question in more:
        messages += [*answers, next_question]
    tools = [{"type": "function", "function": {"name": name}} for name in ("weather", "now", "f-1")]
    written = body(messages=messages, tools=tools, model=model)
    roles = [turn["role"] for turn in written["messages"]]
    assert roles[0] == "user"
    assert all(a != b for a, b in itertools.pairwise(roles))
    blocks = [block for turn in written["messages"] for block in turn["content"]]
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    asked = [p["text"] for m in messages if m["role"] == "user" for p in m["content"] if p["type"] == "text"]
    expected = [text for text in said + asked if text.strip()]
    assert sorted(block["text"] for block in blocks if "text" in block) == sorted(expected)
    used = [block["toolUse"]["toolUseId"] for block in blocks if "toolUse" in block]
    answered = [block["toolResult"]["toolUseId"] for block in blocks if "toolResult" in block]
    assert used == answered
    documents = [block["document"]["name"] for block in blocks if "document" in block]
    assert len(set(documents)) == len(documents)
