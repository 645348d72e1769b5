"""Agents of pydantic-ai through the gateway: tools, typed answers and streams, in each dialect that it speaks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits

from tests.contract.able import Able, lenient

CLIENTS = ("chat", "responses", "messages")
KINDS = ("openai", "anthropic", "gemini")
"""Of the provider behind each."""


class Trip(BaseModel):
    """A journey."""

    city: str
    days: int


Make = Callable[[str, str], Model]


@pytest.fixture
async def make(able: Able, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    # Anthropic's package has made a union of what pydantic-ai calls as a dictionary's type.
    monkeypatch.setattr("pydantic_ai.models.anthropic.BetaMessageParam", dict)
    async with able.gateway.async_openai() as openai, able.async_anthropic() as anthropic:

        def model(client: str, kind: str) -> Model:
            if client == "messages":
                # By the name it knows that the model keeps to schemas.
                return AnthropicModel(
                    f"claude-sonnet-4-5-{kind}", provider=AnthropicProvider(anthropic_client=anthropic)
                )
            provider = OpenAIProvider(openai_client=openai)
            if client == "chat":
                return OpenAIChatModel(lenient(kind), provider=provider)
            return OpenAIResponsesModel(lenient(kind), provider=provider)

        yield model


pytestmark = [pytest.mark.parametrize("client", CLIENTS), pytest.mark.parametrize("kind", KINDS)]


async def test_an_answer(make: Make, client: str, kind: str) -> None:
    result = await Agent(make(client, kind), instructions="Be brief.").run("What is the capital of France?")
    assert result.output == "The capital of France is Paris."
    assert result.usage.input_tokens > 0
    assert result.usage.output_tokens > 0


async def test_a_stream(make: Make, client: str, kind: str) -> None:
    pieces = []
    async with Agent(make(client, kind)).run_stream("What is the capital of France?") as result:
        async for piece in result.stream_text(delta=True, debounce_by=None):
            pieces.append(piece)
    assert "".join(pieces) == "The capital of France is Paris."
    assert len(pieces) > 1


@pytest.mark.parametrize("stream", [False, True])
async def test_tools(make: Make, client: str, kind: str, stream: bool) -> None:
    agent = Agent(make(client, kind))
    asked: list[str] = []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """The weather of a city now."""
        asked.append(city)
        return f"21 degrees in {city}"

    limits = UsageLimits(request_limit=3)
    if stream:
        async with agent.run_stream("What is the weather in Paris?", usage_limits=limits) as result:
            output = await result.get_output()
    else:
        output = (await agent.run("What is the weather in Paris?", usage_limits=limits)).output
    assert asked == ["Paris"]
    assert output == "The tool says: 21 degrees in Paris"


@pytest.mark.parametrize("way", [ToolOutput, NativeOutput, PromptedOutput])
@pytest.mark.parametrize("stream", [False, True])
async def test_typed_answers(make: Make, client: str, kind: str, way: type, stream: bool) -> None:
    agent = Agent(make(client, kind), output_type=way(Trip))
    prompt = "A trip to Rome for 3 days"
    if stream:
        async with agent.run_stream(prompt) as result:
            output = await result.get_output()
    else:
        output = (await agent.run(prompt)).output
    assert output == Trip(city="Rome", days=3)


async def test_an_image(make: Make, client: str, kind: str) -> None:
    image = BinaryContent(data=b"\x89PNG\r\n\x1a\n" + bytes(32), media_type="image/png")
    result = await Agent(make(client, kind)).run(["What is this?", image])
    assert result.output.startswith("I see 1 of what you sent")


async def test_a_conversation_goes_on(make: Make, client: str, kind: str) -> None:
    agent = Agent(make(client, kind))
    first = await agent.run("My name is Alice.")
    second = await agent.run("What is my name?", message_history=first.all_messages())
    assert second.output == "Alice"
