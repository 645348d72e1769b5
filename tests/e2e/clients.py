"""Clients that see every byte of an answer, and that can leave at any moment in any way."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from runtimes.engine import EngineStatus
from runtimes.llamacpp.client import LlamaClient
from runtimes.llamacpp.launch import connect
from runtimes.supervisor import run_directory, socket_path
from tests.gateway import CHAT, Gateway

PATIENCE_S = 120.0
"""For a machine that has much else to do; a quiet one needs a hundredth of it."""

Leaving = Literal["close", "reset"]
GREEDY = {"temperature": 0}


class Cut(Exception):
    """The connection ended before the answer did."""


@dataclass
class Answer:
    """What one client got."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    """Of a whole answer; of a stream all its events, without the chunks' framing."""
    complete: bool = False
    """The HTTP message was received to its last byte."""
    began_s: float = 0.0
    event_times: list[float] = field(default_factory=list)
    ended_s: float = 0.0

    @property
    def id(self) -> str:
        return self.headers["x-request-id"]

    @property
    def streamed(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def data(self) -> list[bytes]:
        """The data of each event of a stream."""
        assert self.streamed, (self.status, self.body[:300])
        return [event.removeprefix(b"data: ") for event in self.body.split(b"\n\n") if event]

    @property
    def done(self) -> bool:
        """A stream with its end marker, or a whole answer to its last byte."""
        return self.data[-1:] == [b"[DONE]"] if self.streamed else self.complete

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [json.loads(data) for data in self.data if data != b"[DONE]"]

    @property
    def error(self) -> dict[str, Any] | None:
        """The error that a whole answer is, or that a stream ends with."""
        found = self.chunks[-1:] if self.streamed else [self.json]
        return found[0].get("error") if found else None

    @property
    def usage(self) -> dict[str, Any]:
        """Needs stream_options.include_usage of a stream."""
        found: dict[str, Any] = (self.chunks[-1] if self.streamed else self.json)["usage"]
        return found

    def text(self, index: int = 0) -> str:
        if not self.streamed:
            said: str = self.json["choices"][index]["message"]["content"]
            return said
        pieces = (choice for chunk in self.chunks for choice in chunk.get("choices", ()) if choice["index"] == index)
        return "".join(piece["delta"].get("content") or "" for piece in pieces)

    def tokens(self, index: int = 0) -> list[tuple[bytes, float]]:
        """Bytes and log-probability of each token, if logprobs were asked for."""
        pieces = self.chunks if self.streamed else [self.json]
        choices = [c for piece in pieces for c in piece.get("choices", ()) if c["index"] == index]
        entries = [entry for c in choices for entry in (c.get("logprobs") or {}).get("content") or ()]
        return [(bytes(entry["bytes"]), entry["logprob"]) for entry in entries]


def chat(said: str, *, model: str = CHAT, stream: bool = True, **fields: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": model, "messages": [{"role": "user", "content": said}], "stream": stream, **fields}


class Client:
    """One connection, one request at a time: `send`, then `head`, then `rest` or `events`."""

    def __init__(self, url: str, key: str, *, receive_buffer: int | None = None) -> None:
        address = urlsplit(url)
        self._address = (address.hostname or "127.0.0.1", address.port or 80)
        self._key = key
        self._receive_buffer = receive_buffer
        self.answer = Answer()

    async def __aenter__(self) -> Client:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if self._receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, self._address)
        except OSError:
            sock.close()
            raise
        self.reader, self.writer = await asyncio.open_connection(sock=sock)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.writer.close()

    async def send(self, path: str, body: dict[str, Any], *, method: str = "POST") -> None:
        """Send a request and begin a new answer."""
        data = json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: box\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        self.answer = Answer(began_s=time.monotonic())
        self.writer.write(head.encode() + data)
        await self.writer.drain()

    async def head(self) -> Answer:
        """The answer with its status and headers. Raises Cut."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Cut("before the head") from error
        first, *lines = head.decode("latin-1").rstrip().split("\r\n")
        self.answer.status = int(first.split(" ")[1])
        pairs = (line.partition(":") for line in lines)
        self.answer.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        return self.answer

    async def parts(self) -> AsyncIterator[bytes]:
        """The body, piece by piece as it comes; also collected in `answer`. Raises Cut."""
        answer = self.answer
        chunked = answer.headers.get("transfer-encoding") == "chunked"
        left = 0 if chunked else int(answer.headers["content-length"])
        try:
            while True:
                if chunked:
                    left = int(await self.reader.readline() or b"x", 16)
                data = await self.reader.readexactly(left)
                answer.body += data
                answer.event_times.append(time.monotonic())
                if chunked:
                    await self.reader.readexactly(2)
                if not (chunked and left):
                    break
                yield data
        except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
            raise Cut(f"after {len(answer.body)} bytes") from error
        finally:
            answer.ended_s = time.monotonic()
        answer.complete = True

    async def rest(self) -> Answer:
        """The whole answer. Raises Cut."""
        async for _ in self.parts():
            pass
        return self.answer

    def leave(self, how: Leaving) -> None:
        """Go away at once."""
        if how == "reset":
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
        else:
            self.writer.close()


def client(gateway: Gateway, **options: Any) -> Client:
    return Client(gateway.url, gateway.key, **options)


async def post(
    gateway: Gateway, body: dict[str, Any], path: str = "/v1/chat/completions", *, patience_s: float = PATIENCE_S
) -> Answer:
    """One exchange on a connection of its own, as far as it got: a cut one is not `complete`."""
    async with asyncio.timeout(patience_s), client(gateway) as one:
        await one.send(path, body)
        try:
            await one.head()
            await one.rest()
        except Cut:
            one.answer.ended_s = time.monotonic()
        return one.answer


async def posts(gateway: Gateway, bodies: Iterable[dict[str, Any]]) -> list[Answer]:
    """All at once."""
    return list(await asyncio.gather(*(post(gateway, body) for body in bodies)))


def engine_socket(gateway: Gateway, deployment: str = CHAT, index: int = 0) -> Path:
    return socket_path(run_directory(gateway.data_dir), deployment, index)


@asynccontextmanager
async def engine_of(gateway: Gateway, deployment: str = CHAT) -> AsyncIterator[LlamaClient]:
    """A second connection to the gateway's engine, past the gateway: to see what it is doing."""
    engine = await connect(engine_socket(gateway, deployment))
    try:
        yield engine
    finally:
        await engine.close()


async def settled(engine: LlamaClient, *, patience_s: float = PATIENCE_S) -> EngineStatus:
    """The engine's status once it has nothing to do."""
    end = time.monotonic() + patience_s
    while True:
        status = await engine.status()
        if not (status.busy or status.waiting or status.open_requests):
            return status
        assert time.monotonic() < end, f"the engine is still at work after {patience_s:g} s: {status}"
        await asyncio.sleep(0.002)
