"""Places for responses that are worked on in the background: how many may be, and which are."""

from __future__ import annotations

import asyncio
from typing import Any

from appliance.errors import Overloaded, RateLimited
from appliance.responses.store import Owner

MOST_RUNNING = 1000
"""Responses that may be worked on in the background at a time."""
MOST_OF_ONE = 100
"""The same, of one owner: so that one who asks for many leaves places to the others."""


class Places:
    """They belong to the event loop."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[Any]] = {}
        self._running_of: dict[Owner, int] = {}

    def __contains__(self, id: str) -> bool:
        """Whether a response is worked on."""
        return id in self._running

    def take(self, id: str, owner: Owner) -> None:
        """For as long as the task that takes it lasts. Raises RateLimited, Overloaded."""
        task = asyncio.current_task()
        assert task is not None
        if (own := self._running_of.get(owner, 0)) >= MOST_OF_ONE:
            raise RateLimited(
                f"background: {own} responses of yours are worked on in the background already, and no more may be at "
                "a time; wait until one is done, or cancel one.",
                param="background",
                retry_after_s=5.0,
            )
        if len(self._running) >= MOST_RUNNING:
            raise Overloaded(
                f"{MOST_RUNNING} responses are worked on in the background already; try again.", retry_after_s=5.0
            )
        self._running[id], self._running_of[owner] = task, own + 1
        task.add_done_callback(lambda _: self._leave(id, owner))

    def end(self, id: str) -> None:
        """The work on a response, if there is any: as if its caller had left, the target's work ends, and what it has
        done is on record."""
        if (task := self._running.get(id)) is not None:
            task.cancel()

    def _leave(self, id: str, owner: Owner) -> None:
        del self._running[id]
        self._running_of[owner] -= 1
        if not self._running_of[owner]:
            del self._running_of[owner]
