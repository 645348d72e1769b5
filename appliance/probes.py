"""Health checks of targets that have failed: free ones, instead of a user's request, say whether they are back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, runtime_checkable

from appliance.routing.board import Board, Probe
from appliance.routing.routes import Router, Target

logger = logging.getLogger("outpost.routing")

EVERY_S = 1.0
"""How often it is looked which checks are due."""
TIMEOUT_S = 2.0


@runtime_checkable
class Checked(Protocol):
    """An upstream that may have a health check."""

    @property
    def has_probe(self) -> bool: ...

    async def probe(self) -> bool:
        """Whether it can be reached. Costs no tokens."""
        ...


def _untold(target: str, ok: bool) -> None:
    pass


class Prober:
    """The checks of one process. It belongs to the event loop."""

    def __init__(
        self,
        board: Board,
        clock: Callable[[], float],
        told: Callable[[str, bool], None] = _untold,
        *,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """clock: the board's, monotonic seconds. told: gets the target and how its check ended."""
        self._board = board
        self._clock = clock
        self._told = told
        self._pause = pause
        self._timeout_s = timeout_s
        self._upstreams: dict[str, Checked] = {}
        self._running: set[asyncio.Task[None]] = set()

    def know(self, router: Router) -> None:
        """These are the targets from now on."""
        targets = {target.name: _checked(target) for route in router.routes for target in route.all_targets()}
        self._upstreams = {name: upstream for name, upstream in targets.items() if upstream is not None}
        self._board.keep({name: upstream is not None for name, upstream in targets.items()})

    async def run(self) -> None:
        """Until cancelled; the checks under way end with it."""
        try:
            while True:
                await self._pause(EVERY_S)
                self.look()
        finally:
            tasks = list(self._running)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def look(self) -> None:
        """Begin every check that is due, each on its own: one that hangs lets no other wait."""
        now = self._clock()
        for name in self._board.due_probes(now):
            upstream = self._upstreams.get(name)
            given = None if upstream is None else self._board.probe_began(name, now)
            if upstream is None or given is None:
                continue
            task = asyncio.create_task(self._check(name, upstream, given))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _check(self, name: str, upstream: Checked, given: Probe) -> None:
        ok = False
        try:
            async with asyncio.timeout(self._timeout_s):
                ok = await upstream.probe()
        except TimeoutError:
            pass
        except Exception:
            logger.exception("health_check_broken", extra={"target": name})
        finally:
            given.ended(ok, self._clock())
        self._told(name, ok)
        logger.info("health_check", extra={"target": name, "ok": ok})


def _checked(target: Target) -> Checked | None:
    upstream = target.upstream
    return upstream if isinstance(upstream, Checked) and upstream.has_probe else None
