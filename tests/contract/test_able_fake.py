"""The able model of the fake upstream, looked at by the judges that will look at the gateway in front of it: what they
find here is a fault of the fake, not of the gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import llm_comply
import openai
import pytest
from botocore.eventstream import EventStreamBuffer
from llm_comply.config import ComplianceConfig
from llm_comply.result import TestStatus as Status
from llm_comply.runner import TestRunner as Runner
from llm_comply.schema import SpecLoader
from llm_comply.tests import get_tests
from pydantic import BaseModel

from tests.fakes.behaviours import LONG_TEXT
from tests.fakes.tongues import TONGUES, tongue_of
from tests.gateway import UpstreamThread

SUITES = {
    "openai-chat": ("openai_chat.json", "/v1", "capable~gpt-5"),
    "open-responses": ("openresponses.json", "/v1", "capable~gpt-5"),
    "anthropic": ("anthropic.json", "/v1", "capable~claude-sonnet-4"),
}
# The fake is asked by the gateway, which has looked at the request before.
GATEWAYS = {"chat-error-handling", "error-handling", "anth-error-handling", "compact-response", "compact-missing-model"}
CASES = [(suite, case.id) for suite in SUITES for case in get_tests(suite) if case.id not in GATEWAYS]


@pytest.fixture(scope="module")
def fake() -> Iterator[UpstreamThread]:
    with UpstreamThread() as upstream:
        yield upstream


@pytest.mark.parametrize(("suite", "name"), CASES)
def test_llm_comply_finds_nothing(fake: UpstreamThread, suite: str, name: str) -> None:
    spec, path, model = SUITES[suite]
    loader = SpecLoader(str(Path(llm_comply.__file__).parent / "specs" / spec))
    config = ComplianceConfig(base_url=fake.fake.root + path, api_key="any", model=model, timeout=20.0)
    case = next(case for case in get_tests(suite) if case.id == name)
    result = Runner(config, [], loader).run_one(case)
    assert (result.status, result.errors, result.warnings) == (Status.PASSED, [], [])


class Trip(BaseModel):
    """A journey."""

    city: str
    days: int
    by: list[str]


WEATHER: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def test_openais_client_reads_what_it_says(fake: UpstreamThread) -> None:
    with openai.OpenAI(base_url=fake.url, api_key="any", max_retries=0) as client:
        parsed = client.chat.completions.parse(
            model="capable", messages=[{"role": "user", "content": "A trip to Rome of 3 days"}], response_format=Trip
        )
        assert parsed.choices[0].message.parsed == Trip(city="Rome", days=3, by=["Rome"])
        answer = client.responses.parse(model="capable", input="A trip to Rome of 3 days", text_format=Trip)
        assert answer.output_parsed == Trip(city="Rome", days=3, by=["Rome"])
        with client.responses.stream(model="capable", input="Hi", reasoning={"effort": "low"}) as stream:
            final = list(stream)[-1]
        assert final.type == "response.completed"


def test_anthropics_client_reads_what_it_says(fake: UpstreamThread) -> None:
    with (
        anthropic.Anthropic(base_url=fake.fake.root, api_key="any", max_retries=0) as client,
        client.messages.stream(
            model="capable",
            max_tokens=3000,
            thinking={"type": "enabled", "budget_tokens": 2000},
            tools=[{"name": "get_weather", "input_schema": WEATHER}],
            messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        ) as stream,
    ):
        kinds = [block.type for block in stream.get_final_message().content]
    assert kinds == ["thinking", "tool_use"]


PATHS = {
    "openai": ("/v1/chat/completions", "/v1/chat/completions"),
    "responses": ("/v1/responses", "/v1/responses"),
    "anthropic": ("/v1/messages", "/v1/messages"),
    "gemini": (
        "/v1beta/models/{}:generateContent",
        "/v1beta/models/{}:streamGenerateContent?alt=sse",
    ),
    "bedrock": ("/model/{}/converse", "/model/{}/converse-stream"),
    "cohere": ("/v2/chat", "/v2/chat"),
}


def _post(fake: UpstreamThread, name: str, model: str, *, stream: bool, http: httpx.Client) -> httpx.Response:
    path = PATHS[name][stream].format(model)
    return http.post(fake.fake.root + path, json={"model": model, "stream": stream})


def test_the_path_says_the_dialect() -> None:
    found = {name: tongue_of(path.format("m")) for name, paths in PATHS.items() for path in paths}
    assert {name: tongue.name for name, tongue in found.items() if tongue is not None} == {n: n for n in PATHS}
    assert {tongue.name for tongue in TONGUES} == {*PATHS, "anthropic_count"}


def _texts(value: Any) -> Iterator[str]:
    """All texts in an answer, in their order."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("name", PATHS)
def test_each_dialect_says_the_same(fake: UpstreamThread, name: str) -> None:
    with httpx.Client(timeout=10.0) as http:
        whole = _post(fake, name, "long", stream=False, http=http)
        assert LONG_TEXT in list(_texts(whole.json()))
        streamed = _post(fake, name, "long", stream=True, http=http)
        for model in ("long-429-after", "long-context", "long-filtered", "long-no-prefill", "long-503"):
            answer = _post(fake, name, model, stream=True, http=http)
            assert answer.status_code >= 400 or model == "long-no-prefill"
    if name == "bedrock":
        buffer = EventStreamBuffer()
        buffer.add_data(streamed.content)
        events = [json.loads(event.payload) for event in buffer]
        assert streamed.headers["content-type"] == "application/vnd.amazon.eventstream"
    else:
        lines = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line.startswith("data: ")]
        events = [json.loads(line) for line in lines if line != "[DONE]"]
        assert streamed.headers["content-type"] == "text/event-stream"
    spoken = "".join(text for event in events for text in _texts(event) if text in {"Alpha", *LONG_PIECES})
    assert spoken == LONG_TEXT


LONG_PIECES = {f" {word}" for word in LONG_TEXT.split(" ")}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["long-cut", "long-reset", "long-bad-chunk", "long-closed", "long-reset-first"])
def test_connections_break_in_each_dialect(fake: UpstreamThread, name: str, stream: bool, model: str) -> None:
    with httpx.Client(timeout=10.0) as http, pytest.raises(httpx.TransportError):
        _post(fake, name, model, stream=stream, http=http)


CALL = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": ""}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
SHAPES: list[dict[str, Any]] = [
    {"messages": [{"role": "assistant"}]},
    {"messages": [{"role": "assistant", "content": None, "refusal": "No."}]},
    {"messages": [{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c1", "content": []}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"id": "c1", "type": "custom", "custom": {"name": "a"}}]}]},
    {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "a", "arguments": "{"}}]}]},
    {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "clock"}}},
    {"tools": [CLOCK], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}}},
    {
        "tools": [{"type": "custom", "custom": {"name": "a"}}],
        "tool_choice": {"type": "custom", "custom": {"name": "a"}},
    },
    {"tools": [], "tool_choice": None},
    {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "text"}, "stop": None, "n": None, "stream_options": None},
]


@pytest.mark.parametrize("at", range(len(SHAPES)))
def test_it_reads_whatever_a_chat_may_be(fake: UpstreamThread, at: int) -> None:
    user = {"role": "user", "content": "Hi"}
    body = {"model": "capable", **SHAPES[at], "messages": [user, *SHAPES[at].get("messages", ()), user]}
    for stream in (False, True):
        response = httpx.post(f"{fake.fake.root}/v1/chat/completions", json={**body, "stream": stream})
        assert response.status_code == 200, response.text
