"""Endpoints as table entries, and one visit to one of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec
from aiohttp import web

from appliance.identity.principal import Principal
from appliance.records.rows import ExchangeRow

Permission = Literal["anyone", "key", "admin"]
"""anyone: no credential. key: any valid key. admin: a key with the admin role."""


class Visit:
    """One request at the door."""

    __slots__ = ("began", "id", "principal", "request", "row", "tail")

    def __init__(self, request: web.BaseRequest, id: str, began: float) -> None:
        self.request = request
        self.id = id
        self.began = began
        """Monotonic seconds."""
        self.tail = ""
        """What followed the endpoint's path, for paths that end in `{name}`."""
        self.principal: Principal | None = None
        """Who asks; None where the endpoint is open to anyone or identifies by itself."""
        self.row: ExchangeRow | None = None
        """What is on record about it, for the access log."""


Handler = Callable[[Visit], Awaitable[web.StreamResponse]]


class Endpoint(msgspec.Struct, frozen=True):
    """One way in. A path that ends in `{name}` takes the rest of the path (slashes too) as `Visit.tail`."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    permission: Permission
    handler: Handler
    identifies: bool = False
    """The handler checks the credential itself, as its first step."""

    @property
    def prefix(self) -> str | None:
        """The fixed part of a path with a tail, None for a path without."""
        head, brace, _ = self.path.partition("{")
        return head if brace else None
