"""A loop whose clock a test moves itself, and guests that wait at a gate on it."""

from __future__ import annotations

import asyncio
from typing import Any

from appliance.errors import OutpostError
from appliance.limits.admission import Gate, Visit
from appliance.limits.fair_queue import Rules


class StepLoop(asyncio.SelectorEventLoop):
    """A loop with a clock of its own, that runs turn by turn."""

    now = 1000.0

    def __init__(self) -> None:
        super().__init__()
        self.guests: list[Guest] = []
        """Held here, since nobody else holds a task that waits for a test's own event."""

    def time(self) -> float:
        return self.now

    def turn(self, count: int = 1) -> None:
        for _ in range(count):
            self.call_soon(self.stop)
            self.run_forever()

    def settle(self) -> None:
        """Until nothing more happens by itself at this time."""
        self.turn(8)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.settle()

    def end(self) -> None:
        """Nothing of a test outlives its loop."""
        while tasks := asyncio.all_tasks(self):
            for task in tasks:
                task.cancel()
            self.turn()
        self.close()


class Guest:
    """Somebody who enters a gate, stays until told to go, and notes what happened."""

    def __init__(self, loop: StepLoop, visit: Visit) -> None:
        loop.guests.append(self)
        self.visit = visit
        self.inside = False
        self.go = asyncio.Event()
        self.error: OutpostError | None = None
        self.task: asyncio.Task[None] = loop.create_task(self._stay())

    async def _stay(self) -> None:
        try:
            async with self.visit:
                self.inside = True
                try:
                    await self.go.wait()
                finally:
                    self.inside = False
        except OutpostError as error:
            self.error = error

    @property
    def over(self) -> bool:
        return self.task.done()


def gate_on(loop: StepLoop, capacity: int, **rules: Any) -> Gate:
    return Gate("small", Rules(**rules), capacity, clock=loop.time)
