"""Operations of the operator's API as table entries: plain data in, plain data out, no HTTP.

The door makes an endpoint of each; a command that finds no gateway running runs the same operation in its own process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec
from aiohttp import web

from appliance.dialects.wire import Wire, encode
from appliance.door.endpoint import Endpoint, Pattern, Query, Visit
from appliance.door.http import read_body
from appliance.door.render import respond
from appliance.door.terms import Terms
from appliance.errors import BadRequest, NotFound
from appliance.identity.people_work import storable_text
from appliance.identity.permissions import ROLES, Permission
from appliance.identity.principal import Principal
from appliance.settings.limiting import Scope

MAX_ROWS = 1000
MAX_NUMBER = 2**63 - 1
"""The highest number that a record can have."""
AFTER = Query("after", "Begin after the one with this id.")
LIMIT = Query("limit", f"How many at most, 1 to {MAX_ROWS}. Default: 100.", "integer")
PAGE = (AFTER, LIMIT)

HINTS = {
    "scope": f"Use one of {', '.join(get_args(Scope))}.",
    "window": "Use rolling or calendar.",
    "role": f"Use one of {', '.join(ROLES)}.",
    "restrictions.zones[]": "Use on_box, on_prem or cloud.",
    "restrictions.priority": "Use interactive, normal or batch.",
}


class Asked(msgspec.Struct, frozen=True):
    """What an operation is asked: by whom, about what, with what."""

    actor: Principal
    parameters: Mapping[str, str]
    query: Mapping[str, str]
    body: Any = None

    @property
    def limit(self) -> int:
        """Raises BadRequest."""
        return number(self.query.get("limit"), "limit", 1, MAX_ROWS) or 100

    @property
    def after(self) -> str | None:
        """Raises BadRequest."""
        after = self.query.get("after")
        if after is not None and not (after.isascii() and after.isprintable() and 0 < len(after) <= 128):
            raise BadRequest("after: must be the id of the last one that you have", param="after")
        return after


class Page(msgspec.Struct, frozen=True):
    """Some of many; `next` is what `after` must be for those that follow, None where there are no more."""

    data: Sequence[Any]
    next: str | None = None


def page(asked: Asked, rows: Sequence[Any]) -> Page:
    """`rows` as far as they were asked for; one more than that tells that there are more."""
    shown = rows[: asked.limit]
    return Page(shown, shown[-1].id if len(rows) > len(shown) else None)


class Operation(msgspec.Struct, frozen=True):
    """One thing that can be asked. `run` gives what goes into `data`, or a `Page`."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    permission: Permission
    run: Callable[[Asked], Awaitable[Any]]
    summary: str
    gives: Any
    takes: type[msgspec.Struct] | None = None
    query: tuple[Query, ...] = ()
    status: int = 200

    async def answer(self, asked: Asked) -> bytes:
        """The answer's body. Raises BadRequest for a query parameter that it does not know, and what `run` raises."""
        check_query(self.query, asked.query)
        found = await self.run(asked)
        return encode(found if isinstance(found, Page) else {"data": found})


def read(operation: Operation, body: bytes, max_depth: int = 64) -> Any:
    """The typed body of an operation, None where it takes none. Raises BadRequest that names the field."""
    if operation.takes is None:
        if body:
            raise BadRequest("This takes no body; leave it out.")
        return None
    return Wire(operation.takes, refused={}, hints=HINTS).read(body, max_depth)


def endpoint(operation: Operation, terms: Terms) -> Endpoint:
    """The operation as a way in."""
    wire = None if operation.takes is None else Wire(operation.takes, refused={}, hints=HINTS)

    async def handler(visit: Visit) -> web.StreamResponse:
        assert visit.principal is not None  # it has a permission, so the door has found one
        body = await read_body(visit.request, terms.limits)
        wanted = read(operation, body) if wire is None else wire.read(body, terms.limits.max_json_depth)
        asked = Asked(visit.principal, visit.parameters, visit.request.query, wanted)
        # Also what shows a key is among these answers: nothing on the way may keep them.
        return respond(
            await operation.answer(asked), visit.id, status=operation.status, headers={"Cache-Control": "no-store"}
        )

    return Endpoint(
        operation.method,
        operation.path,
        operation.permission,
        handler,
        summary=operation.summary,
        takes=operation.takes,
        gives=operation.gives,
        query=operation.query,
        status=operation.status,
    )


def check_query(queries: Sequence[Query], given: Mapping[str, str]) -> None:
    """Raises BadRequest for a parameter that is none of `queries`, is given twice, or holds what no record can."""
    known = {query.name for query in queries}
    seen: set[str] = set()
    for name, value in given.items():
        if name not in known:
            cure = f"use {', '.join(sorted(known))}" if known else "leave it out"
            shown = ascii(name[:80])[1:-1]
            raise BadRequest(f"{shown} is not a query parameter here; {cure}.", param=shown)
        if name in seen:
            raise BadRequest(f"{name}: is given twice; give it once", param=name)
        if not storable_text(value):
            raise BadRequest(f"{name}: has a character that no record can hold; leave it out", param=name)
        seen.add(name)


def strict(endpoint: Endpoint) -> Endpoint:
    """The endpoint, and no parameter that it does not know: a mistyped one must not be taken for none."""

    async def handler(visit: Visit) -> web.StreamResponse:
        check_query(endpoint.query, visit.request.query)
        return await endpoint.handler(visit)

    return msgspec.structs.replace(endpoint, handler=handler)


async def perform(
    operations: Sequence[Operation],
    actor: Principal,
    method: str,
    path: str,
    query: Mapping[str, str] | None = None,
    body: bytes = b"",
) -> bytes:
    """The answer's body of one of `operations`, as the door would give it. Raises what the operation raises."""
    found = [
        (operation, parameters, pattern.literal)
        for operation in operations
        for pattern in (Pattern(endpoint(operation, Terms())),)
        if operation.method == method and (parameters := pattern.match(path)) is not None
    ]
    if not found:
        raise NotFound(f"There is nothing at {path}.")
    operation, parameters, _ = max(found, key=lambda entry: entry[2])
    return await operation.answer(Asked(actor, parameters, query or {}, read(operation, body)))


def number(text: str | None, name: str, least: int, most: int) -> int | None:
    """A whole number from a query, None where there is none. Raises BadRequest."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and least <= int(text) <= most):
        raise BadRequest(f"{name} must be a whole number from {least} to {most}.", param=name)
    return int(text)
