"""Any HTTP endpoint as an upstream, whatever its dialect.

The request is built anew from the canonical one, or from the client's own where the target speaks the client's
dialect; its fields and its headers are allow-lists. An answer in the client's dialect passes as bytes: each event is
looked at, none is written again. Any other is read into events and written in the client's.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping

import aiohttp
import yarl
from aiohttp.connector import AddrInfoType
from multidict import CIMultiDict

from appliance import errors
from appliance.dialects import dropping, embeddings, naming
from appliance.dialects.answer import Ask, Outbound
from appliance.dialects.kinds import Passing
from appliance.dialects.messages.betas import NONE, Betas
from appliance.dialects.tally import count_unreported
from appliance.dialects.withheld import check_secret
from appliance.providers.auth_base import Auth
from appliance.providers.credentials import Credential, Credentials
from appliance.providers.http_errors import from_status
from appliance.providers.pool import Connector
from appliance.providers.posting import Address, Reply, fields_of
from appliance.providers.relayed import RelayedStream
from appliance.providers.translating import Translating, believed
from appliance.providers.upstream import READY, Call, Capabilities, GeneratedStream, Readiness, Stream, told_by

MAX_ANSWER = 64 * 1024 * 1024
READ_AHEAD = 16 * 1024
"""Of an answer whose client is slow the HTTP client takes twice this, and what one read gives; it does so in memory."""
RECEIVE_BUFFER = 64 * 1024
"""Of an upstream's socket. Left to itself the kernel reads megabytes ahead for a reader that takes nothing."""
_MAX_ERROR = 1024 * 1024
_LINGER_S = 0.2
_MOST_DROPPED = 3
"""Fields that one request is asked again without, because the target has refused them."""
_REFUSED_VALUES = frozenset({"unsupported_value", "unsupported_parameter"})
"""Codes with which OpenAI refuses a field for its value."""
_MOST_PATHS = 64
"""Addresses that are remembered as parsed."""
BASE_HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
    "Accept-Encoding": "identity",
    "User-Agent": "outpost",
}
"""All that the HTTP client would add by itself is here, so that it need not look what it may leave out."""
_UNTOLD = frozenset({"", "text/plain", "application/octet-stream"})
"""Types of a stream whose server does not say that it is one. If it is none, its reader will tell."""


def _socket(address: AddrInfoType) -> socket.socket:
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    return made


def make_session() -> aiohttp.ClientSession:
    """The one client session of the process: pooled connections, and nothing that acts by itself."""
    return aiohttp.ClientSession(
        connector=Connector(limit=0, keepalive_timeout=30.0, enable_cleanup_closed=False, socket_factory=_socket),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        read_bufsize=READ_AHEAD,
        timeout=aiohttp.ClientTimeout(total=None),
    )


