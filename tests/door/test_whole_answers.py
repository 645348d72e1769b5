"""A whole answer that is written by our own hand is the one that aiohttp would have written."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from appliance.door.door import Door
from appliance.door.endpoint import Endpoint, Visit
from appliance.door.http import LARGE, Limits
from appliance.door.listen import Listener
from appliance.door.render import openai_error, respond
from appliance.door.terms import Terms
from appliance.door.whole import whole_response
from tests.fakes.house import Clock, FakeKeys, House, open_house
from tests.fakes.raw_client import RawClient, request_bytes
from tests.fakes.tls import client_side, server_side

STATUSES = [*(int(each) for each in HTTPStatus if each >= 200), 218, 299, 419, 520, 599]
VALUES = ["x", "", "a b", "ä", "日本", "a,b; c=d", "\N{NO-BREAK SPACE}", "a\tb", "\N{ZERO WIDTH SPACE}"]
BAD = ["a\r\nX: y", "a\nb", "a\0b", "a\x7fb", "a\udcffb"]
SAYS = {"messages": [{"role": "user", "content": "Hi"}]}


@asynccontextmanager
async def door(
    handler: Callable[[Visit], Awaitable[web.StreamResponse]],
    limits: Limits | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[tuple[Listener, int]]:
    """A door with one endpoint, POST /x, for anyone; and its port."""
    terms, ids = Terms(limits), itertools.count(1)
    made = Door(
        [Endpoint("POST", "/x", "anyone", handler)],
        authenticator=FakeKeys(),  # type: ignore[arg-type]  # nobody is asked for a key
        render=openai_error,
        clock=Clock(),
        new_id=lambda: f"id-{next(ids)}",
        terms=terms,
    )
    listener = Listener(made, terms)
    port = await listener.tcp("127.0.0.1", 0, tls=tls)
    try:
        yield listener, port
    finally:
        await listener.close(0.2)


async def read(reader: asyncio.StreamReader) -> tuple[bytes, list[bytes], bytes]:
    """The first line, the fields in their order, and the body of the next answer."""
    async with asyncio.timeout(5):
        head = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
        length = next((int(line[15:]) for line in head if line.lower().startswith(b"content-length:")), 0)
        return head[0], head[1:], await reader.readexactly(length)


async def both(status: int, headers: Mapping[str, str], body: bytes) -> list[tuple[bytes, list[bytes], bytes]]:
    """Our answer, if there is one, and aiohttp's; the fields sorted, with no time in them."""
    turn = iter([True, False])

    async def handler(visit: Visit) -> web.StreamResponse:
        ours = whole_response(visit.request, body, "id", status, headers) if next(turn) else None
        return ours or respond(body, "id", status=status, headers=headers)

    async with door(handler) as (_, port), RawClient(port) as client:
        found = []
        for _ in range(2):
            await client.send(request_bytes("/x", {}))
            first, fields, got = await read(client.reader)
            found.append((first, sorted(re.sub(rb"^Date: .*", b"Date", field) for field in fields), got))
        return found


@pytest.mark.parametrize("status", [each for each in STATUSES if each not in (204, 205, 304)])
async def test_of_every_status(status: int) -> None:
    ours, theirs = await both(status, {"x-outpost-target": "a"}, b'{"a":1}')
    assert ours == theirs


@pytest.mark.parametrize("status", [204, 205, 304])
async def test_where_there_is_no_body(status: int) -> None:
    ours, theirs = await both(status, {}, b"")
    assert ours == theirs


@pytest.mark.parametrize("value", VALUES, ids=ascii)
async def test_of_every_field(value: str) -> None:
    ours, theirs = await both(200, {"x-a": value, "Retry-After": "1"}, b"{}")
    assert ours == theirs


@pytest.mark.parametrize("value", BAD, ids=ascii)
async def test_a_field_that_would_break_the_answer_is_left_to_aiohttp(value: str) -> None:
    found: list[object] = []

    async def handler(visit: Visit) -> web.StreamResponse:
        found.append(whole_response(visit.request, b"{}", "id", 200, {"x-a": value}))
        return respond(b"{}", "id")

    async with door(handler) as (_, port), RawClient(port) as client:
        await client.send(request_bytes("/x", {}))
        await read(client.reader)
    assert found == [None]


@pytest.mark.parametrize("size", [0, 1, LARGE, LARGE + 1])
async def test_of_every_size(size: int) -> None:
    ours, theirs = await both(200, {}, b"x" * size)
    assert ours == theirs


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path, Limits(drain_timeout=5.0)) as opened:
        yield opened


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("model", ["local", "remote", "nobody's"])
async def test_each_field_is_there_once(house: House, path: str, model: str) -> None:
    body: dict[str, Any] = {"model": model, **SAYS, "max_tokens": 9}
    if path == "/v1/responses":
        body = {"model": model, "input": "Hi"}
    async with RawClient(house.doors.public_port) as client:
        for _ in range(2):
            await client.send(request_bytes(path, body))
            _, fields, got = await read(client.reader)
            names = [field.partition(b":")[0].lower() for field in fields]
            assert len(names) == len(set(names))
            assert {b"date", b"server", b"content-type", b"content-length", b"x-request-id"} <= set(names)
            json.loads(got)


