"""Any OpenAI-compatible HTTP endpoint as an upstream.

The request is built anew from the canonical one – its fields and its headers are allow-lists – and the answer
passes as bytes: each event is looked at, none is written again.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec
import yarl
from aiohttp.connector import AddrInfoType
from multidict import CIMultiDict

from appliance import errors
from appliance.dialects import parameters
from appliance.dialects.passing import check_secret, read_whole
from appliance.dialects.wire import encode
from appliance.providers.http_errors import from_status
from appliance.providers.relayed import RelayedStream
from appliance.providers.tap import Tap, nothing
from appliance.providers.upstream import READY, Call, Capabilities, Readiness
from appliance.redact import MIN_SECRET

PATHS = {
    "chat.completions": "chat/completions",
    "completions": "completions",
    "embeddings": "embeddings",
}

EVERYTHING = Capabilities(
    kinds=frozenset(PATHS),
    features=frozenset(
        (
            "tools",
            "json_object",
            "json_schema",
            "logprobs",
            "logit_bias",
            "top_k",
            "min_p",
            "repetition_penalty",
            "token_prompts",
            "images",
            "reasoning",
        )
    ),
)
"""What an endpoint of unknown make is taken to be able to do; it refuses the rest by itself."""

MAX_ANSWER = 64 * 1024 * 1024
READ_AHEAD = 16 * 1024
"""Of an answer whose client is slow the HTTP client takes twice this, and what one read gives; it does so in memory."""
RECEIVE_BUFFER = 64 * 1024
"""Of an upstream's socket. Left to itself the kernel reads megabytes ahead for a reader that takes nothing."""
_MAX_ERROR = 64 * 1024
_LINGER_S = 0.2


def _socket(address: AddrInfoType) -> socket.socket:
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    return made


def make_session() -> aiohttp.ClientSession:
    """The one client session of the process: pooled connections, and nothing that acts by itself."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0, keepalive_timeout=30.0, enable_cleanup_closed=False, socket_factory=_socket
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        read_bufsize=READ_AHEAD,
        timeout=aiohttp.ClientTimeout(total=None),
    )


class OpenAIUpstream:
    """One model of one provider. `base_url` ends with the version part (`http://host/v1`)."""

    def __init__(
        self,
        name: str,
        *,
        model: str,
        base_url: str,
        api_key: str | None,
        session: aiohttp.ClientSession,
        capabilities: Capabilities = EVERYTHING,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._name = name
        self._model = model
        self._api_key = api_key
        # A short one ("none", "EMPTY") is a word that answers have for other reasons.
        self._secret = api_key.encode() if api_key and len(api_key) >= MIN_SECRET else b""
        self._session = session
        self._capabilities = capabilities
        self._wall = wall
        base = base_url.rstrip("/") + "/"
        self._urls = {kind: yarl.URL(base + path) for kind, path in PATHS.items()}
        # All that the HTTP client would add by itself is here, so that it need not look what it may leave out.
        self._headers = CIMultiDict(
            {
                "Content-Type": "application/json",
                "Accept": "application/json, text/event-stream",
                "Accept-Encoding": "identity",
                "User-Agent": "outpost",
                **({"Authorization": f"Bearer {api_key}"} if api_key else {}),
            }
        )
        self._timeouts: dict[float, aiohttp.ClientTimeout] = {}
        self.lingering: set[asyncio.Task[None]] = set()
        """Answers whose last bytes are still being read, so that their connections can be used again."""

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def readiness(self) -> Readiness:
        return READY

    async def whole(self, call: Call) -> bytes:
        response = await self._post(call)
        try:
            body = await self._read(response, MAX_ANSWER)
        finally:
            response.release()
        check_secret(body, self._secret, self._name)
        read_whole(body, call.tally, self._name, vectors=call.kind.name == "embeddings")
        return body

    async def stream(self, call: Call) -> RelayedStream:
        response = await self._post(call)
        reader = call.kind.make_passing(self._name, call.tally, call.request, self._secret)
        stream = RelayedStream(self._name, response, reader, self._leave)
        try:
            if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                raise errors.UpstreamFailed(f"{self._name} did not answer with a stream.")
            await stream.open()
        except BaseException:
            await stream.aclose()
            raise
        return stream

    def _leave(self, response: aiohttp.ClientResponse, done: bool) -> None:
        """Give the connection back if the answer was read to its end, else close it, which cancels the work."""
        if not done or response.content.is_eof():
            response.release()
            return
        # The bytes that end the HTTP message often come right after [DONE]; the client does not wait for them.
        task = asyncio.ensure_future(_linger(response))
        self.lingering.add(task)
        task.add_done_callback(self.lingering.discard)

    async def _post(self, call: Call) -> aiohttp.ClientResponse:
        timeout = self._timeouts.get(call.connect_s)
        if timeout is None:
            timeout = self._timeouts[call.connect_s] = aiohttp.ClientTimeout(total=None, sock_connect=call.connect_s)
        try:
            response = await self._session.post(
                self._urls[call.kind.name],
                data=encode(outgoing(call.request, self._model)),
                headers=self._traced(call.traceparent) if call.traceparent else self._headers,
                allow_redirects=False,
                timeout=timeout,
            )
        except aiohttp.ConnectionTimeoutError as error:
            raise errors.UpstreamTimeout(f"{self._name} did not accept a connection in time.") from error
        except aiohttp.ClientConnectorError as error:
            raise errors.UpstreamError(f"{self._name} cannot be reached.", code="upstream_unreachable") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise errors.UpstreamFailed(f"{self._name} closed the connection without an answer.") from error
        if response.status == 200 and "Content-Encoding" not in response.headers:
            return response
        try:
            if response.status == 200:
                raise errors.UpstreamError(f"{self._name} compressed its answer although it was told not to.")
            body = await self._read(response, _MAX_ERROR)
            raise from_status(
                self._name, response.status, response.headers, body, now=self._wall(), secret=self._api_key
            )
        finally:
            response.release()

    def _traced(self, traceparent: str) -> CIMultiDict[str]:
        headers = self._headers.copy()
        headers["traceparent"] = traceparent
        return headers

    async def _read(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        tap = Tap(response.content, nothing)
        await tap.install(response)
        try:
            while part := await response.content.readany():
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise errors.UpstreamError(f"{self._name} gave an answer of more than {limit} bytes.")
        except aiohttp.ClientError as error:
            raise errors.UpstreamFailed(f"{self._name} broke off its answer.") from error
        finally:
            tap.let_go()
        return parts[0] if len(parts) == 1 else b"".join(parts)


async def _linger(response: aiohttp.ClientResponse) -> None:
    try:
        async with asyncio.timeout(_LINGER_S):
            while await response.content.readany():
                pass
    except (TimeoutError, aiohttp.ClientError):
        # Not reusable then; release closes it.
        pass
    finally:
        response.release()


def outgoing(request: Any, model: str) -> Any:
    """The request as it leaves: the target's own model name, usage asked for, fields without effect left out."""
    changes: dict[str, Any] = {"model": model}
    for field in parameters.ACCEPTED_NO_OPS:
        if getattr(request, field, None) is not None:
            changes[field] = None
    if request.stream:
        changes["stream_options"] = _COUNT
    return msgspec.structs.replace(request, **changes)


_COUNT = parameters.StreamOptions(include_usage=True)
