"""Clients that leave, stall, drip or come in crowds."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.door.http import Limits
from tests.fakes.house import House, open_house
from tests.fakes.raw_client import RawClient, request_bytes
from tests.fakes.upstream import Reply, chat_whole, chunk


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path, Limits(drain_timeout=5.0)) as opened:
        yield opened


def asking(model: str, said: str, *, stream: bool) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": said}], "stream": stream}
    return request_bytes("/v1/chat/completions", body)


async def idle(house: House) -> None:
    async with asyncio.timeout(5):
        await house.gateway.running.wait_idle()
    assert house.engine.leases == 0
    assert house.engine.running == 0


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "close"])
@pytest.mark.parametrize(("said", "stream"), [("!hold", True), ("!stall", True), ("!hold", False), ("!stall", False)])
async def test_a_client_that_leaves_frees_the_engine(house: House, said: str, stream: bool, reset: bool) -> None:
    async with RawClient(house.doors.public_port) as client:
        await client.send(asking("local", said, stream=stream))
        async with asyncio.timeout(5):
            await house.engine.holding.acquire()
        if said == "!stall" and stream:
            await client.until(b"Paris ")
        if reset:
            client.vanish()
        else:
            client.writer.close()
        async with asyncio.timeout(5):
            await house.engine.ended.acquire()
    assert house.engine.cancelled == 1
    row = await house.recorder.wait_for(1)
    assert (row.outcome, row.error_code) == ("client_closed", "client_closed")
    assert row.attempts[0].outcome == "cancelled"
    assert row.status == (200 if said == "!stall" and stream else 499)
    await idle(house)


@pytest.mark.parametrize(("model", "stream"), [("silent", True), ("stall", True), ("silent", False)])
async def test_a_client_that_leaves_cancels_the_upstream(house: House, model: str, stream: bool) -> None:
    house.route("m", model)
    async with RawClient(house.doors.public_port) as client:
        await client.send(asking("m", "Hi", stream=stream))
        async with asyncio.timeout(5):
            await house.upstream.sending.acquire()
        if model == "stall":
            await client.until(b"Hello")
        client.vanish()
        async with asyncio.timeout(5):
            await house.upstream.hung_up.acquire()
    assert (await house.recorder.wait_for(1)).outcome == "client_closed"
    await idle(house)


async def test_many_that_leave_leave_nothing_behind(house: House) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def visit(i: int) -> None:
        async with RawClient(house.doors.public_port) as client:
            await client.send(asking("local", ("!hold", "!stall")[i % 2], stream=i % 3 > 0))
            async with asyncio.timeout(10):
                await house.engine.holding.acquire()
            client.vanish()

    await visit(0)
    await idle(house)
    before, tasks = descriptors(), len(asyncio.all_tasks())
    for _ in range(10):
        await asyncio.gather(*(visit(i) for i in range(20)))
    await house.recorder.wait_for(201)
    await idle(house)
    assert house.engine.cancelled == 201
    async with asyncio.timeout(5):
        while descriptors() > before or len(asyncio.all_tasks()) > tasks:
            await asyncio.sleep(0.01)


async def test_a_reader_that_stalls_pauses_the_upstream_and_is_cut(tmp_path: Path) -> None:
    async with open_house(tmp_path, Limits(write_timeout=0.5)) as house:
        piece = chunk({"content": "x" * 60_000})
        house.upstream.behave("flood", lambda seen: Reply(events=[piece] * 2000))
        house.route("m", "flood")
        async with RawClient(house.doors.public_port, receive_buffer=4096) as client:
            await client.send(asking("m", "Hi", stream=True))
            await client.until(b"\r\n\r\n")
            row = await house.recorder.wait_for(1)
            # What the sockets' own buffers took is far from the 120 MB that were on offer.
            sent = len(await client.rest())
        assert (row.outcome, row.error_code) == ("client_closed", "client_stalled")
        assert row.completion_tokens * 60_000 < 30_000_000
        assert sent < 30_000_000
        await idle(house)


async def test_a_large_whole_answer_is_cut_as_well(tmp_path: Path) -> None:
    async with open_house(tmp_path, Limits(write_timeout=0.3)) as house:
        large = chat_whole("x" * 30_000_000)
        house.upstream.behave("large", lambda seen: Reply(body=large))
        house.route("m", "large")
        async with RawClient(house.doors.public_port, receive_buffer=4096) as client:
            await client.send(asking("m", "Hi", stream=False))
            await client.until(b"\r\n\r\n")
            async with asyncio.timeout(5):
                while b'"status":200' not in b"".join(house.log):
                    await asyncio.sleep(0.01)
            assert len(await client.rest()) < len(large)
        response = await house.chat("m")
        assert len(await response.read()) == len(large)


async def test_leaving_ends_every_one_of_several_prompts(house: House) -> None:
    body = {"model": "local", "prompt": ["!hold", "!stall", "!hold"], "stream": True}
    async with RawClient(house.doors.public_port) as client:
        await client.send(request_bytes("/v1/completions", body))
        for _ in range(3):
            async with asyncio.timeout(5):
                await house.engine.holding.acquire()
        client.vanish()
        for _ in range(3):
            async with asyncio.timeout(5):
                await house.engine.ended.acquire()
    assert house.engine.cancelled == 3
    await idle(house)


async def test_a_slow_but_steady_reader_gets_everything(tmp_path: Path) -> None:
    async with open_house(tmp_path, Limits(write_timeout=2.0)) as house:
        piece = chunk({"content": "x" * 60_000})
        house.upstream.behave("flood", lambda seen: Reply(events=[piece] * 200))
        house.route("m", "flood")
        async with RawClient(house.doors.public_port, receive_buffer=4096) as client:
            await client.send(asking("m", "Hi", stream=True))
            got = 0
            tail = b""
            while not tail.endswith(b"0\r\n\r\n"):
                async with asyncio.timeout(5):
                    data = await client.reader.read(65536)
                assert data
                got += len(data)
                tail = (tail + data)[-100:]
                await asyncio.sleep(0)
        assert got > 200 * 60_000
        assert b"[DONE]" in tail


async def test_heads_that_drip_are_cut(tmp_path: Path) -> None:
    async with open_house(tmp_path, Limits(header_timeout=0.3)) as house:
        async with RawClient(house.doors.public_port) as silent, RawClient(house.doors.public_port) as dripping:
            await dripping.send(b"GET /healthz HTTP/1.1\r\nHost:")
            assert await silent.rest() == b""
            assert await dripping.rest() == b""
        async with RawClient(house.doors.public_port) as client:
            # A second head on the same connection has its bound as well, the pause between them has not.
            await client.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            await client.until(b'{"status":"ok"}')
            await asyncio.sleep(0.5)
            await client.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            await client.until(b'{"status":"ok"}')
            await client.send(b"GET /healthz HT")
            assert await client.rest() == b""


async def test_bodies_that_drip_are_refused(tmp_path: Path) -> None:
    async with open_house(tmp_path, Limits(body_timeout=0.2)) as house, RawClient(house.doors.public_port) as client:
        await client.send(asking("local", "Hi", stream=False)[:-3])
        answer = await client.until(b"}}")
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"request_timeout" in answer
        row = await house.recorder.wait_for(1)
        assert (row.status, row.outcome) == (408, "refused")


async def test_a_body_that_breaks_off(house: House) -> None:
    async with RawClient(house.doors.public_port) as client:
        await client.send(asking("local", "Hi", stream=False)[:-3])
        client.vanish()
    await idle(house)
    row = await house.recorder.wait_for(1)
    assert (row.outcome, row.status, row.attempts) == ("client_closed", 499, [])


async def test_too_many_connections_are_told(tmp_path: Path) -> None:
    async with open_house(tmp_path, Limits(max_connections=2)) as house:
        port = house.doors.public_port
        async with RawClient(port) as one, RawClient(port) as two:
            for client in (one, two):
                await client.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                await client.until(b'{"status":"ok"}')
            async with RawClient(port) as three:
                answer = await three.rest()
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"Retry-After: 1" in answer
            assert answer.endswith(b"}")
            one.writer.close()
            await one.writer.wait_closed()
            for _ in range(100):
                async with RawClient(port) as four:
                    await four.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    if b'{"status":"ok"}' in await four.rest():
                        break
            else:
                pytest.fail("the place of a closed connection was not given back")


async def test_slow_clients_do_not_hold_up_others(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        clients = [RawClient(house.doors.public_port) for _ in range(100)]
        for client in clients:
            await client.__aenter__()
            await client.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n")
        assert (await house.chat("local")).status == 200
        for client in clients:
            client.vanish()


async def test_a_client_that_never_reads_small_answers_loses_its_connection(tmp_path: Path) -> None:
    pipelined = b"GET /healthz HTTP/1.1\r\nHost: box\r\n\r\n" * 500
    async with open_house(tmp_path, Limits(write_timeout=0.2)) as house:
        async with RawClient(house.doors.public_port, receive_buffer=4096) as client, asyncio.timeout(20):
            client.reader._transport.pause_reading()  # type: ignore[attr-defined]
            with pytest.raises(ConnectionError):
                while True:
                    await client.send(pipelined)
        await idle(house)


async def test_a_stream_that_blocks_on_its_first_piece_is_cut_and_not_answered_twice(tmp_path: Path) -> None:
    async with open_house(tmp_path, Limits(write_timeout=0.2, drain_timeout=5.0)) as house:
        prompt = "word " * 2_400_000  # more than the kernel takes for a reader that does not read
        body = {"model": "local", "prompt": prompt, "echo": True, "stream": True}
        async with RawClient(house.doors.public_port, receive_buffer=4096) as client:
            await client.send(request_bytes("/v1/completions", body))
            row = await house.recorder.wait_for(1)
            assert (row.outcome, row.error_code) == ("client_closed", "client_stalled")
            got = await client.rest()
        assert got.count(b"HTTP/1.1") == 1
        assert b"[DONE]" not in got
        await idle(house)
