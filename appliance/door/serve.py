"""The doors of the house: which endpoints each has, how they open, and how they close.

public    server.listen     the APIs, with keys
operator  console.listen    the operator's API, with admin keys
control   a Unix socket     the operator's API, for whoever may open the file
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import ssl
from collections.abc import Callable
from pathlib import Path

from appliance.door import admin, inference, models, responses
from appliance.door.access_log import AccessLog
from appliance.door.admin import Operator
from appliance.door.door import Door, Refused
from appliance.door.endpoint import Endpoint
from appliance.door.health import healthz, readyz
from appliance.door.http import Limits
from appliance.door.listen import Listener, check_http_stack
from appliance.door.login import Login
from appliance.door.render import openai_error, problem
from appliance.door.terms import Terms
from appliance.errors import OutpostError
from appliance.gateway import Gateway
from appliance.identity.principal import Principal

logger = logging.getLogger("outpost.door")

CONTROL = Principal(key_id="control-socket", key_name="control-socket", role="owner")
_LAST_WORDS_S = 2.0


def build_public(gateway: Gateway, terms: Terms, refused: Refused | None = None) -> Door:
    """The door for clients."""
    return Door(
        (
            healthz(),
            readyz(gateway),
            *models.endpoints(gateway, int(gateway.clock.wall())),
            *inference.endpoints(gateway, terms),
            *responses.endpoints(gateway, terms),
        ),
        authenticator=gateway.authenticator,
        render=openai_error,
        clock=gateway.clock,
        new_id=gateway.new_id,
        terms=terms,
        refused=refused,
    )


def build_operator(
    operator: Operator,
    terms: Terms,
    more: tuple[Endpoint, ...] = (),
    *,
    trusted: Principal | None = None,
    login: Login | None = None,
    refused: Refused | None = None,
) -> Door:
    """The door for operators. `more`: the endpoints of other parts. `login`: where browsers get a session. With
    `trusted`, everyone who can connect is that principal."""
    gateway = operator.gateway
    sessions = login.endpoints() if login is not None else ()
    return Door(
        admin.endpoints(operator, terms, (*more, *sessions)),
        authenticator=gateway.authenticator,
        render=problem,
        clock=gateway.clock,
        new_id=gateway.new_id,
        terms=terms,
        trusted=trusted,
        login=login,
        refused=refused,
    )


class CannotListen(OutpostError):
    """An address of the settings on which this process cannot listen."""

    code = "cannot_listen"


class Doors:
    """All doors of one process. `open` them, and `close` them once; nothing is lost in between."""

    def __init__(
        self,
        operator: Operator,
        limits: Limits,
        log: AccessLog | None = None,
        *,
        login: Login | None = None,
        refused: Refused | None = None,
        more: Callable[[Terms], tuple[Endpoint, ...]] = lambda terms: (),
    ) -> None:
        """`more`: the operator's endpoints of other parts."""
        check_http_stack()
        self.operator = operator
        self._gateway = operator.gateway
        self._terms = terms = Terms(limits, log)
        others = more(terms)
        self._public = Listener(build_public(operator.gateway, terms, refused), terms)
        self._console = Listener(build_operator(operator, terms, others, login=login, refused=refused), terms)
        self._control = Listener(build_operator(operator, terms, others, trusted=CONTROL), terms)
        self.public_port = 0
        self.operator_port = 0

    def change(self, limits: Limits, log: AccessLog | None) -> None:
        """Go by these from now on. What is under way keeps the limits that it began with."""
        self._flush()
        self._terms.limits, self._terms.log = limits, log

    async def open(
        self,
        public: tuple[str, int],
        operator: tuple[str, int],
        control: Path,
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Listen everywhere, or nowhere. Raises CannotListen, OSError."""
        try:
            # The control socket first: it tells at once whether the same data folder is already in use.
            await self._control.unix(control)
            self.operator_port = await _listen(self._console, "console.listen", operator, tls)
            self.public_port = await _listen(self._public, "server.listen", public, tls)
        except (OSError, CannotListen):
            await self.close(0.0)
            raise

    async def close(self, drain_timeout: float | None = None, *, note: Callable[[int], None] | None = None) -> None:
        """Take nothing new, let running exchanges end within `drain_timeout` seconds (the settings' by default),
        end the others with a clean error, and close. `note` is told how many had to be ended."""
        gateway = self._gateway
        gateway.draining = True
        listeners = (self._public, self._console, self._control)
        for listener in listeners:
            listener.stop_accepting()
        timeout = self._terms.limits.drain_timeout if drain_timeout is None else drain_timeout
        try:
            async with asyncio.timeout(timeout):
                await gateway.running.wait_idle()
        except TimeoutError:
            left = len(gateway.running)
            logger.warning("exchanges_ended_by_shutdown", extra={"count": left})
            if note is not None:
                note(left)
            gateway.running.stop_all()
        await asyncio.gather(*(listener.close(_LAST_WORDS_S) for listener in listeners))
        self._flush()

    def _flush(self) -> None:
        if self._terms.log is not None:
            self._terms.log.flush()


async def _listen(listener: Listener, field: str, address: tuple[str, int], tls: ssl.SSLContext | None) -> int:
    try:
        return await listener.tcp(*address, tls=tls)
    except OSError as error:
        cure = _CURES.get(error.errno or 0, "choose another address")
        reason = os.strerror(error.errno) if error.errno in _CURES else error.strerror or str(error)
        host, port = address
        raise CannotListen(f"{field}: cannot listen on port {port} of {host}: {reason}; {cure}") from error


_CURES = {
    errno.EADDRINUSE: "stop the program that listens there (`ss -ltnp` names it), or choose another port",
    errno.EADDRNOTAVAIL: "this machine has no such address: choose one that `ip address` shows, 127.0.0.1 or 0.0.0.0",
    errno.EACCES: "this user may not: choose a port above 1023",
}
