"""GET /healthz (the process lives) and /readyz (at least one route can answer)."""

from __future__ import annotations

from aiohttp import web

from appliance.dialects.wire import encode
from appliance.door.endpoint import Endpoint, Visit
from appliance.door.render import respond
from appliance.gateway import Gateway


async def _healthz(visit: Visit) -> web.StreamResponse:
    return respond(b'{"status":"ok"}', visit.id)


def healthz() -> Endpoint:
    return Endpoint("GET", "/healthz", "anyone", _healthz)


def readyz(gateway: Gateway) -> Endpoint:
    async def handler(visit: Visit) -> web.StreamResponse:
        reason = unready(gateway)
        body = {"status": "ready"} if reason is None else {"status": "not ready", "reason": reason}
        return respond(encode(body), visit.id, status=200 if reason is None else 503)

    return Endpoint("GET", "/readyz", "anyone", handler)


def unready(gateway: Gateway) -> str | None:
    """Why no request can be answered now; None when at least one can."""
    if gateway.draining:
        return "shutting down"
    if not gateway.recorder.available:
        return "records cannot be written"
    if not gateway.router.ready():
        return "no route can answer yet"
    return None
