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

    async def run(
        self,
        first: Awaitable[T],
        second: Callable[[], Awaitable[T]],
        at_s: float,
        may_hedge: Callable[[], bool],
        drop: Callable[[T], Awaitable[None]],
    ) -> T:
        """The answer of `first`, or of `second`, which begins after `at_s` seconds if it may. Where both fail, the
        error of the first. `drop` gets an answer that nobody takes: two may come at the same moment, and a client may
        leave at the one at which there is one."""
        runners: list[asyncio.Future[T]] = [asyncio.ensure_future(first)]
        try:
            await asyncio.wait(runners, timeout=at_s)
            if not runners[0].done() and may_hedge():
                runners.append(asyncio.ensure_future(second()))
            at = await _winner(runners)
            await _end([runner for place, runner in enumerate(runners) if place != at], drop)
            return runners[at].result()
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                self.stopped = self._caught()  # before the runners learn of their end
            await _end(runners, drop)
            if self.stopped is not None:
                raise self.stopped from None
            raise
        finally:
            # Errors hold the frames that they came through, which must not lead back to them.
            runners.clear()
            self.stopped = None


async def _winner(runners: list[asyncio.Future[T]]) -> int:
    """The place of the first to answer; 0 where none does."""
    waiting = set(runners)
    while waiting:
        _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for place, runner in enumerate(runners):
            if runner.done() and runner.exception() is None:
                return place
    return 0


async def _end(runners: list[asyncio.Future[T]], drop: Callable[[T], Awaitable[None]]) -> None:
    for runner in runners:
        runner.cancel()
    await asyncio.gather(*runners, return_exceptions=True)
    for runner in runners:
        if not runner.cancelled() and runner.exception() is None:
            await drop(runner.result())
