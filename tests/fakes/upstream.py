"""The fault-injecting upstream of the whole suite: a server that speaks every provider's dialect, and misbehaves.

The path says which dialect (`tongues.TONGUES`), the model's name how it behaves (`behaviours.BEHAVIOURS`); `script`
gives a model a list of behaviours, one a request, the last one for ever. It speaks plain HTTP/1.1 over asyncio streams,
so that it can also break the protocol. What it has seen is kept in `seen`; `hung_up` counts the clients that left
before they had their whole answer.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import unquote

from tests.fakes.behaviours import BEHAVIOURS as BEHAVIOURS
from tests.fakes.behaviours import Behaviour, ok
from tests.fakes.replies import Reply as Reply
from tests.fakes.replies import Seen as Seen
from tests.fakes.tongue_openai import TEXT as TEXT
from tests.fakes.tongue_openai import chat_events as chat_events
from tests.fakes.tongue_openai import chat_whole as chat_whole
from tests.fakes.tongue_openai import chunk as chunk
from tests.fakes.tongue_openai import embeddings_whole as embeddings_whole
from tests.fakes.tongue_openai import error

_MODEL = re.compile(r"/models?/([^/]+?)(?=:generateContent|:streamGenerateContent|:embedContent|:batchEmbedContents|/)")


class FakeUpstream:
    """Use `running()`; `url` is the base URL with the version part."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.seen: list[Seen] = []
        self.release = asyncio.Event()
        self.hung_up = asyncio.Semaphore(0)
        """Acquire it to wait for a client that leaves in the middle of an answer."""
        self.sending = asyncio.Semaphore(0)
        """Acquire it to wait until an answer has got to its `hold` or `hold_after`."""
        self.connections = 0
        self._gone = asyncio.Event()
        """The test is over."""
        self.port = 0
        self.down = False
        """Whether everything is answered with 503, the list of models too."""
        self._scripts: dict[str, list[str]] = {}
        self._replies: dict[str, Behaviour] = dict(BEHAVIOURS)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1"

    def script(self, model: str, *behaviours: str) -> None:
        """What `model` does, request by request; the last behaviour stays."""
        self._scripts[model] = list(behaviours)

    def behave(self, model: str, reply: Behaviour) -> None:
        """A behaviour of this test's own."""
        self._replies[model] = reply

    @property
    def root(self) -> str:
        """The address without a path, for dialects that have other version parts."""
        return self.url.removesuffix("/v1")

    def asked(self, model: str) -> list[Seen]:
        """The requests for one model, in their order."""
        return [seen for seen in self.seen if seen.model == model]

    async def __aenter__(self) -> FakeUpstream:
        await self.open()
        return self

    async def open(self) -> None:
        """Listen; again on the same port after `shut`."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    def shut(self) -> None:
        """Refuse connections and drop those there are, until `open`."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self.release.set()
        self._gone.set()
        self._server.close()

    def _reply(self, seen: Seen) -> Reply:
        if self.down:
            return error(503, "down for a while")
        name = seen.model
        script = self._scripts.get(name)
        if script:
            name = script.pop(0) if len(script) > 1 else script[0]
        return self._replies.get(name, self._replies.get(name.partition("~")[0], ok))(seen)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while (seen := await _read_request(reader)) is not None:
                self.seen.append(seen)
                try:
                    reply = self._reply(seen)
                except (ValueError, KeyError, TypeError, AttributeError) as wrong:
                    reply = error(400, f"This request cannot be read: {wrong!r}")
                if not await self._answer(reply, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Send it; whether the connection may go on."""
        if reply.close:
            return self._end(reply, writer)
        if reply.hold and not await self._wait(reader):
            return False
        if reply.body is not None:
            return await self._whole(reply, reader, writer)
        head = {"Content-Type": reply.content_type, "Transfer-Encoding": "chunked", **reply.headers}
        await self._send(reply, writer, _head(reply.status, head))
        eol = reply.line_end
        for i, data in enumerate([*reply.events, b""]):
            if reply.hold_after == i and not await self._wait(reader):
                return False
            if reply.pause_after == i and not await self._wait(reader, reply.pause_s):
                return False
            if i == len(reply.events):
                break
            if reply.after == i:
                break
            if reply.comments and reply.comment:
                await self._send(reply, writer, _chunked(reply.comment))
            await self._send(reply, writer, _chunked(reply.frame(data, eol)))
            if reply.pace_s:
                await asyncio.sleep(reply.pace_s)
        if reply.end in ("reset", "cut"):
            return self._end(reply, writer)
        if reply.end == "bad_chunk":
            await self._send(reply, writer, b"this is no size of a chunk\r\n")
            await self._gone.wait()  # it is for the client to hang up
            return False
        markers = [] if reply.end == "no_marker" else reply.marker
        await self._send(reply, writer, b"".join(_chunked(reply.frame(data, eol)) for data in markers) + b"0\r\n\r\n")
        return True

    def _end(self, reply: Reply, writer: asyncio.StreamWriter) -> bool:
        """Close the connection, or reset it."""
        if reply.end == "reset":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        return False

    async def _whole(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        body = reply.body or b""
        head = {"Content-Type": "application/json", "Content-Length": str(len(body)), **reply.headers}
        half = len(body) // 2
        if reply.pause_after is not None and not await self._wait(reader, reply.pause_s):
            return False
        if reply.hold_after is not None:
            await self._send(reply, writer, _head(reply.status, head) + body[:half])
            if not await self._wait(reader):
                return False
            await self._send(reply, writer, body[half:])
            return True
        if reply.end in ("cut", "reset"):
            await self._send(reply, writer, _head(reply.status, head) + body[:half])
            return self._end(reply, writer)
        if reply.end == "no_marker":
            head = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
            await self._send(reply, writer, _head(reply.status, head) + _chunked(body))
            return False
        if reply.end == "bad_chunk":
            head = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
            await self._send(reply, writer, _head(reply.status, head) + _chunked(body[:9]))
            await self._send(reply, writer, b"this is no size of a chunk\r\n")
            await self._gone.wait()
            return False
        await self._send(reply, writer, _head(reply.status, head) + body)
        return True

    async def _wait(self, reader: asyncio.StreamReader, most_s: float | None = None) -> bool:
        """Until `release`, or for `most_s`; False when the client hangs up before."""
        self.sending.release()
        released = asyncio.ensure_future(self.release.wait())
        gone = asyncio.ensure_future(reader.read(1))
        await asyncio.wait((released, gone), timeout=most_s, return_when=asyncio.FIRST_COMPLETED)
        if not released.done():
            released.cancel()
        if gone.done():
            self.hung_up.release()
            return False
        gone.cancel()
        await asyncio.wait((gone,))
        return True

    async def _send(self, reply: Reply, writer: asyncio.StreamWriter, data: bytes) -> None:
        if reply.slices is None:
            writer.write(data)
            await writer.drain()
            return
        for i in range(0, len(data), reply.slices):
            writer.write(data[i : i + reply.slices])
            await writer.drain()
            await asyncio.sleep(0)


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _read_request(reader: asyncio.StreamReader) -> Seen | None:
    line = await reader.readline()
    if not line:
        return None
    method, path, _ = line.decode().split(" ", 2)
    headers: dict[str, str] = {}
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode().partition(":")
        headers[name.strip().lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    try:
        read = json.loads(body) if body else {}
    except ValueError:
        read = {}
    found = _MODEL.search(unquote(path))
    model = read.get("model") or (found.group(1) if found else "ok")
    return Seen(method, path, headers, read, model)


@asynccontextmanager
async def running() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        yield upstream
