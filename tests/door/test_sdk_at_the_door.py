"""OpenAI's own client against the door: answers it can use, errors of the classes it promises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from appliance.providers.upstream import Readiness
from tests.fakes.house import USER_KEY, House, open_house

MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        yield opened


def client(house: House, key: str = USER_KEY) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=key, max_retries=0)


async def test_chat(house: House) -> None:
    async with client(house) as sdk:
        answer = await sdk.chat.completions.create(model="local", messages=MESSAGES)
        assert answer.choices[0].message.content == "Paris is the capital of France."
        assert answer.usage is not None
        assert answer.usage.total_tokens == 13
        assert answer.id.startswith("chatcmpl-")
        stream = await sdk.chat.completions.create(
            model="local", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert said == "Paris is the capital of France."
        assert chunks[-1].usage is not None


async def test_tools(house: House) -> None:
    async with client(house) as sdk:
        asked: Any = [{"role": "user", "content": "!tool"}]
        answer = await sdk.chat.completions.create(model="local", messages=asked, tools=[WEATHER])
        message = answer.choices[0].message
        assert answer.choices[0].finish_reason == "tool_calls"
        assert message.tool_calls is not None
        # The answer goes back as the client's own object has it, with every field.
        following: Any = [*asked, message.model_dump(), {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}]
        answer = await sdk.chat.completions.create(model="local", messages=following, tools=[WEATHER])
        assert answer.choices[0].message.content
        assert house.engine.requests[-1].messages[1]["tool_calls"][0]["id"] == "call_1"  # type: ignore[index]


async def test_the_other_endpoints(house: House) -> None:
    async with client(house) as sdk:
        assert "local" in [model.id async for model in sdk.models.list()]
        assert (await sdk.models.retrieve("embedder")).id == "embedder"
        completion = await sdk.completions.create(model="local", prompt="The capital", max_tokens=16)
        assert completion.choices[0].text.startswith("Paris")
        vectors = await sdk.embeddings.create(model="embedder", input=["a", "b"])  # base64 on the wire
        assert vectors.data[1].embedding == pytest.approx([0.6, 0.8])


async def test_errors_have_their_classes(house: House) -> None:
    async with client(house, "op-wrong") as sdk:
        with pytest.raises(openai.AuthenticationError):
            await sdk.chat.completions.create(model="local", messages=MESSAGES)
    house.route("limited", "429-after")
    async with client(house) as sdk:
        with pytest.raises(openai.NotFoundError) as missing:
            await sdk.chat.completions.create(model="nope", messages=MESSAGES)
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as bad:
            await sdk.chat.completions.create(model="local", messages=MESSAGES, temperature=9)
        assert bad.value.param == "temperature"
        with pytest.raises(openai.RateLimitError) as limited:
            await sdk.chat.completions.create(model="limited", messages=MESSAGES)
        assert limited.value.response.headers["Retry-After"] == "7"
        house.readiness.append(Readiness(False, "starting", loading=True))
        with pytest.raises(openai.InternalServerError) as loading:
            await sdk.chat.completions.create(model="local", messages=MESSAGES)
        assert loading.value.status_code == 503
        assert loading.value.request_id == loading.value.response.headers["x-request-id"]


async def test_an_error_in_a_stream_is_raised(house: House) -> None:
    async with client(house) as sdk:
        stream = await sdk.chat.completions.create(
            model="local", messages=[{"role": "user", "content": "!dies"}], stream=True
        )
        said = ""
        with pytest.raises(openai.APIError) as caught:
            async for chunk in stream:
                said += chunk.choices[0].delta.content or ""
        assert said == "Paris is "
        assert caught.value.code == "engine_lost"


async def test_leaving_a_stream_frees_the_engine(house: House) -> None:
    async with client(house) as sdk:
        stream = await sdk.chat.completions.create(
            model="local", messages=[{"role": "user", "content": "!stall"}], stream=True
        )
        async for _ in stream:
            break
        await stream.close()
        await house.engine.ended.acquire()
    assert house.engine.cancelled == 1


@pytest.mark.parametrize("field", ["audio", "prediction", "web_search_options", "store", "reasoning_effort"])
async def test_what_is_not_supported_is_refused_by_name(house: House, field: str) -> None:
    values: dict[str, Any] = {
        "audio": {"voice": "alloy", "format": "wav"},
        "prediction": {"type": "content", "content": "x"},
        "web_search_options": {},
        "store": True,
        "reasoning_effort": "low",
    }
    async with client(house) as sdk:
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.chat.completions.create(model="local", messages=MESSAGES, **{field: values[field]})
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", field)
