"""Who makes a request: by its header, its session, or the certificate of its connection."""

from __future__ import annotations

from aiohttp import web

from appliance.collaborators import Authenticator
from appliance.door.http import address, credential, peer_certificate
from appliance.door.login import Login
from appliance.identity.principal import Principal


async def who_asks(authenticator: Authenticator, login: Login | None, request: web.BaseRequest) -> Principal:
    """The principal of a request; what stands in its header counts first, then a session, then the certificate.

    login: only at the operator's listener. Raises Unauthenticated, PermissionDenied, ProviderError (503),
    RecordsUnavailable.
    """
    presented = credential(request)
    if presented is None and "Authorization" not in request.headers and login is not None:
        principal = login.principal(request)
        if principal is not None:
            return principal
    return await authenticator.identify(presented, peer_certificate(request), address(request))
