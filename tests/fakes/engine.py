"""An engine inside the test's own process: says what it was told to say, and fails when told to.

The text of a chat answer is `text`, one word a step; markers in the last message (or prompt) change that:
`!lost`, `!invalid`, `!context`, `!overloaded`, `!unsupported` raise at once; `!dies` loses the engine after two words;
`!hold` waits for `release` before the first word, `!stall` after two; `!tool` calls the first tool.
"""

from __future__ import annotations

import asyncio
import json
import math
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from runtimes import engine as e

ERRORS: dict[str, e.EngineError] = {
    "!lost": e.EngineLost("the engine is gone"),
    "!invalid": e.InvalidRequest("this schema is bad", param="response_format"),
    "!context": e.ContextLengthExceeded("9000 tokens do not fit into 8192", param="messages"),
    "!overloaded": e.EngineOverloaded("256 requests are waiting"),
    "!unsupported": e.Unsupported("no such thing", param="tools"),
    "!broken": e.EngineError("internal detail that nobody should see"),
}


class FakeEngine:
    """`requests` is what was asked; `running` and `cancelled` count generations; `ended` wakes when one is over."""

    def __init__(self, text: str = "Paris is the capital of France.") -> None:
        self.words = [word + " " for word in text.split()[:-1]] + text.split()[-1:]
        self.requests: list[e.GenerateRequest] = []
        self.running = 0
        self.cancelled = 0
        self.release = asyncio.Event()
        self.holding = asyncio.Semaphore(0)
        self.ended = asyncio.Semaphore(0)
        self.leases = 0

    @asynccontextmanager
    async def lease(self, request: object, partition: str) -> AsyncIterator[e.Engine]:
        self.leases += 1
        try:
            yield self
        finally:
            self.leases -= 1

    async def generate(self, request: e.GenerateRequest) -> AsyncIterator[list[e.Event]]:
        self.requests.append(request)
        said = _last_text(request)
        for marker, error in ERRORS.items():
            if marker in said:
                raise error
        self.running += 1
        finished = False
        try:
            yield [e.Started(prompt_tokens=7)]
            if "!hold" in said:
                await self._hold()
            if "!tool" in said:
                async for batch in self._call(request):
                    yield batch
            else:
                async for batch in self._speak(request, said):
                    yield batch
            finished = True
        finally:
            self.running -= 1
            self.cancelled += not finished
            self.ended.release()

    async def _hold(self) -> None:
        self.holding.release()
        await self.release.wait()

    async def _speak(self, request: e.GenerateRequest, said: str) -> AsyncIterator[list[e.Event]]:
        if request.echo and isinstance(request.prompt, str):
            yield [e.Delta(index=i, text=request.prompt) for i in range(request.n)]
        words = self.words[: request.max_tokens]
        for at, word in enumerate(words):
            if at == 2 and "!dies" in said:
                raise e.EngineLost("the engine process went away")
            if at == 2 and "!stall" in said:
                await self._hold()
            yield [e.Delta(index=i, text=word, logprobs=_logprobs(word, request)) for i in range(request.n)]
            await asyncio.sleep(0)
        reason: e.FinishReason = "stop" if len(words) == len(self.words) else "length"
        yield [
            *[e.Finished(reason, i) for i in range(request.n)],
            e.Usage(prompt_tokens=7, completion_tokens=len(words) * request.n, cached_tokens=3, queue_s=0.25),
        ]

    async def _call(self, request: e.GenerateRequest) -> AsyncIterator[list[e.Event]]:
        name = request.tools[0]["function"]["name"]
        arguments = json.dumps({"city": "Paris"})
        yield [e.Delta(tool_calls=[e.ToolCallDelta(0, "call_1", name)])]
        yield [e.Delta(tool_calls=[e.ToolCallDelta(0, arguments=arguments[:6])])]
        yield [e.Delta(tool_calls=[e.ToolCallDelta(0, arguments=arguments[6:])])]
        yield [e.Finished("tool_calls"), e.Usage(prompt_tokens=7, completion_tokens=5)]

    async def embed(self, request: e.EmbedRequest) -> e.Embeddings:
        vectors = [struct.pack("<2f", 0.6, 0.8) for _ in request.inputs]
        return e.Embeddings(vectors=vectors, dimensions=2, prompt_tokens=3 * len(vectors))

    async def count(self, request: e.CountRequest) -> int:
        return 7

    async def status(self) -> e.EngineStatus:
        return e.EngineStatus(model="fake", task="generate", context_length=8192, slots=8)

    async def close(self) -> None:
        self.release.set()


def _last_text(request: e.GenerateRequest) -> str:
    if request.messages is not None:
        content = request.messages[-1].get("content") or ""
        return content if isinstance(content, str) else " ".join(part["text"] for part in content)
    return request.prompt if isinstance(request.prompt, str) else ""


def _logprobs(word: str, request: e.GenerateRequest) -> list[e.PositionLogprobs]:
    if request.logprobs is None:
        return []
    chosen = e.TokenLogprob(word, -0.5, list(word.encode()))
    top = [chosen, e.TokenLogprob("other", -math.inf, list(b"other"))][: request.logprobs]
    return [e.PositionLogprobs(chosen, top)]
