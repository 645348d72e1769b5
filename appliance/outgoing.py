"""The way back to the client, and what may stand on it."""

from __future__ import annotations

from typing import Protocol


class Outgoing(Protocol):
    """The way back to the client. A client that has gone cancels the exchange's task."""

    async def begin(self, headers: dict[str, str], data: bytes) -> None:
        """Start a streamed answer with status 200 and its first bytes."""
        ...

    def send(self, data: bytes) -> bool:
        """More of a stream; False when the client does not keep up and `drained` must be awaited."""
        ...

    async def drained(self) -> None: ...


class Keeping:
    """The way to the client of a stream that is kept: remembers what passes, up to a size."""

    __slots__ = ("_kept", "_left", "_outgoing", "drained")

    def __init__(self, outgoing: Outgoing, kept: list[bytes], most: int) -> None:
        self._outgoing = outgoing
        self._kept = kept
        self._left = most
        self.drained = outgoing.drained

    async def begin(self, headers: dict[str, str], data: bytes) -> None:
        self._keep(data)
        await self._outgoing.begin(headers, data)

    def send(self, data: bytes) -> bool:
        self._keep(data)
        return self._outgoing.send(data)

    @property
    def whole(self) -> bool:
        """Whether nothing was too much to keep."""
        return self._left > 0

    def _keep(self, data: bytes) -> None:
        if self._left > 0:
            self._left -= len(data)
            self._kept.append(bytes(data))
