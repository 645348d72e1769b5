"""Deadlines of one exchange: one timer that is moved without touching the loop.

A deadline that passes cancels the exchange's task, and `caught` tells that cancellation from one that came
from outside (the client has gone). Moving the deadline costs one clock reading: the timer that is
already set looks again when it rings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from appliance.errors import OutpostError, ShuttingDown

Reason = Callable[[], OutpostError]
_NEVER = float("inf")


class Watch:
    """Made inside the task that it guards. All times are seconds."""

    __slots__ = ("_at", "_end", "_end_reason", "_fired", "_handle", "_loop", "_over", "_reason", "_seconds", "_task")

    def __init__(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[object]) -> None:
        self._loop = loop
        self._task = task
        self._at = _NEVER
        self._end = _NEVER
        self._seconds = 0.0
        self._reason: Reason | None = None
        self._end_reason: Reason | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._fired: OutpostError | None = None
        self._over = False

    def total(self, seconds: float, reason: Reason) -> None:
        """A deadline that `touch` does not move."""
        self._end = self._loop.time() + seconds
        self._end_reason = reason
        self._set(self._end)

    def suspend(self) -> float:
        """Let no time count until `resume`; gives what is left of `total`."""
        left = self._end - self._loop.time()
        self._end = self._at = _NEVER
        return left

    def resume(self, left: float) -> None:
        """The end of a `suspend`; only `total` counts again."""
        if left < _NEVER:
            self._end = self._loop.time() + left
            self._set(self._end)

    def arm(self, seconds: float, reason: Reason) -> None:
        """Ring `seconds` from now, unless `touch` or another `arm` comes before."""
        self._seconds = seconds
        self._reason = reason
        self._at = self._loop.time() + seconds
        self._set(self._at)

    def touch(self) -> None:
        """There was progress: count the seconds of `arm` from now."""
        self._at = self._loop.time() + self._seconds

    def disarm(self) -> None:
        """Only `total` still counts."""
        self._at = _NEVER

    def stop(self, error: OutpostError) -> None:
        """End the exchange with `error`, if it is not about to end by itself."""
        if not self._over and self._fired is None:
            self._fired = error
            self._task.cancel()

    def close(self) -> None:
        """No deadline counts any more, and nothing stops the task."""
        self._over = True
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def caught(self) -> OutpostError | None:
        """In `except CancelledError`: the error that the cancellation stands for, None if it came from outside."""
        error, self._fired = self._fired, None
        if error is None or self._task.uncancel() > 0:
            return None
        return error

    def _set(self, at: float) -> None:
        if self._handle is not None:
            if self._handle.when() <= at:
                return
            self._handle.cancel()
        self._handle = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._handle = None
        now = self._loop.time()
        next_at = min(self._at, self._end)
        if now < next_at:
            if next_at < _NEVER:
                self._handle = self._loop.call_at(next_at, self._ring)
            return
        reason = self._end_reason if self._end <= self._at else self._reason
        if reason is not None:
            self.stop(reason())


class Running:
    """The exchanges that are under way, so that a shutdown can wait for them and then end them."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._watches)

    @contextmanager
    def watch(self) -> Iterator[Watch]:
        """The watch of the current task's exchange."""
        task = asyncio.current_task()
        assert task is not None
        watch = Watch(asyncio.get_running_loop(), task)
        self._watches.add(watch)
        self._idle.clear()
        try:
            yield watch
        finally:
            watch.close()
            self._watches.discard(watch)
            if not self._watches:
                self._idle.set()

    async def wait_idle(self) -> None:
        await self._idle.wait()

    def stop_all(self) -> None:
        """End every exchange with a clean error."""
        for watch in list(self._watches):
            watch.stop(ShuttingDown("The gateway is shutting down; try again.", retry_after_s=5.0))
