"""A deployment that works on several choices says of each when it is done, so that others can have its place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from appliance.dialects.kinds import CHAT, COMPLETIONS, Kind
from appliance.dialects.tally import Tally
from appliance.providers.local import LocalUpstream
from appliance.providers.upstream import READY, Call, Capabilities
from runtimes.engine import Delta, Event, Finished, GenerateRequest, Started, Usage
from tests.fakes.sink import taken


class Staggered:
    """An engine whose choices end one after the other, and that notes how many it was told of before each step."""

    def __init__(self) -> None:
        self.ended = 0
        self.seen: list[int] = []

    async def generate(self, request: GenerateRequest) -> AsyncIterator[list[Event]]:
        yield [Started(1), *(Delta(index, "a") for index in range(request.n))]
        for index in range(request.n - 1):
            yield [Finished("stop", index)]
            self.seen.append(self.ended)
        yield [Finished("length", request.n - 1), Usage(1, request.n)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "body", "choices"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x"}]}, 1),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "n": 3}, 3),
        (COMPLETIONS, {"prompt": ["x", "y"], "n": 2}, 4),
    ],
)
async def test_each_choice_that_is_complete_is_told_at_once(
    kind: Kind, body: dict[str, Any], choices: int, stream: bool
) -> None:
    engine = Staggered()

    @asynccontextmanager
    async def lease(request: object, partition: str) -> AsyncIterator[Staggered]:
        yield engine

    def ended() -> None:
        engine.ended += 1

    upstream = LocalUpstream("small", lease, Capabilities(frozenset({kind.name})), lambda: READY)  # type: ignore[arg-type]
    request = kind.parse(msgspec.json.encode({"model": "m", "stream": stream, **body}), 64).request
    call = Call("1", 0, kind, request, "m", "p", 1.0, Tally(), ended=ended)
    if stream:
        await taken(await upstream.stream(call))
    else:
        await upstream.whole(call)
    assert engine.ended == choices
    assert all(count >= 1 for count in engine.seen)
    assert len(engine.seen) == choices - (2 if kind is COMPLETIONS else 1)
