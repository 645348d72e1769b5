"""A real engine process without a gateway, and what its answers are made of."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from runtimes.engine import (
    Delta,
    EngineLost,
    EngineStatus,
    Event,
    Finished,
    GenerateRequest,
    Sampling,
    Started,
    Usage,
    Working,
)
from runtimes.llamacpp import launch
from runtimes.llamacpp.client import LlamaClient

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0
"""For a machine that has much else to do; a quiet one needs a hundredth of it."""
GREEDY = Sampling(temperature=0.0)


class EngineProcess:
    """One engine process on a socket of its own. Use it as a context manager; clients connect and go."""

    def __init__(self, model: Path, **settings: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="engine-", ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        self.settings = launch.LaunchSettings(
            **{
                "socket": str(folder / "s"),
                "model_path": str(model),
                "name": "model",
                "task": "generate",
                "context": 1024,
                "default_system": "You are a helpful assistant.",
                **settings,
            }
        )
        self.log_path = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EngineProcess:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                launch.argv(self.settings),
                cwd=ROOT,
                env={**os.environ, **launch.environment(self.settings)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + PATIENCE_S
        while not Path(self.settings.socket).exists():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < end, self.log()
            time.sleep(0.02)
        return self

    def __exit__(self, *exc: object) -> None:
        assert self.process is not None
        self.process.terminate()
        try:
            self.process.wait(20.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self._folder.cleanup()

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        assert self.process is not None
        return self.process.poll() is None

    def children(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]

    def resident(self) -> int:
        """Bytes of memory in use."""
        return int(psutil.Process(self.pid).memory_info().rss)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[LlamaClient]:
        """A connection; at its end every request that it still has is cancelled by the engine."""
        end = time.monotonic() + PATIENCE_S
        while True:
            with suppress(EngineLost):
                client = await launch.connect(Path(self.settings.socket))
                break
            assert self.alive, self.log()
            assert time.monotonic() < end, self.log()
            await asyncio.sleep(0.02)
        try:
            yield client
        finally:
            await client.close()


@dataclass
class Answer:
    """All that an engine said to one request."""

    text: dict[int, str] = field(default_factory=dict)
    tokens: dict[int, list[tuple[bytes, float]]] = field(default_factory=dict)
    """By choice, if logprobs were asked for: the bytes and the log-probability of each token."""
    reasons: dict[int, str] = field(default_factory=dict)
    usage: Usage | None = None
    prompt_tokens: int = 0
    began_s: float = 0.0
    first_s: float | None = None
    """Monotonic time of the first token."""
    ended_s: float = 0.0

    def take(self, events: Iterable[Event]) -> None:
        for event in events:
            assert self.usage is None, "something came after the usage"
            match event:
                case Started():
                    self.prompt_tokens = event.prompt_tokens
                case Delta():
                    assert event.index not in self.reasons, "a choice went on after its end"
                    self.first_s = self.first_s or time.monotonic()
                    self.text[event.index] = self.text.get(event.index, "") + event.text
                    self.tokens.setdefault(event.index, []).extend(
                        (bytes(position.chosen.bytes), position.chosen.logprob) for position in event.logprobs
                    )
                case Working():
                    assert self.prompt_tokens, "it works on a request that has not started"
                case Finished():
                    self.reasons[event.index] = event.reason
                case Usage():
                    self.usage = event
                    self.ended_s = time.monotonic()

    @property
    def content(self) -> tuple[dict[int, str], dict[int, list[tuple[bytes, float]]], dict[int, str]]:
        """What must not depend on what else the engine does."""
        return self.text, self.tokens, self.reasons


async def ask(client: LlamaClient, request: GenerateRequest) -> Answer:
    """The whole answer. Raises EngineError."""
    answer = Answer(began_s=time.monotonic())
    async with asyncio.timeout(PATIENCE_S):
        async for events in client.generate(request):
            answer.take(events)
    assert answer.usage is not None
    assert set(answer.reasons) == set(range(request.n))
    return answer


async def leave_after(client: LlamaClient, request: GenerateRequest, batches: int) -> None:
    """Ask, and go away after so many deliveries (0: at once)."""
    events = client.generate(request)
    asking = asyncio.ensure_future(anext(events))
    try:
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(batches):
                await asking
                asking = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)
    except StopAsyncIteration:
        return
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await events.aclose()  # type: ignore[attr-defined]  # the protocol says only that it is an iterator


async def status_when(
    client: LlamaClient, condition: Callable[[EngineStatus], bool], what: str, timeout: float = PATIENCE_S
) -> EngineStatus:
    """The first status that fulfils a condition."""
    end = time.monotonic() + timeout
    while True:
        status = await client.status()
        if condition(status):
            return status
        assert time.monotonic() < end, f"waited {timeout:g} s for {what}: {status}"
        await asyncio.sleep(0.002)


def idle(status: EngineStatus) -> bool:
    return not (status.busy or status.waiting or status.open_requests)
