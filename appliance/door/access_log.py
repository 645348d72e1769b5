"""The access log: one JSON object a line, never a query string, a header or a body."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from urllib.parse import unquote

import msgspec

from appliance.door.endpoint import Visit

_encode = msgspec.json.Encoder().encode
FLUSH_S = 0.1
_MAX_PATH = 256


class _Line(msgspec.Struct, omit_defaults=True):
    time: float
    event: str
    request_id: str
    client: str
    method: str
    path: str
    status: int
    duration_s: float
    key: str | None = None
    route: str | None = None
    target: str | None = None
    outcome: str | None = None
    error: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class AccessLog:
    """Gathers lines and writes them together, a tenth of a second later at most.

    `write` takes whole lines; what they hold is ASCII without control characters, whatever a client sends. `redact`
    takes credentials out of a text: somebody will put a key into a path, or name a key after itself.
    """

    def __init__(
        self, write: Callable[[bytes], object], wall: Callable[[], float], redact: Callable[[str], str] | None = None
    ) -> None:
        self._write = write
        self._wall = wall
        self._redact = redact or str
        self._names: dict[str, str] = {}
        """Names of keys without what looks like a credential; until the next flush, as secrets may be learned."""
        self._lines: list[bytes] = []
        self._handle: asyncio.TimerHandle | None = None

    def note(self, visit: Visit, client: str, status: int, duration_s: float) -> None:
        row = visit.row
        line = _Line(
            time=round(self._wall(), 3),
            event="request",
            request_id=visit.id,
            client=client,
            method=visit.request.method,
            path=self._path(visit),
            status=status,
            duration_s=round(duration_s, 6),
        )
        if row is not None:
            line.key = row.key_name and self._name(row.key_name)
            line.route = row.route
            line.target = row.target
            line.outcome = row.outcome
            line.error = row.error_code
            line.prompt_tokens = row.prompt_tokens
            line.completion_tokens = row.completion_tokens
        elif visit.principal is not None:
            line.key = self._name(visit.principal.key_name)
        data = _encode(line)
        if not data.isascii() or b"\x7f" in data:
            data = data.decode().replace("\x7f", "?").encode("ascii", "backslashreplace").replace(b"\\x", b"\\\\x")
        self._lines.append(data + b"\n")
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def _name(self, name: str) -> str:
        clean = self._names.get(name)
        if clean is None:
            clean = self._names[name] = self._redact(name)
        return clean

    def _path(self, visit: Visit) -> str:
        target = visit.request.raw_path
        if target == visit.path:
            return target  # one of ours, with nothing of the caller's in it
        path = target.partition("?")[0]
        if "%" in path:
            # An escaped key is a key.
            plain = unquote(path)
            if (clean := self._redact(plain)) != plain:
                path = clean
        # Cut afterwards: half a key is more than nothing.
        return self._redact(path)[:_MAX_PATH]

    def flush(self) -> None:
        """Write what is waiting."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._names.clear()
        if self._lines:
            data = b"".join(self._lines)
            self._lines.clear()
            self._write(data)
