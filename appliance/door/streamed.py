"""A streamed answer on its way out, its head and its frames written by our own hand: each piece costs one call into the
transport, and no coroutine."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpVersion11

from appliance.door.http import SERVER, abort, are_plain, head_lines

SSE_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
_HEAD = head_lines({**SERVER, **SSE_HEADERS})


class StreamedResponse(web.StreamResponse):
    """A stream in chunks over a connection of HTTP/1.1 that is kept."""

    def __init__(self, request: web.BaseRequest) -> None:
        super().__init__()
        self._req = request
        self._keep_alive = True

    def begin(self, lines: str, data: bytes) -> None:
        """lines: of the head, see `head_lines`. Raises ConnectionResetError where the client has gone."""
        date = rfc822_formatted_time()
        head = f"HTTP/1.1 200 OK\r\n{_HEAD}{lines}Transfer-Encoding: chunked\r\nDate: {date}\r\n\r\n"
        self._write(head.encode() + (_chunk(data) if data else b""))

    async def prepare(self, request: web.BaseRequest) -> None:
        """It has begun."""

    async def write_eof(self, data: bytes = b"") -> None:
        if self._eof_sent or self._req is None:
            return
        self._write((_chunk(data) if data else b"") + b"0\r\n\r\n")
        self._eof_sent = True
        request, self._req = self._req, None
        if request.protocol.writing_paused:
            await request.writer.drain()

    def _write(self, data: bytes) -> None:
        transport = None if self._req is None else self._req.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("The client has gone.")
        transport.write(data)


class HttpOutgoing:
    """A streamed answer on its way out. `response` is None until it has begun."""

    __slots__ = ("_chunked", "_protocol", "_request", "_transport", "_write_timeout", "id", "response")

    def __init__(self, request: web.BaseRequest, id: str, write_timeout: float) -> None:
        self._request = request
        self._write_timeout = write_timeout
        self.id = id
        self.response: web.StreamResponse | None = None

    async def begin(self, headers: dict[str, str], data: bytes) -> None:
        request = self._request
        self._protocol = request.protocol
        self._transport = request.transport
        headers = {"x-request-id": self.id, **headers}
        if request.version == HttpVersion11 and request.keep_alive and are_plain(headers):
            self._chunked = True
            self.response = response = StreamedResponse(request)
            response.begin(head_lines(headers), data)
        else:
            await self._begin_otherwise(headers, data)

    async def _begin_otherwise(self, headers: dict[str, str], data: bytes) -> None:
        """The end of the connection may have to be the end of the stream, or a header is refused."""
        self.response = response = web.StreamResponse(headers={**SERVER, **SSE_HEADERS, **headers})
        writer = await response.prepare(self._request)
        assert writer is not None  # it is only None after the end of an answer
        self._chunked = response.chunked or response.headers.get("Transfer-Encoding") == "chunked"
        await response.write(data)

    def send(self, data: bytes) -> bool:
        transport = self._transport
        if transport is None or transport.is_closing():
            return True  # The client has gone; the cancellation is on its way.
        transport.write(_chunk(data) if self._chunked else data)
        return not self._protocol.writing_paused

    async def drained(self) -> None:
        await self._request.writer.drain()

    async def end(self, data: bytes) -> web.StreamResponse:
        """The last bytes of the stream."""
        assert self.response is not None
        if not self._protocol.writing_paused:
            await self.response.write_eof(data)
            return self.response
        try:
            async with asyncio.timeout(self._write_timeout):
                await self.response.write_eof(data)
        except TimeoutError:
            return self.cut()
        return self.response

    def cut(self) -> web.StreamResponse:
        """Drop the connection with whatever is still unsent."""
        assert self.response is not None
        abort(self._request, self.response)
        return self.response


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
