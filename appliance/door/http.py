"""An aiohttp request as the exchange's `Incoming` and `Outgoing`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol, cast

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from appliance.errors import BadRequest, BodyTimeout, BodyTooLarge, UnsupportedMediaType
from appliance.identity.certificates import PeerCertificate

LARGE = 64 * 1024
"""Bytes of an answer beyond which the client's pace matters."""

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""
SERVER = {"Server": "outpost", "X-Content-Type-Options": "nosniff"}


class Limits(msgspec.Struct, frozen=True):
    """What the door takes from a client. Bytes, levels, seconds, connections."""

    max_body: int = 20 << 20
    max_json_depth: int = 64
    header_timeout: float = 10.0
    body_timeout: float = 30.0
    write_timeout: float = 30.0
    drain_timeout: float = 20.0
    max_connections: int = 4096


def are_plain(headers: Mapping[str, str]) -> bool:
    """Whether `head_lines` may have them: none holds a line break or another character that ends it."""
    return all(map(str.isprintable, headers.values()))


def head_lines(headers: Mapping[str, str]) -> str:
    """Headers as they are sent."""
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()])


def credential(request: web.BaseRequest) -> str | None:
    """The key of `Authorization: Bearer KEY`, or of `x-api-key`, as Anthropic's clients send it; None if there is
    none."""
    value = request.headers.get("Authorization")
    if value is None:
        return request.headers.get("x-api-key")
    scheme, _, key = value.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def address(request: web.BaseRequest) -> str:
    """The client's network address; "unix" on a Unix socket."""
    peer = request.protocol.peername
    return str(peer[0]) if isinstance(peer, tuple) else "unix"


def peer_certificate(request: web.BaseRequest) -> PeerCertificate | None:
    """The certificate that the client of this connection has shown and that TLS has verified, if there is one.

    A browser shows it by itself, whoever's page makes it ask; so it does not count for what another site asks for.
    """
    found = cast(Connection, request.protocol).peer_certificate
    return found if found and not _from_elsewhere(request) else None


def _from_elsewhere(request: web.BaseRequest) -> bool:
    """Whether a page of another site may have made a browser send this. Programs say nothing of where they come from;
    what only reads gives such a page nothing, as it cannot see the answer."""
    if request.method in SAFE:
        return False
    headers = request.headers
    if headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = headers.get("Origin")
    return origin is not None and origin.lower() != f"https://{headers.get('Host', '').lower()}"


async def read_body(request: web.BaseRequest, limits: Limits) -> bytes:
    """The body as it came. Raises BodyTooLarge, BodyTimeout, UnsupportedMediaType, BadRequest."""
    headers = request.headers
    encoding = headers.get("Content-Encoding")
    if encoding is not None and encoding.lower() != "identity":
        raise UnsupportedMediaType("Compressed bodies are not accepted; send the body without Content-Encoding.")
    content = request.content
    if content.is_eof():
        body = content.read_nowait(-1)
        if len(body) > limits.max_body:
            raise _too_large(limits)
        return body
    if (request.content_length or 0) > limits.max_body:
        raise _too_large(limits)
    if headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limits.body_timeout):
            while part := await content.readany():
                parts.append(part)
                size += len(part)
                if size > limits.max_body:
                    raise _too_large(limits)
    except TimeoutError:
        raise BodyTimeout(f"The body did not arrive within {limits.body_timeout:g} s.") from None
    except (web.RequestPayloadError, HttpProcessingError):
        raise BadRequest("The body is not properly framed; check Content-Length or the chunks.") from None
    return b"".join(parts)


def _too_large(limits: Limits) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than the {limits.max_body} bytes that are accepted.")


class Connection(Protocol):
    """What the door's own connections tell beside aiohttp's."""

    peer_certificate: Any
    """The verified certificate that the client has shown as it connected, as `getpeercert()` gives it; else None."""


class HttpIncoming:
    """A request on its way in."""

    __slots__ = ("_limits", "_request", "client", "credential", "id")

    def __init__(self, request: web.BaseRequest, id: str, limits: Limits) -> None:
        self._request = request
        self._limits = limits
        self.id = id
        self.credential = credential(request)
        self.client = address(request)

    @property
    def peer_certificate(self) -> PeerCertificate | None:
        """See `peer_certificate`."""
        return peer_certificate(self._request)

    def header(self, name: str) -> str | None:
        return self._request.headers.get(name)

    async def body(self) -> bytes:
        return await read_body(self._request, self._limits)


async def send_large(request: web.BaseRequest, response: web.Response, timeout: float) -> web.StreamResponse:
    """Send a whole answer that does not fit the socket's buffers; cut the connection when the client takes none
    of it for `timeout` seconds."""
    body = cast(bytes, response.body)
    streamed = web.StreamResponse(status=response.status, headers=response.headers)
    streamed.content_length = len(body)
    await streamed.prepare(request)
    try:
        for at in range(0, len(body), LARGE):
            async with asyncio.timeout(timeout):
                await streamed.write(body[at : at + LARGE])
                await request.writer.drain()
        async with asyncio.timeout(timeout):
            await streamed.write_eof()
    except TimeoutError:
        abort(request, streamed)
    return streamed


def abort(request: web.BaseRequest, response: web.StreamResponse) -> None:
    response.force_close()
    if request.transport is not None:
        request.transport.abort()