@pytest.mark.parametrize(
    ("version", "field", "kept"),
    [
        ("1.1", "", True),
        ("1.1", "Connection: close\r\n", False),
        ("1.0", "", False),
        ("1.0", "Connection: keep-alive\r\n", True),
    ],
)
async def test_the_connection_is_kept_as_the_client_asks(house: House, version: str, field: str, kept: bool) -> None:
    sent = request_bytes("/v1/chat/completions", {"model": "local", **SAYS})
    sent = sent.replace(b"HTTP/1.1\r\n", f"HTTP/{version}\r\n{field}".encode())
    async with RawClient(house.doors.public_port) as client:
        await client.send(sent)
        first, fields, body = await read(client.reader)
        assert first == f"HTTP/{version} 200 OK".encode()
        assert (b"Connection: close" in fields) is (version == "1.1" and not kept)
        assert b"Paris" in body
        if kept:
            await client.send(sent)
            assert (await read(client.reader))[0] == first
        else:
            assert await client.rest() == b""


async def test_head_is_answered_without_a_body(house: House) -> None:
    async with RawClient(house.doors.public_port) as client:
        await client.send(b"HEAD /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 405")
        assert body == b""


async def test_requests_that_come_together_are_answered_in_order(house: House) -> None:
    async with RawClient(house.doors.public_port) as client:
        kinds = ["local", "nobody's", "remote"] * 3
        await client.send(b"".join(request_bytes("/v1/chat/completions", {"model": each, **SAYS}) for each in kinds))
        for kind in kinds:
            first, _, body = await read(client.reader)
            assert first.startswith(b"HTTP/1.1 404" if kind == "nobody's" else b"HTTP/1.1 200")
            if kind != "nobody's":
                assert json.loads(body)["model"] == {"local": "local", "remote": "upstream-model"}[kind]


async def test_a_client_that_reads_nothing_is_cut_and_costs_little_memory() -> None:
    answered = 0

    async def handler(visit: Visit) -> web.StreamResponse:
        nonlocal answered
        answered += 1
        transport = visit.request.transport
        assert transport is not None
        assert transport.get_write_buffer_size() <= 3 * LARGE
        ours = whole_response(visit.request, b"x" * LARGE, visit.id, 200, {})
        assert ours is not None
        return ours

    async with (
        door(handler, Limits(write_timeout=0.1)) as (listener, port),
        RawClient(port, receive_buffer=4096) as client,
    ):
        client.writer.write(request_bytes("/x", {}) * 400)
        async with asyncio.timeout(10):
            while not answered or listener.connections:
                await asyncio.sleep(0.01)
    assert answered < 400


async def test_a_client_that_has_gone_ends_nothing_but_its_own() -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def handler(visit: Visit) -> web.StreamResponse:
        asked.set()
        try:
            await left.wait()
        except asyncio.CancelledError:
            left.set()
        ours = whole_response(visit.request, b"{}", visit.id, 200, {})
        assert ours is not None
        return ours

    async with door(handler) as (listener, port), RawClient(port) as other:
        async with RawClient(port) as client:
            await client.send(request_bytes("/x", {}))
            await asyncio.wait_for(asked.wait(), 5)
            client.vanish()
        await asyncio.wait_for(left.wait(), 5)
        await other.send(request_bytes("/x", {}))
        assert (await read(other.reader))[2] == b"{}"
        async with asyncio.timeout(5):
            while listener.connections > 1:
                await asyncio.sleep(0)


async def test_over_tls_and_through_a_shutdown() -> None:
    """The answer that is being made when the door closes arrives whole, and then the connection's end."""
    asked, go = asyncio.Event(), asyncio.Event()
    body = b"x" * LARGE

    async def handler(visit: Visit) -> web.StreamResponse:
        asked.set()
        await go.wait()
        ours = whole_response(visit.request, body, visit.id, 200, {})
        assert ours is not None
        return ours

    async with door(handler, tls=server_side()) as (listener, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_side())
        writer.write(request_bytes("/x", {}))
        await asyncio.wait_for(asked.wait(), 5)
        listener.stop_accepting()
        closing = asyncio.create_task(listener.close(5))
        go.set()
        assert (await read(reader))[2] == body
        async with asyncio.timeout(5):
            assert await reader.read() == b""
            await closing
        writer.close()
