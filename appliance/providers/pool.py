"""Connections to upstreams that wait for their next request.

What comes while nobody has asked is no answer, and the next request may be somebody else's: the HTTP client would take
such bytes for that one's answer. Here they close the connection; what lies unread in its socket is looked for before it
is used again.

That is all that can be told: bytes that come after a request was sent are an answer to it, however early.
"""

from __future__ import annotations

import asyncio
import select
from typing import Any, cast

import aiohttp
from aiohttp.connector import Connection

from appliance.providers.tap import Between


class Idle(Between):
    """Stands before the HTTP client's protocol while its connection is in the pool. One of them a connection."""

    __slots__ = ("_socket", "_transport")

    def __init__(self, inner: asyncio.Protocol, transport: asyncio.Transport) -> None:
        self._inner = inner
        self._transport = transport
        self._socket = select.poll()
        """Made once: to be asked is one call of the system's."""
        self._socket.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def wait(self) -> None:
        """The answer is over, and the connection on its way to the pool."""
        if not self._transport.is_closing():
            self._transport.set_protocol(self)

    def wake(self) -> bool:
        """The connection is to be used; False where something has come in the meantime, if only its end."""
        if self._socket.poll(0):
            return False
        self._transport.set_protocol(self._inner)
        return True

    def data_received(self, data: bytes) -> None:
        self._transport.abort()


class Connector(aiohttp.TCPConnector):
    """Keeps connections for the next request, as long as nothing comes over them."""

    async def connect(self, *args: Any, **kwargs: Any) -> Connection:
        while True:
            connection = await super().connect(*args, **kwargs)
            transport, protocol = connection.transport, connection.protocol
            if transport is None or protocol is None:
                return connection  # lost already, which the request is told
            idle = cast(asyncio.BaseProtocol | None, transport.get_protocol())
            if not isinstance(idle, Idle):
                if idle is protocol:
                    connection.add_callback(Idle(protocol, transport).wait)
                return connection
            # What came together with the end of the last answer has been read with it.
            if not protocol.should_close and idle.wake():
                connection.add_callback(idle.wait)
                return connection
            connection.close()
