"""The fault-injecting upstream of the whole suite: an OpenAI-compatible server that misbehaves on request.

The model's name says how it behaves (`BEHAVIOURS`); `script` gives a model a list of behaviours, one a request, the
last one for ever. It speaks plain HTTP/1.1 over asyncio streams, so that it can also break the protocol. What
it has seen is kept in `seen`; `hung_up` counts the clients that left before they had their whole answer.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

End = Literal["clean", "no_marker", "cut", "reset", "bad_chunk"]


@dataclass
class Seen:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: dict[str, Any]


@dataclass
class Reply:
    """What to send: a whole answer (`body`), or a stream (`events`, each the data of one event)."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    events: list[bytes] = field(default_factory=list)
    end: End = "clean"
    after: int | None = None
    """The end comes after so many events (of `events`); None = after the last."""
    hold: bool = False
    """Send nothing before `FakeUpstream.release` is set."""
    hold_after: int | None = None
    """Send so many events, then wait for `release`."""
    slices: int | None = None
    """Send so many bytes at a time, each in its own write."""
    pace_s: float = 0.0
    line_end: bytes = b"\n"
    comments: bool = False
    close: bool = False
    """Close the connection without a word instead of answering."""


def chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    """The data of one chat chunk."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    frame = {"id": "chatcmpl-up", "object": "chat.completion.chunk", "created": 1, "model": "upstream-model"}
    return json.dumps({**frame, "choices": [choice], **more}, separators=(",", ":")).encode()


def usage_chunk(prompt: int = 5, completion: int = 3) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    frame = {"id": "chatcmpl-up", "object": "chat.completion.chunk", "created": 1, "model": "upstream-model"}
    return json.dumps({**frame, "choices": [], "usage": usage}, separators=(",", ":")).encode()


TEXT = ["Hello", ", ", "wörld 🌍", "!"]


def chat_events(texts: list[str] | None = None) -> list[bytes]:
    texts = TEXT if texts is None else texts
    return [
        chunk({"role": "assistant", "content": "", "refusal": None}),
        *(chunk({"content": text}) for text in texts),
        chunk({}, "stop"),
        usage_chunk(completion=len(texts)),
    ]


def chat_whole(text: str = "".join(TEXT)) -> bytes:
    message = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    answer = {
        "id": "chatcmpl-up",
        "object": "chat.completion",
        "created": 1,
        "model": "upstream-model",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 4,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    }
    return json.dumps(answer).encode()


def without_usage(body: bytes) -> bytes:
    return json.dumps({name: value for name, value in json.loads(body).items() if name != "usage"}).encode()


def embeddings_whole() -> bytes:
    data = [{"object": "embedding", "index": 0, "embedding": [0.6, 0.8]}]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return json.dumps({"object": "list", "model": "upstream-model", "data": data, "usage": usage}).encode()


def completion_whole() -> bytes:
    choice = {"index": 0, "text": "Hello", "logprobs": None, "finish_reason": "length"}
    usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    frame = {"id": "cmpl-up", "object": "text_completion", "created": 1, "model": "upstream-model"}
    return json.dumps({**frame, "choices": [choice], "usage": usage}).encode()


def error(status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None) -> Reply:
    body = {"error": {"message": message, "type": "some_error", "param": None, "code": code}}
    return Reply(status, headers or {}, json.dumps(body).encode())


def ok(seen: Seen) -> Reply:
    """The normal answer to whatever was asked."""
    if seen.path.endswith("/embeddings"):
        return Reply(body=embeddings_whole())
    if seen.path.endswith("/chat/completions"):
        return Reply(events=chat_events()) if seen.body.get("stream") else Reply(body=chat_whole())
    return Reply(body=completion_whole())


def _stream(**how: Any) -> Callable[[Seen], Reply]:
    return lambda seen: Reply(events=chat_events(), **how)


def _fixed(reply: Reply) -> Callable[[Seen], Reply]:
    return lambda seen: reply


def _held(seen: Seen) -> Reply:
    reply = ok(seen)
    reply.hold = True
    return reply


BEHAVIOURS: dict[str, Callable[[Seen], Reply]] = {
    "ok": ok,
    "silent": _held,
    "role-then-silent": _stream(hold_after=1),
    "stall": _stream(hold_after=3),
    # The faults after the first token wait for `release`, so that the token is out before they happen.
    "cut": _stream(end="cut", after=3, hold_after=3),
    "reset": _stream(end="reset", after=3, hold_after=3),
    "bad-chunk": _stream(end="bad_chunk", after=3, hold_after=3),
    "bad-chunk-before-token": _stream(end="bad_chunk", after=1),
    "cut-before-token": _stream(end="cut", after=1),
    "no-end-marker": _stream(end="no_marker", hold_after=3),
    "malformed": lambda seen: Reply(
        events=[*chat_events()[:3], b'{"choices": [{"delta"', *chat_events()[3:]], hold_after=3
    ),
    "malformed-first": lambda seen: Reply(events=[b"{nonsense", *chat_events()]),
    "error-in-stream": lambda seen: Reply(
        events=[*chat_events()[:3], b'{"error": {"message": "account sk-secret is broke", "code": 500}}'], hold_after=3
    ),
    "error-first": lambda seen: Reply(events=[b'{"error": {"message": "no"}}']),
    "empty": _fixed(Reply(events=[])),
    "no-usage": lambda seen: (
        Reply(events=chat_events()[:-1]) if seen.body.get("stream") else Reply(body=without_usage(chat_whole()))
    ),
    "slices": _stream(slices=1),
    "crlf": _stream(line_end=b"\r\n"),
    "comments": _stream(comments=True),
    "json-for-stream": _fixed(Reply(body=chat_whole())),
    "garbage": _fixed(Reply(body=b"<html>502 Bad Gateway</html>")),
    "closed": _fixed(Reply(close=True)),
    "cut-whole": _fixed(Reply(body=chat_whole(), end="cut")),
    "bad-chunk-whole": _fixed(Reply(body=chat_whole(), end="bad_chunk")),
    "429": _fixed(error(429, "slow down", "rate_limit_exceeded")),
    "429-after": _fixed(error(429, "slow down", "rate_limit_exceeded", {"Retry-After": "7"})),
    "500": _fixed(error(500, "sk-upstream-key leaked stack trace")),
    "503": _fixed(error(503, "overloaded")),
    "503-after": _fixed(error(503, "overloaded", None, {"Retry-After": "3"})),
    "401": _fixed(error(401, "Incorrect API key provided: sk-upstream-key")),
    "404": _fixed(error(404, "no such model")),
    "400": _fixed(error(400, "temperature is bad for sk-upstream-key", "invalid_value")),
    "400-context": _fixed(error(400, "This model's maximum context length is 8 tokens.", "context_length_exceeded")),
    "redirect": _fixed(Reply(307, {"Location": "http://127.0.0.1:1/elsewhere"}, b"")),
    "compressed": _fixed(Reply(200, {"Content-Encoding": "gzip"}, b"\x1f\x8b\x08\x00")),
}


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
        self._scripts: dict[str, list[str]] = {}
        self._replies: dict[str, Callable[[Seen], Reply]] = dict(BEHAVIOURS)
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1"

    def script(self, model: str, *behaviours: str) -> None:
        """What `model` does, request by request; the last behaviour stays."""
        self._scripts[model] = list(behaviours)

    def behave(self, model: str, reply: Callable[[Seen], Reply]) -> None:
        """A behaviour of this test's own."""
        self._replies[model] = reply

    async def __aenter__(self) -> FakeUpstream:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self.release.set()
        self._gone.set()
        self._server.close()

    def _reply(self, seen: Seen) -> Reply:
        model = seen.body.get("model", "ok")
        script = self._scripts.get(model)
        if script:
            model = script.pop(0) if len(script) > 1 else script[0]
        return self._replies.get(model, ok)(seen)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while (seen := await _read_request(reader)) is not None:
                self.seen.append(seen)
                if not await self._answer(self._reply(seen), reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Send it; whether the connection may go on."""
        if reply.close:
            return False
        if reply.hold and not await self._wait(reader):
            return False
        if reply.body is not None:
            return await self._whole(reply, writer)
        head = {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked", **reply.headers}
        await self._send(reply, writer, _head(reply.status, head))
        eol = reply.line_end
        for i, data in enumerate(reply.events):
            if reply.hold_after == i and not await self._wait(reader):
                return False
            if reply.after == i:
                break
            if reply.comments:
                await self._send(reply, writer, _chunked(b": keep-alive" + eol + eol))
            await self._send(reply, writer, _chunked(b"data: " + data + eol + eol))
            if reply.pace_s:
                await asyncio.sleep(reply.pace_s)
        if reply.end == "reset":
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        if reply.end == "cut":
            return False
        if reply.end == "bad_chunk":
            await self._send(reply, writer, b"this is no size of a chunk\r\n")
            await self._gone.wait()  # it is for the client to hang up
            return False
        marker = b"" if reply.end == "no_marker" else _chunked(b"data: [DONE]" + eol + eol)
        await self._send(reply, writer, marker + b"0\r\n\r\n")
        return True

    async def _whole(self, reply: Reply, writer: asyncio.StreamWriter) -> bool:
        body = reply.body or b""
        head = {"Content-Type": "application/json", "Content-Length": str(len(body)), **reply.headers}
        if reply.end == "cut":
            await self._send(reply, writer, _head(reply.status, head) + body[: len(body) // 2])
            return False
        if reply.end == "bad_chunk":
            head = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
            await self._send(reply, writer, _head(reply.status, head) + _chunked(body[:9]))
            await self._send(reply, writer, b"this is no size of a chunk\r\n")
            await self._gone.wait()
            return False
        await self._send(reply, writer, _head(reply.status, head) + body)
        return True

    async def _wait(self, reader: asyncio.StreamReader) -> bool:
        """Until `release`; False when the client hangs up before."""
        self.sending.release()
        released = asyncio.ensure_future(self.release.wait())
        gone = asyncio.ensure_future(reader.read(1))
        await asyncio.wait((released, gone), return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            released.cancel()
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
    return Seen(method, path, headers, json.loads(body) if body else {})


@asynccontextmanager
async def running() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        yield upstream
