"""OpenAI's own Python client against the gateway: what it parses, streams, and which errors it raises."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Literal

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam
from pydantic import BaseModel, Field

from tests.gateway import CHAT, EMBEDDER, Gateway

pytestmark = pytest.mark.engine

PARIS: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
CALM: dict[str, Any] = {"model": CHAT, "temperature": 0, "max_tokens": 40}


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


class Car(BaseModel):
    """A car for sale."""

    colour: Colour
    doors: Literal[3, 5]
    brand: str = Field(max_length=20)
    former_owners: list[bool] = Field(max_length=3)
    price: int | None = Field(ge=0, le=99_999)


class GetWeather(BaseModel):
    """The weather of a city now."""

    city: str = Field(max_length=20)
    unit: Literal["celsius", "fahrenheit"]


# --- answers --------------------------------------------------------------------------------------


def test_the_capital_of_france_is_paris(gateway: Gateway) -> None:
    with gateway.openai() as client:
        whole = client.chat.completions.create(messages=PARIS, **CALM)
        text, usage = "", None
        for chunk in client.chat.completions.create(
            messages=PARIS, stream=True, stream_options={"include_usage": True}, **CALM
        ):
            text += chunk.choices[0].delta.content or "" if chunk.choices else ""
            usage = chunk.usage or usage
    assert "Paris" in (whole.choices[0].message.content or "")
    assert text == whole.choices[0].message.content
    assert whole.usage is not None and usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    assert whole._request_id


async def test_the_asynchronous_client_says_the_same(gateway: Gateway) -> None:
    async with gateway.async_openai() as client:
        whole = await client.chat.completions.create(messages=PARIS, **CALM)
        stream = await client.chat.completions.create(messages=PARIS, stream=True, **CALM)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert "Paris" in text and text == whole.choices[0].message.content


def test_the_stream_helper_puts_an_answer_together(gateway: Gateway) -> None:
    with (
        gateway.openai() as client,
        client.chat.completions.stream(
            messages=PARIS, logprobs=True, top_logprobs=2, stream_options={"include_usage": True}, **CALM
        ) as stream,
    ):
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done", "logprobs.content.delta", "logprobs.content.done"} <= kinds
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert answer.usage and answer.usage.total_tokens


async def test_the_asynchronous_stream_helper_leaves_early_without_harm(gateway: Gateway) -> None:
    async with gateway.async_openai() as client:
        async with client.chat.completions.stream(messages=PARIS, **{**CALM, "max_tokens": 2000}) as stream:
            async for event in stream:
                if event.type == "content.delta":
                    break
        again = await client.chat.completions.create(messages=PARIS, **CALM)
    assert again.choices[0].message.content


def test_a_pydantic_model_comes_back_filled(gateway: Gateway) -> None:
    with gateway.openai() as client:
        answer = client.chat.completions.parse(
            messages=[{"role": "user", "content": "Describe a car."}],
            response_format=Car,
            **{**CALM, "max_tokens": 200},
        )
    car = answer.choices[0].message.parsed
    assert isinstance(car, Car)


async def test_a_pydantic_model_can_be_streamed(gateway: Gateway) -> None:
    async with (
        gateway.async_openai() as client,
        client.chat.completions.stream(
            messages=[{"role": "user", "content": "Describe a car."}],
            response_format=Car,
            **{**CALM, "max_tokens": 200},
        ) as stream,
    ):
        kinds = {event.type async for event in stream}
        answer = await stream.get_final_completion()
    assert "content.delta" in kinds
    assert isinstance(answer.choices[0].message.parsed, Car)


def test_tools_come_back_as_pydantic_models(gateway: Gateway) -> None:
    tool = openai.pydantic_function_tool(GetWeather)
    asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the weather in Paris, in celsius?"}]
    wanted: dict[str, Any] = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    with gateway.openai() as client:
        whole = client.chat.completions.parse(messages=asked, **wanted, **{**CALM, "max_tokens": 100})
        with client.chat.completions.stream(messages=asked, **wanted, **{**CALM, "max_tokens": 100}) as stream:
            kinds = {event.type for event in stream}
            streamed = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    for answer in (whole, streamed):
        assert answer.choices[0].finish_reason == "tool_calls"
        calls = answer.choices[0].message.tool_calls or []
        assert [call.function.name for call in calls] == ["GetWeather"]
        assert isinstance(calls[0].function.parsed_arguments, GetWeather)


@pytest.mark.parametrize("ask", ["create", "parse"])
def test_a_tool_loop_runs_to_its_answer(gateway: Gateway, ask: str) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
    with gateway.openai() as client:
        tool = openai.pydantic_function_tool(GetWeather)
        first = getattr(client.chat.completions, ask)(
            messages=messages, tools=[tool], tool_choice="required", **{**CALM, "max_tokens": 200}
        )
        message = first.choices[0].message
        assert message.tool_calls
        messages.append(message)
        for call in message.tool_calls:
            assert call.type == "function"
            json.loads(call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "21 degrees and sunny"})
        last = client.chat.completions.create(messages=messages, tools=[tool], tool_choice="none", **CALM)
    assert last.choices[0].message.content


def test_completions_embeddings_and_models(gateway: Gateway) -> None:
    with gateway.openai() as client:
        text = client.completions.create(prompt="The capital of France is", **{**CALM, "max_tokens": 5})
        assert "Paris" in text.choices[0].text
        chunks = client.completions.create(prompt="The capital of France is", stream=True, **{**CALM, "max_tokens": 5})
        assert "".join(chunk.choices[0].text for chunk in chunks) == text.choices[0].text
        # The client asks for base64 by itself and unpacks it.
        packed = client.embeddings.create(model=EMBEDDER, input=["a", "b"])
        plain = client.embeddings.create(model=EMBEDDER, input=["a", "b"], encoding_format="float")
        for one, other in zip(packed.data, plain.data, strict=True):
            assert one.embedding == pytest.approx(other.embedding, abs=1e-5)
        assert CHAT in [model.id for model in client.models.list()]
        assert client.models.retrieve(EMBEDDER).id == EMBEDDER


# --- errors ---------------------------------------------------------------------------------------


def ask(client: openai.OpenAI, **fields: Any) -> ChatCompletion:
    answer: ChatCompletion = client.chat.completions.create(**{**CALM, "messages": PARIS, "max_tokens": 3, **fields})
    return answer


def test_a_wrong_key(gateway: Gateway) -> None:
    with gateway.openai(api_key="op-wrong") as client, pytest.raises(openai.AuthenticationError) as error:
        ask(client)
    assert (error.value.status_code, error.value.code) == (401, "invalid_api_key")
    assert error.value.request_id


def test_a_model_that_is_not_there(gateway: Gateway) -> None:
    with gateway.openai() as client:
        with pytest.raises(openai.NotFoundError) as error:
            ask(client, model="gpt-9")
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt-9")
    assert (error.value.status_code, error.value.code, error.value.param) == (404, "model_not_found", "model")


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "value": ({"temperature": 3}, "temperature", "invalid_value"),
    "type": ({"extra_body": {"max_tokens": "many"}}, "max_tokens", "invalid_type"),
    "unknown": ({"extra_body": {"colour": "red"}}, "colour", "unsupported_parameter"),
    "missing": ({"messages": []}, "messages", "invalid_value"),
    "deep": ({"messages": [*PARIS, {"role": "user", "content": 1}]}, "messages[2].content", "invalid_type"),
    "from-the-engine": ({"logit_bias": {"999999": 1}}, "logit_bias", "*"),
    "too-long": ({"messages": [{"role": "user", "content": "word " * 9000}]}, "messages", "context_length_exceeded"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request(gateway: Gateway, name: str, stream: bool) -> None:
    fields, param, code = BAD[name]
    with gateway.openai() as client, pytest.raises(openai.BadRequestError) as error:
        ask(client, stream=stream, **fields)
    assert error.value.status_code == 400
    assert error.value.param == param
    assert code in ("*", error.value.code)
    assert error.value.type == "invalid_request_error"


def test_an_upstream_that_is_busy(gateway: Gateway) -> None:
    with gateway.openai() as client:
        with pytest.raises(openai.RateLimitError) as error:
            ask(client, model="fake-429-after")
        with pytest.raises(openai.RateLimitError):
            ask(client, model="fake-429", stream=True)
    assert error.value.status_code == 429
    assert error.value.response.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("model", "status"), [("fake-500", 502), ("fake-401", 502), ("fake-503", 503), ("refused", 502)]
)
def test_an_upstream_that_fails(gateway: Gateway, model: str, status: int) -> None:
    with gateway.openai() as client, pytest.raises(openai.InternalServerError) as error:
        ask(client, model=model)
    assert error.value.status_code == status
    assert "sk-" not in str(error.value)


def test_a_stream_that_breaks_raises(gateway: Gateway, upstream: Any) -> None:
    upstream.call(upstream.fake.release.set)
    text = ""
    with gateway.openai() as client, pytest.raises(openai.APIError) as error:
        for chunk in client.chat.completions.create(model="fake-cut", messages=PARIS, stream=True):
            text += chunk.choices[0].delta.content or ""
    assert text == "Hello, "
    assert not isinstance(error.value, openai.APIStatusError), "the answer had begun with status 200"


NEVER_ENDING: dict[str, Any] = {
    "model": CHAT,
    "messages": PARIS,
    "stream": True,
    # The ids of the model's two ends of text.
    "logit_bias": {"0": -100, "2": -100},
}


async def test_a_model_that_loads_and_a_queue_that_is_full(new_gateway: Callable[..., Gateway]) -> None:
    narrow = {"name": CHAT, "model": CHAT, "engine": "llamacpp", "args": {"slots": 1, "max_waiting": 1}}
    gateway = new_gateway({"deployments": [narrow], "admission": {"max_waiting": 0}}, ready=False)
    with gateway.openai() as client:
        with pytest.raises(openai.InternalServerError) as error:
            ask(client)
        assert (error.value.status_code, error.value.code) == (503, "model_loading")
        assert int(error.value.response.headers["retry-after"]) >= 1
    # A client that tries again as the header says has its answer without knowing that it waited.
    with gateway.openai(max_retries=60) as patient:
        assert ask(patient).choices[0].message.content
    async with gateway.async_openai() as client:
        running = await client.chat.completions.create(**NEVER_ENDING)
        await anext(aiter(running))
        waiting = asyncio.create_task(client.chat.completions.create(**NEVER_ENDING))
        await asyncio.to_thread(
            gateway.wait_for, lambda: gateway.replicas(CHAT)[0]["status"].get("waiting"), "a request to wait", 60.0
        )
        with pytest.raises(openai.InternalServerError) as error:
            await client.chat.completions.create(model=CHAT, messages=PARIS)
        assert (error.value.status_code, error.value.code) == (503, "overloaded")
        assert int(error.value.response.headers["retry-after"]) >= 1
        await running.close()
        # The slot is free at once, and the one that waited goes on.
        await (await waiting).close()
