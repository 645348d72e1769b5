"""GET /admin/v1/usage: who used how much, as JSON, JSONL or CSV."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
from aiohttp import web
from msgspec import structs

from appliance.dialects.wire import encode
from appliance.door.endpoint import Endpoint, Query, Visit
from appliance.door.render import respond
from appliance.errors import BadRequest
from appliance.records.usage_rows import (
    DIMENSIONS,
    Dimension,
    Usage,
    parse_dimensions,
    parse_span,
    to_csv,
    to_plain,
)

FORMATS = {"json": "application/json", "jsonl": "application/jsonl", "csv": "text/csv; charset=utf-8"}
"""Format → content type."""


UsageRow: Any = msgspec.defstruct(
    "UsageRow",
    [
        *((each.name, each.type, each.default) for each in structs.fields(Usage) if each.name != "cost_nanousd"),
        ("cost_usd", str, ""),
    ],
    frozen=True,
)
"""A row as it is answered: US dollars are decimal text."""


class UsageReader(Protocol):
    async def report(
        self, by: Sequence[Dimension], since: float, until: float, *, organization: str | None = None
    ) -> list[Usage]: ...


def endpoints(usage: UsageReader, wall: Callable[[], float]) -> tuple[Endpoint, ...]:
    """`wall`: unix seconds."""

    async def report(visit: Visit) -> web.StreamResponse:
        query = visit.request.query
        by = parse_dimensions(query.get("by", "team,model"))
        since, until = parse_span(query.get("since"), query.get("until"), wall())
        form = query.get("format", "json")
        if form not in FORMATS:
            raise BadRequest(f"format: choose from {', '.join(FORMATS)}", param="format")
        principal = visit.principal
        organization = principal.oversees if principal is not None else None
        rows = await usage.report(by, since, until, organization=organization)
        # A hundred thousand rows take a second to write, during which no token would pass.
        body = await asyncio.to_thread(_written, rows, by, form)
        return respond(body, visit.id, content_type=FORMATS[form])

    return (
        Endpoint(
            "GET",
            "/admin/v1/usage",
            "usage.read",
            report,
            summary="Who used how much: requests, tokens and cost.",
            gives=list[UsageRow],
            media=("application/jsonl", "text/csv"),
            query=(
                Query("by", f"Comma-separated: {', '.join(DIMENSIONS)}. Default: team,model. Ids come with names."),
                Query(
                    "since",
                    "From this moment on: a date, a time, unix seconds, or a time ago (7d). Default: this month.",
                ),
                Query("until", "Up to, not with, this moment. Default: the first of next month."),
                Query("format", "json (default), jsonl or csv."),
            ),
        ),
    )


def _written(usage: Sequence[Usage], by: Sequence[Dimension], form: str) -> bytes:
    """The body of the answer; for a thread."""
    rows = to_plain(usage, by)
    if form == "csv":
        return to_csv(rows, by).encode()
    if form == "jsonl":
        return b"".join(encode(row) + b"\n" for row in rows)
    return encode({"data": rows})
