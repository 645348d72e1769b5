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
_NO_FIELD = re.compile(r"[\r\n\0]")


class Reply:
    """What an upstream has begun to answer. `release` it in any case."""

    __slots__ = ("_connection", "content", "headers", "status")

    def __init__(
        self, status: int, headers: CIMultiDictProxy[str], content: aiohttp.StreamReader, connection: Connection
    ) -> None:
        self.status = status
        self.headers = headers
        self.content = content
        self._connection: Connection | None = connection
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
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientConnectionError("Connection closed"))
        transport = connection.transport
        if transport is None or transport.get_write_buffer_size():
            connection.close()  # it has answered before it had all of the request
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
        """read_ahead: bytes of an answer that may lie unread before the transport is told to stop, about."""
        self.url = url
        self._connector = cast(Connector, session.connector)
        self._read_ahead = read_ahead
        self._place = _Place("POST", url, loop=asyncio.get_running_loop(), session=session)
        host = self._place.headers["Host"]
        self._start = f"POST {url.raw_path_qs} HTTP/1.1\r\nHost: {host}\r\n".encode("ascii")

    async def post(self, fields: bytes, body: bytes, timeout: aiohttp.ClientTimeout) -> Reply:
        """`fields`: the request's headers, see `fields_of`. Raises aiohttp.ClientError, and TimeoutError where no
        connection comes about in time."""
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
                    return Reply(message.code, message.headers, content, connection)
        except HttpProcessingError as error:
            connection.close()
            raise aiohttp.ClientPayloadError(error.message) from error
        except BaseException:
            connection.close()
            raise


def fields_of(headers: Mapping[str, str]) -> bytes:
    """Headers as they are sent. Raises ValueError for what would end one."""
    for name, value in headers.items():
        if _NO_FIELD.search(name) or _NO_FIELD.search(value):
            raise ValueError(f"The header {name!r} has a line break in it.")
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()]).encode()
