"""The bytes of a streamed answer: what its head says, how it is framed, and what becomes of the connection."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.house import House, open_house
from tests.fakes.raw_client import RawClient, request_bytes

PATH = "/v1/chat/completions"
END = b"data: [DONE]\n\n"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        yield opened


def asking(*, version: bytes = b"1.1", connection: str | None = None) -> bytes:
    body = {"model": "remote", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    made = request_bytes(PATH, body).replace(b" HTTP/1.1\r\n", b" HTTP/" + version + b"\r\n", 1)
    return made if connection is None else made.replace(b"\r\n", f"\r\nConnection: {connection}\r\n".encode(), 1)


def fields(head: bytes) -> dict[str, str]:
    """Of a head in which each field stands once."""
    names = [line.partition(b":")[0].lower().decode() for line in head.split(b"\r\n")[1:] if line]
    assert Counter(names).most_common(1)[0][1] == 1
    lines = [line.decode().partition(": ") for line in head.split(b"\r\n")[1:] if line]
    return {name.lower(): value for name, _, value in lines}


def joined(chunks: bytes) -> tuple[bytes, bytes]:
    """What chunks hold, and what follows the last of them."""
    found = b""
    while True:
        size, _, rest = chunks.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert rest.startswith(b"\r\n")
            return found, rest[2:]
        found += rest[:length]
        assert rest[length : length + 2] == b"\r\n"
        chunks = rest[length + 2 :]


async def test_of_a_connection_that_is_kept(house: House) -> None:
    async with RawClient(house.doors.public_port) as client:
        for _ in range(2):
            await client.send(asking())
            head, _, rest = (await client.until(b"0\r\n\r\n")).partition(b"\r\n\r\n")
            said = fields(head)
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert said["transfer-encoding"] == "chunked"
            assert said["content-type"] == "text/event-stream; charset=utf-8"
            assert {"date", "server", "x-request-id", "x-outpost-target", "cache-control"} <= set(said)
            assert not {"content-length", "connection"} & set(said)
            body, more = joined(rest)
            assert body.endswith(END)
            assert more == b""


async def test_of_a_connection_that_is_to_be_closed(house: House) -> None:
    async with RawClient(house.doors.public_port) as client:
        await client.send(asking(connection="close"))
        head, _, rest = (await client.rest()).partition(b"\r\n\r\n")
        assert fields(head)["connection"] == "close"
        body, more = joined(rest)
        assert body.endswith(END)
        assert more == b""


async def test_of_a_client_that_knows_no_chunks(house: House) -> None:
    async with RawClient(house.doors.public_port) as client:
        await client.send(asking(version=b"1.0"))
        head, _, rest = (await client.rest()).partition(b"\r\n\r\n")
        assert "transfer-encoding" not in fields(head)
        assert rest.startswith(b"data: ")
        assert rest.endswith(END)
