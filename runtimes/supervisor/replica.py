"""One replica: its state, and the hands of its machine."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from runtimes.engine import Engine, EngineError, EngineLost, EngineStatus
from runtimes.supervisor import machine as m
from runtimes.supervisor.process import Launcher, Process
from runtimes.supervisor.spec import ReplicaSpec

log = logging.getLogger(__name__)

CONNECT_PAUSE_S = 0.02
CLOSE_TIMEOUT_S = 2.0


class ReplicaView(msgspec.Struct, frozen=True):
    """One replica as others may see it, at one moment."""

    deployment: str
    index: int
    state: m.Phase
    since: float
    """Unix time, in seconds, of the entry into `state`."""
    reason: str
    """Why it is in this state. The first line is plain words; further ones may be of the engine's log."""
    pid: int | None
    restarts: int
    """Processes that were started after the first one."""
    in_flight: int
    status: EngineStatus | None
    """The engine's last answer to a probe; None when this process has not been probed yet."""


class Replica:
    """One replica's state and the hands of its machine: carries out effects, and turns what happens into events."""

    def __init__(
        self,
        spec: ReplicaSpec,
        defaults: m.Rules,
        post: Callable[[Replica, m.Event], None],
        launcher: Launcher,
        jitter: Callable[[], float],
    ) -> None:
        self.state = m.ReplicaState()
        self.entered_at = 0.0
        self.removed = False
        """It has left the configuration and goes as soon as it has stopped."""
        self.timer: asyncio.TimerHandle | None = None
        self.due: float | None = None
        self.engine: Engine | None = None
        self._post = post
        self._launcher = launcher
        self._jitter = jitter
        self._process: Process | None = None
        self._status: EngineStatus | None = None
        self._work: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.adopt(spec, defaults)

    def adopt(self, spec: ReplicaSpec, defaults: m.Rules) -> None:
        self.spec = spec
        self.rules = msgspec.structs.replace(
            defaults, start_timeout_s=spec.start_timeout_s, drain_timeout_s=spec.drain_timeout_s
        )

    def post(self, event: m.Event) -> None:
        self._post(self, event)

    def view(self, now: float) -> ReplicaView:
        """As it is at this moment of the machine's clock."""
        return ReplicaView(
            deployment=self.spec.deployment,
            index=self.spec.index,
            state=self.state.phase,
            since=self.entered_at,
            reason=m.reason_at(self.state, now),
            pid=self._process.pid if self._process else None,
            restarts=max(0, self.state.attempt - 1),
            in_flight=self.state.leases,
            status=self._status,
        )

    async def settle(self) -> None:
        """Wait, for a bounded time, until given-up connections are closed and given-up work has ended."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2 * CLOSE_TIMEOUT_S)

    def carry_out(self, effect: m.Effect) -> None:
        match effect:
            case m.Spawn():
                self._spawn(effect.attempt)
            case m.Connect():
                self._run(self._connect, effect.attempt)
            case m.WarmUp():
                self._run(self._warm_up, effect.attempt)
            case m.Probe():
                self._run(self._probe, effect.attempt)
            case m.Disconnect():
                self._disconnect()
            case m.Terminate():
                if self._process:
                    self._process.terminate()
            case m.Kill():
                if self._process:
                    self._process.kill()

    def _spawn(self, attempt: int) -> None:
        self._status = None
        try:
            self._process = self._launcher.launch(self.spec, _Watch(self, attempt))
        except (OSError, ValueError) as error:  # ValueError: SpecError, and NUL bytes in arguments
            self.post(m.SpawnFailed(attempt, f"cannot start a process: {error}", self._jitter()))
        else:
            self.post(m.Spawned(attempt))

    def process_is_gone(self, attempt: int) -> None:
        tail = self._process.tail() if self._process else ""
        self._process = None
        self.post(m.Gone(attempt, tail, self._jitter()))

    # --- what takes time --------------------------------------------------------------------------

    def _run(self, work: Callable[[int], Coroutine[Any, Any, None]], attempt: int) -> None:
        async def guarded() -> None:
            try:
                await work(attempt)
            except Exception as error:  # noqa: BLE001 - callbacks of others; whatever they raise, the engine is of no use
                self.post(m.Broken(attempt, _in_words(self.state.phase, error)))

        # The machine asks for one thing at a time; the one before has ended, or is just about to.
        self._work = self._task(guarded(), "work")

    async def _connect(self, attempt: int) -> None:
        while True:
            try:
                engine = await self.spec.connect(self.spec.socket_path)
                break
            except (OSError, EngineLost):
                # Nobody listens yet. There is no event for the binding of a socket, so it is asked for now and then.
                await asyncio.sleep(CONNECT_PAUSE_S)
        if attempt != self.state.attempt or self.state.phase != "starting":
            self._close(engine)
            return
        self.engine = engine
        self.post(m.Connected(attempt))

    async def _warm_up(self, attempt: int) -> None:
        assert self.engine is not None
        await self.spec.warm_up(self.engine)
        self.post(m.WarmedUp(attempt))

    async def _probe(self, attempt: int) -> None:
        assert self.engine is not None
        try:
            async with asyncio.timeout(self.rules.probe_timeout_s):
                self._status = await self.engine.status()
        except TimeoutError:
            self.post(m.Probed(attempt, answered=False))
        else:
            self.post(m.Probed(attempt, answered=True, computing_s=self._status.computing_s))

    def _disconnect(self) -> None:
        if self._work is not None and self._work is not _current_task():
            self._work.cancel()
        self._work = None
        engine, self.engine = self.engine, None
        if engine is not None:
            self._close(engine)

    def _close(self, engine: Engine) -> None:
        async def close() -> None:
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await engine.close()
            except (OSError, EngineError, TimeoutError) as error:
                log.warning("replica %s: its connection did not close cleanly: %r", self.spec.name, error)

        self._task(close(), "close")

    def _task(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=f"{what} of replica {self.spec.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Watch:
    """Binds a process's news to the number of its attempt."""

    __slots__ = ("_attempt", "_replica")

    def __init__(self, replica: Replica, attempt: int) -> None:
        self._replica = replica
        self._attempt = attempt

    def output(self) -> None:
        # A ready engine may log as it likes; only a start is measured by it.
        if self._replica.state.phase in ("starting", "warming"):
            self._replica.post(m.Progress(self._attempt))

    def died(self, how: str, outside: bool) -> None:
        self._replica.post(m.Died(self._attempt, f"the engine {how}", outside))

    def gone(self) -> None:
        self._replica.process_is_gone(self._attempt)


def _in_words(phase: m.Phase, error: Exception) -> str:
    doing = {"starting": "connecting to the engine failed", "warming": "the warm-up failed"}.get(
        phase, "a probe failed"
    )
    return f"{doing}: {type(error).__name__}: {error}"


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None  # called from a callback of the loop, not from a task
