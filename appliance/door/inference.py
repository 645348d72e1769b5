"""POST /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/messages: one exchange each; and the counting of a
message's tokens, which is none."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from appliance.counting import count_tokens
from appliance.dialects.kinds import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, Kind
from appliance.dialects.messages.outbound import count_body
from appliance.dialects.messages.request import parse_count
from appliance.door.endpoint import Endpoint, Visit
from appliance.door.http import LARGE, HttpIncoming, read_body, send_large
from appliance.door.render import anthropic_error, respond
from appliance.door.streamed import HttpOutgoing
from appliance.door.terms import Terms
from appliance.door.whole import whole_response
from appliance.exchange import run
from appliance.explaining import explain
from appliance.gateway import Gateway
from appliance.wishes import EXPLAIN_HEADER, parse_explain


async def answer(gateway: Gateway, kind: Kind, terms: Terms, visit: Visit) -> web.StreamResponse:
    """One exchange, or the plan of one; the last byte of an exchange leaves after it is on record."""
    limits = terms.limits
    outgoing = HttpOutgoing(visit.request, visit.id, limits.write_timeout)
    step = explain if parse_explain(visit.request.headers.get(EXPLAIN_HEADER)) else run
    try:
        result = await step(gateway, kind, HttpIncoming(visit.request, visit.id, limits), outgoing)
    except Exception:
        if outgoing.response is not None:
            # Nothing clean can follow what was sent; a cut connection at least does not look complete.
            outgoing.cut()
        raise
    visit.row = result.row
    if not result.streamed:
        written = whole_response(visit.request, result.body, visit.id, result.status, result.headers)
        if written is not None:
            return written
        response = respond(result.body, visit.id, status=result.status, headers=result.headers)
        if len(result.body) <= LARGE:
            return response
        return await send_large(visit.request, response, limits.write_timeout)
    if result.cut:
        return outgoing.cut()
    return await outgoing.end(result.body)


def endpoints(gateway: Gateway, terms: Terms) -> tuple[Endpoint, ...]:
    return (
        *(
            Endpoint("POST", path, "models.use", partial(answer, gateway, kind, terms), identifies=True, render=render)
            for path, kind, render in (
                ("/v1/chat/completions", CHAT, None),
                ("/v1/completions", COMPLETIONS, None),
                ("/v1/embeddings", EMBEDDINGS, None),
                ("/v1/messages", MESSAGES, anthropic_error),
            )
        ),
        Endpoint(
            "POST",
            "/v1/messages/count_tokens",
            "models.use",
            partial(count, gateway, terms),
            render=anthropic_error,
        ),
    )


async def count(gateway: Gateway, terms: Terms, visit: Visit) -> web.StreamResponse:
    """How many tokens a message would have: by the target's own count where it has one, else about."""
    assert visit.principal is not None  # the endpoint asks for a permission, so the door has found one
    body = await read_body(visit.request, terms.limits)
    asked = parse_count(body, gateway.max_json_depth)
    tokens = await count_tokens(gateway, visit.principal, asked)
    return respond(count_body(tokens), visit.id, headers={"request-id": visit.id})
