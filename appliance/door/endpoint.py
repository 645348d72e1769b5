"""Endpoints as table entries, and one visit to one of them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import unquote

import msgspec
from aiohttp import web

from appliance.errors import OutpostError
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


_NONE: Mapping[str, str] = MappingProxyType({})


class Visit:
    """One request at the door."""

    __slots__ = ("began", "id", "parameters", "path", "principal", "request", "row")

    def __init__(self, request: web.BaseRequest, id: str, began: float) -> None:
        self.request = request
        self.id = id
        self.began = began
        """Monotonic seconds."""
        self.path = ""
        """The endpoint's, with its `{name}`s."""
        self.parameters: Mapping[str, str] = _NONE
        """What stood in the place of each `{name}` of the endpoint's path, decoded."""
        self.principal: Principal | None = None
        """Who asks; None where the endpoint is open to anyone or identifies by itself."""
        self.row: ExchangeRow | None = None
        """What is on record about it, for the access log."""

    @property
    def tail(self) -> str:
        """What stood in the place of the last `{name}`; empty for a path without."""
        return list(self.parameters.values())[-1] if self.parameters else ""


Handler = Callable[[Visit], Awaitable[web.StreamResponse]]


class Endpoint(msgspec.Struct, frozen=True):
    """One way in. `{name}` in the path takes one piece of it; at the path's end it takes the rest, slashes too, unless
    another endpoint's path says more."""

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
    media: tuple[str, ...] = ()
    """Content types of an answer that is no JSON; with `gives`, those that it may have instead."""
    query: tuple[Query, ...] = ()
    status: int = 200
    render: Callable[[OutpostError, str], web.Response] | None = None
    """How errors are told here; None: as at its door."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters of the path, in order."""
        return tuple(re.findall(r"{(\w+)}", self.path))


class Pattern:
    """A path with parameters. `literal`: how many of its characters are fixed; more of them decide between two."""

    __slots__ = ("_expression", "endpoint", "literal")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        fixed = re.split(r"{\w+}", endpoint.path)
        self.literal = sum(map(len, fixed))
        inner = [r"([^/]+)"] * len(endpoint.names)
        if endpoint.path.endswith("}"):
            inner[-1] = r"(.+)"
        parts = [re.escape(fixed[0])]
        for group, after in zip(inner, fixed[1:], strict=True):
            parts += [group, re.escape(after)]
        self._expression = re.compile("".join(parts), re.DOTALL)

    def match(self, path: str) -> dict[str, str] | None:
        """The parameters of an undecoded path, None for another path."""
        found = self._expression.fullmatch(path)
        return None if found is None else dict(zip(self.endpoint.names, map(unquote, found.groups()), strict=True))
