"""A provider's stream in another dialect than the client's, on its way through: read into events, written again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from appliance.dialects.answer import Reader, StreamRenderer
from appliance.dialects.tally import Tally
from appliance.dialects.withheld import Net
from appliance.errors import OutpostError
from appliance.providers.upstream import told_by
from runtimes.engine import Delta, Event, Usage


def believed(events: list[Event]) -> list[Event]:
    """A whole answer's events without counts of nothing for something: it is estimated then, as streams are."""
    last = events[-1] if events else None
    if isinstance(last, Usage) and not last.completion_tokens and any(isinstance(each, Delta) for each in events):
        return events[:-1]
    return events


class Translating:
    """Stands where a `Passing` stands. Until the target reports, what has come is counted as an estimate."""

    __slots__ = ("_alive", "_net", "_reader", "_renderer", "_tally", "_target", "done")

    def __init__(
        self,
        reader: Reader,
        renderer: StreamRenderer,
        tally: Tally,
        *,
        target: str,
        secret: bytes,
        alive: Callable[[], None],
    ) -> None:
        """alive: called when something has come, though there may be nothing to say yet."""
        self._reader = reader
        self._renderer = renderer
        self._tally = tally
        self._target = target
        self._net = Net(secret, target) if secret else None
        self._alive = alive
        self.done = False

    @property
    def complete(self) -> bool:
        """All that may still come are counts and the end marker."""
        return bool(getattr(self._reader, "complete", False))

    @property
    def counted(self) -> bool:
        """Whether the target has told what it has used, or tells it together with the end."""
        return bool(getattr(self._reader, "counted", True))

    def feed(self, read: bytes) -> bytes:
        if self._net is not None:
            self._net.check(read)
        events = self._reader.feed(read)
        self.done = self._reader.done
        if not events:
            return b""
        self._alive()
        tally = self._tally
        if tally.source != "reported":
            for item in events:
                if isinstance(item, Delta):
                    tally.completion_tokens += 1
                    tally.source = "estimated"
        return self._renderer.feed(events)

    def end(self) -> bytes:
        return self._renderer.end()

    def fail(self, error: OutpostError) -> bytes:
        return self._renderer.fail(error)

    def response(self) -> Any:
        return told_by(self._renderer)
