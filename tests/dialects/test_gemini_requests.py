from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as how

from appliance.dialects import chat
from appliance.dialects.gemini_outbound import FEATURES, GEMINI, VERTEX
from appliance.errors import BadRequest, UnsupportedParameter
from tests.dialects.chat_requests import CLOCK, PIXEL, USER, WEATHER, asked, requests
from tests.dialects.vendor_shapes import google, unknown

NEW, OLD, PRO = "gemini-3-flash-preview", "gemini-2.5-flash", "gemini-2.5-pro"
URL = f"data:image/png;base64,{PIXEL}"
CALLED: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo", "n": 1e400}'}},
        {"id": "c2", "type": "function", "function": {"name": "clock", "arguments": ""}},
    ],
}
RESULTS: list[dict[str, Any]] = [
    {"role": "tool", "tool_call_id": "c1", "content": "cold"},
    {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "12:00"}], "is_error": True},
]


def sent(request: chat.ChatRequest, model: str = NEW, outbound: Any = GEMINI) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(outbound.ask(request, model, stream=False).body)
    return body


def config(model: str = NEW, **fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = sent(asked(**fields), model).get("generationConfig", {})
    return found


@pytest.mark.parametrize(
    ("model", "stream", "path"),
    [
        ("gemini-2.5-pro", False, "models/gemini-2.5-pro:generateContent"),
        ("gemini-2.5-pro", True, "models/gemini-2.5-pro:streamGenerateContent?alt=sse"),
        ("tunedModels/mine", False, "tunedModels/mine:generateContent"),
        ("a b?c#d:e", False, "models/a%20b%3Fc%23d%3Ae:generateContent"),
    ],
)
def test_where_it_asks(model: str, stream: bool, path: str) -> None:
    ask = GEMINI.ask(asked(), model, stream=stream)
    assert (ask.path, dict(ask.headers)) == (path, {})


def test_the_least_request() -> None:
    assert sent(asked()) == {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]}


def test_a_conversation_with_everything() -> None:
    user: dict[str, Any] = {
        "role": "user",
        "name": "Ann",
        "content": [
            {"type": "text", "text": "See", "cache_control": {"type": "ephemeral"}},
            {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,BBBB"}},
        ],
    }
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        user,
        CALLED,
        *RESULTS,
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]},
        {"role": "assistant", "content": ""},
        USER,
    ]
    body = sent(asked(messages, tools=[WEATHER, CLOCK], tool_choice="auto"), OLD)
    assert body == {
        "systemInstruction": {"parts": [{"text": "Be brief."}, {"text": "Be kind."}]},
        "contents": [
            {
                "role": "user",
                "parts": [
                    {"text": "Ann: See"},
                    {"inlineData": {"mimeType": "image/png", "data": PIXEL}},
                    {"inlineData": {"mimeType": "audio/mp3", "data": "AAAA"}},
                    {"inlineData": {"mimeType": "application/pdf", "data": "BBBB"}},
                ],
            },
            {
                "role": "model",
                "parts": [
                    {"functionCall": {"id": "c1", "name": "weather", "args": {"city": "Oslo", "n": float("inf")}}},
                    {"functionCall": {"id": "c2", "name": "clock", "args": {}}},
                ],
            },
            {
                "role": "user",
                "parts": [
                    {"functionResponse": {"id": "c1", "name": "weather", "response": {"output": "cold"}}},
                    {"functionResponse": {"id": "c2", "name": "clock", "response": {"error": "12:00"}}},
                ],
            },
            {"role": "model", "parts": [{"text": "a"}, {"text": "b"}]},
            {"role": "user", "parts": [{"text": "Hi"}]},
        ],
        "tools": [
            {
                "functionDeclarations": [
                    {
                        "name": "weather",
                        "description": "The weather of a place.",
                        "parametersJsonSchema": WEATHER["function"]["parameters"],
                    },
                    {"name": "clock", "description": "clock"},
                ]
            }
        ],
        "toolConfig": {"functionCallingConfig": {"mode": "AUTO"}},
    }
    # Numbers pass as they were written.
    assert b'"n": 1e400' in GEMINI.ask(asked(messages), OLD, stream=False).body


def test_vertex_knows_no_ids_of_calls() -> None:
    body = sent(asked([USER, CALLED, *RESULTS]), OLD, VERTEX)
    assert b'"id"' not in json.dumps(body).encode()
    assert [part["functionResponse"]["name"] for part in body["contents"][2]["parts"]] == ["weather", "clock"]


@pytest.mark.parametrize(
    ("choice", "calling"),
    [
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        ({"type": "function", "function": {"name": "clock"}}, {"mode": "ANY", "allowedFunctionNames": ["clock"]}),
    ],
)
def test_tool_choice(choice: Any, calling: dict[str, Any]) -> None:
    body = sent(asked(tools=[WEATHER, CLOCK], tool_choice=choice))
    assert body["toolConfig"] == {"functionCallingConfig": calling}


