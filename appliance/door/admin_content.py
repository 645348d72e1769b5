"""/admin/v1: reading what was kept of a request, erasing a person, exporting the ledger."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from aiohttp import web

from appliance.dialects.wire import Wire, encode
from appliance.door.endpoint import Endpoint, Query, Visit
from appliance.door.http import SERVER, read_body
from appliance.door.render import respond
from appliance.door.terms import Terms
from appliance.errors import BadRequest, NotFound
from appliance.identity.permissions import above
from appliance.identity.principal import Principal
from appliance.records.content import Keeper, OpenedContent
from appliance.records.database import Database
from appliance.records.erase import Erased, Writes, erase
from appliance.records.export.forms import FORMATS, Form, Format, forms
from appliance.records.export.moments import parse_moment
from appliance.records.export.source import Record, Source, Window
from appliance.records.rows import RecordedExchange
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
        row = await _exchange(store, visit.parameters["id"], principal)
        # On the ledger before anything is shown, also where nothing is kept: asking is what counts.
        body = {"actor": actor_of(principal), "object": row.id}
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
            actor_of(principal),
            oversees=principal.oversees,
            above=above(principal.role),
        )
        return respond(encode({"data": done}), visit.id)

    async def export(visit: Visit) -> web.StreamResponse:
        principal = _principal(visit)
        name, window = _wanted(visit, desk.wall(), principal.oversees)
        body = {"actor": actor_of(principal), "object": name, "after": _said(window)}
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


def actor_of(principal: Principal) -> dict[str, Any]:
    """Who did something, as events name it."""
    who = {"key": principal.key_id, "role": principal.role, "organization": principal.organization}
    return who if principal.user is None else {**who, "user": principal.user}


def _principal(visit: Visit) -> Principal:
    assert visit.principal is not None  # these endpoints ask for a permission, so the door has found one
    return visit.principal


async def _exchange(store: ExchangeStore, exchange_id: str, principal: Principal) -> RecordedExchange:
    row = await store.find(exchange_id)
    if row is None or (principal.oversees is not None and row.organization_id != principal.oversees):
        raise NotFound("There is no request with this id on record.")
    return row


def _wanted(visit: Visit, now: float, organization: str | None) -> tuple[Format, Window]:
    query = visit.request.query
    name = next((known for known in FORMATS if known == query.get("format", "jsonl")), None)
    if name is None:
        raise BadRequest(f"format: choose from {', '.join(FORMATS)}", param="format")
    after = query.get("after", "0")
    if not (after.isascii() and after.isdigit() and len(after) <= 18):
        raise BadRequest("after: must be the number of a record, 0 or more", param="after")
    since, until = (parse_moment(query[each], now, each) if each in query else None for each in ("since", "until"))
    return name, Window(int(after), since, until, organization)


def _said(window: Window) -> dict[str, Any]:
    """The window for the ledger: integers only."""
    said: dict[str, Any] = {"after": window.after, "organization": window.organization}
    for name, moment in (("since_us", window.since), ("until_us", window.until)):
        said[name] = None if moment is None else round(moment * 1e6)
    return said


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
