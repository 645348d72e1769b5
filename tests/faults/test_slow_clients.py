"""Clients that read or write too slowly, or only keep a connection: they cost little and hurt nobody."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable

import psutil
import pytest

from tests.conftest import fake_routes
from tests.e2e.clients import Answer, Client, Cut, chat, client, post
from tests.fakes.upstream import Reply, chunk
from tests.gateway import Gateway, UpstreamThread

pytestmark = pytest.mark.timeout(240)

HEADER_S, BODY_S, WRITE_S = 1.5, 1.5, 2.0
NewGateway = Callable[..., Gateway]


@pytest.fixture
def strict(new_gateway: NewGateway, upstream: UpstreamThread) -> Gateway:
    """A gateway with short patience, in front of an upstream that also has an endless answer."""
    upstream.call(
        lambda: upstream.fake.behave("flood", lambda seen: Reply(events=[chunk({"content": "x" * 60_000})] * 400))
    )
    settings = {**fake_routes(upstream, "ok", "flood"), "deployments": []}
    settings["routes"] = [route for route in settings["routes"] if route["model"].startswith("fake-")]
    settings["server"] = {
        "header_timeout": f"{HEADER_S}s",
        "body_timeout": f"{BODY_S}s",
        "write_timeout": f"{WRITE_S}s",
    }
    return new_gateway(settings)


def resident(gateway: Gateway) -> int:
    return int(psutil.Process(gateway.pid).memory_info().rss)


async def served(gateway: Gateway) -> None:
    answer = await post(gateway, chat("Hi", model="fake-ok"))
    assert answer.done
    assert answer.error is None


@contextlib.asynccontextmanager
async def connections(gateway: Gateway, count: int) -> AsyncIterator[list[Client]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(client(gateway)) for _ in range(count)]


async def closed(one: Client) -> bytes:
    """All that comes until the other side closes."""
    with contextlib.suppress(ConnectionError):
        return await one.reader.read()
    return b""


async def test_readers_at_a_byte_a_second_are_cut_and_cost_little(strict: Gateway) -> None:
    readers = 40
    await asyncio.gather(*(served(strict) for _ in range(2 * readers)))
    before = resident(strict)
    over = asyncio.Event()

    async def drip() -> int:
        """Take a byte a second off the socket, past the stream, which would take all that comes."""
        taken = 0
        async with Client(strict.url, strict.key, receive_buffer=4096) as one:
            one.writer.transport.pause_reading()
            await one.send("/v1/chat/completions", chat("Hi", model="fake-flood"))
            sock = socket.fromfd(one.writer.get_extra_info("socket").fileno(), socket.AF_INET, socket.SOCK_STREAM)
            with sock, contextlib.suppress(ConnectionError):
                while not over.is_set():
                    with contextlib.suppress(BlockingIOError):
                        taken += len(sock.recv(1))
                    await asyncio.sleep(1.0)
        return taken

    dripping = [asyncio.ensure_future(drip()) for _ in range(readers)]
    await asyncio.to_thread(strict.wait_for, lambda: strict.status()["running"] == readers, "all readers")
    largest, end = before, time.monotonic() + 120
    while strict.status()["running"]:
        largest = max(largest, resident(strict))
        assert time.monotonic() < end, "slow readers are not cut"
        await served(strict)
        await asyncio.sleep(0.2)
    over.set()
    assert 0 < max(await asyncio.gather(*dripping)) < 200
    assert (largest - before) / readers < 512 << 10, f"{(largest - before) >> 10} KiB for {readers} readers"
    stalled = [row for row in strict.rows() if row["error_code"] == "client_stalled"]
    assert len(stalled) == readers
    assert all(WRITE_S <= row["duration_s"] < 60 for row in stalled)


async def test_idle_connections_are_harmless(strict: Gateway) -> None:
    before = resident(strict)
    async with contextlib.AsyncExitStack() as stack:
        idle = []
        for _ in range(500):
            # Each at once: who lets its first request wait for the other connections is late.
            one = await stack.enter_async_context(client(strict))
            await one.send("/healthz", {}, method="GET")
            await one.head()
            await one.rest()
            idle.append(one)
        assert psutil.Process(strict.pid).num_fds() >= 500
        began = time.monotonic()
        answers = await asyncio.gather(*(post(strict, chat("Hi", model="fake-ok")) for _ in range(50)))
        assert all(answer.done for answer in answers)
        assert time.monotonic() - began < 30
        assert resident(strict) - before < 64 << 20
        # They are still good for another request.
        await idle[0].send("/v1/chat/completions", chat("Hi", model="fake-ok"))
        await idle[0].head()
        assert (await idle[0].rest()).done
    await asyncio.to_thread(
        strict.wait_for, lambda: psutil.Process(strict.pid).num_fds() < 100, "the descriptors to be back"
    )


async def test_heads_that_drip_are_cut(strict: Gateway) -> None:
    async with connections(strict, 50) as dripping:

        async def drip(one: Client) -> bytes:
            reading = asyncio.ensure_future(closed(one))
            for byte in b"POST /v1/chat/completions HTTP/1.1\r\nHost: box\r\nX-Pad: " + b"a" * 1000:
                if reading.done():
                    break
                with contextlib.suppress(ConnectionError):
                    one.writer.write(bytes([byte]))
                await asyncio.sleep(0.25)
            return await asyncio.wait_for(reading, 10)

        began = time.monotonic()
        work = asyncio.gather(*(drip(one) for one in dripping))
        await served(strict)
        assert set(await work) == {b""}
        assert time.monotonic() - began < HEADER_S + 30


async def test_bodies_that_drip_are_refused(strict: Gateway) -> None:
    async with connections(strict, 50) as dripping:

        async def drip(one: Client) -> Answer:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: box\r\nAuthorization: Bearer {strict.key}\r\n"
            one.writer.write(head.encode() + b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
            answering = asyncio.ensure_future(one.head())
            while not answering.done():
                one.writer.write(b" ")
                await asyncio.sleep(0.25)
            with contextlib.suppress(Cut):
                await answering
                await one.rest()
            return one.answer

        began = time.monotonic()
        work = asyncio.gather(*(drip(one) for one in dripping))
        await served(strict)
        for answer in await work:
            assert (answer.status, answer.json["error"]["code"]) == (408, "request_timeout")
        assert time.monotonic() - began < BODY_S + 30
    await asyncio.to_thread(strict.wait_for, lambda: strict.status()["running"] == 0, "the exchanges to end")
