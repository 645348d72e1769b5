"""What comes over a connection while nobody has asked is nobody's answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import uvloop

from appliance.dialects.kinds import CHAT
from appliance.dialects.sse import event
from appliance.dialects.tally import Tally
from appliance.providers.http import make_session
from appliance.providers.pool import Connector
from appliance.providers.upstream import Call
from tests.fakes.providers import upstream
from tests.fakes.sink import taken
from tests.fakes.tls import client_side, server_side
from tests.fakes.upstream import chat_events

STALE = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"leak":1'
LATE = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
UNASKED = {
    "an answer": STALE,
    "a time-out": LATE,
    "half a head": b"HTTP/1.1 200 OK\r\nConte",
    "a line end": b"\r\n",
    "what is no HTTP": b"\x00\xff garbage",
}


class Server:
    """Answers each request as it is told, `after` each the same; counts connections."""

    def __init__(self) -> None:
        self.connections = 0
        self.writer: asyncio.StreamWriter
        self.gone = asyncio.Event()
        """A client has closed a connection."""
        self.after = b""
        """Sent in the same write as the end of an answer."""
        self.apart = False
        """The beginning of an answer comes before its end."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writer = writer
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                body = await reader.readexactly(length)
                head, rest = streamed() if b'"stream":true' in body else whole()
                writer.write(head)
                if self.apart:
                    for _ in range(20):
                        await asyncio.sleep(0)  # the client takes it
                writer.write(rest + self.after)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone.set()
        finally:
            writer.close()


def whole() -> tuple[bytes, bytes]:
    body = (
        b'{"choices":[{"index":0,"message":{"content":"yes"},"finish_reason":"stop"}],"usage":{"completion_tokens":1}}'
    )
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body), body


def streamed() -> tuple[bytes, bytes]:
    data = b"".join(map(event, chat_events()))
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head, b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)


Ask = Callable[[], Awaitable[bytes]]


@asynccontextmanager
async def running(stream: bool, tls: bool = False) -> AsyncIterator[tuple[Server, Ask]]:
    fake = Server()
    listening = await asyncio.start_server(fake.serve, "127.0.0.1", 0, ssl=server_side() if tls else None)
    url = f"{'https' if tls else 'http'}://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    async with aiohttp.ClientSession(connector=Connector(limit=0, ssl=client_side() if tls else True)) as session:
        target = upstream("u", model="m", base_url=url, api_key=None, session=session)

        async def ask() -> bytes:
            body = b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"stream":%b}' % (
                b"true" if stream else b"false"
            )
            call = Call("1", 0, CHAT, CHAT.parse(body, 64).request, "m", "p", 1.0, Tally())
            async with asyncio.timeout(10):
                said = await taken(await target.stream(call)) if stream else await target.whole(call)
                while target.lingering:
                    await asyncio.sleep(0)
            return said

        try:
            yield fake, ask
        finally:
            listening.close()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("unasked", UNASKED.values(), ids=list(UNASKED))
async def test_what_comes_while_idle_closes_the_connection(stream: bool, unasked: bytes) -> None:
    async with running(stream) as (server, ask):
        first = await ask()
        server.writer.write(unasked)
        async with asyncio.timeout(10):
            await server.gone.wait()
        assert await ask() == first
        assert server.connections == 2


@pytest.mark.parametrize("at", range(1, len(STALE)))
async def test_an_answer_that_comes_in_two_parts_closes_it_too(at: int) -> None:
    async with running(stream=False) as (server, ask):
        first = await ask()
        server.writer.write(STALE[:at])
        async with asyncio.timeout(10):
            await server.gone.wait()
        server.writer.write(STALE[at:])
        assert await ask() == first
        assert server.connections == 2


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("unasked", [STALE, LATE, STALE + STALE], ids=["an answer", "a time-out", "two answers"])
@pytest.mark.parametrize("apart", [False, True], ids=["at once", "in two reads"])
async def test_what_comes_together_with_the_end_of_an_answer_is_not_taken_for_the_next(
    stream: bool, unasked: bytes, apart: bool
) -> None:
    async with running(stream) as (server, ask):
        server.after, server.apart = unasked, apart
        first = await ask()
        assert await ask() == await ask() == first
        assert server.connections == 3


async def test_what_lies_unread_in_the_socket_is_seen_before_the_next_request() -> None:
    async with running(stream=False) as (server, ask):
        first = await ask()
        # Nothing runs between the write, which is done at once, and the request: the loop has not looked yet.
        server.writer.write(STALE)
        assert await ask() == first
        assert server.connections == 2


async def test_an_end_that_lies_unread_in_the_socket_costs_no_request() -> None:
    async with running(stream=False) as (server, ask):
        first = await ask()
        server.writer.write_eof()
        assert await ask() == first
        assert server.connections == 2


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_on_both_loops_and_with_tls(stream: bool, tls: bool, run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def story() -> None:
        async with running(stream, tls) as (server, ask):
            first = await ask()
            for _ in range(3):
                assert await ask() == first
            assert server.connections == 1
            server.writer.write(STALE)
            async with asyncio.timeout(10):
                await server.gone.wait()
            assert await ask() == first
            assert server.connections == 2

    run(story())


async def test_many_at_a_time_keep_their_connections() -> None:
    async with running(stream=True) as (server, ask):
        for _ in range(3):
            said = await asyncio.gather(*[ask() for _ in range(20)])
            assert len(set(said)) == 1
        assert server.connections == 20


async def test_the_session_of_the_process_keeps_connections_that_way() -> None:
    async with make_session() as session:
        assert isinstance(session.connector, Connector)
