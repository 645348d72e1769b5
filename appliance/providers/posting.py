"""POST over a connection of the pool, and the beginning of the answer: the way on which every request goes.

aiohttp connects, keeps connections and parses. What its client does for a request between those is built anew here in a
tenth of the time, because next to nothing of it differs from one request of a provider to the next.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from functools import cached_property
from typing import cast

import aiohttp
import yarl
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDictProxy

from appliance.providers.pool import Connector, Line

_APART = 64 * 1024
"""Bytes of a body that is not copied once more to be sent together with its head."""
_NO_FIELD = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NO_TARGET = re.compile(r"[\x00-\x20\x7f]")


class Reply:
    """What an upstream has begun to answer. `release` it in any case."""

    __slots__ = ("_connection", "_early", "content", "headers", "status")

    def __init__(
        self,
        status: int,
        headers: CIMultiDictProxy[str],
        content: aiohttp.StreamReader,
        connection: Connection,
        early: bool,
    ) -> None:
        """early: it may have come before all of the request was sent, which the transport does not tell."""
        self.status = status
        self.headers = headers
        self.content = content
        self._connection: Connection | None = connection
        self._early = early
        content.on_eof(self.release)

    @property
    def line(self) -> Line | None:
        """The connection over which the rest of it comes; None once it is over or was released."""
        return None if self._connection is None else cast(Line | None, self._connection.protocol)

    def release(self) -> None:
        """Give the connection back; one whose answer has not come to its end is closed, which cancels the work."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        content = self.content
        if not content.is_eof():
            # In place of another error too: that one holds the frames of all who have waited.
            content.set_exception(aiohttp.ClientConnectionError("Connection closed"))
        transport = connection.transport
        if transport is None or self._early or transport.get_write_buffer_size():
            _break_off(connection, self._early)
        else:
            connection.release()


class _Place(aiohttp.ClientRequest):
    """Where the connector is to connect to."""

    @cached_property
    def connection_key(self) -> ConnectionKey:
        return super().connection_key


class Address:
    """One URL that is POSTed to. Made within a running loop."""

    def __init__(self, session: aiohttp.ClientSession, url: yarl.URL, read_ahead: int) -> None:
        """read_ahead: bytes of an answer that may lie unread before the transport is told to stop, about. Raises
        ValueError for what cannot stand in a request's first line."""
        if session.connector is None:
            raise RuntimeError("The client session is closed.")
        if _NO_TARGET.search(url.raw_path_qs):
            raise ValueError("The address has a blank or a control character in it.")
        self.url = url
        self._connector = cast(Connector, session.connector)
        self._read_ahead = read_ahead
        self._hides = url.scheme == "https"
        """Its transports do not tell what is still to be sent."""
        self._place = _Place("POST", url, loop=asyncio.get_running_loop(), session=session)
        host = self._place.headers["Host"]
        self._start = f"POST {url.raw_path_qs} HTTP/1.1\r\nHost: {host}\r\n".encode("ascii")

    async def post(self, fields: bytes, body: bytes, timeout: aiohttp.ClientTimeout) -> Reply:
        """`fields`: the request's headers, see `fields_of`. Raises aiohttp.ClientError, and TimeoutError where no
        connection comes about in time."""
        hidden = self._hides and len(body) >= _APART
        connection = await self._connector.connect(self._place, [], timeout)
        try:
            line, transport = connection.protocol, connection.transport
            if line is None or transport is None:
                raise aiohttp.ServerDisconnectedError
            line.set_response_params(read_until_eof=True, auto_decompress=False, read_bufsize=self._read_ahead)
            head = b"%b%bContent-Length: %d\r\n\r\n" % (self._start, fields, len(body))
            if len(body) < _APART:
                transport.write(head + body)
            else:
                transport.write(head)
                transport.write(body)
            while True:
                message, content = await line.read()
                if not 100 <= message.code < 200 or message.code == 101:
                    hidden = hidden and message.code != 200
                    return Reply(message.code, message.headers, content, connection, hidden)
        except HttpProcessingError as error:
            connection.close()
            error.__cause__ = None  # its traceback holds `error`, and so all that waits for the answer
            raise aiohttp.ClientPayloadError(error.message) from error
        except BaseException:
            _break_off(connection, hidden)
            raise


def _break_off(connection: Connection, unsent: bool) -> None:
    """Close a connection, and drop what it has not sent: a transport that is closed waits until the other side has
    taken all, which may be never. unsent: there is such, whatever the transport says."""
    transport = connection.transport
    if transport is not None and (unsent or transport.get_write_buffer_size()):
        transport.abort()
    connection.close()


def fields_of(headers: Mapping[str, str]) -> bytes:
    """Headers as they are sent. Raises ValueError for what would end one, or is no text."""
    for name, value in headers.items():
        if _NO_FIELD.search(name) or _NO_FIELD.search(value):
            raise ValueError(f"The header {name!r} has a control character in it.")
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()]).encode()
