"""Listeners: sockets, the HTTP server behind them, and an end without broken answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import aiohttp
from aiohttp import web
from aiohttp.http import HttpRequestParser

from appliance.dialects.errors import body
from appliance.door.door import Door
from appliance.door.terms import Terms
from appliance.errors import BadRequest, InternalError, Overloaded

logger = logging.getLogger("outpost.door")

KEEPALIVE_S = 75.0
STALL_FACTOR = 2.0
"""Times `write_timeout` after which a connection whose client takes nothing is cut, whatever it was sent."""
_BUSY_BODY = body(Overloaded("Too many connections; try again."))
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(_BUSY_BODY), _BUSY_BODY)
)


def check_http_stack() -> None:
    """Refuse an aiohttp that parses with known holes or without its C parser. Raises RuntimeError."""
    version = tuple(int(part) for part in aiohttp.__version__.split(".")[:3] if part.isdigit())
    if version < (3, 14, 4):
        raise RuntimeError(f"aiohttp {aiohttp.__version__} has known holes; install 3.14.4 or newer.")
    if HttpRequestParser.__module__ != "aiohttp._http_parser":
        raise RuntimeError("aiohttp runs without its C parser; install a wheel that has it.")


class _Connection(web.RequestHandler):
    """aiohttp's connection, with a bound on the time that a request's head may take."""

    __slots__ = ("_head_timer", "_server", "_stall_timer", "peer_certificate")

    def __init__(self, server: _Server, **kwargs: Any) -> None:
        super().__init__(server, loop=server.event_loop, **kwargs)
        self._server = server
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self.peer_certificate: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self._server.enter(self):
            # uvloop's transports are not asyncio's by class.
            refused = cast(asyncio.Transport, transport)
            refused.write(_BUSY)
            refused.close()
            return
        super().connection_made(transport)
        self.peer_certificate = transport.get_extra_info("peercert")  # asked here: it costs more than it seems
        self._head_timer = self._loop.call_later(self._server.terms.limits.header_timeout, self._head_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.leave(self)
        self._stop_timer()
        self._stop_stall_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        waiter = self._waiter
        if waiter is None or waiter.done():
            if self._head_timer is not None:
                self._stop_timer()
        elif self._head_timer is None:
            # Part of a head has come, and nobody is at work: the rest has to follow soon.
            self._head_timer = self._loop.call_later(self._server.terms.limits.header_timeout, self._head_late)

    def resume_reading(self, resume_parser: bool = True) -> None:
        # aiohttp asks for it at each read, and parses nothing then.
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            # Exchanges see to clients that stall by themselves, and put it on record; this is for everything else.
            patience_s = STALL_FACTOR * self._server.terms.limits.write_timeout
            self._stall_timer = self._loop.call_later(patience_s, self._stalled)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_stall_timer()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _stalled(self) -> None:
        self._stall_timer = None
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        idle = self._waiter is not None
        super().close()
        if idle and self.transport is not None:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_late(self) -> None:
        self._head_timer = None
        if self._waiter is not None and not self._waiter.done():
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp itself refuses (a malformed head), in the door's shape, without echoing any of it."""
        if request.writer.output_size > 0:
            raise ConnectionError("part of an answer was already sent")
        error = InternalError("The gateway made a mistake.") if status >= 500 else BadRequest("This is not valid HTTP.")
        response = self._server.door.render(error, "none")
        response.force_close()
        return response


class _Server(web.Server):
    """aiohttp's low-level server with our connections."""

    def __init__(self, door: Door, terms: Terms) -> None:
        super().__init__(door.handle, handler_cancellation=True)
        self.door = door
        self.terms = terms
        self.event_loop = asyncio.get_running_loop()
        self._open: set[_Connection] = set()

    def enter(self, connection: _Connection) -> bool:
        if len(self._open) >= self.terms.limits.max_connections:
            return False
        self._open.add(connection)
        return True

    def leave(self, connection: _Connection) -> None:
        self._open.discard(connection)

    def __call__(self) -> _Connection:
        return _Connection(
            self,
            keepalive_timeout=KEEPALIVE_S,
            access_log=None,
            auto_decompress=False,
            max_line_size=8190,
            max_field_size=16 * 1024,
            lingering_time=5.0,
            read_bufsize=64 * 1024,
        )


class Listener:
    """One door on one or more sockets."""

    def __init__(self, door: Door, terms: Terms) -> None:
        self.door = door
        self._server = _Server(door, terms)
        self.servers: list[asyncio.Server] = []
        self._unlink: list[Path] = []

    async def tcp(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> int:
        """Listen; gives the port (which matters when 0 was asked for). Raises OSError."""
        loop = asyncio.get_running_loop()
        # A handshake is the first part of a head; whoever lets it hang holds a descriptor that nothing else counts.
        handshake_s = None if tls is None else self._server.terms.limits.header_timeout
        server = await loop.create_server(
            self._server,
            host or None,
            port,
            ssl=tls,
            ssl_handshake_timeout=handshake_s,
            backlog=1024,
            reuse_address=True,
        )
        self.servers.append(server)
        bound: int = server.sockets[0].getsockname()[1]
        return bound

    async def unix(self, path: Path) -> None:
        """Listen on a socket file that only this user can open. Raises OSError.

        A file that a dead process has left is replaced; one that somebody listens on is not.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            if _answers(path):
                raise OSError(f"{path}: another process is listening there; is the gateway already running?")
            path.unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            with _short(path) as address:
                sock.bind(address)
        except OSError:
            sock.close()
            raise
        finally:
            os.umask(before)
        path.chmod(0o600)
        loop = asyncio.get_running_loop()
        self.servers.append(await loop.create_unix_server(self._server, sock=sock))
        self._unlink.append(path)

    @property
    def connections(self) -> int:
        return len(self._server.connections)

    def stop_accepting(self) -> None:
        """No new connections, and none of the open ones takes another request."""
        for server in self.servers:
            server.close()
        self._server.pre_shutdown()

    async def close(self, timeout: float) -> None:
        """End what is left: handlers get `timeout` seconds, then their connections are closed."""
        await self._server.shutdown(timeout)
        for path in self._unlink:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.5)
        try:
            with _short(path) as address:
                probe.connect(address)
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A way to `path` that fits a socket address (107 bytes), however deep its folder is."""
    if len(os.fsencode(path)) <= 100:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
