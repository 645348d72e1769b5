"""Doors that are told new limits while they are open: every one of them counts from the next request on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from appliance.door.access_log import AccessLog
from appliance.door.http import Limits
from tests.fakes.house import House, open_house
from tests.fakes.raw_client import RawClient, request_bytes
from tests.fakes.upstream import Reply, chat_whole

TRIED = {
    "max_body": "test_a_smaller_body",
    "max_json_depth": "tests/wiring/test_live_settings.py, since the exchange holds it",
    "header_timeout": "test_less_time_for_heads",
    "body_timeout": "test_less_time_for_bodies",
    "write_timeout": "test_less_patience_with_readers",
    "drain_timeout": "test_less_time_to_finish",
    "max_connections": "test_fewer_connections",
}
"""Limit → where it is changed under an open door."""


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path, Limits(drain_timeout=5.0)) as opened:
        yield opened


def asking(said: str, *, stream: bool = False) -> bytes:
    body = {"model": "local", "messages": [{"role": "user", "content": said}], "stream": stream}
    return request_bytes("/v1/chat/completions", body)


def test_no_limit_is_forgotten() -> None:
    assert tuple(TRIED) == Limits.__struct_fields__


async def test_a_smaller_body(house: House) -> None:
    said = "x" * 5000
    assert (await house.chat("local", said)).status == 200
    house.doors.change(Limits(max_body=2000), None)
    assert (await house.chat("local", said)).status == 413
    house.doors.change(Limits(), None)
    assert (await house.chat("local", said)).status == 200


async def test_a_body_that_is_on_its_way_keeps_its_limit(house: House) -> None:
    whole = asking("x" * 5000)
    async with RawClient(house.doors.public_port) as client:
        await client.send(whole[:300])
        async with asyncio.timeout(5):
            while not len(house.gateway.running):
                await asyncio.sleep(0.01)
        house.doors.change(Limits(max_body=2000), None)
        await client.send(whole[300:])
        assert (await client.until(b"\r\n")).startswith(b"HTTP/1.1 200")


async def test_less_time_for_heads(house: House) -> None:
    house.doors.change(Limits(header_timeout=0.2), None)
    async with RawClient(house.doors.public_port) as client:
        await client.send(b"GET /healthz HTTP/1.1\r\nHost:")
        assert await client.rest() == b""


async def test_less_time_for_bodies(house: House) -> None:
    house.doors.change(Limits(body_timeout=0.2), None)
    async with RawClient(house.doors.public_port) as client:
        await client.send(asking("Hi")[:-3])
        assert (await client.until(b"}}")).startswith(b"HTTP/1.1 408")


async def test_less_patience_with_readers(house: House) -> None:
    house.doors.change(Limits(write_timeout=0.2), None)
    large = chat_whole("x" * 30_000_000)
    house.upstream.behave("large", lambda seen: Reply(body=large))
    house.route("large", "large")
    async with RawClient(house.doors.public_port, receive_buffer=4096) as client:
        await client.send(request_bytes("/v1/chat/completions", {"model": "large", "messages": [_USER]}))
        await client.until(b"\r\n\r\n")
        await asyncio.sleep(1.0)
        assert len(await client.rest()) < len(large)


_USER = {"role": "user", "content": "Hi"}


async def test_fewer_connections(house: House) -> None:
    port = house.doors.public_port
    async with RawClient(port) as one, RawClient(port) as two:
        for client in (one, two):
            await client.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            await client.until(b'{"status":"ok"}')
        house.doors.change(Limits(max_connections=2), None)
        async with RawClient(port) as three:
            assert (await three.rest()).startswith(b"HTTP/1.1 503")
        # Those that are there are not thrown out.
        await one.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        await one.until(b'{"status":"ok"}')


async def test_less_time_to_finish(house: House) -> None:
    async with RawClient(house.doors.public_port) as client:
        await client.send(asking("!hold"))
        async with asyncio.timeout(5):
            await house.engine.holding.acquire()
        house.doors.change(Limits(drain_timeout=0.1), None)
        began = time.monotonic()
        await house.doors.close()
        assert time.monotonic() - began < 4
        assert b"shutting_down" in await client.rest()


async def test_the_access_log_goes_and_comes(house: House) -> None:
    def logged() -> list[str]:
        return [msgspec.json.decode(line)["path"] for line in b"".join(lines).splitlines()]

    async def visit(path: str) -> None:
        async with house.session.get(house.url + path) as response:
            await response.read()

    lines: list[bytes] = []
    log = AccessLog(lines.append, time.time)
    house.doors.change(Limits(), log)
    await visit("/healthz")
    house.doors.change(Limits(), None)
    assert logged() == ["/healthz"], "what was noted before is written"
    await visit("/quiet")
    house.doors.change(Limits(), log)
    await visit("/loud")
    log.flush()
    assert logged() == ["/healthz", "/loud"]
