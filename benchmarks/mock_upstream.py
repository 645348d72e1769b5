"""A very cheap OpenAI-compatible upstream, in a process of its own.

    python -m benchmarks.mock_upstream --port 9000 [--lifetime 600]

The model's name says how a stream is paced: `mock-burst` sends all chunks in one write,
`mock-20ms` and `mock-50ms` send one chunk every 20 or 50 ms. `max_tokens` (or
`max_completion_tokens`) is the number of content chunks. Each chunk is an HTTP chunk of its own of
about 210 bytes, as OpenAI sends them: a chunk with the role, the content, the finish reason, the usage when
`stream_options.include_usage` is set, `[DONE]`. `mock-503` refuses everything with 503, and `mock-cut` closes the
connection after half of a burst.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from functools import lru_cache
from typing import cast

import uvloop

PACES_MS = {"mock-burst": 0, "mock-20ms": 20, "mock-50ms": 50}
PROMPT_TOKENS = 24
_ID = "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG"
_CREATED = 1741570283
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
_MODELS = {"object": "list", "data": [{"id": m, "object": "model", "created": 1, "owned_by": "mock"} for m in PACES_MS]}


def word(i: int) -> str:
    """The text of content chunk i. The load generator counts ` tok` to see that none is missing."""
    return f" tok{i % 100:02d}"


def usage(tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": tokens,
        "total_tokens": PROMPT_TOKENS + tokens,
    }


@lru_cache(maxsize=64)
def frames(model: str, tokens: int, with_usage: bool) -> tuple[bytes, ...]:
    """The HTTP chunks of one streamed answer; the last also ends the body."""

    def event(choices: list[dict[str, object]], **extra: object) -> bytes:
        chunk = {"id": _ID, "object": "chat.completion.chunk", "created": _CREATED, "model": model, "choices": choices}
        if with_usage:
            chunk["usage"] = None
        return b"data: " + json.dumps(chunk | extra, separators=(",", ":")).encode() + b"\n\n"

    def choice(delta: dict[str, str], finish: str | None = None) -> list[dict[str, object]]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]

    events = [event(choice({"role": "assistant", "content": ""}))]
    events += [event(choice({"content": word(i)})) for i in range(tokens)]
    events.append(event(choice({}, "stop")))
    if with_usage:
        events.append(event([], usage=usage(tokens)))
    events.append(b"data: [DONE]\n\n")
    chunks = [b"%x\r\n%b\r\n" % (len(e), e) for e in events]
    chunks[-1] += b"0\r\n\r\n"
    return tuple(chunks)


@lru_cache(maxsize=64)
def burst(model: str, tokens: int, with_usage: bool) -> bytes:
    return _STREAM_HEAD + b"".join(frames(model, tokens, with_usage))


@lru_cache(maxsize=64)
def whole(model: str, tokens: int) -> bytes:
    """One whole answer with its HTTP head."""
    message: dict[str, object] = {
        "role": "assistant",
        "content": "".join(map(word, range(tokens))),
        "refusal": None,
        "annotations": [],
    }
    return json_answer(
        {
            "id": _ID,
            "object": "chat.completion",
            "created": _CREATED,
            "model": model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": usage(tokens),
            "system_fingerprint": "fp_fc9f1d7035",
        }
    )


def json_answer(value: object, status: str = "200 OK") -> bytes:
    body = json.dumps(value, separators=(",", ":")).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Upstream(asyncio.Protocol):
    """One client connection; answers one request at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport
        self._buffer = b""
        self._queue: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._timer is None:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            lower = head.lower()
            at = lower.find(b"\r\ncontent-length:")
            length = int(lower[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            self._answer(head.split(b" ", 2)[1], rest[:length])

    def _answer(self, path: bytes, body: bytes) -> None:
        if path.endswith(b"/models"):
            self._transport.write(json_answer(_MODELS))
            return
        if not path.endswith(b"/chat/completions"):
            # Routers probe their workers on various paths (/health, /metrics, /get_server_info).
            self._transport.write(json_answer({"status": "ok"}))
            return
        request = json.loads(body)
        model = request["model"]
        tokens = int(request.get("max_tokens") or request.get("max_completion_tokens") or 16)
        pace = PACES_MS.get(model)
        if model == "mock-503":
            self._transport.write(json_answer({"error": {"message": "overloaded"}}, "503 Service Unavailable"))
        elif model == "mock-cut":
            chunks = frames("mock-burst", tokens, True)
            self._transport.write(_STREAM_HEAD + b"".join(chunks[: 1 + tokens // 2]))
            self._transport.close()
        elif pace is None:
            self._transport.write(json_answer({"error": {"message": f"no model {model}"}}, "404 Not Found"))
        elif not request.get("stream"):
            self._transport.write(whole(model, tokens))
        else:
            with_usage = bool((request.get("stream_options") or {}).get("include_usage"))
            if pace == 0 or tokens < 2:
                self._transport.write(burst(model, tokens, with_usage))
                return
            chunks = frames(model, tokens, with_usage)
            # Role and first content come at once; finish, usage and [DONE] come with the last content.
            self._queue = [_STREAM_HEAD + chunks[0] + chunks[1], *chunks[2:tokens], b"".join(chunks[tokens:])]
            self._queue.reverse()
            self._send(self._loop.time(), pace / 1000)

    def _send(self, due: float, interval: float) -> None:
        self._transport.write(self._queue.pop())
        if self._queue:
            self._timer = self._loop.call_at(due + interval, self._send, due + interval, interval)
        else:
            self._timer = None
            if self._buffer:
                self.data_received(b"")


async def serve(port: int, lifetime_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Upstream(loop), "127.0.0.1", port, backlog=4096)
    print("ready", flush=True)
    async with server:
        await asyncio.sleep(lifetime_s)


def main() -> None:
    parser = argparse.ArgumentParser(description="a cheap OpenAI-compatible upstream for benchmarks")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--lifetime", type=float, default=3600.0, help="seconds after which it ends by itself")
    arguments = parser.parse_args()
    try:
        uvloop.run(serve(arguments.port, arguments.lifetime))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
