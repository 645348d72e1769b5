"""What every exchange works with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from appliance.account import Limits
from appliance.collaborators import Authenticator, Clock, Contents, Observer, Recorder
from appliance.identity.principal import Priority
from appliance.limits.admission import Gates
from appliance.responses.keeper import ResponseKeeper
from appliance.routing.health import Health
from appliance.routing.routes import Router
from appliance.routing.watch import Running
from appliance.shadows import Shadows

T = TypeVar("T")


async def pause(seconds: float) -> None:
    """Not less than that: a loop that counts whole milliseconds is early by up to one of them, and who comes back too
    early to a target that has said when to come back finds it still resting."""
    until = time.monotonic() + seconds
    while (left_s := until - time.monotonic()) > 0:  # noqa: ASYNC110 - it is the clock that is waited for
        await asyncio.sleep(left_s)


@dataclass
class Gateway:
    """The collaborators of every exchange. `router` is replaced whole by a reload."""

    authenticator: Authenticator
    recorder: Recorder
    router: Router
    running: Running
    clock: Clock
    gates: Gates
    limits: Limits
    observer: Observer
    contents: Contents
    health: Health
    responses: ResponseKeeper
    new_id: Callable[[], str]
    """A fresh unguessable id: letters and digits."""
    pause: Callable[[float], Awaitable[None]] = pause
    draining: bool = False
    """A shutdown has begun: nothing new is taken."""
    max_priority: Priority = "interactive"
    """The most urgent class that anybody may ask for."""
    default_priority: Priority = "normal"
    max_json_depth: int = 64
    write_timeout_s: float = 30.0
    background: set[asyncio.Task[Any]] = field(default_factory=set)
    shadows: Shadows = field(init=False)

    def __post_init__(self) -> None:
        self.shadows = Shadows(self.health, self.gates, lambda: self.limits.prices, self.clock, self.observer.shadowed)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Have something done that goes on if its caller ends; a shutdown waits for it."""
        task = asyncio.create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)
        return task
