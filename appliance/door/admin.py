"""/admin/v1/*: what an operator may see and do. The console and the command line use the same paths."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from aiohttp import web

from appliance.dialects.kinds import KINDS
from appliance.dialects.wire import encode
from appliance.door import admin_keys, admin_people, admin_routes, admin_shadows, openapi, operation
from appliance.door.endpoint import Endpoint, Query, Visit
from appliance.door.health import healthz, readyz, unready
from appliance.door.operation import LIMIT, MAX_NUMBER, MAX_ROWS, Operation, number
from appliance.door.render import respond
from appliance.door.terms import Terms
from appliance.errors import NotFound
from appliance.gateway import Gateway
from appliance.identity.key_ring import KeyRing
from appliance.identity.principal import Principal
from appliance.records.rows import RecordedExchange


class Exchanges(Protocol):
    """The recorded exchanges, oldest first; `organization`: only its own."""

    async def list(
        self, after_seq: int | None = None, limit: int = 100, *, organization: str | None = None
    ) -> Sequence[Any]: ...
    async def find(self, exchange_id: str) -> Any | None: ...


@dataclass
class Operator:
    """The collaborators of the operator's API.

    status: what the rest of the house reports about itself, as plain data. reload: applies the settings file anew
    for whoever asks, all or nothing; gives what changed; raises OutpostError with the old settings still in force.
    """

    gateway: Gateway
    keys: KeyRing
    exchanges: Exchanges
    status: Callable[[], dict[str, Any]]
    reload: Callable[[Principal], Awaitable[dict[str, Any]]]


class Reloaded(msgspec.Struct, frozen=True):
    """Sections of the settings that changed; which of them are in force now, and which will be after a restart."""

    changed: list[str]
    applied: list[str]
    needs_restart: list[str]


def operations(ring: KeyRing) -> tuple[Operation, ...]:
    """What can be done with nothing but the database, also where no gateway runs."""
    return (*admin_people.operations(ring.directory), *admin_keys.operations(ring))


def endpoints(operator: Operator, terms: Terms, more: Sequence[Endpoint] = ()) -> tuple[Endpoint, ...]:
    """The whole table. `more`: the endpoints of other parts, for the document that tells of all."""
    own = (
        *_house(operator),
        *(operation.endpoint(each, terms) for each in operations(operator.keys)),
        *(operation.endpoint(each, terms) for each in admin_routes.operations(_routes(operator))),
        *(operation.endpoint(each, terms) for each in admin_shadows.operations(operator.gateway)),
        *more,
    )
    # The page of metrics and the login have askers of their own, who may add to the address what they like.
    own = tuple(operation.strict(each) if each.path.startswith("/admin/") else each for each in own)
    document = operation.strict(openapi.endpoint(own))
    return (healthz(), readyz(operator.gateway), *own, document)


def _routes(operator: Operator) -> admin_routes.RouteDesk:
    gateway = operator.gateway
    return admin_routes.RouteDesk(
        router=lambda: gateway.router,
        health=gateway.health,
        find_key=lambda actor, key: operator.keys.show(actor, key),
        estimate=lambda request: gateway.limits.estimate(request),
        wall=gateway.clock.wall,
    )


def _house(operator: Operator) -> tuple[Endpoint, ...]:
    async def status(visit: Visit) -> web.StreamResponse:
        return _json(visit, {"data": {**state(operator.gateway), **operator.status()}})

    async def list_requests(visit: Visit) -> web.StreamResponse:
        query = visit.request.query
        after = number(query.get("after_seq"), "after_seq", 0, MAX_NUMBER)
        limit = number(query.get("limit"), "limit", 1, MAX_ROWS)
        assert visit.principal is not None  # it has a permission, so the door has found one
        rows = await operator.exchanges.list(
            after_seq=after, limit=100 if limit is None else limit, organization=visit.principal.oversees
        )
        return _json(visit, {"data": rows})

    async def one_request(visit: Visit) -> web.StreamResponse:
        assert visit.principal is not None  # as above
        return _json(visit, {"data": await shown_exchange(operator.exchanges, visit.parameters["id"], visit.principal)})

    async def reload(visit: Visit) -> web.StreamResponse:
        assert visit.principal is not None  # it has a permission, so the door has found one
        return _json(visit, {"data": await operator.reload(visit.principal)})

    after = Query("after_seq", "Begin after the request with this number. Default: the newest.", "integer")
    return (
        Endpoint(
            "GET",
            "/admin/v1/status",
            "status.read",
            status,
            summary="What is going on: readiness, routes and their targets, replicas.",
            gives=dict[str, Any],
        ),
        Endpoint(
            "GET",
            "/admin/v1/requests",
            "requests.read",
            list_requests,
            summary="Requests on record, oldest first.",
            gives=list[RecordedExchange],
            query=(after, LIMIT),
        ),
        Endpoint(
            "GET",
            "/admin/v1/requests/{id}",
            "requests.read",
            one_request,
            summary="One request on record.",
            gives=RecordedExchange,
        ),
        Endpoint(
            "POST",
            "/admin/v1/reload",
            "settings.reload",
            reload,
            summary="Apply the settings file anew, all or nothing.",
            gives=Reloaded,
        ),
    )


async def shown_exchange(exchanges: Exchanges, exchange_id: str, principal: Principal) -> Any:
    """A recorded exchange that the principal may see, by its id or by that of its answer. Raises NotFound."""
    prefix = next((kind.id_prefix for kind in KINDS.values() if exchange_id.startswith(kind.id_prefix)), "")
    row = await exchanges.find(exchange_id.removeprefix(prefix))
    if row is None or principal.oversees not in (None, row.organization_id):
        raise NotFound(
            "There is no request with this id on record. It is what the header x-request-id of the answer says, or the "
            "last column of `outpost requests tail`."
        )
    return row


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
                    for target in route.all_targets()
                    for readiness in (target.upstream.readiness(),)
                ],
            }
            for route in gateway.router.routes
        ],
    }


def _json(visit: Visit, value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.StreamResponse:
    return respond(encode(value), visit.id, status=status, headers=headers)
