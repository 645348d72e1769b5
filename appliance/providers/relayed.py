"""A provider's stream on its way to the client, without a task that is woken for each piece.

Waking a task costs more than all else that a piece needs, so the bytes are taken where they come in: `_Tap` stands
between the transport and the HTTP client's own protocol, lets that one parse, and then says that something has come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import cast

import aiohttp

from appliance import errors
from appliance.dialects.passing import PassThrough
from appliance.providers.upstream import Sink

_TURNS = 3


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
        self._untap: Callable[[], None] | None = None
        self._gone = False
        """The connection has ended, so nothing more can come."""
        self._send: Callable[[bytes], bool] | None = None
        self._full = False
        """`_send` has asked for a pause."""
        self._turn: asyncio.Future[None] | None = None
        """Done when the task has to act: at the end, at an error, at a pause. Nothing is taken without it."""
        self.first = b""

    async def open(self) -> None:
        """Take what comes up to the first token. Raises UpstreamFailed."""
        await self._tap()
        await self._take(self._keep)

    async def pump(self, sink: Sink) -> None:
        while not self._reader.done:
            await self._take(sink.send)
            if self._full:
                await sink.drained()

    async def aclose(self) -> None:
        self._let_go()
        self._leave(self._response, self._reader.done)

    def _keep(self, data: bytes) -> bool:
        self.first = data
        return False

    async def _take(self, send: Callable[[bytes], bool]) -> None:
        """Hand `send` what comes, until it asks for a pause or the target is done."""
        self._full = False
        self._send = send
        self._turn = asyncio.get_running_loop().create_future()
        try:
            self._arrived()
            await self._turn
        except aiohttp.ClientError as error:
            raise errors.UpstreamFailed(f"{self._target} broke off its answer.") from error
        finally:
            self._turn = None

    async def _tap(self) -> None:
        for _ in range(_TURNS):
            connection = self._response.connection
            transport = connection.transport if connection is not None else None
            if transport is None:
                break
            inner = cast(asyncio.Protocol | None, transport.get_protocol())
            if inner is not None:
                transport.set_protocol(_Tap(inner, self._arrived, self._lost))
                self._untap = partial(transport.set_protocol, inner)
                return
            await asyncio.sleep(0)  # TLS has ended; its end is told in one of the next turns of the loop
        self._gone = True

    def _let_go(self) -> None:
        if self._untap is not None:
            self._untap()
            self._untap = None

    def _lost(self) -> None:
        self._gone = True
        self._arrived()

    def _arrived(self) -> None:
        """Something has come. Called by the transport, and at the beginning of each turn for what came in between."""
        turn, send = self._turn, self._send
        if turn is not None and send is not None and not turn.done():
            try:
                self._pass_on(send)
            except Exception as error:  # noqa: BLE001 - it is raised again where the turn is awaited
                turn.set_exception(error)
            else:
                if self._full or self._reader.done:
                    turn.set_result(None)
        if self._content.is_eof():
            # The connection may serve somebody else from here on.
            self._let_go()

    def _pass_on(self, send: Callable[[bytes], bool]) -> None:
        content, reader = self._content, self._reader
        while not reader.done:
            # Taking what is there may let the HTTP client parse more of what it had put aside.
            data = content.read_nowait(-1)
            if not data and not content.is_eof():
                if self._gone:
                    # After a chunk that is no chunk the HTTP client says nothing to its reader.
                    raise aiohttp.ServerDisconnectedError
                return
            out = reader.feed(data)
            if out and not send(out):
                self._full = True
                return


class _Tap(asyncio.Protocol):
    """Passes everything to `inner`, then tells of what `inner` may have got for its reader."""

    __slots__ = ("_arrived", "_inner", "_lost", "_received")

    def __init__(self, inner: asyncio.Protocol, arrived: Callable[[], None], lost: Callable[[], None]) -> None:
        self._inner = inner
        self._received = inner.data_received
        self._arrived = arrived
        self._lost = lost

    def data_received(self, data: bytes) -> None:
        self._received(data)
        self._arrived()

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)
        self._lost()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
