"""/admin/v1: reading what was kept of a request, erasing a person, exporting the ledger."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec
from aiohttp import web

from appliance.dialects.wire import Wire, encode
from appliance.door.admin import shown_exchange
from appliance.door.endpoint import Endpoint, Query, Visit
from appliance.door.http import SERVER, read_body
from appliance.door.operation import MAX_NUMBER, number
from appliance.door.render import respond
from appliance.door.terms import Terms
from appliance.errors import BadRequest
from appliance.identity.permissions import above
from appliance.identity.principal import Principal
from appliance.records.content import Keeper, OpenedContent
from appliance.records.database import Database
from appliance.records.erase import Erased, Writes, erase
from appliance.records.export.forms import FORMATS, Form, Format, forms
from appliance.records.export.moments import parse_moment
from appliance.records.export.source import Record, Source, Window
from appliance.records.store import ExchangeStore

logger = logging.getLogger("outpost.door")


@dataclass
class ContentDesk:
    """The collaborators of these endpoints. version: the gateway's own. wall: unix seconds."""

    database: Database
    recorder: Writes
    keeper: Keeper
    version: str
    wall: Callable[[], float]


class EraseSubject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose contents are erased for good: the id of a user, a service account or a key."""

    subject: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class RequestContent(msgspec.Struct, frozen=True):
    """What is kept of a request's texts. digest: what the ledger says of them."""

    id: str
    subject_erased: bool
    digest: str | None
    parts: Sequence[OpenedContent]


_ERASE = Wire(EraseSubject, refused={}, hints={"subject": "Give the id of a user, a service account or a key."})


def endpoints(desk: ContentDesk, terms: Terms) -> tuple[Endpoint, ...]:
    store, source, known = ExchangeStore(desk.database), Source(desk.database), forms(desk.version)

    async def content(visit: Visit) -> web.StreamResponse:
        principal = _principal(visit)
        row = await shown_exchange(store, visit.parameters["id"], principal)
        # On the ledger before anything is shown, also where nothing is kept: asking is what counts.
        body = {"actor": principal.actor, "object": row.id}
        await desk.recorder.write(lambda transaction: transaction.append("admin.content.read", body))
        parts = await desk.keeper.read(row.id)
        shown = RequestContent(row.id, row.content_digest is not None and not parts, row.content_digest, parts)
        return respond(encode({"data": shown}), visit.id, headers={"Cache-Control": "no-store"})

    async def erase_subject(visit: Visit) -> web.StreamResponse:
        wanted: EraseSubject = _ERASE.read(await read_body(visit.request, terms.limits))
        principal = _principal(visit)
        done = await erase(
            desk.recorder,
            desk.database,
            desk.keeper.keys,
            wanted.subject,
            principal.actor,
            oversees=principal.oversees,
            above=above(principal.role),
        )
        return respond(encode({"data": done}), visit.id)

    async def export(visit: Visit) -> web.StreamResponse:
        principal = _principal(visit)
        name, window = _wanted(visit, desk.wall(), principal.oversees)
        body = {"actor": principal.actor, "object": name, "after": window.said}
        await desk.recorder.write(lambda transaction: transaction.append("admin.ledger.export", body))
        return await _stream(visit, source, known[name], window, terms.limits.write_timeout)

    return (
        Endpoint(
            "GET",
            "/admin/v1/requests/{id}/content",
            "content.read",
            content,
            summary="What is kept of a request's texts. Each reading is put on the ledger.",
            gives=RequestContent,
        ),
        Endpoint(
            "POST",
            "/admin/v1/erase",
            "content.erase",
            erase_subject,
            summary="Erase a person: the key to their texts, the texts, and their name. The ledger still verifies.",
            takes=EraseSubject,
            gives=Erased,
        ),
        Endpoint(
            "GET",
            "/admin/v1/export",
            "ledger.export",
            export,
            summary="The ledger as a stream of records, one a line.",
            media=("application/x-ndjson", "text/csv", "text/plain"),
            query=(
                Query("format", f"{', '.join(FORMATS)}. Default: jsonl."),
                Query("after", "Begin after this number.", "integer"),
                Query("since", "Only records from this moment on: a date, a time, unix seconds, or a time ago (7d)."),
                Query("until", "Only records from before this moment."),
            ),
        ),
    )


def _principal(visit: Visit) -> Principal:
    assert visit.principal is not None  # these endpoints ask for a permission, so the door has found one
    return visit.principal


def _wanted(visit: Visit, now: float, organization: str | None) -> tuple[Format, Window]:
    query = visit.request.query
    name = next((known for known in FORMATS if known == query.get("format", "jsonl")), None)
    if name is None:
        raise BadRequest(f"format: choose from {', '.join(FORMATS)}", param="format")
    after = number(query.get("after"), "after", 0, MAX_NUMBER) or 0
    since, until = (parse_moment(query[each], now, each) if each in query else None for each in ("since", "until"))
    return name, Window(after, since, until, organization)


async def _stream(visit: Visit, source: Source, form: Form, window: Window, timeout_s: float) -> web.StreamResponse:
    """The records at the client's pace. Once it has begun, trouble cuts the connection: an export that ends as it
    should is whole."""
    headers = {
        **SERVER,
        "Content-Type": form.content_type,
        "Content-Disposition": f'attachment; filename="outpost-ledger.{form.suffix}"',
        "Cache-Control": "no-store",
        "x-request-id": visit.id,
    }
    request = visit.request
    response = web.StreamResponse(headers=headers)
    batches = source.read(window)
    # Before the answer begins: a database that cannot be read is still an answer with a status of its own.
    first: Sequence[Record] = await anext(batches, [])
    await response.prepare(request)
    try:
        async with asyncio.timeout(timeout_s):
            await response.write(form.head + b"".join(map(form.line, first)))
        async for records in batches:
            async with asyncio.timeout(timeout_s):
                await response.write(b"".join(map(form.line, records)))
        async with asyncio.timeout(timeout_s):
            await response.write_eof()
    except Exception as error:  # noqa: BLE001 - the answer has begun, so that no error can be told any more
        cause = "the client stalled" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
        logger.warning("export_cut", extra={"request_id": visit.id, "cause": cause})
        response.force_close()
        if request.transport is not None:
            request.transport.abort()
    return response
