"""A server that plays answers byte by byte over real sockets, and a client that POSTs to it by our own hand."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
import uvloop
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult

from appliance.dialects.kinds import CHAT
from appliance.dialects.tally import Tally
from appliance.providers.http import BASE_HEADERS, READ_AHEAD
from appliance.providers.pool import Connector
from appliance.providers.posting import Address, Reply, fields_of
from appliance.providers.upstream import Call
from tests.fakes.providers import upstream
from tests.fakes.tls import client_side, server_side

PATIENT = aiohttp.ClientTimeout(total=None)
FIELDS = fields_of(BASE_HEADERS)
HUGE = b"x" * 12_000_000
"""More than the sockets' buffers take."""
LOOPS: dict[str, Callable[[Coroutine[Any, Any, None]], None]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}

on_both_loops = pytest.mark.parametrize("run", LOOPS.values(), ids=list(LOOPS))
plain_and_tls = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


@dataclass
class Answer:
    """What a server sends, what of it is an answer's body, and whether the connection can be used again."""

    status: int
    body: bytes
    raw: bytes
    kept: bool = True
    until_end: bool = False
    """The end of the connection is the end of the body."""

    @property
    def head(self) -> int:
        """Bytes up to the body."""
        return self.raw.index(b"\r\n\r\n", self.raw.rindex(b"HTTP/1.")) + 4


def answer(status: int, body: bytes, fields: bytes = b"", *, version: bytes = b"1.1", **told: bool) -> Answer:
    length = b"" if told.get("until_end") or b"chunked" in fields else b"Content-Length: %d\r\n" % len(body)
    sent = b"2\r\n%b\r\n%x\r\n%b\r\n0\r\nX-Sum: 1\r\n\r\n" % (body[:2], len(body) - 2, body[2:])
    raw = b"HTTP/%b %d Thing\r\n%b%b\r\n%b" % (version, status, length, fields, sent if b"chunked" in fields else body)
    return Answer(status, body, raw, **told)


CHUNKED = b"Transfer-Encoding: chunked\r\n"
SOON = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
OK = answer(200, b'{"a": 1}')
ANSWERS = {
    "length": OK,
    "chunks and trailers": answer(200, b"data: 1\n\n", CHUNKED),
    "nothing": answer(200, b""),
    "an error": answer(500, b"{}"),
    "after others": Answer(200, b"yes", SOON + answer(200, b"yes").raw),
    "no content": Answer(204, b"", b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n"),
    "not modified": Answer(304, b"", b"HTTP/1.1 304 Not Modified\r\n\r\n"),
    "to be closed": answer(200, b"yes", b"Connection: close\r\n", kept=False),
    "of 1.0": answer(200, b"yes", version=b"1.0", kept=False),
    "of 1.0 that is kept": answer(200, b"yes", b"Connection: keep-alive\r\n", version=b"1.0"),
    "until the end": answer(200, b"yes", kept=False, until_end=True),
    "until the end of 1.0": answer(200, b"yes", version=b"1.0", kept=False, until_end=True),
}


class Server:
    """Hands each request to `play`, which may read its body, and answers; counts connections, and their ends."""

    def __init__(self) -> None:
        self.connections = 0
        self.heads: list[bytes] = []
        self.asked = asyncio.Event()
        """A head has come."""
        self.gone = asyncio.Event()
        """A client has closed, or broken off, a connection."""
        self.play: Callable[[Server, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]] = told(OK)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while not writer.is_closing():
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                self.asked.set()
                await self.play(self, reader, writer)
        except (asyncio.IncompleteReadError, OSError):
            self.gone.set()
        finally:
            writer.transport.abort()

    async def body(self, reader: asyncio.StreamReader) -> bytes:
        length = int(self.heads[-1].lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return await reader.readexactly(length)


def told(
    what: Answer, cut: int | None = None, *, until: int | None = None
) -> Callable[[Server, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """Answers so, in two parts, or only with its beginning; then closes, unless the connection is kept."""

    async def play(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.body(reader)
        raw = what.raw if until is None else what.raw[:until]
        if cut is not None:
            writer.write(raw[:cut])
            for _ in range(8):
                await asyncio.sleep(0)  # the client takes it
            raw = raw[cut:]
        writer.write(raw)
        await writer.drain()
        if until is not None or not what.kept:
            writer.close()

    return play


@dataclass
class Client:
    """A session with our own connections, the server, and its address."""

    session: aiohttp.ClientSession
    server: Server
    url: str
    addresses: dict[str, Address] = field(default_factory=dict)

    @property
    def connector(self) -> Connector:
        found = self.session.connector
        assert isinstance(found, Connector)
        return found

    @property
    def idle(self) -> int:
        return sum(map(len, self.connector._conns.values()))

    @property
    def busy(self) -> int:
        return len(self.connector._acquired)

    async def post(self, body: bytes = b"{}", path: str = "/v1/x") -> Reply:
        address = self.addresses.get(path)
        if address is None:
            address = self.addresses[path] = Address(self.session, yarl.URL(self.url + path, encoded=True), READ_AHEAD)
        return await address.post(FIELDS, body, PATIENT)

    async def ask(self, body: bytes = b"{}") -> tuple[int, bytes]:
        """Status and body of an answer that is read to its end."""
        async with asyncio.timeout(10):
            reply = await self.post(body)
            try:
                parts = []
                while part := await reply.content.readany():
                    parts.append(part)
                return reply.status, b"".join(parts)
            finally:
                reply.release()

    def target(self) -> Any:
        return upstream("u", model="m", base_url=f"{self.url}/v1", api_key=None, session=self.session)


@asynccontextmanager
async def running(*, tls: bool = False, **options: Any) -> AsyncIterator[Client]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=server_side() if tls else None)
    url = f"{'https' if tls else 'http'}://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    connector = Connector(limit=0, ssl=client_side() if tls else True, **options)
    async with aiohttp.ClientSession(connector=connector) as session:
        try:
            yield Client(session, server, url)
        finally:
            listening.close()


def call(stream: bool = False, connect_s: float = 5.0) -> Call:
    body = b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"stream":%b}' % (b"true" if stream else b"false")
    return Call("1", 0, CHAT, CHAT.parse(body, 64).request, "m", "p", connect_s, Tally())


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0)


class Names(AbstractResolver):
    """Every name is this machine's, once `known` is set."""

    def __init__(self) -> None:
        self.known = asyncio.Event()
        self.known.set()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        await self.known.wait()
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=0)]

    async def close(self) -> None:
        pass
