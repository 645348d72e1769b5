"""GET /metrics, for Prometheus and whatever reads its formats."""

from __future__ import annotations

from typing import Protocol

from aiohttp import web

from appliance.door.endpoint import Endpoint, Visit
from appliance.door.render import respond


class Page(Protocol):
    async def render(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type, in the format that `accept` (the header) asks for."""
        ...


def endpoints(page: Page, *, open: bool = False) -> tuple[Endpoint, ...]:
    """`open`: for scrapers without a key."""

    async def metrics(visit: Visit) -> web.StreamResponse:
        body, content_type = await page.render(visit.request.headers.get("Accept", ""))
        return respond(body, visit.id, content_type=content_type, headers={"Cache-Control": "no-store"})

    return (
        Endpoint(
            "GET",
            "/metrics",
            "anyone" if open else "metrics.read",
            metrics,
            summary="Metrics in Prometheus' text format or as OpenMetrics, by the Accept header.",
            media=("text/plain", "application/openmetrics-text"),
        ),
    )