class HttpUpstream:
    """One model of one provider. `base_url` ends with the version part (`http://host/v1`)."""

    def __init__(
        self,
        name: str,
        *,
        model: str,
        base_url: str,
        outbound: Outbound,
        native: frozenset[str],
        auth: Auth,
        credentials: Credentials,
        session: aiohttp.ClientSession,
        capabilities: Capabilities,
        headers: Mapping[str, str] = {},
        betas: Betas = NONE,
        stream_type: str = "text/event-stream",
        health: str | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """native: the kinds whose answers pass as they are. headers: what the provider always gets. betas: of
        Anthropic's, those that it may be asked for. health: an address that answers to GET and costs no tokens, where
        there is one."""
        self._name = name
        self._model = model
        self._outbound = outbound
        self._native = native
        self._credentials = credentials
        self._auth = auth
        self._session = session
        self._capabilities = capabilities
        self._betas = betas
        self._stream_type = stream_type
        self._wall = wall
        self._base = base_url.rstrip("/") + "/"
        self._health = None if health is None else yarl.URL(health, encoded=True)
        self._addresses: dict[str, Address] = {}
        self._headers = CIMultiDict({**BASE_HEADERS, **headers})
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

    @property
    def has_probe(self) -> bool:
        return self._health is not None

    async def probe(self) -> bool:
        """Ask without tokens whether the provider can be reached: any answer that is no failure of the server's own
        tells so, since some have nothing at that address or want another key for it. To be bounded in time."""
        if self._health is None:
            return False
        sent = self._headers.copy()
        del sent["Content-Type"]
        key = self._credentials.all[0].key.text
        try:
            sent.update(await self._auth.headers("GET", self._health, b"", sent, key))
            response = await self._session.get(self._health, headers=sent, allow_redirects=False)
        except (aiohttp.ClientError, errors.OutpostError, OSError, ValueError):
            return False
        response.close()
        return response.status < 500

    async def whole(self, call: Call) -> bytes:
        passes = self._passes(call)
        response, credential = await self._asked(call, passes)
        try:
            body = await self._read(response, MAX_ANSWER)
        finally:
            response.release()
        check_secret(body, credential.secret or self._auth.secret.encode(), self._name)
        if passes:
            call.kind.read_whole(body, call.tally, self._name, call.request)
            if call.kind.adopt is not None:
                body, call.response = call.kind.adopt(body, call.frame())
            return body
        if call.kind.operation == "embeddings":
            return self._vectors(body, call)
        answer = call.whole_renderer()
        answer.feed(believed(self._outbound.read_whole(body, self._name, call.request)))
        body = answer.body()
        call.response = told_by(answer)
        return body

    def _passes(self, call: Call) -> bool:
        """Whether the target is asked in the client's own dialect; not where that is another one than the middle's and
        the client's own body is no more what is asked."""
        return call.kind.name in self._native and (call.kind.native_ask is None or call.native is not None)

    def _vectors(self, body: bytes, call: Call) -> bytes:
        """Another dialect's embeddings in OpenAI's."""
        request, tally = call.request, call.tally
        found = self._outbound.read_vectors(body, self._name, request)  # type: ignore[attr-defined]  # see `_ask`
        if found.prompt_tokens is not None:
            tally.prompt_tokens, tally.source = found.prompt_tokens, "reported"
        as_base64 = getattr(request, "encoding_format", None) == "base64"
        return embeddings.render(call.model, found.vectors, tally.prompt_tokens, as_base64=as_base64)

    async def stream(self, call: Call) -> Stream:
        passes = self._passes(call)
        response, credential = await self._asked(call, passes)
        secret = credential.secret or self._auth.secret.encode()
        told = response.headers.get("Content-Type", "")
        if not told.startswith(self._stream_type) and told.startswith("application/json"):
            return await self._in_one_piece(response, call, secret)
        stream = RelayedStream(self._name, response, self._reader(call, passes, secret), self._leave)
        try:
            if not (told.startswith(self._stream_type) or told.partition(";")[0].strip().lower() in _UNTOLD):
                raise errors.UpstreamFailed(f"{self._name} did not answer with a stream.")
            await stream.open()
        except BaseException:
            await stream.aclose()
            raise
        return stream

    async def _in_one_piece(self, response: Reply, call: Call, secret: bytes) -> Stream:
        """The stream of a target that has answered with a whole answer instead, or with an error."""
        try:
            body = await self._read(response, MAX_ANSWER)
        finally:
            response.release()
        check_secret(body, secret, self._name)
        renderer = call.renderer()
        first = renderer.feed(self._outbound.read_whole(body, self._name, call.request))
        count_unreported(call.tally, body, says=True)
        return GeneratedStream(first, _no_more(), renderer)

    async def _asked(self, call: Call, passes: bool) -> tuple[Reply, Credential]:
        """What the target begins to answer; where the route wants it, without what it refuses for its value."""
        for _ in range(_MOST_DROPPED):
            try:
                return await self._post(call, self._ask(call, passes))
            except errors.BadRequest as error:
                if error.code not in _REFUSED_VALUES or not _dropped(call, error):
                    raise
        return await self._post(call, self._ask(call, passes))

    def _ask(self, call: Call, passes: bool) -> Ask:
        while True:
            try:
                return self._written(call, passes)
            except errors.BadRequest as error:
                if isinstance(error, errors.UnsupportedParameter) and _dropped(call, error):
                    continue  # with one field less each time
                error.elsewhere = True  # this target has no notion for it; another may have
                naming.told(error, call.kind.field_name)
                raise

    def _written(self, call: Call, passes: bool) -> Ask:
        if passes and call.native is not None and call.kind.native_ask is not None:
            return call.kind.native_ask(call.native, self._model, self._betas)
        if call.kind.operation == "embeddings" and not passes:
            return self._outbound.embed_ask(call.request, self._model)  # type: ignore[attr-defined,no-any-return]
        return self._outbound.ask(call.request, self._model, stream=bool(getattr(call.request, "stream", False)))

    def _reader(self, call: Call, passes: bool, secret: bytes) -> Passing:
        if passes and call.render is None and not call.whole_events:
            return call.kind.make_passing(self._name, call.tally, call.frame(), secret)
        make_reader = call.kind.make_reader if passes else None
        return Translating(
            make_reader(self._name, call.request) if make_reader else self._outbound.reader(self._name, call.request),
            call.renderer(),
            call.tally,
            target=self._name,
            secret=secret,
            alive=call.alive,
        )

    def _leave(self, response: Reply, done: bool) -> None:
        """Give the connection back if the answer was read to its end, else close it, which cancels the work."""
        if not done or response.content.is_eof():
            response.release()
            return
        # The bytes that end the HTTP message often come right after [DONE]; the client does not wait for them.
        task = asyncio.ensure_future(_linger(response))
        self.lingering.add(task)
        task.add_done_callback(self.lingering.discard)

    async def _post(self, call: Call, ask: Ask) -> tuple[Reply, Credential]:
        """The answer, once it has begun with status 200, and with whose key."""
        timeout = self._timeouts.get(call.connect_s)
        if timeout is None:
            # `connect` is for all of it, the host's name and every of its addresses too.
            timeout = aiohttp.ClientTimeout(connect=call.connect_s, sock_connect=call.connect_s)
            self._timeouts[call.connect_s] = timeout
        address = self._address(ask.path)
        credential = self._credentials.take()
        fields = await self._fields(address.url, ask, credential, call.traceparent)
        try:
            response = await address.post(fields, ask.body, timeout)
        except TimeoutError as error:
            raise errors.UpstreamTimeout(f"{self._name} did not accept a connection in time.") from error
        except aiohttp.ClientConnectorError as error:
            raise errors.UpstreamError(f"{self._name} cannot be reached.", code="upstream_unreachable") from error
        except (aiohttp.ClientError, OSError) as error:
            raise errors.UpstreamFailed(f"{self._name} closed the connection without an answer.") from error
        if response.status == 200 and response.headers.get("Content-Encoding", "identity") == "identity":
            if credential.rest_s:
                self._credentials.succeeded(credential)
            return response, credential
        try:
            if response.status == 200:
                raise errors.UpstreamError(f"{self._name} compressed its answer although it was told not to.")
            body = await self._read(response, _MAX_ERROR, cut=True)
        finally:
            response.release()
        raise self._refusal(response, body, credential)

    def _refusal(self, response: Reply, body: bytes, credential: Credential) -> errors.OutpostError:
        """What an answer that is not 200 says, and what it means for the key it was asked with."""
        status = response.status
        secret = credential.text or self._auth.secret or None
        told = from_status(self._name, status, response.headers, body, now=self._wall(), secret=secret)
        if status == 401:
            self._auth.refused()
        self._credentials.failed(credential, status, told)
        if isinstance(told, errors.UpstreamError | errors.RateLimited) and self._credentials.another_is_free():
            told.again = told.retryable = True
        return told

    async def _fields(self, url: yarl.URL, ask: Ask, credential: Credential, traceparent: str | None) -> bytes:
        """The headers of one request; for most providers those that were made for the key's first one, and little
        more. Raises ValueError."""
        auth, headers = self._auth, credential.headers
        if headers is None:
            headers = self._headers.copy()
            if not auth.per_request:
                headers.update(await auth.headers("POST", url, ask.body, headers, credential.text))
            credential.headers, credential.fields = headers, fields_of(headers)
        if not (traceparent or ask.headers or auth.per_request):
            return credential.fields
        headers = headers.copy()
        if traceparent:
            headers["traceparent"] = traceparent
        headers.update(ask.headers)
        if auth.per_request:
            headers.update(await auth.headers("POST", url, ask.body, headers, credential.text))
        return fields_of(headers)

    def _address(self, path: str) -> Address:
        address = self._addresses.get(path)
        if address is None:
            if len(self._addresses) >= _MOST_PATHS:
                self._addresses.clear()
            text = self._base + path
            url = yarl.URL(text, encoded=text.isascii())
            address = self._addresses[path] = Address(self._session, url, READ_AHEAD)
        return address

    async def _read(self, response: Reply, limit: int, *, cut: bool = False) -> bytes:
        """The body. cut: of a longer one only its beginning, which is no failure of the target's."""
        content = response.content
        if content.is_eof() and content.total_bytes <= limit and content.exception() is None:
            return content.read_nowait(-1)
        parts: list[bytes] = []
        size = 0
        try:
            while part := await content.readany():
                parts.append(part)
                size += len(part)
                if size > limit and cut:
                    break
                if size > limit:
                    raise errors.UpstreamError(f"{self._name} gave an answer of more than {limit} bytes.")
        except aiohttp.ClientError as error:
            # Its traceback holds the future that holds it.
            raise errors.UpstreamFailed(f"{self._name} broke off its answer.") from error.with_traceback(None)
        return parts[0] if len(parts) == 1 else b"".join(parts)


async def _no_more() -> AsyncGenerator[bytes, None]:
    """The pieces of a stream all of which has come at once."""
    return
    yield


def _dropped(call: Call, error: errors.BadRequest) -> bool:
    """Whether the call goes on without what was refused."""
    fewer = dropping.without(call.request, error.param) if call.drop else None
    if fewer is None:
        return False
    if call.native is not None:
        call.native = call.kind.carry(call.native, call.request, fewer)
    call.request = fewer
    return True


async def _linger(response: Reply) -> None:
    try:
        async with asyncio.timeout(_LINGER_S):
            while await response.content.readany():
                pass
    except (TimeoutError, aiohttp.ClientError) as error:
        error.__traceback__ = None  # see `_read`
        # Not reusable then; release closes it.
    finally:
        response.release()
