"""The way back to the client, and what may stand on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from appliance.dialects.tally import Tally
from appliance.errors import ClientStalled, DeadlineExceeded, OutpostError, UpstreamTimeout
from appliance.routing.routes import Route
from appliance.routing.watch import Watch


class Outgoing(Protocol):
    """A client that has gone cancels the exchange's task."""

    async def begin(self, headers: dict[str, str], data: bytes) -> None:
        """Start a streamed answer with status 200 and its first bytes."""
        ...

    def send(self, data: bytes) -> bool:
        """More of a stream; False when the client does not keep up and `drained` must be awaited."""
        ...

    async def drained(self) -> None: ...


class Keeping:
    """Remembers what passes, up to a size."""

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


class Way:
    """The last stretch to the client. Each piece moves the target's deadline; while the client lets the gateway wait,
    its own counts instead."""

    __slots__ = ("_idle_s", "_outgoing", "_send", "_silent", "_watch", "_write_timeout_s", "touch")

    def __init__(
        self,
        outgoing: Outgoing,
        watch: Watch,
        write_timeout_s: float,
        idle_s: float,
        silent: Callable[[], OutpostError],
    ) -> None:
        """silent: the error of a target that says nothing for `idle_s` seconds."""
        self._outgoing = outgoing
        self._watch = watch
        self._write_timeout_s = write_timeout_s
        self._idle_s = idle_s
        self._silent = silent
        self._send = outgoing.send
        self.touch = watch.touch

    def send(self, data: bytes) -> bool:
        self.touch()
        return self._send(data)

    async def drained(self) -> None:
        self._watch.arm(self._write_timeout_s, stalled)
        await self._outgoing.drained()
        self.resume()

    def resume(self) -> None:
        """It is the target's turn again."""
        self._watch.arm(self._idle_s, self._silent)


class Held:
    """Holds the beginning of a stream back: nobody has seen it if the stream breaks early."""

    __slots__ = ("_begin", "_most", "_parts", "_tally", "_way")

    def __init__(self, begin: Callable[[bytes], Awaitable[None]], way: Way, tally: Tally, most: int) -> None:
        """begin: starts the client's answer with its first bytes. most: tokens that are held, as `tally` counts."""
        self._begin = begin
        self._way = way
        self._tally = tally
        self._most = most
        self._parts: list[bytes] | None = []

    def send(self, data: bytes) -> bool:
        if self._parts is None:
            return self._way.send(data)
        self._way.touch()
        self._parts.append(data)
        return self._tally.completion_tokens < self._most  # else `drained` is awaited, and lets it go

    async def drained(self) -> None:
        if self._parts is None:
            await self._way.drained()
        else:
            await self.end()

    async def end(self) -> None:
        """Let go what is held."""
        parts, self._parts = self._parts, None
        if parts is not None:
            await self._begin(b"".join(parts))
            self._way.resume()


def stalled() -> OutpostError:
    return ClientStalled("The client stopped taking its answer.")


def silent(target: str, what: str, seconds: float) -> OutpostError:
    return UpstreamTimeout(f"{target} gave no sign of {what} for {seconds:g} s.")


def total_over(route: Route) -> OutpostError:
    total_s = route.deadlines.total
    error = DeadlineExceeded(f"The request took longer than the {total_s:g} s that {route.model} allows.")
    error.total_s = total_s
    return error
