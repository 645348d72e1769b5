"""What an exchange works with, as it sees it: each is met by a part of the house, or by a fake in a test."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from appliance.identity.principal import Principal
from appliance.records.rows import ExchangeRow
from appliance.settings.recording import Content


class Authenticator(Protocol):
    """See appliance.identity.authenticator.Authenticator."""

    async def identify(self, credential: str | None, peer: Any = None, address: str | None = None) -> Principal: ...


class Observer(Protocol):
    """See appliance.telemetry.observer.Observer."""

    def begin(self, traceparent: str | None) -> Any: ...
    def outgoing(self, trace: Any) -> str | None: ...
    def observe(self, row: ExchangeRow, trace: Any = None) -> None: ...
    def refused(self, limit: str, scope: str) -> None: ...
    def shadowed(self, route: str, target: str, result: str, similarity: float | None, cost_nanousd: int) -> None: ...


class Recorder(Protocol):
    @property
    def available(self) -> bool: ...
    def submit(self, row: ExchangeRow) -> asyncio.Future[int]: ...


class Contents(Protocol):
    """What is kept of texts, and where: see appliance.contents."""

    def policy(self, principal: Principal, route: str) -> Content: ...
    @property
    def most(self) -> int:
        """Bytes of one part."""
        ...

    async def keep(
        self, principal: Principal, row: ExchangeRow, policy: Content, request: bytes, answer: bytes
    ) -> asyncio.Future[int] | None:
        """Seal both for the row, which gets their digest; gives when they are durable, None if nothing is kept."""
        ...


class Clock(Protocol):
    """wall: unix seconds, for people; monotonic: seconds, for durations."""

    def wall(self) -> float: ...
    def monotonic(self) -> float: ...


class Incoming(Protocol):
    """A request as the door hands it over."""

    @property
    def id(self) -> str: ...
    @property
    def credential(self) -> str | None: ...
    @property
    def client(self) -> str: ...
    @property
    def peer_certificate(self) -> Any: ...
    def header(self, name: str) -> str | None:
        """What the caller asks for beside the body; `name` in lower case."""
        ...

    async def body(self) -> bytes:
        """Raises BodyTooLarge, BodyTimeout, UnsupportedMediaType."""
        ...
