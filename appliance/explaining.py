"""The plan of a request in the place of its answer, for those who may see how a route decides."""

from __future__ import annotations

import asyncio

from appliance.collaborators import Incoming
from appliance.dialects.kinds import Kind
from appliance.dialects.wire import encode
from appliance.errors import PermissionDenied
from appliance.exchange import Answer, Exchange, check_may_ask
from appliance.gateway import Gateway
from appliance.identity.permissions import ROLES
from appliance.identity.principal import Principal
from appliance.outgoing import Outgoing
from appliance.routing.explain import document
from appliance.wishes import EXPLAIN_HEADER


async def explain(gateway: Gateway, kind: Kind, incoming: Incoming, outgoing: Outgoing) -> Answer:
    """The request is identified, read and planned like any other. Nobody is asked, nothing is put on record, and no
    limit counts it.

    Raises what identifying, reading and finding its route raise, PermissionDenied, and CancelledError when the client
    has gone.
    """
    principal = await gateway.authenticator.identify(incoming.credential, incoming.peer_certificate, incoming.client)
    check_may_ask(principal)
    check_may_see(principal)
    with gateway.running.watch() as watch:
        exchange = Exchange(gateway, kind, incoming, outgoing, principal, watch)
        try:
            asked = await exchange.parse()
        except asyncio.CancelledError:
            if (stopped := watch.caught()) is not None:
                raise stopped from None
            raise
        told = document(exchange.explain(asked))
    headers = {"x-outpost-target": "none", "x-outpost-attempts": "0", "Cache-Control": "no-store"}
    if kind.id_header:
        headers[kind.id_header] = incoming.id
    return Answer(200, encode(told), headers, exchange.row)


def check_may_see(principal: Principal) -> None:
    """A plan shows what the settings say of teams, keys and targets. Raises PermissionDenied."""
    if principal.may("status.read"):
        return
    if "status.read" in ROLES[principal.role]:
        raise PermissionDenied(
            f"{EXPLAIN_HEADER} shows how the whole box is set up; it is for the organization that runs it. Leave the "
            "header out."
        )
    raise PermissionDenied(
        f"{EXPLAIN_HEADER} needs the permission status.read; the role {principal.role} lacks it. Leave the header out."
    )