def test_images_in_results_go_where_the_model_takes_them() -> None:
    result = {
        "role": "tool",
        "tool_call_id": "c1",
        "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": URL}}],
    }
    image = {"inlineData": {"mimeType": "image/png", "data": PIXEL}}
    new = sent(asked([USER, CALLED, result, RESULTS[1]]), NEW)["contents"][2]["parts"]
    assert (len(new), new[0]["functionResponse"]["parts"]) == (2, [image])
    old = sent(asked([USER, CALLED, result, RESULTS[1]]), OLD)["contents"][2]["parts"]
    assert "parts" not in old[0]["functionResponse"]
    assert old[2] == image


def test_files_in_results_go_where_the_model_takes_them() -> None:
    file = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}}
    result = {"role": "tool", "tool_call_id": "c1", "content": [file]}
    made = {"inlineData": {"mimeType": "application/pdf", "data": "JVBERg=="}}
    assert sent(asked([USER, CALLED, result]), NEW)["contents"][2]["parts"][0]["functionResponse"]["parts"] == [made]
    assert sent(asked([USER, CALLED, result]), OLD)["contents"][2]["parts"][1] == made


def test_the_settings() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert config(
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        presence_penalty=-1,
        frequency_penalty=1,
        stop=["a", "b"],
        n=2,
        seed=5,
        logprobs=True,
        top_logprobs=2,
        user="u",
        metadata={"a": "b"},
        response_format={"type": "json_schema", "json_schema": {"name": "s", "description": "D", "schema": schema}},
    ) == {
        "maxOutputTokens": 7,
        "temperature": 0.5,
        "topP": 0.9,
        "topK": 3,
        "presencePenalty": -1,
        "frequencyPenalty": 1,
        "stopSequences": ["a", "b"],
        "candidateCount": 2,
        "seed": 5,
        "responseLogprobs": True,
        "logprobs": 2,
        "responseMimeType": "application/json",
        "responseJsonSchema": {**schema, "description": "D"},
    }
    assert config(response_format={"type": "json_object"}) == {"responseMimeType": "application/json"}
    assert config(top_k=-1, response_format={"type": "text"}) == {}


@pytest.mark.parametrize(
    ("model", "fields", "thinking"),
    [
        (NEW, {"reasoning_effort": "low"}, {"includeThoughts": True, "thinkingLevel": "LOW"}),
        (NEW, {"reasoning_effort": "none"}, {"includeThoughts": False, "thinkingLevel": "MINIMAL"}),
        ("gemini-3-pro-preview", {"reasoning_effort": "none"}, {"includeThoughts": False, "thinkingLevel": "LOW"}),
        ("gemini-flash-latest", {"reasoning_effort": "max"}, {"includeThoughts": True, "thinkingLevel": "HIGH"}),
        (OLD, {"reasoning_effort": "medium"}, {"includeThoughts": True, "thinkingBudget": 8192}),
        (OLD, {"reasoning_effort": "none"}, {"includeThoughts": False, "thinkingBudget": 0}),
        (PRO, {"reasoning_effort": "none"}, {"includeThoughts": False, "thinkingBudget": 128}),
        (NEW, {"reasoning": {"max_tokens": 99}}, {"includeThoughts": True, "thinkingBudget": 99}),
        (NEW, {"reasoning": {"effort": "high"}}, {"includeThoughts": True, "thinkingLevel": "HIGH"}),
        (OLD, {"reasoning": {"enabled": False, "max_tokens": 9}}, {"includeThoughts": False, "thinkingBudget": 0}),
        (OLD, {"reasoning": {"enabled": True}}, {"includeThoughts": True}),
        (OLD, {"reasoning": {"max_tokens": 9, "exclude": True}}, {"includeThoughts": False, "thinkingBudget": 9}),
        (OLD, {}, None),
    ],
)
def test_thinking(model: str, fields: dict[str, Any], thinking: dict[str, Any] | None) -> None:
    assert config(model, **fields).get("thinkingConfig") == thinking


def detail(data: str) -> dict[str, Any]:
    return {"type": "reasoning.encrypted", "data": data, "index": 0}


def test_signatures_go_back_to_where_they_came_from() -> None:
    details = [
        {"type": "reasoning.text", "text": "Hm.", "signature": "not Google's"},
        detail("another maker's"),
        detail("gemini:thought::T="),
        detail("gemini:text::X="),
        detail("gemini:call:c2:Y="),
        detail("gemini:new:c2:Z="),
    ]
    message = {**CALLED, "content": "Wait.", "reasoning_content": "Hm.", "reasoning_details": details}
    parts = sent(asked([USER, message, *RESULTS]))["contents"][1]["parts"]
    assert parts[:2] == [
        {"thought": True, "text": "Hm.", "thoughtSignature": "T="},
        {"text": "Wait.", "thoughtSignature": "X="},
    ]
    assert [part.get("thoughtSignature") for part in parts[2:]] == [None, "Y="]


