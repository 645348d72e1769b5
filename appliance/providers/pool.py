"""Connections to upstreams: whose bytes are taken for an answer, and who is told of them.

aiohttp wakes a task for each piece of a stream, which costs more than all else that a piece needs; of a chunk that is
no chunk it does not tell the task at all. And what comes over a connection that waits for its next request it would
take for the answer to that one, which may be somebody else's. So the client's protocol is one of our own. It is made
with the connection and stays: to change a transport's protocol stops and starts reading, twice a request.
"""

from __future__ import annotations

import ctypes
import select
from asyncio import BaseTransport
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection

_poll = ctypes.PyDLL(None).poll
"""Keeps the interpreter's lock, as Python's own does not: to let go of it and to wait for it again costs 5 % of all
that a request costs, as soon as another thread works; with a time-out of 0 the call takes a microsecond."""
_poll.argtypes = (ctypes.c_void_p, ctypes.c_ulong, ctypes.c_int)


class _Pollfd(ctypes.Structure):
    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


class Line(ResponseHandler):
    """One connection. While it waits in the pool, whatever comes closes it."""

    _asked = True
    """Somebody's request is under way."""
    _arrived: Callable[[], None] | None = None
    _watched: _Pollfd
    _watched_at: int

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        self._watched = _Pollfd(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._watched_at = ctypes.addressof(self._watched)

    def tell(self, arrived: Callable[[], None]) -> None:
        """Call `arrived` whenever something of the present answer has been read, and when nothing more can come; until
        the answer is over or `hush` is called."""
        self._arrived = arrived

    def hush(self) -> None:
        self._arrived = None

    def rest(self) -> None:
        """The answer is over, and the connection on its way to the pool."""
        self._asked = False
        self._arrived = None

    def wake(self) -> bool:
        """The connection is to be used; False where something lies unread in its socket, if only its end. What comes
        after this is an answer to the request, however early: that is all that can be told."""
        if self._asked:
            return True  # it is new
        # What came together with the end of the last answer has been read with it.
        if self.should_close or _poll(self._watched_at, 1, 0):
            return False
        self._asked = True
        return True

    def data_received(self, data: bytes) -> None:
        # Without data it is called by the reader's own hand, which takes more of what had been put aside.
        if data and not self._asked:
            self.abort()
            return
        arrived = self._arrived  # with the end of its answer the connection goes to the pool
        ResponseHandler.data_received(self, data)
        if data and arrived is not None:
            arrived()

    def resume_reading(self, resume_parser: bool = True) -> None:
        # aiohttp asks for it at each read, and parses nothing then.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def close(self) -> None:
        content = self._payload
        super().close()
        _broken_off(content)

    def connection_lost(self, exc: BaseException | None) -> None:
        content, arrived = self._payload, self._arrived
        super().connection_lost(exc)
        _broken_off(content)
        self._arrived = None
        if arrived is not None:
            arrived()


def _broken_off(content: aiohttp.StreamReader | None) -> None:
    """Tell whoever reads an answer that no more of it comes; aiohttp forgets to in some cases."""
    if content is not None and not content.is_eof() and content.exception() is None:
        content.set_exception(aiohttp.ServerDisconnectedError())


class Connector(aiohttp.TCPConnector):
    """Keeps connections for the next request, as long as nothing comes over them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = partial(Line, loop=self._loop)  # type: ignore[assignment]  # of a subclass

    async def connect(self, *args: Any, **kwargs: Any) -> Connection:
        while True:
            connection = await super().connect(*args, **kwargs)
            line = cast(Line | None, connection.protocol)
            if line is None or line.wake():
                return connection
            connection.close()

    def _release(self, key: Any, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        cast(Line, protocol).rest()
        super()._release(key, protocol, should_close=should_close)
