"""The tap on an upstream's connection, at moments that no real connection can be held at."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from appliance.providers.tap import Tap, nothing


class Connection:
    """A transport and its connection; `protocols` is what it says its protocol is, question by question."""

    def __init__(self, *protocols: asyncio.Protocol | None) -> None:
        self.transport: Any = self
        self.protocol: Any = None
        self._protocols = list(protocols)

    def get_protocol(self) -> asyncio.Protocol | None:
        return self._protocols.pop(0) if len(self._protocols) > 1 else self._protocols[0]

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol
        self._protocols = [protocol]


class Response:
    def __init__(self, connection: Connection | None) -> None:
        self.connection = connection


def reader() -> aiohttp.StreamReader:
    return aiohttp.StreamReader(asyncio.Protocol(), 2**16, loop=asyncio.get_running_loop())  # type: ignore[arg-type]


async def install(content: aiohttp.StreamReader, connection: Connection | None) -> Tap:
    tap = Tap(content, nothing)
    await tap.install(Response(connection))  # type: ignore[arg-type]
    return tap


async def test_it_stands_in_between_until_it_is_taken_away() -> None:
    inner = asyncio.Protocol()
    connection = Connection(inner)
    tap = await install(reader(), connection)
    assert connection.protocol is tap
    tap.let_go()
    assert connection.protocol is inner


async def test_a_connection_that_is_somebody_else_s_by_then_is_left_alone() -> None:
    connection, other = Connection(asyncio.Protocol()), asyncio.Protocol()
    tap = await install(reader(), connection)
    connection.set_protocol(other)
    tap.let_go()
    assert connection.protocol is other


@pytest.mark.parametrize("connection", [None, Connection(None)], ids=["released", "TLS has ended"])
async def test_a_reader_to_whom_nothing_can_come_learns_of_it(connection: Connection | None) -> None:
    content = reader()
    await install(content, connection)
    with pytest.raises(aiohttp.ServerDisconnectedError):
        content.read_nowait(-1)


async def test_an_end_of_tls_that_is_still_to_be_told_is_waited_for() -> None:
    connection = Connection(None, asyncio.Protocol())
    content = reader()
    tap = await install(content, connection)
    assert connection.protocol is tap
    assert content.exception() is None


async def test_of_an_answer_that_is_there_nothing_is_awaited() -> None:
    content, connection = reader(), Connection(asyncio.Protocol())
    content._protocol = aiohttp.client_proto.ResponseHandler(asyncio.get_running_loop())
    content.feed_eof()
    await install(content, connection)
    assert connection.protocol is None
    assert content.exception() is None
