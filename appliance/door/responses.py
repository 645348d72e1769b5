"""/v1/responses: answers that are stored, read again, listed, cancelled and deleted; and conversations summed up."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, get_args

from aiohttp import web

from appliance.dialects.kinds import COMPACT, RESPONSES, Kind
from appliance.dialects.responses.request import Include
from appliance.door import inference
from appliance.door.endpoint import Endpoint, Query, Visit
from appliance.door.operation import number
from appliance.door.render import respond
from appliance.door.terms import Terms
from appliance.errors import BadRequest, NotFound, UnsupportedParameter
from appliance.gateway import Gateway
from appliance.identity.principal import Principal
from appliance.responses.keeper import Order

INCLUDABLE: tuple[str, ...] = get_args(Include)

_HEADERS = {"x-outpost-target": "none", "x-outpost-attempts": "0", "Cache-Control": "no-store"}
_MANY = ("include", "include[]")
"""Parameters that may come several times; SDKs write lists either way."""
_MOST_ITEMS = 100

_INCLUDE = Query("include", f"What is told beside: {', '.join(INCLUDABLE)}. May come several times.")
_ITEMS = (
    Query("after", "Begin after the item with this id."),
    Query("limit", f"How many at most, 1 to {_MOST_ITEMS}. Default: 20.", "integer"),
    Query("order", "asc or desc. Default: desc."),
    _INCLUDE,
)
_ONE = (_INCLUDE, Query("stream", "Only false."), Query("starting_after", "Only with stream."))


def endpoints(gateway: Gateway, terms: Terms) -> tuple[Endpoint, ...]:
    async def create(visit: Visit) -> web.StreamResponse:
        return await _detachable(gateway, RESPONSES, terms, visit)

    async def compact(visit: Visit) -> web.StreamResponse:
        return await inference.answer(gateway, COMPACT, terms, visit)

    async def one(visit: Visit) -> web.StreamResponse:
        query, include = _query(visit, ("stream", "starting_after", "include_obfuscation"))
        if query.get("stream", "false") != "false" or "starting_after" in query:
            raise UnsupportedParameter(
                "stream: a stored response is not streamed; leave it out, and ask again until its status is final.",
                param="stream",
            )
        return _respond(visit, await gateway.responses.get(_asker(visit), visit.parameters["id"], include))

    async def items(visit: Visit) -> web.StreamResponse:
        query, include = _query(visit, ("after", "limit", "order"))
        order = next((each for each in get_args(Order) if each == query.get("order", "desc")), None)
        if order is None:
            raise BadRequest("order must be asc or desc.", param="order")
        found = await gateway.responses.items(
            _asker(visit),
            visit.parameters["id"],
            after=query.get("after"),
            limit=number(query.get("limit"), "limit", 1, _MOST_ITEMS) or 20,
            order=order,
            include=include,
        )
        return _respond(visit, found)

    async def nothing(visit: Visit) -> web.StreamResponse:
        # Like OpenAI's input_tokens, which is no id: 405 would say that it can be read and deleted.
        raise NotFound(
            f"There is no POST /v1/responses/{ascii(visit.parameters['id'][:80])[1:-1]} here; POST /v1/responses asks, "
            "and POST /v1/messages/count_tokens counts tokens."
        )

    async def delete(visit: Visit) -> web.StreamResponse:
        _query(visit, ())
        return _respond(visit, await gateway.responses.delete(_asker(visit), visit.parameters["id"]))

    async def cancel(visit: Visit) -> web.StreamResponse:
        _query(visit, ())
        return _respond(visit, await gateway.responses.cancel(_asker(visit), visit.parameters["id"]))

    return (
        Endpoint("POST", "/v1/responses", "models.use", create, identifies=True),
        Endpoint("POST", "/v1/responses/compact", "models.use", compact, identifies=True),
        Endpoint("POST", "/v1/responses/{id}", "models.use", nothing),
        Endpoint("GET", "/v1/responses/{id}", "models.use", one, query=_ONE),
        Endpoint("DELETE", "/v1/responses/{id}", "models.use", delete),
        Endpoint("POST", "/v1/responses/{id}/cancel", "models.use", cancel),
        Endpoint("GET", "/v1/responses/{id}/input_items", "models.use", items, query=_ITEMS),
    )


async def _detachable(gateway: Gateway, kind: Kind, terms: Terms, visit: Visit) -> web.StreamResponse:
    """One exchange, in a task of its own: one in the background outlives the request that asked for it. Nobody knows
    before it is read which it is."""
    responses = gateway.responses
    told = responses.expect(visit.id)
    exchange = gateway.spawn(inference.answer(gateway, kind, terms, visit))
    try:
        await asyncio.wait((exchange, told), return_when=asyncio.FIRST_COMPLETED)
        if told.done():
            exchange.add_done_callback(_forget)
            return _respond(visit, told.result())
        return exchange.result()
    except asyncio.CancelledError:
        if not told.done():
            exchange.cancel()
            await asyncio.wait((exchange,))
        raise
    finally:
        responses.forget(visit.id)


def _forget(exchange: asyncio.Task[Any]) -> None:
    """Nobody waits for it any more; whatever it met is on record and stored."""
    if not exchange.cancelled():
        exchange.exception()


def _asker(visit: Visit) -> Principal:
    assert visit.principal is not None  # these endpoints ask for a permission, so the door has found one
    return visit.principal


def _respond(visit: Visit, body: bytes) -> web.Response:
    return respond(body, visit.id, headers=_HEADERS)


def _query(visit: Visit, names: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """The parameters, and what is to be included. Raises BadRequest for one that is not known, or not once."""
    found: dict[str, str] = {}
    include: list[str] = []
    reads = visit.request.method == "GET"
    for name, value in visit.request.query.items():
        if reads and name in _MANY:
            if value not in INCLUDABLE:
                raise BadRequest(f"include: use {', '.join(INCLUDABLE)}.", param="include")
            include.append(value)
        elif name not in names:
            shown = ascii(name[:80])[1:-1]
            known = [*sorted(names), *(["include"] if reads else [])]
            cure = f"use {', '.join(known)}" if known else "leave it out"
            raise BadRequest(f"{shown} is not a query parameter here; {cure}.", param=shown)
        elif name in found:
            raise BadRequest(f"{name}: is given twice; give it once", param=name)
        else:
            found[name] = value
    return found, include
