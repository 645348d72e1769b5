"""Keeps replicas running: the shell around `machine.step`.

All state changes go through `_post`: an inbox that is worked off at once, on the event loop's thread, one event after
the other, with no await between reading a state and writing the next. That is the one owner of every replica's
state, and it lets a lease be taken without a turn of the loop. Whatever takes time runs in a task or a callback and
comes back as an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from types import TracebackType

from runtimes.engine import Engine, EngineLost
from runtimes.supervisor import machine as m
from runtimes.supervisor.process import Launcher, LocalLauncher
from runtimes.supervisor.replica import Replica, ReplicaView
from runtimes.supervisor.spec import ReplicaKey, ReplicaSpec, SpecError, check, replacement

Choose = Callable[[list[int], list[int]], int]
"""Which of several ready replicas is used: of their numbers and how many leases each has, a place in these lists."""

log = logging.getLogger(__name__)

SUBSCRIPTION_LENGTH = 256


class Supervisor:
    """Runs replicas from their specs. Use it from one event loop, which must run in a thread that lives as long as
    the engines shall: the kernel ends them with the thread that started them.

    `rules` are the defaults for all replicas; each spec's own time limits go before. `clock` is monotonic, `wall` is
    Unix time, `jitter` is random in [0, 1).
    """

    def __init__(
        self,
        *,
        rules: m.Rules | None = None,
        launcher: Launcher | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._rules = rules or m.Rules()
        self._launcher = launcher or LocalLauncher(wall=wall)
        self._clock = clock
        self._wall = wall
        self._jitter = jitter
        self._replicas: dict[ReplicaKey, Replica] = {}
        self._inbox: deque[tuple[Replica, m.Event]] = deque()
        self._working = False
        self._subscriptions: set[Subscription] = set()
        self._waiters: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._reload = asyncio.Lock()
        self._closed = False

    # --- what callers ask for ---------------------------------------------------------------------

    async def start(self, specs: Iterable[ReplicaSpec]) -> None:
        """Add replicas and start them all at once; returns before they are ready. Raises SpecError, then adds none."""
        self._check_open()
        added = check([*(r.spec for r in self._replicas.values()), *specs])
        for key, spec in added.items():
            if key not in self._replicas:
                self._add(spec)

    async def stop(self, *, drain: bool = True) -> None:
        """Stop all replicas at the same time and return when nothing is left of them. This supervisor is then over.

        Should it be cancelled, or take too long, call it again with `drain=False`.
        """
        self._closed = True
        for replica in list(self._replicas.values()):
            self._post(replica, m.Halt("the gateway is stopping", drain=drain))
        await self._until(lambda: all(r.state.phase == "stopped" for r in self._replicas.values()))
        await asyncio.gather(*(r.settle() for r in self._replicas.values()))
        for subscription in list(self._subscriptions):
            subscription.close()

    async def drain(self, deployment: str) -> None:
        """Stop a deployment's replicas after their running requests; `restart` starts them again.

        Returns when they are gone. Raises SpecError for a deployment without replicas.
        """
        replicas = self._of(deployment)
        if not replicas:
            raise SpecError(f"deployment {deployment!r} has no replicas")
        for replica in replicas:
            self._post(replica, m.Halt("drained on request"))
        await self._until(lambda: all(r.state.phase == "stopped" or r.state.goal == "run" for r in replicas))

    async def restart(self, deployment: str, index: int) -> ReplicaView:
        """Put a new process in place of this one, after a drain; also ends back-off and quarantine.

        Returns what became of it, once that is known: ready, failed, quarantined or stopped. Raises SpecError for
        a replica that does not exist.
        """
        replica = self._replicas.get((deployment, index))
        if replica is None:
            raise SpecError(f"deployment {deployment!r} has no replica {index}")
        return await self._cycle(replica, "restarted on request")

    async def replace(self, specs: Iterable[ReplicaSpec]) -> None:
        """Make `specs` the replicas: start the added, drain and stop the removed, restart the changed and the failed.

        The replicas of one deployment are restarted one after the other, so that the others go on serving. Returns
        when the removed are gone and each restart has come to an end, good or bad. Raises SpecError, then nothing is
        changed.
        """
        wanted = check(specs)
        async with self._reload:
            self._check_open()
            now = {key: r.spec for key, r in self._replicas.items()}
            # While a change is under way, old and new stand side by side: none may take another's socket.
            holders = {spec.socket_path: spec for spec in now.values()}
            for spec in wanted.values():
                if (holder := holders.get(spec.socket_path, spec)).key != spec.key:
                    raise SpecError(
                        f"replica {spec.name} may not take the socket of {holder.name}: name it after itself"
                    )
            plan = replacement(now, wanted)
            for spec in plan.adopt:
                self._keep(spec)
            for key in plan.stop:
                self._replicas[key].removed = True
                self._post(self._replicas[key], m.Halt("removed from the configuration"))
            for spec in plan.start:
                self._add(spec)
            chains: dict[str, list[ReplicaSpec]] = {}
            for spec in plan.restart:
                chains.setdefault(spec.deployment, []).append(spec)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._remove(plan.stop))
                for chain in chains.values():
                    group.create_task(self._roll(chain))

    def replicas(self, deployment: str | None = None) -> list[ReplicaView]:
        """The replicas of a deployment, or all of them, in order."""
        found = (self._replicas[key] for key in sorted(self._replicas) if deployment in (None, key[0]))
        return [replica.view(self._clock()) for replica in found]

    def lease(self, deployment: str, choose: Choose | None = None) -> Lease:
        """Use of a ready replica: `async with supervisor.lease(name) as engine`. Of several, `choose` says which; by
        default the one with the fewest leases.

        Entering raises EngineLost, saying in which state the replicas are and why, when none is ready.
        """
        return Lease(self, deployment, choose)

    async def wait_ready(self, deployment: str, timeout: float) -> None:
        """Return when at least one replica is ready.

        Raises EngineLost with states and reasons: after `timeout` seconds, or as soon as no replica can become ready.
        """

        def usable() -> bool:
            return any(r.state.leasable for r in self._of(deployment))

        def hopeless() -> bool:
            return all(r.state.phase in ("stopped", "quarantined") for r in self._of(deployment))

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not hopeless():
                    await self._until(lambda: usable() or hopeless())
                    if usable():
                        return
        raise EngineLost(self._why_none(deployment))

    def subscribe(self) -> Subscription:
        """Every change of a replica's state from now on, as `async for view in supervisor.subscribe()`."""
        subscription = Subscription(self._subscriptions)
        if self._closed:
            subscription.close()
        return subscription

    # --- the owner of the states ------------------------------------------------------------------

    def _post(self, replica: Replica, event: m.Event) -> None:
        self._inbox.append((replica, event))
        if self._working:
            return
        self._working = True
        try:
            while self._inbox:
                self._handle(*self._inbox.popleft())
        finally:
            self._working = False

    def _handle(self, replica: Replica, event: m.Event) -> None:
        before = replica.state
        replica.state, effects = m.step(before, event, self._clock(), replica.rules)
        if replica.state is not before:
            if (replica.state.phase, replica.state.attempt) != (before.phase, before.attempt):
                replica.entered_at = self._wall()
                self._tell(replica, before)
            self._wake(replica)
        for condition, future in self._waiters:
            if not future.done() and condition():
                future.set_result(None)
        for effect in effects:
            replica.carry_out(effect)

    def _tell(self, replica: Replica, before: m.ReplicaState) -> None:
        state = replica.state
        level = logging.WARNING if state.fault and state.phase != "starting" else logging.INFO
        view = replica.view(self._clock())
        log.log(level, "replica %s: %s → %s: %s", replica.spec.name, before.phase, state.phase, view.reason)
        for subscription in list(self._subscriptions):
            subscription.put(view)

    def _wake(self, replica: Replica) -> None:
        due = m.wake_at(replica.state, replica.rules)
        if due == replica.due:
            return
        if replica.timer is not None:
            replica.timer.cancel()
            replica.timer = None
        replica.due = due
        if due is not None:
            pause = max(0.0, due - self._clock())
            replica.timer = asyncio.get_running_loop().call_later(pause, self._tick, replica)

    def _tick(self, replica: Replica) -> None:
        # The loop's own clock is coarser and may be early; what is not due yet is asked for again.
        replica.timer = None
        replica.due = None
        self._post(replica, m.Tick())
        self._wake(replica)

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait until a change of state makes it true."""
        if condition():
            return
        waiter = (condition, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            await waiter[1]
        finally:
            self._waiters.remove(waiter)

    # --- helpers of the requests above ------------------------------------------------------------

    def _add(self, spec: ReplicaSpec) -> Replica:
        replica = Replica(spec, self._rules, self._post, self._launcher, self._jitter)
        self._replicas[spec.key] = replica
        replica.entered_at = self._wall()
        self._post(replica, m.Run())
        return replica

    def _keep(self, spec: ReplicaSpec) -> None:
        replica = self._replicas[spec.key]
        replica.adopt(spec, self._rules)
        # An earlier reload took it out and was cut short, or it was given up: whoever reloads has mended the cause.
        if replica.removed or replica.state.phase in ("failed", "quarantined"):
            replica.removed = False
            self._post(replica, m.Run())

    async def _remove(self, keys: list[ReplicaKey]) -> None:
        replicas = [self._replicas[key] for key in keys]
        await self._until(lambda: all(r.state.phase == "stopped" for r in replicas))
        for replica in replicas:
            await replica.settle()
            del self._replicas[replica.spec.key]

    async def _roll(self, chain: list[ReplicaSpec]) -> None:
        for spec in chain:
            replica = self._replicas[spec.key]
            # An earlier change that this one overrules may have left another one of them on its way.
            await self._until(partial(self._others_settled, replica))
            if self._closed:
                return
            replica.adopt(spec, self._rules)
            replica.removed = False
            await self._cycle(replica, "its configuration changed")

    def _others_settled(self, replica: Replica) -> bool:
        others = (r for r in self._of(replica.spec.deployment) if r is not replica and not r.removed)
        return self._closed or all(r.state.phase in m.SETTLED for r in others)

    async def _cycle(self, replica: Replica, reason: str) -> ReplicaView:
        if self._closed:
            return replica.view(self._clock())
        attempt = replica.state.attempt
        self._post(replica, m.Cycle(reason))

        def settled() -> bool:
            state = replica.state
            return state.phase in m.SETTLED and (state.attempt > attempt or state.goal == "stop")

        await self._until(settled)
        return replica.view(self._clock())

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this supervisor has been stopped: make a new one")

    def _of(self, deployment: str) -> list[Replica]:
        return [r for key, r in self._replicas.items() if key[0] == deployment]

    def _pick(self, deployment: str, choose: Choose | None = None) -> Replica:
        ready = [
            replica
            for key, replica in self._replicas.items()
            if key[0] == deployment and replica.state.leasable and replica.engine is not None
        ]
        if not ready:
            raise EngineLost(self._why_none(deployment))
        if len(ready) == 1:
            return ready[0]
        if choose is None:
            return min(ready, key=lambda replica: replica.state.leases)
        return ready[choose([replica.spec.index for replica in ready], [replica.state.leases for replica in ready])]

    def _why_none(self, deployment: str) -> str:
        """For callers' eyes: states and reasons in plain words, without lines of the engine's log."""
        replicas = self._of(deployment)
        if not replicas:
            return f"deployment {deployment!r} has no replicas"
        states = []
        for replica in sorted(replicas, key=lambda r: r.spec.index):
            words = m.reason_at(replica.state, self._clock()).partition("\n")[0]
            doubt = ", its connection was just lost" if replica.state.doubted else ""
            states.append(f"replica {replica.spec.index} is {replica.state.phase} ({words}{doubt})")
        return f"no replica of {deployment!r} is ready: {'; '.join(states)}"


class Lease:
    """The right to use one engine until the block is left. A replica that drains waits for its leases."""

    __slots__ = ("_attempt", "_choose", "_deployment", "_replica", "_supervisor")

    def __init__(self, supervisor: Supervisor, deployment: str, choose: Choose | None = None) -> None:
        self._supervisor = supervisor
        self._deployment = deployment
        self._choose = choose
        self._replica: Replica | None = None
        self._attempt = 0

    async def __aenter__(self) -> Engine:
        if self._replica is not None:
            raise RuntimeError("a lease can be entered only once at a time")
        replica = self._supervisor._pick(self._deployment, self._choose)
        engine = replica.engine
        assert engine is not None  # _pick looks only at connected ones
        self._replica, self._attempt = replica, replica.state.attempt
        self._supervisor._post(replica, m.LeaseTaken(self._attempt))
        return engine

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        replica, self._replica = self._replica, None
        assert replica is not None
        if isinstance(error, EngineLost):
            self._supervisor._post(replica, m.Doubted(self._attempt))
        self._supervisor._post(replica, m.LeaseReturned(self._attempt))


class Subscription(AsyncIterator[ReplicaView]):
    """Changes of state, oldest first, until it or the supervisor is closed. One that is not read loses its oldest."""

    def __init__(self, members: set[Subscription]) -> None:
        self._members = members
        self._views: deque[ReplicaView] = deque(maxlen=SUBSCRIPTION_LENGTH)
        self._news = asyncio.Event()
        self._closed = False
        members.add(self)

    def put(self, view: ReplicaView) -> None:
        self._views.append(view)
        self._news.set()

    async def __anext__(self) -> ReplicaView:
        while not self._views:
            if self._closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._views.popleft()

    def close(self) -> None:
        """End the iteration after what is already there."""
        self._closed = True
        self._members.discard(self)
        self._news.set()
