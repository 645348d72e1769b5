"""How a llama.cpp replica is started and reached: the launcher's entry in the table of engines."""

from __future__ import annotations

import sys
from typing import Literal

import msgspec

from runtimes.engine import EmbedRequest, Engine, EngineError, GenerateRequest, Sampling, Usage
from runtimes.llamacpp.client import connect

__all__ = ["LaunchSettings", "argv", "connect", "environment", "warm_up"]


class LaunchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything an engine process needs to know; crosses the process border as one JSON argument."""

    socket: str
    model_path: str
    name: str
    task: Literal["generate", "embed"]
    context: int
    """Most tokens of one request, prompt and answer."""
    slots: int = 8
    """Requests that are computed at once."""
    threads: int = 0
    """0 = one for each processor that this process may use."""
    prefill_chunk: int = 256
    """Most prompt tokens computed in one step."""
    max_waiting: int = 256
    """Requests that may wait for a slot; more are refused as overloaded."""
    gpu_layers: int = 0
    flash_attention: bool = False
    default_system: str = ""
    """System message for chats that have none."""


def argv(settings: LaunchSettings) -> list[str]:
    """The command line of the engine process."""
    return [sys.executable, "-m", "runtimes.llamacpp.server", msgspec.json.encode(settings).decode()]


def environment(settings: LaunchSettings) -> dict[str, str]:
    """Environment of the engine process beside what the supervisor sets.

    OpenMP's threads spin for a while between two pieces of work and then sleep: spinning for ever
    ruins the machine for a busy neighbour, sleeping at once halves the speed of a quiet one.
    """
    return {"GOMP_SPINCOUNT": "1000"}


async def warm_up(engine: Engine) -> None:
    """Ask for a first answer, so that a replica is ready only when it really computes. Raises EngineError."""
    status = await engine.status()
    if status.task == "embed":
        await engine.embed(EmbedRequest(["warm up"]))
        return
    request = GenerateRequest(prompt="Hello", max_tokens=2, sampling=Sampling(temperature=0.0))
    last = None
    async for events in engine.generate(request):
        last = events[-1]
    if not isinstance(last, Usage):
        raise EngineError("the warm-up prompt got no complete answer")
