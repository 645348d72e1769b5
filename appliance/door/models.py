"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from aiohttp import web

from appliance.dialects import models
from appliance.door.endpoint import Endpoint, Visit
from appliance.door.render import respond
from appliance.gateway import Gateway

_HEADERS = {"x-outpost-target": "none", "x-outpost-attempts": "0"}


def _only(visit: Visit) -> tuple[str, ...] | None:
    """The model names that the asker is limited to."""
    return None if visit.principal is None else visit.principal.restrictions.routes


def endpoints(gateway: Gateway, started_at: int) -> tuple[Endpoint, ...]:
    """`started_at`: unix seconds; stands for the time of creation of every model."""

    async def many(visit: Visit) -> web.StreamResponse:
        return respond(models.many(gateway.router.cards(started_at, _only(visit))), visit.id, headers=_HEADERS)

    async def one(visit: Visit) -> web.StreamResponse:
        card = gateway.router.card(visit.tail, started_at, _only(visit))
        return respond(models.one(card), visit.id, headers=_HEADERS)

    return (
        Endpoint("GET", "/v1/models", "models.use", many),
        Endpoint("GET", "/v1/models/{id}", "models.use", one),
    )
