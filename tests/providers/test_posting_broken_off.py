"""POST to an upstream that cannot be reached, answers early or breaks off: what is told, and what is left of it."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import pytest
import yarl
from aiohttp.connector import Connection

from appliance import errors
from appliance.providers.http import READ_AHEAD
from appliance.providers.pool import Connector, Line
from appliance.providers.posting import Address, Reply
from appliance.providers.relayed import RelayedStream
from appliance.providers.upstream import Call
from tests.fakes.posted import (
    HUGE,
    OK,
    Names,
    Server,
    answer,
    call,
    on_both_loops,
    plain_and_tls,
    running,
    told,
    until,
)
from tests.fakes.providers import upstream
from tests.fakes.sink import taken

# --- connecting ---


async def test_a_name_that_is_not_found_in_time_is_no_connection_in_time() -> None:
    names = Names()
    names.known.clear()
    async with running(resolver=names) as client:
        target = upstream("u", model="m", base_url="http://a.example/v1", api_key=None, session=client.session)
        with pytest.raises(errors.UpstreamTimeout):
            async with asyncio.timeout(5):
                await target.whole(call(connect_s=0.05))
        assert client.busy == 0
        names.known.set()


@on_both_loops
def test_a_handshake_that_is_not_answered_is_no_connection_in_time(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    async def story() -> None:
        async with running() as client:
            url = client.url.replace("http:", "https:")
            target = upstream("u", model="m", base_url=f"{url}/v1", api_key=None, session=client.session)
            with pytest.raises(errors.UpstreamTimeout):
                async with asyncio.timeout(5):
                    await target.whole(call(connect_s=0.05))
            assert client.busy == 0

    run(story())


@pytest.mark.parametrize("fault", ["refused", "no TLS", "not trusted", "no name"])
async def test_what_cannot_be_reached_is_told_so(fault: str) -> None:
    async with running(tls=fault == "not trusted") as client:
        url = client.url
        if fault == "refused":
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                url = f"http://127.0.0.1:{free.getsockname()[1]}"
        elif fault == "no TLS":
            client.server.play = told(OK)
            url = url.replace("http:", "https:")
            listening = await asyncio.start_server(lambda _, writer: writer.write(OK.raw), "127.0.0.1", 0)
            url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        elif fault == "no name":
            url = "http://outpost.invalid"
        async with aiohttp.ClientSession(connector=Connector()) as session:
            target = upstream("u", model="m", base_url=f"{url}/v1", api_key=None, session=session)
            with pytest.raises(errors.UpstreamError) as caught:
                async with asyncio.timeout(10):
                    await target.whole(call())
        assert caught.value.code == "upstream_unreachable"


async def test_a_closed_session_is_not_asked() -> None:
    async with running() as client:
        assert await client.ask() == (200, OK.body)
        await client.session.close()
        with pytest.raises(aiohttp.ClientConnectionError):
            await client.ask()
        with pytest.raises(RuntimeError, match="closed"):
            Address(client.session, yarl.URL(client.url), READ_AHEAD)


# --- answers that come early, and what is broken off ---


@on_both_loops
@plain_and_tls
@pytest.mark.parametrize("then", ["reads on", "reads nothing", "closes"])
def test_an_answer_that_comes_before_the_request_is_sent(
    tls: bool, then: str, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    async def play(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(413, b'{"error": "too much"}').raw)
        await writer.drain()
        if then == "reads on":
            while await reader.read(65536):
                pass
        elif then == "closes":
            writer.write_eof() if writer.can_write_eof() else writer.close()
        await asyncio.Event().wait() if then == "reads nothing" else None
        raise ConnectionResetError

    async def story() -> None:
        async with running(tls=tls) as client:
            client.server.play = play
            line = None
            async with asyncio.timeout(10):
                reply = await client.post(HUGE)
                line = reply.line
                assert reply.status == 413
                assert await reply.content.readany() == b'{"error": "too much"}'
                reply.release()
                assert (client.idle, client.busy) == (0, 0)
                if line is not None:
                    while not line._connection_lost_called:  # nothing waits until the rest has been taken
                        await asyncio.sleep(0)
            client.server.play = told(OK)
            assert await client.ask() == (200, OK.body)

    run(story())


@on_both_loops
@plain_and_tls
@pytest.mark.parametrize("at", ["the name", "the request", "the head", "the body"])
def test_who_is_cancelled_leaves_no_connection(
    tls: bool, at: str, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    async def play(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if at == "the request":
            await asyncio.Event().wait()  # takes nothing of it
        await server.body(reader)
        writer.write(OK.raw[: OK.head + 3] if at == "the body" else OK.raw[:9])
        await reader.read(1)
        raise ConnectionResetError

    async def story() -> None:
        names = Names()
        lines: list[Line] = []
        async with running(tls=tls, resolver=names) as client:
            if at == "the name":
                names.known.clear()
                client.url = client.url.replace("127.0.0.1", "a.example")
            client.server.play = play
            made = Line.connection_made

            def seen(line: Line, transport: asyncio.BaseTransport) -> None:
                lines.append(line)
                made(line, transport)

            Line.connection_made = seen  # type: ignore[assignment, method-assign]
            try:
                task = asyncio.create_task(client.ask(HUGE if at == "the request" else b"{}"))
                if at == "the name":
                    await until(lambda: client.busy == 1)
                else:
                    await client.server.asked.wait()
                for _ in range(20):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            finally:
                Line.connection_made = made  # type: ignore[method-assign]
            assert (client.idle, client.busy) == (0, 0)
            await until(lambda: all(line._connection_lost_called for line in lines))
            names.known.set()

    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        run(story())


@on_both_loops
def test_a_session_that_is_closed_breaks_its_answers_off(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def play(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.body(reader)
        writer.write(OK.raw[: OK.head + 3])
        await reader.read(1)

    async def story() -> None:
        async with running() as client:
            client.server.play = play
            reply = await client.post()
            waiting = asyncio.create_task(reply.content.readexactly(len(OK.body)))
            while reply.content.total_bytes < 3:
                await asyncio.sleep(0)
            await client.session.close()
            with pytest.raises(aiohttp.ClientConnectionError):
                async with asyncio.timeout(5):
                    await waiting
            reply.release()

    run(story())


@on_both_loops
@pytest.mark.parametrize("how", ["an end", "a reset"])
def test_an_idle_connection_that_ends_costs_no_request(
    how: str, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    async def story() -> None:
        async with running() as client:
            held: list[asyncio.StreamWriter] = []

            async def play(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                held.append(writer)
                await told(OK)(server, reader, writer)

            client.server.play = play
            for count in range(1, 4):
                assert await client.ask() == (200, OK.body)
                assert client.server.connections == count
                sock = socket.socket(fileno=os.dup(held[-1].get_extra_info("socket").fileno()))
                if how == "a reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    sock.close()
                    held[-1].transport.abort()
                    await asyncio.sleep(0)
                else:
                    sock.shutdown(socket.SHUT_WR)  # at once, as uvloop's transports do not
                    sock.close()

    run(story())


# --- nothing is left ---

OWN = (Reply, RelayedStream, Connection, aiohttp.StreamReader, Call)
EVENTS = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def left() -> Counter[str]:
    return Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, OWN))


@on_both_loops
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("fault", ["none", "an error", "cut", "no answer", "no HTTP", "broken chunk", "cancelled"])
def test_nothing_is_left_of_a_request(
    stream: bool, fault: str, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    whole = b'{"choices":[{"index":0,"message":{"content":"yes"},"finish_reason":"stop"}]}'
    fine = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    chunk = b"%x\r\n%b\r\n" % (len(EVENTS), EVENTS)
    raws = {
        "none": STREAM + chunk + b"%x\r\n%b\r\n0\r\n\r\n" % (len(fine), fine) if stream else answer(200, whole).raw,
        "an error": answer(500, b"{}").raw,
        "cut": STREAM + chunk if stream else answer(200, whole).raw[:-9],
        "no answer": b"",
        "no HTTP": b"SSH-2.0\r\n",
        "broken chunk": (STREAM + chunk if stream else STREAM + b"3\r\nabc\r\n") + b"zz\r\n",
        "cancelled": STREAM + chunk if stream else answer(200, whole).raw[:-9],
    }
    raw = raws[fault]

    async def play(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await server.body(reader)
        writer.write(raw)
        if fault == "cancelled":
            await reader.read(1)
            raise ConnectionResetError
        if fault not in ("none", "an error"):
            writer.close()

    async def once(target: Any) -> None:
        async def ask() -> None:
            await (taken(await target.stream(call(True))) if stream else target.whole(call()))

        task = asyncio.create_task(ask())
        if fault == "cancelled":
            for _ in range(200):
                await asyncio.sleep(0)
            task.cancel()
        try:
            await task
            assert fault == "none"
        except (errors.OutpostError, asyncio.CancelledError):
            assert fault != "none"
        finally:
            del task  # which holds the error, which holds this frame

    async def story() -> None:
        async with running() as client:
            client.server.play = play
            target = client.target()
            await once(target)
            gc.collect()
            gc.disable()
            try:
                before = left()
                for _ in range(3):
                    await once(target)
                async with asyncio.timeout(5):
                    while left() - before:
                        await asyncio.sleep(0.01)
            except TimeoutError:
                pytest.fail(f"still there: {left() - before}")
            finally:
                gc.enable()
            assert client.busy == 0

    run(story())
