"""What readers of streams of unnamed events have in common. Sans-I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod

from appliance.dialects import sse
from appliance.errors import UpstreamFailed
from runtimes.engine import Event


class EventReader(ABC):
    """One streamed answer; see dialects.answer.Reader. A dialect says what an event means (`_take`), and may say when
    the answer is complete though it has no end marker (`_ended`)."""

    __slots__ = ("_framer", "_target", "done")

    def __init__(self, target: str) -> None:
        self.done = False
        self._target = target
        self._framer = sse.Framer()

    @property
    def complete(self) -> bool:
        """All that may still come are counts."""
        return self.done

    def feed(self, read: bytes) -> list[Event]:
        """The events that `read` completes; b"" means that the connection has ended."""
        if self.done:
            return []
        try:
            found = self._framer.feed(read)[0] if read else self._framer.end()
        except sse.EventTooLarge:
            raise UpstreamFailed(f"{self._target} sent an event that is too large.") from None
        out: list[Event] = []
        for data in found:
            if data == sse.DONE or self.done:
                continue  # of no meaning in these dialects
            try:
                self._take(data, out)
            except UpstreamFailed:
                # Half an event, with which a connection ends, does no harm to an answer that is complete.
                if read or not self.complete:
                    raise
        self._ended(out, closed=not read)
        if not read and not self.done:
            raise UpstreamFailed(f"{self._target} ended its answer without saying that it was complete.")
        return out

    @abstractmethod
    def _take(self, data: bytes, out: list[Event]) -> None:
        """What one event means, into `out`. Raises UpstreamFailed for one that is not sound."""

    def _ended(self, out: list[Event], *, closed: bool) -> None:  # noqa: B027 - an end marker is enough for some
        """Set `done` if that is all. closed: nothing more comes."""

    def _unsound(self) -> UpstreamFailed:
        return UpstreamFailed(f"{self._target} sent a chunk that is not of the expected form.")
