"""A deployment as an upstream: what the client leaves open is the model's own choice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from appliance.dialects.kinds import CHAT
from appliance.dialects.tally import Tally
from appliance.providers.local import LocalUpstream
from appliance.providers.upstream import READY, Call, Capabilities
from runtimes.engine import Delta, Event, Finished, GenerateRequest, Started, Usage
from tests.fakes.sink import taken


class Listener:
    """An engine that answers "a" and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[GenerateRequest] = []

    async def generate(self, request: GenerateRequest) -> AsyncIterator[list[Event]]:
        self.asked.append(request)
        yield [Started(1), Delta(0, "a"), Finished("stop"), Usage(1, 1)]


async def sampled(body: dict[str, object], defaults: dict[str, float] | None) -> tuple[float, float]:
    engine = Listener()

    @asynccontextmanager
    async def lease(request: object, partition: str) -> AsyncIterator[Listener]:
        yield engine

    upstream = LocalUpstream("small", lease, Capabilities(frozenset({CHAT.name})), lambda: READY, defaults)  # type: ignore[arg-type]
    request = CHAT.parse(
        msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "x"}], **body}), 64
    ).request
    call = Call("1", 0, CHAT, request, "m", "p", 1.0, Tally())
    if request.stream:
        assert b'"a"' in await taken(await upstream.stream(call))
    else:
        assert b'"a"' in await upstream.whole(call)
    [asked] = engine.asked
    return asked.sampling.temperature, asked.sampling.top_p


@pytest.mark.parametrize("stream", [False, True])
async def test_sampling_that_the_client_leaves_open(stream: bool) -> None:
    recommended = {"temperature": 0.2, "top_p": 0.9}
    assert await sampled({"stream": stream}, recommended) == (0.2, 0.9)
    # The makers' top_p goes with their temperature: with another one it is OpenAI's.
    assert await sampled({"stream": stream, "temperature": 0}, recommended) == (0.0, 1.0)
    assert await sampled({"stream": stream, "temperature": 1}, recommended) == (1.0, 1.0)
    assert await sampled({"stream": stream, "top_p": 0.5}, recommended) == (0.2, 0.5)
    assert await sampled({"stream": stream, "temperature": 1, "top_p": 1}, recommended) == (1.0, 1.0)
    assert await sampled({"stream": stream}, None) == (1.0, 1.0)
