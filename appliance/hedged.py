"""Asking a second target when the first lets wait for too long: the first that answers wins, the other is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from appliance.errors import OutpostError

T = TypeVar("T")


class Heat(Generic[T]):
    """One race. What runs in it are tasks of their own, so that `stopped` tells them what their cancellation means."""

    def __init__(self, caught: Callable[[], OutpostError | None]) -> None:
        """caught: in `except CancelledError`, the error that a cancellation from inside stands for."""
        self._caught = caught
        self.stopped: OutpostError | None = None
        self.won: int | None = None
        """Which of the runners has won, from 0."""

    async def run(
        self, first: Awaitable[T], second: Callable[[], Awaitable[T]], at_s: float, may_hedge: Callable[[], bool]
    ) -> T:
        """The answer of `first`, or of `second`, which begins after `at_s` seconds if it may. Where both fail, the
        error of the first."""
        runners: list[asyncio.Future[T]] = [asyncio.ensure_future(first)]
        try:
            await asyncio.wait(runners, timeout=at_s)
            if not runners[0].done() and may_hedge():
                runners.append(asyncio.ensure_future(second()))
            return await self._winner(runners)
        except asyncio.CancelledError:
            self.stopped = self._caught()
            if self.stopped is None:
                raise
            raise self.stopped from None
        finally:
            for runner in runners:
                runner.cancel()
            await asyncio.gather(*runners, return_exceptions=True)

    async def _winner(self, runners: list[asyncio.Future[T]]) -> T:
        waiting = set(runners)
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for runner in done:
                if runner.exception() is None:
                    self.won = runners.index(runner)
                    return runner.result()
        return runners[0].result()
