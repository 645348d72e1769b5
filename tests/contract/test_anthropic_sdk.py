"""Anthropic's own Python client against the gateway, before every kind of provider: what it parses and raises."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, MessageParam, ToolParam
from pydantic import BaseModel

from tests.contract.able import KINDS, Able, route

PARIS: list[MessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "The weather of a city now.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CLOCK: ToolParam = {
    "name": "get_time",
    "description": "The time of day in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(32)).decode()


class Trip(BaseModel):
    """A journey."""

    city: str
    days: int


@pytest.fixture
def client(able: Able) -> Iterator[anthropic.Anthropic]:
    with able.anthropic() as client:
        yield client


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> str:
    return route(request.param)


def text_of(message: Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


# --- answers --------------------------------------------------------------------------------------


def test_a_message(client: anthropic.Anthropic, model: str) -> None:
    message = client.messages.create(model=model, max_tokens=100, messages=PARIS, system="Be brief.")
    assert text_of(message) == "The capital of France is Paris."
    assert (message.type, message.role, message.stop_reason) == ("message", "assistant", "end_turn")
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0
    assert message._request_id


def test_the_stream_helper_puts_a_message_together(client: anthropic.Anthropic, model: str) -> None:
    whole = client.messages.create(model=model, max_tokens=100, messages=PARIS)
    with client.messages.stream(model=model, max_tokens=100, messages=PARIS) as stream:
        events = list(stream)
        message = stream.get_final_message()
    kinds = [event.type for event in events]
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert {"text", "content_block_start", "content_block_delta", "content_block_stop", "message_delta"} <= set(kinds)
    assert kinds.count("content_block_delta") > 1, "the text comes in pieces"
    assert text_of(message) == text_of(whole)
    assert (message.stop_reason, message.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert message.usage.input_tokens == whole.usage.input_tokens


def test_plain_events_and_text_alone(client: anthropic.Anthropic, model: str) -> None:
    events = list(client.messages.create(model=model, max_tokens=100, messages=PARIS, stream=True))
    assert events[-1].type == "message_stop"
    with client.messages.stream(model=model, max_tokens=100, messages=PARIS) as stream:
        assert "".join(stream.text_stream) == "The capital of France is Paris."


async def test_the_asynchronous_client_says_the_same(able: Able, model: str) -> None:
    async with able.async_anthropic() as client:
        whole = await client.messages.create(model=model, max_tokens=100, messages=PARIS)
        async with client.messages.stream(model=model, max_tokens=100, messages=PARIS) as stream:
            streamed = await stream.get_final_message()
    assert text_of(whole) == text_of(streamed) == "The capital of France is Paris."


async def test_leaving_a_stream_does_no_harm(able: Able, model: str) -> None:
    async with able.async_anthropic() as client:
        async with client.messages.stream(model=model, max_tokens=100, messages=PARIS) as stream:
            async for _ in stream.text_stream:
                break
        again = await client.messages.create(model=model, max_tokens=100, messages=PARIS)
    assert text_of(again)


def test_most_tokens(client: anthropic.Anthropic, model: str) -> None:
    message = client.messages.create(model=model, max_tokens=3, messages=PARIS)
    assert (message.stop_reason, text_of(message)) == ("max_tokens", "The capital of")


def test_a_stop_sequence(client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        model=route("anthropic"), max_tokens=100, messages=PARIS, stop_sequences=[" France"]
    )
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " France")
    assert text_of(message) == "The capital of"


def test_a_conversation(client: anthropic.Anthropic, model: str) -> None:
    messages: list[MessageParam] = [
        {"role": "user", "content": "My name is Alice."},
        {"role": "assistant", "content": [{"type": "text", "text": "Hello Alice!"}]},
        {"role": "user", "content": [{"type": "text", "text": "What is my name?"}]},
    ]
    assert text_of(client.messages.create(model=model, max_tokens=20, messages=messages)) == "Alice"


def test_an_image(client: anthropic.Anthropic, model: str) -> None:
    source: Any = {"type": "base64", "media_type": "image/png", "data": PNG}
    content: Any = [{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}]
    message = client.messages.create(model=model, max_tokens=100, messages=[{"role": "user", "content": content}])
    assert text_of(message).startswith("I see 1 of what you sent")


def test_a_model_of_pydantic(client: anthropic.Anthropic, model: str) -> None:
    asked: list[MessageParam] = [{"role": "user", "content": "A trip to Rome for 3 days"}]
    message = client.messages.parse(model=model, max_tokens=300, messages=asked, output_format=Trip)
    assert message.parsed_output == Trip(city="Rome", days=3)


# --- tools ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_loop_runs_to_its_answer(client: anthropic.Anthropic, model: str, stream: bool) -> None:
    messages: list[MessageParam] = [{"role": "user", "content": "What is the weather in Paris?"}]

    def ask() -> Message:
        fields: dict[str, Any] = {"model": model, "max_tokens": 300, "messages": messages, "tools": [WEATHER, CLOCK]}
        if not stream:
            return client.messages.create(**fields)
        with client.messages.stream(**fields) as opened:
            return opened.get_final_message()

    first = ask()
    assert first.stop_reason == "tool_use"
    (use,) = [block for block in first.content if block.type == "tool_use"]
    assert (use.name, use.input) == ("get_weather", {"city": "Paris"})
    messages += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "21 degrees"}]},
    ]
    last = ask()
    assert last.stop_reason == "end_turn"
    assert text_of(last) == "The tool says: 21 degrees"


@pytest.mark.parametrize("stream", [False, True])
def test_the_runner_of_tools_goes_on_without_a_thread(client: anthropic.Anthropic, model: str, stream: bool) -> None:
    """It asks for a thread by itself, which is refused in the words that make it send whole conversations."""

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """The weather of a city now."""
        return f"21 degrees in {city}"

    asked: Any = {"role": "user", "content": "What is the weather in Paris?"}
    runner: Any = client.beta.messages.tool_runner(
        model=model, max_tokens=300, messages=[asked], tools=[get_weather], stream=stream
    )
    last = runner.until_done()
    assert [block.text for block in last.content if block.type == "text"] == ["The tool says: 21 degrees in Paris"]


@pytest.mark.parametrize("stream", [False, True])
def test_two_tools_at_once(client: anthropic.Anthropic, model: str, stream: bool) -> None:
    messages: list[MessageParam] = [{"role": "user", "content": "Tell me both the weather and the time in Oslo"}]
    fields: dict[str, Any] = {"model": model, "max_tokens": 300, "messages": messages, "tools": [WEATHER, CLOCK]}
    if stream:
        with client.messages.stream(**fields) as opened:
            first = opened.get_final_message()
    else:
        first = client.messages.create(**fields)
    uses = [block for block in first.content if block.type == "tool_use"]
    assert sorted((use.name, str(use.input)) for use in uses) == [
        ("get_time", "{'city': 'Oslo'}"),
        ("get_weather", "{'city': 'Oslo'}"),
    ]
    assert len({use.id for use in uses}) == 2
    results: Any = [{"type": "tool_result", "tool_use_id": use.id, "content": use.name} for use in uses]
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    last = client.messages.create(**fields)
    assert text_of(last) == "The tool says: " + "; ".join(use.name for use in uses)


def test_a_tool_that_must_be_called(client: anthropic.Anthropic, model: str) -> None:
    asked: list[MessageParam] = [{"role": "user", "content": "Hello!"}]
    fields: dict[str, Any] = {"model": model, "max_tokens": 300, "messages": asked, "tools": [WEATHER, CLOCK]}
    any_of = client.messages.create(**fields, tool_choice={"type": "any"})
    assert any_of.stop_reason == "tool_use"
    if model != route("cohere"):  # it has no notion of one tool; that is refused by name
        named = client.messages.create(**fields, tool_choice={"type": "tool", "name": "get_time"})
        assert [block.name for block in named.content if block.type == "tool_use"] == ["get_time"]


# --- thinking, counting ---------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_comes_before_the_text(client: anthropic.Anthropic, model: str, stream: bool) -> None:
    fields: dict[str, Any] = {
        "model": model,
        "max_tokens": 3000,
        "messages": PARIS,
        "thinking": {"type": "enabled", "budget_tokens": 2000},
    }
    if stream:
        with client.messages.stream(**fields) as opened:
            kinds = {event.type for event in opened}
            message = opened.get_final_message()
        assert "thinking" in kinds
    else:
        message = client.messages.create(**fields)
    thought, text = message.content
    assert thought.type == "thinking"
    assert thought.thinking.startswith("Let me look at this")
    assert text.type == "text"
    signed = model in (route("anthropic"), route("bedrock"))
    assert thought.signature == ("c2lnbmVk" if signed else thought.signature)
    again: list[MessageParam] = [
        *PARIS,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": "What is my name?"},
    ]
    assert text_of(client.messages.create(**{**fields, "messages": again})) == "Alice"


def test_tokens_are_counted(client: anthropic.Anthropic, model: str) -> None:
    short = client.messages.count_tokens(model=model, messages=PARIS)
    long = client.messages.count_tokens(model=model, messages=PARIS, system="word " * 500, tools=[WEATHER])
    assert 0 < short.input_tokens < long.input_tokens


def test_models_are_listed(client: anthropic.Anthropic) -> None:
    assert route("anthropic") in [model.id for model in client.models.list()]


# --- errors ---------------------------------------------------------------------------------------


def ask(client: anthropic.Anthropic, **fields: Any) -> Message:
    return client.messages.create(**{"model": route("anthropic"), "max_tokens": 10, "messages": PARIS, **fields})


def test_a_wrong_key(able: Able) -> None:
    with able.anthropic(api_key="op-wrong") as client, pytest.raises(anthropic.AuthenticationError) as error:
        ask(client)
    assert error.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
    assert error.value.request_id


def test_a_key_as_a_bearer(able: Able) -> None:
    with able.anthropic(api_key=None, auth_token=able.gateway.key) as client:
        assert text_of(ask(client))


def test_a_model_that_is_not_there(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as error:
        ask(client, model="claude-9")
    assert error.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]


BAD: dict[str, dict[str, Any]] = {
    "value": {"extra_body": {"temperature": 3}},
    "type": {"extra_body": {"max_tokens": "many"}},
    "unknown": {"extra_body": {"colour": "red"}},
    "missing": {"messages": []},
    "deep": {"messages": [*PARIS, {"role": "user", "content": 1}]},
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request(client: anthropic.Anthropic, name: str, stream: bool) -> None:
    with pytest.raises(anthropic.BadRequestError) as error:
        ask(client, stream=stream, **BAD[name])
    body: Any = error.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")


@pytest.mark.parametrize("kind", ["anthropic", "openai"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("behaviour", "raised"),
    [
        ("429-after", anthropic.RateLimitError),
        ("500", anthropic.InternalServerError),
        ("503", anthropic.InternalServerError),
        ("401", anthropic.InternalServerError),
        ("400", anthropic.BadRequestError),
        ("long-context", anthropic.BadRequestError),
        ("long-filtered", anthropic.BadRequestError),
    ],
)
def test_an_upstream_that_fails(
    client: anthropic.Anthropic, kind: str, stream: bool, behaviour: str, raised: type[anthropic.APIStatusError]
) -> None:
    with pytest.raises(raised) as error:
        ask(client, model=f"{kind}-{behaviour}", stream=stream)
    assert "sk-" not in str(error.value)
    if behaviour == "429-after":
        assert int(error.value.response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("kind", ["anthropic", "openai"])
def test_a_stream_that_breaks_raises(client: anthropic.Anthropic, kind: str) -> None:
    text = ""
    with (
        pytest.raises(anthropic.APIError),
        client.messages.stream(model=f"{kind}-cut", max_tokens=100, messages=PARIS) as stream,
    ):
        for piece in stream.text_stream:
            text += piece
    assert text == "Hello, "


async def test_many_at_once(able: Able) -> None:
    async with able.async_anthropic() as client:

        async def one(kind: str) -> str:
            async with client.messages.stream(model=route(kind), max_tokens=100, messages=PARIS) as stream:
                return text_of(await stream.get_final_message())

        answers = await asyncio.gather(*(one(kind) for kind in KINDS * 6))
    assert set(answers) == {"The capital of France is Paris."}
