"""POST to an upstream over real sockets: what is sent, and what an answer may look like."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import pytest
import yarl
from aiohttp.connector import Connection

from appliance import errors
from appliance.providers.http import BASE_HEADERS, READ_AHEAD
from appliance.providers.pool import Connector, Line
from appliance.providers.posting import Address, fields_of
from tests.fakes.posted import (
    ANSWERS,
    CHUNKED,
    FIELDS,
    OK,
    PATIENT,
    Answer,
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

# --- answers ---


@on_both_loops
@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_may_come_in_any_two_parts(kind: str, run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def story() -> None:
        what = ANSWERS[kind]
        async with running() as client:
            for cut in range(1, len(what.raw)):
                client.server.play = told(what, cut)
                assert await client.ask() == (what.status, what.body), cut
                await until(lambda: not client.busy)
                assert client.idle == what.kept
            assert client.server.connections == (1 if what.kept else len(what.raw) - 1)

    run(story())


@on_both_loops
@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_that_ends_anywhere_is_not_taken_for_a_whole_one(
    kind: str, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    async def story() -> None:
        what = ANSWERS[kind]
        async with running() as client:
            for at in range(len(what.raw)):
                client.server.play = told(what, until=at)
                if what.until_end and at >= what.head:
                    assert await client.ask() == (what.status, what.raw[what.head : at]), at
                    continue
                with pytest.raises(aiohttp.ClientError):
                    await client.ask()
                assert not client.busy, at
                assert not client.idle, at

    run(story())


@on_both_loops
@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        OK.raw + OK.raw,
    ],
    ids=["101", "101 and more", "two answers"],
)
def test_what_cannot_be_right_is_not_asked_again(raw: bytes, run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def story() -> None:
        async with running() as client:
            client.server.play = told(Answer(200, b"", raw))
            await client.ask()
            client.server.play = told(OK)
            assert await client.ask() == (200, OK.body)
            assert client.server.connections == 2

    run(story())


async def test_the_end_of_an_answer_that_nobody_asked_for_is_not_taken_for_one() -> None:
    stale = answer(200, b'{"leak": 1}').raw
    async with running() as client:
        for cut in range(1, len(stale)):
            client.server.play = told(Answer(200, b"", OK.raw + stale[:cut]))
            assert await client.ask() == (200, OK.body)
            client.server.play = told(Answer(200, b"", stale[cut:] + OK.raw, kept=False))
            try:
                assert await client.ask() == (200, OK.body)
            except aiohttp.ClientError:
                pass


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nX: %b\r\n\r\n" % (b"x" * 9000),
        b"HTTP/1.1 200 %b\r\n\r\n" % (b"x" * 9000),
        b"HTTP/1.1 200 OK\r\n%b\r\n" % (b"X: y\r\n" * 200),
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc",
        OK.raw + b"more",
        b"SSH-2.0-Server\r\n",
    ],
    ids=["a long field", "a long reason", "many fields", "two lengths", "a body of 204", "more than told", "no HTTP"],
)
async def test_what_is_no_answer_is_a_failure_of_the_target(raw: bytes) -> None:
    async with running() as client:
        client.server.play = told(Answer(200, b"", raw))
        with pytest.raises(errors.UpstreamFailed):
            await client.target().whole(call())
        assert (client.idle, client.busy) == (0, 0)


async def test_errors_leave_their_connection_to_the_next_request() -> None:
    async with running() as client:
        target = client.target()
        for status in (400, 404, 429, 500, 503):
            client.server.play = told(answer(status, b'{"error": {"message": "no"}}', CHUNKED))
            with pytest.raises(errors.OutpostError):
                await target.whole(call())
        assert client.server.connections == 1
        assert (client.idle, client.busy) == (1, 0)


# --- what is sent ---

URLS = [
    "http://a.example/v1/x",
    "http://a.example:8080/v1/x",
    "https://a.example/v1/x",
    "https://a.example:8443/x?api-version=2024-10-21&b=%20c",
    "http://127.0.0.1:9/x",
    "http://[::1]/v1/x",
    "http://[fe80::1]:8000/v1/models/a%2Fb:generate",
    "http://a.example./x#fragment",
    "http://a.example",
]


@pytest.mark.parametrize("url", URLS)
async def test_the_head_is_what_the_http_client_would_send(url: str) -> None:
    sent: list[bytes] = []

    class Kept(Connector):
        async def connect(self, *args: Any, **kwargs: Any) -> Connection:
            class Transport(asyncio.Transport):
                def write(self, data: bytes | bytearray | memoryview) -> None:
                    sent.append(bytes(data))
                    line.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

                def get_write_buffer_size(self) -> int:
                    return 0

                def is_closing(self) -> bool:
                    return False

                def close(self) -> None:
                    pass

            line = Line(asyncio.get_running_loop())
            line.transport = Transport()
            return Connection(self, args[0].connection_key, line, asyncio.get_running_loop())

    async with aiohttp.ClientSession(connector=Kept(force_close=True)) as session:
        place = yarl.URL(url, encoded=True)
        (await Address(session, place, READ_AHEAD).post(FIELDS, b"{}", PATIENT)).release()
        ours = b"".join(sent)
        sent.clear()
        (await session.post(place, data=b"{}", headers=BASE_HEADERS)).release()
        theirs = b"".join(sent).replace(b"Connection: close\r\n", b"")
    assert sorted(ours.split(b"\r\n")) == sorted(theirs.split(b"\r\n"))
    assert ours.split(b"\r\n")[:2] == theirs.split(b"\r\n")[:2]


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 3_000_000])
@plain_and_tls
async def test_a_body_of_any_size_arrives(size: int, tls: bool) -> None:
    got = bytearray()

    async def play(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.extend(await server.body(reader))
        writer.write(OK.raw)

    async with running(tls=tls) as client:
        client.server.play = play
        body = bytes(range(256)) * (size // 256 + 1)
        for _ in range(2):
            assert await client.ask(body[:size]) == (200, OK.body)
        assert bytes(got) == body[:size] * 2
        assert client.server.connections == 1


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nb", "a\0b", "a\x1bb", "a\x7fb", "a\udcffb"], ids=ascii)
def test_a_field_that_would_break_a_request_is_refused(value: str) -> None:
    for headers in ({"X": value}, {value: "x"}):
        with pytest.raises(ValueError, match="control character|can't encode"):
            fields_of(headers)


@pytest.mark.parametrize("path", ["/a b", "/a\r\nX: y", "/a\0", "/a?b=c d"], ids=ascii)
async def test_an_address_that_would_break_a_request_is_refused(path: str) -> None:
    async with aiohttp.ClientSession(connector=Connector()) as session:
        with pytest.raises(ValueError, match="blank or a control"):
            Address(session, yarl.URL(f"http://127.0.0.1:9{path}", encoded=True), READ_AHEAD)


async def test_an_address_of_the_settings_may_be_written_in_any_script() -> None:
    async with running(resolver=Names()) as client:
        url = client.url.replace("127.0.0.1", "bücher.example") + "/ä/v1"
        body = b'{"choices":[{"index":0,"message":{"content":"yes"},"finish_reason":"stop"}]}'
        client.server.play = told(answer(200, body, b"Content-Type: application/json\r\n"))
        target = upstream("u", model="m", base_url=url, api_key=None, session=client.session)
        assert b"yes" in await target.whole(call())
        head = client.server.heads[0]
        assert head.startswith(b"POST /%C3%A4/v1/chat/completions HTTP/1.1\r\nHost: xn--bcher-kva.example:")
