"""How many tokens a request's prompt has, without an exchange: nothing is generated, and nothing is charged."""

from __future__ import annotations

from appliance.dialects.asked import Asked
from appliance.dialects.kinds import MESSAGES
from appliance.errors import BadRequest, OutpostError
from appliance.gateway import Gateway
from appliance.identity.principal import Principal
from appliance.routing.plan import make_plan


async def count_tokens(gateway: Gateway, principal: Principal, asked: Asked) -> int:
    """By the first target of the route that can tell, else about. Raises ModelNotFound, and what a plan raises.

    Only targets on this box are asked: a provider would be sent the whole prompt for it.
    """
    restrictions = principal.restrictions
    route = gateway.router.find(asked.request.model, restrictions.routes)
    plan = make_plan(route, MESSAGES, asked, restrictions)
    for candidate in plan.candidates:
        count = getattr(candidate.target.upstream, "count", None)
        if count is None:
            continue
        try:
            found: int | None = await count(candidate.request)
        except BadRequest:
            raise
        except OutpostError:
            continue  # it is not up; another one may be
        if found is not None:
            return found
    return gateway.limits.estimate(asked.request)
