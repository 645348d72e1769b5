"""Specs of fake engines, a client for them, and ways to wait for the end of any process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import select
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from runtimes.engine import CountRequest, Embeddings, EmbedRequest, EngineLost, EngineStatus, Event, GenerateRequest
from runtimes.supervisor import ReplicaSpec, ReplicaView, Rules, Supervisor
from runtimes.supervisor.machine import Phase

SCRIPT = Path(__file__).parents[1] / "fakes" / "fake_engine_process.py"
SOON = 20.0
"""Seconds that no test should ever need: only a bound for a test that fails."""


QUICK = Rules(term_grace_s=1.0, backoff_base_s=0.01, backoff_cap_s=0.05, probe_interval_s=0.05)
Make = Callable[..., Supervisor]


class FakeEngine:
    """Client of the fake engine process. Every pending request ends with EngineLost when the socket does."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._pending: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count()
        self._task = asyncio.create_task(self._read())
        self.lost = False

    @staticmethod
    async def connect(path: Path) -> FakeEngine:
        return FakeEngine(*await asyncio.open_unix_connection(path))

    async def ask(self, do: str) -> dict[str, Any]:
        if self.lost:
            raise EngineLost("the fake engine is gone")
        number = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        self._writer.write(json.dumps({"id": number, "do": do}).encode() + b"\n")
        try:
            return await future
        finally:
            self._pending.pop(number, None)

    async def status(self) -> EngineStatus:
        answer = await self.ask("status")
        return EngineStatus(model=str(answer["pid"]), task="generate", context_length=1, slots=1)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                answer = json.loads(line)
                if future := self._pending.get(answer["id"]):
                    future.set_result(answer)
        except OSError:
            pass  # the same as its end
        finally:
            self.lost = True
            for future in self._pending.values():
                if not future.done():
                    future.set_exception(EngineLost("the fake engine is gone"))

    def generate(self, request: GenerateRequest) -> AsyncIterator[list[Event]]:
        raise NotImplementedError

    async def embed(self, request: EmbedRequest) -> Embeddings:
        raise NotImplementedError

    async def count(self, request: CountRequest) -> int:
        raise NotImplementedError


async def warm_up(engine: Any) -> None:
    await engine.status()


def fake_spec(directory: Path, *options: str, name: str = "small", index: int = 0, **changes: Any) -> ReplicaSpec:
    socket = directory / "run" / f"{name}.{index}.sock"
    fields: dict[str, Any] = {
        "deployment": name,
        "index": index,
        "argv": [sys.executable, "-I", "-S", str(SCRIPT), str(socket), *options],
        "env": {},
        "socket_path": socket,
        "log_path": directory / "logs" / f"{name}.{index}.log",
        "connect": FakeEngine.connect,
        "warm_up": warm_up,
        "start_timeout_s": SOON,
        "drain_timeout_s": SOON,
    }
    return ReplicaSpec(**{**fields, **changes})


async def until(
    supervisor: Supervisor, condition: Callable[[ReplicaView], bool], *, name: str = "small", index: int = 0
) -> ReplicaView:
    """The first view of a replica that meets the condition, from now on."""
    subscription = supervisor.subscribe()
    try:
        async with asyncio.timeout(SOON):
            for view in supervisor.replicas(name):
                if view.index == index and condition(view):
                    return view
            async for view in subscription:
                if (view.deployment, view.index) == (name, index) and condition(view):
                    return view
    finally:
        subscription.close()
    raise AssertionError("the supervisor was stopped before")


async def until_state(supervisor: Supervisor, state: Phase, **where: Any) -> ReplicaView:
    return await until(supervisor, lambda view: view.state == state, **where)


def ended(pid: int, timeout: float = SOON) -> bool:
    """Wait until a process, of whatever parent, has exited."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], timeout)[0])
    finally:
        os.close(descriptor)


def living_group(group: int) -> list[int]:
    """Processes of a group that are more than a zombie."""
    return [pid for pid, fields in _processes() if int(fields[2]) == group and fields[0] not in "ZX"]


def zombie_children() -> list[int]:
    return [pid for pid, fields in _processes() if int(fields[1]) == os.getpid() and fields[0] in "ZX"]


def _processes() -> list[tuple[int, list[str]]]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                text = Path(entry.path, "stat").read_text()
            except OSError:
                continue
            found.append((int(entry.name), text.rpartition(")")[2].split()))
    return found


async def ready(supervisor: Supervisor, *specs: Any) -> None:
    await supervisor.start(specs)
    for name in {spec.deployment for spec in specs}:
        await supervisor.wait_ready(name, SOON)


async def ask(supervisor: Supervisor, do: str, *, name: str = "small") -> None:
    """One request under a lease."""
    async with supervisor.lease(name) as engine:
        assert isinstance(engine, FakeEngine)
        await engine.ask(do)
