"""POST /v1/chat/completions, /v1/completions, /v1/embeddings: one exchange each."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from appliance.dialects.kinds import CHAT, COMPLETIONS, EMBEDDINGS, Kind
from appliance.door.endpoint import Endpoint, Visit
from appliance.door.http import LARGE, HttpIncoming, HttpOutgoing, send_large
from appliance.door.render import respond
from appliance.door.terms import Terms
from appliance.exchange import Gateway, run


async def answer(gateway: Gateway, kind: Kind, terms: Terms, visit: Visit) -> web.StreamResponse:
    """One exchange; its last byte leaves after it is on record."""
    limits = terms.limits
    outgoing = HttpOutgoing(visit.request, visit.id, limits.write_timeout)
    try:
        result = await run(gateway, kind, HttpIncoming(visit.request, visit.id, limits), outgoing)
    except Exception:
        if outgoing.response is not None:
            # Nothing clean can follow what was sent; a cut connection at least does not look complete.
            outgoing.cut()
        raise
    visit.row = result.row
    if not result.streamed:
        response = respond(result.body, visit.id, status=result.status, headers=result.headers)
        if len(result.body) <= LARGE:
            return response
        return await send_large(visit.request, response, limits.write_timeout)
    if result.cut:
        return outgoing.cut()
    return await outgoing.end(result.body)


def endpoints(gateway: Gateway, terms: Terms) -> tuple[Endpoint, ...]:
    return tuple(
        Endpoint("POST", path, "models.use", partial(answer, gateway, kind, terms), identifies=True)
        for path, kind in (
            ("/v1/chat/completions", CHAT),
            ("/v1/completions", COMPLETIONS),
            ("/v1/embeddings", EMBEDDINGS),
        )
    )
