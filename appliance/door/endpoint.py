"""Endpoints as table entries, and one visit to one of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec
from aiohttp import web

from appliance.identity.permissions import Permission
from appliance.identity.principal import Principal
from appliance.records.rows import ExchangeRow

Access = Permission | Literal["anyone"]
"""What an endpoint asks for; anyone: no credential at all."""


class Query(msgspec.Struct, frozen=True):
    """A query parameter, for the OpenAPI document."""

    name: str
    help: str
    kind: Literal["string", "integer", "number"] = "string"


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

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    permission: Access
    handler: Handler
    identifies: bool = False
    """The handler checks the credential itself, as its first step."""
    summary: str = ""
    takes: type[msgspec.Struct] | None = None
    """The body."""
    gives: Any = None
    """The type of `data` in the answer."""
    query: tuple[Query, ...] = ()
    status: int = 200

    @property
    def prefix(self) -> str | None:
        """The fixed part of a path with a tail, None for a path without."""
        head, brace, _ = self.path.partition("{")
        return head if brace else None
