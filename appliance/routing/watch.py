"""Deadlines of one exchange: many of them, most of which never pass.

A deadline that passes cancels the exchange's task, and `caught` tells that cancellation from one that came
from outside (the client has gone). Moving the deadline costs one clock reading: whoever is looked at before his time
is looked at again later. All exchanges share one timer of the loop, since making and ending one for each
costs more than everything else here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from appliance.errors import OutpostError, ShuttingDown

Reason = Callable[[], OutpostError]
TICK_S = 0.02
"""How much later than its moment a deadline may be found to have passed."""
_NEVER = float("inf")


class _Wheel:
    """Which watches are to be looked at when, in ticks of the loop's clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, set[Watch]] = {}
        self._turned = 0
        """The tick up to which all were looked at."""
        self._turning = False

    def put(self, watch: Watch, at: float) -> int:
        """Have a watch looked at as soon as `at` has passed; gives its slot."""
        if not self._turning:
            self._turning = True
            self._turned = int(self._loop.time() / TICK_S)
            self._loop.call_later(TICK_S, self._turn)
        slot = max(int(at / TICK_S), self._turned) + 1
        if slot in self._slots:
            self._slots[slot].add(watch)
        else:
            self._slots[slot] = {watch}
        return slot

    def drop(self, watch: Watch, slot: int) -> None:
        held = self._slots.get(slot)
        if held is not None:
            held.discard(watch)
            if not held:
                del self._slots[slot]

    def _turn(self) -> None:
        now = self._loop.time()
        tick = int(now / TICK_S)
        passed: Iterable[int] = range(self._turned + 1, tick + 1)
        if tick - self._turned > len(self._slots):
            passed = sorted(slot for slot in self._slots if slot <= tick)
        self._turned = tick
        for slot in passed:
            for watch in self._slots.pop(slot, ()):
                watch.look(now)
        # Nothing is to be waited for when nobody is under way.
        self._turning = bool(self._slots)
        if self._turning:
            self._loop.call_later(TICK_S, self._turn)


class Watch:
    """Made inside the task that it guards. All times are seconds."""

    __slots__ = (
        "_at",
        "_end",
        "_end_reason",
        "_ended",
        "_fired",
        "_loop",
        "_over",
        "_reason",
        "_seconds",
        "_slot",
        "_soonest",
        "_task",
        "_wheel",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        task: asyncio.Task[object],
        wheel: _Wheel,
        ended: Callable[[Watch], None],
    ) -> None:
        """ended: called when the `with` block is left."""
        self._loop = loop
        self._wheel = wheel
        self._ended = ended
        self._task = task
        self._at = _NEVER
        self._end = _NEVER
        self._seconds = 0.0
        self._reason: Reason | None = None
        self._end_reason: Reason | None = None
        self._slot = 0
        """Of the wheel; 0: in none."""
        self._soonest = _NEVER
        """What it was put there for."""
        self._fired: OutpostError | None = None
        self._over = False

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._ended(self)

    def total(self, seconds: float, reason: Reason) -> None:
        """A deadline that `touch` does not move."""
        self._end = self._loop.time() + seconds
        self._end_reason = reason
        self._set(self._end)

    def suspend(self) -> tuple[float, float]:
        """Let no time count until `resume`; gives what is left of `total` and of `arm`."""
        now = self._loop.time()
        left = self._end - now, self._at - now
        self._end = self._at = _NEVER
        return left

    def resume(self, left: tuple[float, float]) -> None:
        """The end of a `suspend`. What was armed since then counts as it was armed; where others have suspended too,
        who was the first to do so tells what is left."""
        total, armed = left
        if total < _NEVER:
            self._end = self._loop.time() + total
            self._set(self._end)
        if armed < _NEVER and self._at == _NEVER:
            self._at = self._loop.time() + armed
            self._set(self._at)

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
        # They may lead back to who holds this.
        self._reason = self._end_reason = None
        if self._slot:
            self._wheel.drop(self, self._slot)
            self._slot = 0

    def caught(self) -> OutpostError | None:
        """In `except CancelledError`: the error that the cancellation stands for, None if it came from outside."""
        error, self._fired = self._fired, None
        if error is None or self._task.uncancel() > 0:
            return None
        return error

    def look(self, now: float) -> None:
        """For the wheel: the moment that it was asked for has come."""
        self._slot = 0
        next_at = min(self._at, self._end)
        if now < next_at:
            if next_at < _NEVER:
                self._set(next_at)
            return
        reason = self._end_reason if self._end <= self._at else self._reason
        if reason is not None:
            self.stop(reason())

    def _set(self, at: float) -> None:
        if self._slot:
            if self._soonest <= at:
                return
            self._wheel.drop(self, self._slot)
        self._soonest = at
        self._slot = self._wheel.put(self, at)


class Running:
    """The exchanges that are under way, so that a shutdown can wait for them and then end them."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()
        self._wheel: _Wheel | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._watches)

    def watch(self) -> Watch:
        """The watch of the current task's exchange, for a `with` block around all of it."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        if self._wheel is None:
            self._wheel = _Wheel(loop)
        watch = Watch(loop, task, self._wheel, self._leave)
        self._watches.add(watch)
        self._idle.clear()
        return watch

    def _leave(self, watch: Watch) -> None:
        self._watches.discard(watch)
        if not self._watches:
            self._idle.set()

    async def wait_idle(self) -> None:
        await self._idle.wait()

    def stop_all(self) -> None:
        """End every exchange with a clean error."""
        for watch in list(self._watches):
            watch.stop(ShuttingDown("The gateway is shutting down; try again.", retry_after_s=5.0))