def test_a_signature_of_a_text_that_is_not_there_has_a_part_of_its_own() -> None:
    message = {**CALLED, "reasoning_details": [detail("gemini:text::X=")]}
    assert sent(asked([USER, message, *RESULTS]))["contents"][1]["parts"][0] == {"text": "", "thoughtSignature": "X="}


@pytest.mark.parametrize(("model", "marked"), [(NEW, "skip_thought_signature_validator"), (OLD, None)])
def test_calls_of_other_models_are_said_to_be_unsigned_where_that_matters(model: str, marked: str | None) -> None:
    parts = sent(asked([USER, CALLED, *RESULTS]), model)["contents"][1]["parts"]
    assert [part.get("thoughtSignature") for part in parts] == [marked, None]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"min_p": 0.1}, "min_p"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"verbosity": "low"}, "verbosity"),
        ({"n": 9}, "n"),
    ],
)
def test_what_it_has_no_notion_for_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(UnsupportedParameter, match=param) as caught:
        sent(asked(**fields))
    assert caught.value.param == param
    assert all(feature not in FEATURES for feature, field, _ in chat.needs(asked(**fields)) if field == param)


def test_what_says_nothing_is_not_refused() -> None:
    assert "tools" not in sent(asked(logit_bias={}, min_p=0, repetition_penalty=1, n=1, parallel_tool_calls=False))


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}, "image_url.url"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,plain"}}, "image_url.url"),
        ({"type": "file", "file": {"file_id": "f"}}, "file.file_id"),
        ({"type": "file", "file": {}}, "file.file_data"),
    ],
)
def test_media_travel_in_the_request(part: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        sent(asked([{"role": "user", "content": [part]}]))
    assert caught.value.param == f"messages[0].content[0].{param}"


@pytest.mark.parametrize("arguments", ["[1]", "{", "no", '{"a":1} b', "[" * 100_000])
def test_arguments_that_are_no_object_are_named(arguments: str) -> None:
    called: dict[str, Any] = {**CALLED, "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": arguments}}]}
    with pytest.raises(BadRequest, match=r"messages\[1\].tool_calls\[0\].function.arguments"):
        sent(asked([USER, called]))


def test_there_must_be_something_to_answer() -> None:
    with pytest.raises(BadRequest, match="messages"):
        sent(asked([{"role": "system", "content": "Be brief."}]))


def test_what_to_think_is_checked() -> None:
    for wish in ({"effort": "much"}, {"effort": ["low"]}, {"max_tokens": 0}, {"max_tokens": True}, {"max_tokens": "9"}):
        with pytest.raises(BadRequest, match="reasoning"):
            sent(asked(reasoning=wish))


def meaning_of(request: chat.ChatRequest) -> list[tuple[str, ...]]:
    """What a request says, in short: all systems first."""
    said: list[tuple[str, ...]] = []
    for message in request.messages:
        role = "system" if message.__struct_config__.tag == "developer" else str(message.__struct_config__.tag)
        content = [chat.TextPart(message.content)] if isinstance(message.content, str) else message.content or []
        for part in content:
            if isinstance(message, chat.ToolMessage):
                said.append((role, message.tool_call_id, getattr(part, "text", "")))
            else:
                said.append((role, part.text if isinstance(part, chat.TextPart) else PIXEL))
        for call in getattr(message, "tool_calls", None) or ():
            said.append(("call", call.id, call.function.name, json.dumps(json.loads(call.function.arguments))))
    return sorted(said, key=lambda each: each[0] != "system")


def read_back(body: dict[str, Any]) -> list[tuple[str, ...]]:
    said: list[tuple[str, ...]] = [
        ("system", part["text"]) for part in body.get("systemInstruction", {}).get("parts", ())
    ]
    for content in body["contents"]:
        for part in content["parts"]:
            if "functionCall" in part:
                call = part["functionCall"]
                said.append(("call", call["id"], call["name"], json.dumps(call["args"])))
            elif "functionResponse" in part:
                response = part["functionResponse"]
                said.append(("tool", response["id"], response["response"]["output"]))
            else:
                role = "assistant" if content["role"] == "model" else "user"
                said.append((role, part["text"] if "text" in part else part["inlineData"]["data"]))
    return said


@given(requests())
def test_nothing_that_was_said_is_lost(request: chat.ChatRequest) -> None:
    assert read_back(sent(request)) == meaning_of(request)


@how(deadline=None)  # the first one reads the description
@given(requests())
def test_every_body_is_one_that_google_describes(request: chat.ChatRequest) -> None:
    gemini, vertex = google("gemini"), google("vertex")
    for model in (NEW, OLD):
        body = sent(request, model)
        assert unknown(body, gemini["GenerateContentRequest"], gemini) == []
        body = sent(request, model, VERTEX)
        assert unknown(body, vertex["GoogleCloudAiplatformV1GenerateContentRequest"], vertex) == []
