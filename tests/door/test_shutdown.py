"""A shutdown: nothing new, everything that runs gets its end, and a clean error where time is up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from appliance.door.http import Limits
from tests.fakes.house import House, open_house
from tests.fakes.raw_client import RawClient, request_bytes


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path, Limits(drain_timeout=5.0)) as opened:
        yield opened


def asking(said: str, *, stream: bool) -> bytes:
    body = {"model": "local", "messages": [{"role": "user", "content": said}], "stream": stream}
    return request_bytes("/v1/chat/completions", body)


async def test_nothing_new_is_taken(house: House) -> None:
    async with RawClient(house.doors.public_port) as client, RawClient(house.doors.public_port) as idle:
        await idle.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        await idle.until(b'{"status":"ok"}')
        await client.send(asking("!stall", stream=True))
        async with asyncio.timeout(5):
            await house.engine.holding.acquire()
        closing = asyncio.create_task(house.doors.close())
        assert await idle.rest() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", house.doors.public_port)
        house.engine.release.set()
        assert b"[DONE]" in await client.rest()
    await closing


@pytest.mark.parametrize("stream", [True, False])
async def test_the_answer_is_whole(house: House, stream: bool) -> None:
    async with RawClient(house.doors.public_port) as client:
        await client.send(asking("!stall", stream=stream))
        async with asyncio.timeout(5):
            await house.engine.holding.acquire()
        closing = asyncio.create_task(house.doors.close())
        async with asyncio.timeout(5):
            while not house.gateway.draining:
                await asyncio.sleep(0)
        house.engine.release.set()
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 200")
        assert (b"[DONE]" if stream else b"Paris is the capital of France.") in answer
        await closing
    assert [row.outcome for row in house.recorder.rows] == ["completed"]


@pytest.mark.parametrize(("said", "stream"), [("!stall", True), ("!hold", True), ("!stall", False)])
async def test_what_takes_too_long_ends_with_a_clean_error(house: House, said: str, stream: bool) -> None:
    async with RawClient(house.doors.public_port) as client:
        await client.send(asking(said, stream=stream))
        async with asyncio.timeout(5):
            await house.engine.holding.acquire()
        begun = said == "!stall" and stream
        if begun:
            await client.until(b"is ")
        ended: list[int] = []
        await house.doors.close(0.1, note=ended.append)
        answer = await client.rest()
    assert ended == [1]
    assert b"shutting_down" in answer
    if begun:
        assert answer.endswith(b"\r\n0\r\n\r\n")
        assert b"[DONE]" not in answer
    else:
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 5" in answer
    row = await house.recorder.wait_for(1)
    assert row.error_code == "shutting_down"
    assert house.engine.running == 0


async def test_readiness_goes_first(house: House) -> None:
    house.gateway.draining = True
    async with house.session.get(f"{house.url}/readyz") as response:
        assert response.status == 503
        assert (await response.json())["reason"] == "shutting down"


async def test_closing_twice_and_the_socket_file(house: House) -> None:
    assert house.control.exists()
    await house.doors.close()
    await house.doors.close()
    assert not house.control.exists()
    with pytest.raises(aiohttp.ClientConnectorError):
        await house.session.get(f"{house.url}/healthz")
