"""/admin/v1/*: what an operator may see and do. The console and the command line use the same paths."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import msgspec
from aiohttp import web

from appliance.dialects.wire import Wire, encode
from appliance.door.endpoint import Endpoint, Visit
from appliance.door.health import healthz, readyz, unready
from appliance.door.http import read_body
from appliance.door.render import respond
from appliance.door.terms import Terms
from appliance.errors import BadRequest, NotFound
from appliance.exchange import Gateway
from appliance.identity.permissions import Role


class Keys(Protocol):
    """The keys as an operator handles them; structs as msgspec encodes them."""

    async def list(self) -> Sequence[msgspec.Struct]: ...
    async def create(self, name: str, role: Role) -> tuple[msgspec.Struct, str]: ...
    async def revoke(self, id_or_name: str) -> msgspec.Struct: ...


class Exchanges(Protocol):
    """The recorded exchanges, oldest first."""

    async def list(self, after_seq: int | None = None, limit: int = 100) -> Sequence[msgspec.Struct]: ...
    async def find(self, exchange_id: str) -> msgspec.Struct | None: ...


@dataclass
class Operator:
    """The collaborators of the operator's API.

    status: what the rest of the house reports about itself, as plain data. reload: applies the settings file anew,
    all or nothing; gives what changed; raises OutpostError with the old settings still in force.
    """

    gateway: Gateway
    keys: Keys
    exchanges: Exchanges
    status: Callable[[], dict[str, Any]]
    reload: Callable[[], Awaitable[dict[str, Any]]]


class CreateKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    role: Role = "member"


_CREATE_KEY = Wire(CreateKey, refused={}, hints={"role": "Use owner, admin, operator, auditor or member."})
MAX_ROWS = 1000


def endpoints(operator: Operator, terms: Terms) -> tuple[Endpoint, ...]:
    async def status(visit: Visit) -> web.StreamResponse:
        return _json(visit, {"data": {**state(operator.gateway), **operator.status()}})

    async def list_keys(visit: Visit) -> web.StreamResponse:
        return _json(visit, {"data": await operator.keys.list()})

    async def create_key(visit: Visit) -> web.StreamResponse:
        wanted: CreateKey = _CREATE_KEY.read(await read_body(visit.request, terms.limits))
        info, key = await operator.keys.create(wanted.name, wanted.role)
        # The only time that the key is shown; nothing between here and the operator may keep it.
        shown = {**msgspec.to_builtins(info), "key": key}
        return _json(visit, {"data": shown}, status=201, headers={"Cache-Control": "no-store"})

    async def revoke_key(visit: Visit) -> web.StreamResponse:
        return _json(visit, {"data": await operator.keys.revoke(visit.tail)})

    async def list_requests(visit: Visit) -> web.StreamResponse:
        query = visit.request.query
        after = _number(query.get("after_seq"), "after_seq", 0, 2**63 - 1)
        limit = _number(query.get("limit"), "limit", 1, MAX_ROWS)
        rows = await operator.exchanges.list(after_seq=after, limit=100 if limit is None else limit)
        return _json(visit, {"data": rows})

    async def one_request(visit: Visit) -> web.StreamResponse:
        row = await operator.exchanges.find(visit.tail)
        if row is None:
            raise NotFound("There is no request with this id on record.")
        return _json(visit, {"data": row})

    async def reload(visit: Visit) -> web.StreamResponse:
        return _json(visit, {"data": await operator.reload()})

    return (
        healthz(),
        readyz(operator.gateway),
        Endpoint("GET", "/admin/v1/status", "status.read", status),
        Endpoint("GET", "/admin/v1/keys", "keys.read", list_keys),
        Endpoint("POST", "/admin/v1/keys", "keys.write", create_key),
        Endpoint("DELETE", "/admin/v1/keys/{id}", "keys.write", revoke_key),
        Endpoint("GET", "/admin/v1/requests", "requests.read", list_requests),
        Endpoint("GET", "/admin/v1/requests/{id}", "requests.read", one_request),
        Endpoint("POST", "/admin/v1/reload", "settings.reload", reload),
    )


def state(gateway: Gateway) -> dict[str, Any]:
    """What the door itself knows: whether it can answer, what is under way, and the routes with their targets."""
    reason = unready(gateway)
    return {
        "ready": reason is None,
        "reason": reason,
        "draining": gateway.draining,
        "running": len(gateway.running),
        "recording": gateway.recorder.available,
        "routes": [
            {
                "model": route.model,
                "aliases": route.aliases,
                "strategy": route.strategy,
                "targets": [
                    {"name": target.name, "ready": readiness.ready, "reason": readiness.reason}
                    for target in route.targets
                    for readiness in (target.upstream.readiness(),)
                ],
            }
            for route in gateway.router.routes
        ],
    }


def _json(visit: Visit, value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.StreamResponse:
    return respond(encode(value), visit.id, status=status, headers=headers)


def _number(text: str | None, name: str, least: int, most: int) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 19 and least <= int(text) <= most):
        raise BadRequest(f"{name} must be a whole number from {least} to {most}.", param=name)
    return int(text)
