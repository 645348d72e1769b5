"""A whole answer written by our own hand: its head and its body in one piece, straight to the transport.

What aiohttp's response does for it – a dictionary of headers, two rounds of looking what is missing, a writer – costs
as much as all of routing, for an answer of which everything is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpVersion11

from appliance.door.http import LARGE, SERVER, are_plain, head_lines

_STATUS = {
    int(status): f"HTTP/1.1 {status.value} {status.phrase}\r\n"
    for status in HTTPStatus
    if status not in (204, 304) and status >= 200
}
_ALWAYS = head_lines({**SERVER, "Content-Type": "application/json"})


class WholeResponse(web.StreamResponse):
    """An answer in JSON to a request of HTTP/1.1 whose connection is kept: see `whole_response`."""

    def __init__(self, head: str, body: bytes, status: int) -> None:
        super().__init__(status=status)
        self._written = head.encode() + body
        self._keep_alive = True

    async def prepare(self, request: web.BaseRequest) -> None:
        self._req = request
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("The client has gone.")
        transport.write(self._written)

    async def write_eof(self, data: bytes = b"") -> None:
        request, self._req = self._req, None
        self._eof_sent = True
        if request is not None and request.protocol.writing_paused:
            await request.writer.drain()


def whole_response(
    request: web.BaseRequest, body: bytes, request_id: str, status: int, headers: Mapping[str, str]
) -> WholeResponse | None:
    """The answer to `request`; None where it is one that takes more than this."""
    start = _STATUS.get(status)
    if start is None or len(body) > LARGE or request.version != HttpVersion11 or not request.keep_alive:
        return None
    if not are_plain(headers):
        return None
    head = (
        f"{start}{_ALWAYS}x-request-id: {request_id}\r\n{head_lines(headers)}"
        f"Content-Length: {len(body)}\r\nDate: {rfc822_formatted_time()}\r\n\r\n"
    )
    return WholeResponse(head, body, status)
