"""A door: one table of endpoints behind one HTTP server.

Nothing stands between the server and an endpoint but one look-up: permissions, error rendering, request ids
and the access log are in `Door.handle`, in this order, for every endpoint alike.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from aiohttp import web

from appliance.collaborators import Authenticator, Clock
from appliance.door.endpoint import Endpoint, Pattern, Visit
from appliance.door.http import address
from appliance.door.login import Login
from appliance.door.render import ErrorRenderer, not_allowed
from appliance.door.terms import Terms
from appliance.door.who import who_asks
from appliance.errors import InternalError, NotFound, OutpostError, PermissionDenied, Unauthenticated
from appliance.identity.permissions import BOX_WIDE, ROLES
from appliance.identity.principal import Principal

logger = logging.getLogger("outpost.door")


Refused = Callable[[str, str, str], None]
"""Told of every refusal that belongs to no exchange: its code, the client's address, the endpoint's path."""


class Door:
    """Finds the endpoint of a request and answers with it.

    `login`: where browsers may come with a session. `trusted` is the principal of everyone who can connect at all
    (the control socket, whose file permission is the credential); elsewhere it is None and a key is asked for.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        authenticator: Authenticator,
        render: ErrorRenderer,
        clock: Clock,
        new_id: Callable[[], str],
        terms: Terms,
        trusted: Principal | None = None,
        login: Login | None = None,
        refused: Refused | None = None,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self.render = render
        self._authenticator = authenticator
        self._login = login
        self._refused = refused
        self._clock = clock
        self._new_id = new_id
        self._terms = terms
        self._trusted = trusted
        self._exact: dict[tuple[str, str], Endpoint] = {(e.method, e.path): e for e in self.endpoints if not e.names}
        patterns = [Pattern(e) for e in self.endpoints if e.names]
        self._patterns = sorted(patterns, key=lambda pattern: pattern.literal, reverse=True)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The response to any request. Raises CancelledError when the client has gone."""
        visit = Visit(request, self._new_id(), self._clock.monotonic())
        status = 499
        try:
            response = await self._answer(visit)
            status = response.status
        except OutpostError as error:
            if self._refused is not None and isinstance(error, (Unauthenticated, PermissionDenied)):
                self._refused(error.code, address(request), visit.path)
            response = self._render(visit)(error, visit.id)
            status = error.status
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            logger.exception("request_failed", extra={"request_id": visit.id})
            response = self._render(visit)(
                InternalError("The gateway made a mistake; its log has it under the request id."), visit.id
            )
            status = response.status
        finally:
            log = self._terms.log
            if log is not None:
                log.note(visit, address(request), status, self._clock.monotonic() - visit.began)
        return response

    def _render(self, visit: Visit) -> ErrorRenderer:
        """In whose shape errors are told: an endpoint's own, else the door's."""
        found = self._exact.get((visit.request.method, visit.path))
        return self.render if found is None or found.render is None else found.render

    async def _answer(self, visit: Visit) -> web.StreamResponse:
        request = visit.request
        endpoint = self._exact.get((request.method, request.raw_path))
        if endpoint is None:
            path = request.raw_path.partition("?")[0]
            endpoint = self._find(request.method, path, visit)
            if endpoint is None:
                return self._unknown(request.method, path, visit)
        visit.path = endpoint.path
        if endpoint.permission != "anyone" and not endpoint.identifies:
            visit.principal = await self._permit(endpoint, request)
        return await endpoint.handler(visit)

    def _find(self, method: str, path: str, visit: Visit) -> Endpoint | None:
        if method == "HEAD":
            method = "GET"  # aiohttp leaves the body out
        endpoint = self._exact.get((method, path))
        if endpoint is None:
            for candidate, parameters in self._matching(path):
                if candidate.method == method:
                    visit.parameters = parameters
                    return candidate
        return endpoint

    def _matching(self, path: str) -> list[tuple[Endpoint, dict[str, str]]]:
        """The endpoints with parameters that a path means: of those that fit, the ones that say most of it."""
        if any(known == path for _, known in self._exact):
            return []
        found = []
        most = 0
        for pattern in self._patterns:
            if pattern.literal < most:
                break
            if (parameters := pattern.match(path)) is not None:
                most = pattern.literal
                found.append((pattern.endpoint, parameters))
        return found

    def _unknown(self, method: str, path: str, visit: Visit) -> web.Response:
        allowed = [m for m, p in self._exact if p == path]
        allowed += [endpoint.method for endpoint, _ in self._matching(path)]
        if allowed:
            return not_allowed(method, path, sorted(set(allowed)), self.render, visit.id)
        known = ", ".join(sorted({e.path for e in self.endpoints}))
        raise NotFound(f"There is nothing at {ascii(path[:200])[1:-1]}. Paths are: {known}.")

    async def _permit(self, endpoint: Endpoint, request: web.BaseRequest) -> Principal:
        """Raises Unauthenticated, PermissionDenied, and what `who_asks` raises else."""
        principal = self._trusted or await who_asks(self._authenticator, self._login, request)
        if endpoint.permission == "anyone" or principal.may(endpoint.permission):
            return principal
        if endpoint.permission in BOX_WIDE and endpoint.permission in ROLES[principal.role]:
            raise PermissionDenied("This concerns the whole box; it is for the organization that runs it.")
        raise PermissionDenied(f"This needs the permission {endpoint.permission}; the role {principal.role} lacks it.")
