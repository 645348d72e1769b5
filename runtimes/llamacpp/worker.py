"""A child process that does one dangerous thing at a time, under a clock.

Used for what a stranger can make endless or huge: rendering a model's chat template and compiling a
caller's grammar. The child limits its own memory, files and CPU; this side keeps the wall clock, kills a
child that is late, and starts a fresh one for the next call. Messages are JSON after a 4-byte length.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import struct
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from runtimes.engine import EngineError

log = logging.getLogger("engine")

UNKNOWN = 255
FROM_OUTSIDE = frozenset({-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, UNKNOWN})
"""Ends that a child does not bring upon itself. One that is late is sent SIGKILL here, and the kernel sends it when the
machine is out of memory; processor time that is used up ends in SIGXCPU, and the child's own memory in an exit."""

T = TypeVar("T")


class WorkerDied(EngineError):
    """There is no answer: by the child's own doing (out of memory, out of CPU time), or as ChildLost says."""


class ChildLost(WorkerDied):
    """There is no answer, and not by the doing of what was asked: the child was killed, is late without having used its
    processor time, or could not be started."""


class WorkerBroken(EngineError):
    """The child refused its set-up: `message` says why. Another start would not help."""


class Worker:
    """One child and its pipe. Calls queue up; a caller that leaves takes its place in the queue along."""

    def __init__(
        self, script: Path, setup: dict[str, Any], *, timeout_s: float = 1.0, start_timeout_s: float = 30.0
    ) -> None:
        self._script = script
        self._setup = msgspec.json.encode(setup)
        self._timeout_s = timeout_s
        self._start_timeout_s = start_timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._status: int | None = None
        """How the child ended during the current call; below zero: by which signal."""
        self._turn = asyncio.Lock()
        self._calls: set[asyncio.Task[dict[str, Any]]] = set()
        self._closed = False
        self.starts = 0
        """How many children have been started so far."""

    @property
    def pid(self) -> int | None:
        """The child's process id while one is alive."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the child now. Raises WorkerBroken with its reason, WorkerDied or ChildLost when it never answers."""
        async with self._turn:
            await self._judged(self._ensure())

    async def call(self, message: Any) -> dict[str, Any]:
        """Send one message and return the answer. Raises WorkerDied or ChildLost when there is none in time.

        Raises ValueError or TypeError when the message cannot be written as JSON.
        """
        body = msgspec.json.encode(message)
        # Who leaves while waiting leaves no work behind: a crowd that came and went must not keep the child busy.
        await self._turn.acquire()
        # An exchange that has begun runs to its end even when the caller leaves; otherwise its answer would
        # be taken for the next caller's. So the turn is the exchange's to give back, not the caller's.
        task = asyncio.ensure_future(self._call_child(body))
        self._calls.add(task)
        task.add_done_callback(self._end_turn)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Kill the child; later calls raise WorkerDied."""
        self._closed = True
        await self._kill()

    def _end_turn(self, task: asyncio.Task[dict[str, Any]]) -> None:
        self._turn.release()
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # the caller may be gone: mark the error as seen

    async def _call_child(self, body: bytes) -> dict[str, Any]:
        return await self._judged(self._ask(body))

    async def _ask(self, body: bytes) -> dict[str, Any]:
        await self._ensure()
        return await self._exchange(body, self._timeout_s)

    async def _judged(self, work: Awaitable[T]) -> T:
        """Tell what the child did (WorkerDied) from what befell it (ChildLost)."""
        self._status = None
        try:
            return await work
        except WorkerDied as error:
            if self._status is not None and self._status not in FROM_OUTSIDE:
                raise
            log.warning("%s: its process is lost: %s (status: %s)", self._script.stem, error.message, self._status)
            raise ChildLost(error.message) from None

    async def _ensure(self) -> None:
        if self._closed:
            raise WorkerDied("the engine is closing")
        if self._process is not None and self._process.returncode is None:
            return
        # Nothing of our environment goes along, except what the interpreter itself needs to load.
        environment = {k: v for k, v in os.environ.items() if k in {"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"}}
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-B",
                str(self._script),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=environment,
                cwd="/",
            )
        except OSError as error:
            raise WorkerDied(f"its process could not be started: {error.strerror}") from None
        self.starts += 1
        answer = await self._exchange(self._setup, self._start_timeout_s)
        if "failed" in answer:
            await self._kill()
            raise WorkerBroken(str(answer["failed"]))

    async def _exchange(self, body: bytes, timeout_s: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                process.stdin.write(struct.pack(">I", len(body)) + body)
                await process.stdin.drain()
                (size,) = struct.unpack(">I", await process.stdout.readexactly(4))
                answer: dict[str, Any] = msgspec.json.decode(await process.stdout.readexactly(size))
                return answer
        except TimeoutError:
            await self._kill()
            raise WorkerDied(f"it took longer than {timeout_s:g} s") from None
        except (OSError, asyncio.IncompleteReadError):
            await self._kill()
            raise WorkerDied("it used more memory or CPU time than it may") from None
        except BaseException:
            await self._kill()
            raise

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # Before the kill, which may reap the child unseen: asyncio can then only say UNKNOWN.
        status = _status_of(process.pid)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()
        self._status = process.returncode if status is None else status


def _status_of(pid: int) -> int | None:
    """How a child has ended whose end nobody has taken note of yet; below zero: by which signal."""
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
