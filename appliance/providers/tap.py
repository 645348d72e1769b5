"""Being told by an upstream's connection when something of an answer has come, and when nothing more can.

aiohttp wakes a task for each, which costs more than all else that a piece of a stream needs; and of a chunk that is no
chunk it does not tell the task at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import aiohttp

_TURNS = 3
"""Of the loop, in which the end of a TLS connection that is under way has been told."""


def nothing() -> None:
    """For who only wants the reader to learn of its end."""


class Between(asyncio.Protocol):
    """Stands before another protocol, which still learns of all that is no data."""

    __slots__ = ("_inner",)

    _inner: asyncio.Protocol

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


class Tap(Between):
    """Stands between the transport and the HTTP client's own protocol while an answer comes: lets that one parse, then
    calls `arrived`. `let_go` takes it away; it does so by itself when the answer has come to its end, since the
    connection may serve somebody else from there on."""

    __slots__ = ("_arrived", "_content", "_received", "_transport")

    def __init__(self, content: aiohttp.StreamReader, arrived: Callable[[], None]) -> None:
        self._content = content
        self._arrived = arrived
        self._transport: asyncio.Transport | None = None
        self._received: Callable[[bytes], None]

    async def install(self, response: aiohttp.ClientResponse) -> None:
        """Begin, unless all of the answer is there. Where nothing more can come, the reader is told at once."""
        if self._content.is_eof():
            return
        for _ in range(_TURNS):
            connection = response.connection
            transport = connection.transport if connection is not None else None
            if transport is None:
                break
            inner = cast(asyncio.Protocol | None, transport.get_protocol())
            if inner is not None:
                self._inner, self._received, self._transport = inner, inner.data_received, transport
                transport.set_protocol(self)
                return
            await asyncio.sleep(0)  # TLS has ended; its end is told in one of the next turns of the loop
        self._finish()

    def let_go(self) -> None:
        self._arrived = nothing  # whoever is called holds this: together they would stay until a garbage collection
        transport, self._transport = self._transport, None
        if (
            transport is not None and transport.get_protocol() is self
        ):  # else the connection is idle already, or another's
            transport.set_protocol(self._inner)

    def _finish(self) -> None:
        content = self._content
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ServerDisconnectedError())

    def data_received(self, data: bytes) -> None:
        self._received(data)
        self._arrived()
        if self._content.is_eof():
            self.let_go()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)
        self._finish()
        self._arrived()
