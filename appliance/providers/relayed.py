"""A provider's stream on its way to the client, without a task that is woken for each piece.

Waking a task costs more than all else that a piece needs, so the bytes are taken where they come in: `_Tap` stands
between the transport and the HTTP client's own protocol, lets that one parse, and then says that something has come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import aiohttp

from appliance import errors
from appliance.dialects.passing import PassThrough
from appliance.providers.upstream import Sink

READ_SIZE = 32 * 1024
"""Most of a stream that is passed on in one piece: what a slow reader does not take lies in memory."""


class RelayedStream:
    """One streamed answer of a provider. `open` it, `pump` it, and `aclose` it in any case."""

    def __init__(
        self,
        target: str,
        response: aiohttp.ClientResponse,
        reader: PassThrough,
        leave: Callable[[aiohttp.ClientResponse, bool], None],
    ) -> None:
        """`leave` gives the response back, told whether it was read to its end."""
        self._target = target
        self._response = response
        self._content = response.content
        self._reader = reader
        self._leave = leave
        self._sink: Sink | None = None
        self._untap: Callable[[], None] | None = None
        self._waiting = False
        """Nothing is taken, because the client does not keep up."""
        self._turn: asyncio.Future[None] | None = None
        """Done when `pump` has to act: at the end, at an error, or when the client does not keep up."""
        self.first = b""

    async def open(self) -> None:
        """Read up to the first token. Raises UpstreamFailed."""
        try:
            while not self.first and not self._reader.done:
                self.first = self._reader.feed(await self._content.read(READ_SIZE))
        except aiohttp.ClientError as error:
            raise self._broken() from error

    async def pump(self, sink: Sink) -> None:
        self._sink = sink
        loop = asyncio.get_running_loop()
        try:
            self._tap()
            while not self._reader.done:
                self._turn = loop.create_future()
                self._arrived()
                await self._turn
                if self._waiting:
                    await sink.drained()
                    self._waiting = False
        except aiohttp.ClientError as error:
            raise self._broken() from error
        finally:
            self._turn = None
            self._let_go()

    async def aclose(self) -> None:
        self._leave(self._response, self._reader.done)

    def _tap(self) -> None:
        connection = self._response.connection
        transport = connection.transport if connection is not None else None
        if transport is None or self._content.is_eof():
            return  # All has come already.
        inner = cast(asyncio.Protocol, transport.get_protocol())
        transport.set_protocol(_Tap(inner, self._arrived))
        self._untap = lambda: transport.set_protocol(inner)

    def _let_go(self) -> None:
        if self._untap is not None:
            self._untap()
            self._untap = None

    def _arrived(self) -> None:
        """Something has come. Called by the transport, and by `pump` for what came in between."""
        turn, sink = self._turn, self._sink
        if turn is not None and sink is not None and not turn.done():
            try:
                self._pass_on(sink)
            except Exception as error:  # noqa: BLE001 - it is raised again where the stream is pumped
                turn.set_exception(error)
            else:
                if self._waiting or self._reader.done:
                    turn.set_result(None)
        if self._content.is_eof():
            # The connection may serve somebody else from here on.
            self._let_go()

    def _pass_on(self, sink: Sink) -> None:
        content, reader = self._content, self._reader
        while not reader.done:
            # Taking what is there may let the HTTP client parse more of what it had put aside.
            data = content.read_nowait(-1)
            if not data and not content.is_eof():
                return
            out = reader.feed(data)
            if out and not sink.send(out):
                self._waiting = True
                return

    def _broken(self) -> errors.OutpostError:
        return errors.UpstreamFailed(f"{self._target} broke off its answer.")


class _Tap(asyncio.Protocol):
    """Passes everything to `inner`, then tells of what `inner` may have got for its reader."""

    __slots__ = ("_arrived", "_inner", "_received")

    def __init__(self, inner: asyncio.Protocol, arrived: Callable[[], None]) -> None:
        self._inner = inner
        self._received = inner.data_received
        self._arrived = arrived

    def data_received(self, data: bytes) -> None:
        self._received(data)
        self._arrived()

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)
        self._arrived()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
