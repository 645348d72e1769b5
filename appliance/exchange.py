"""The life of a request, as one sequence of steps.

`run` is the list. Each step takes what it needs and gives what the next one needs; what is kept of the
exchange goes into its row. Steps that are not there yet are not in the list.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from appliance.dialects import errors as openai_errors
from appliance.dialects.kinds import Kind, Request
from appliance.dialects.sse import DONE_EVENT
from appliance.dialects.tally import Tally
from appliance.errors import ClientStalled, InternalError, OutpostError, Unauthenticated, UpstreamError, UpstreamTimeout
from appliance.identity.principal import Principal
from appliance.providers.upstream import Call
from appliance.records.rows import Attempt, ExchangeRow
from appliance.routing.attempts import first_answer
from appliance.routing.plan import Candidate, Plan, make_plan
from appliance.routing.routes import Route, Router
from appliance.routing.watch import Running, Watch

logger = logging.getLogger("outpost.exchange")


class KeyRing(Protocol):
    def identify(self, presented: str) -> Principal | None: ...


class Recorder(Protocol):
    def submit(self, row: ExchangeRow) -> asyncio.Future[int]: ...


class Clock(Protocol):
    """wall: unix seconds, for people; monotonic: seconds, for durations."""

    def wall(self) -> float: ...
    def monotonic(self) -> float: ...


@dataclass
class Gateway:
    """The collaborators of every exchange. `router` is replaced whole by a reload."""

    keyring: KeyRing
    recorder: Recorder
    router: Router
    running: Running
    clock: Clock
    new_id: Callable[[], str]
    """A fresh unguessable id: letters and digits."""
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep
    max_json_depth: int = 64
    write_timeout_s: float = 30.0


class Incoming(Protocol):
    """A request as the door hands it over."""

    @property
    def id(self) -> str: ...
    @property
    def credential(self) -> str | None: ...
    @property
    def client(self) -> str: ...
    async def body(self) -> bytes:
        """Raises BodyTooLarge, BodyTimeout, UnsupportedMediaType."""
        ...


class Outgoing(Protocol):
    """The way back to the client. A client that has gone cancels the exchange's task."""

    async def begin(self, headers: dict[str, str], data: bytes) -> None:
        """Start a streamed answer with status 200 and its first bytes."""
        ...

    def send(self, data: bytes) -> bool:
        """More of a stream; False when the client does not keep up and `drained` must be awaited."""
        ...

    async def drained(self) -> None: ...


class Answer(msgspec.Struct):
    """What is still to be sent once the exchange is on record: a whole answer, or the last event of a stream."""

    status: int
    body: bytes
    headers: dict[str, str]
    streamed: bool = False


async def run(gateway: Gateway, kind: Kind, incoming: Incoming, outgoing: Outgoing) -> Answer:
    """One exchange. Raises Unauthenticated (nothing is recorded then), and CancelledError when the client has gone."""
    principal = identify(gateway, incoming)
    with gateway.running.watch() as watch:
        exchange = Exchange(gateway, kind, incoming, principal, outgoing, watch)
        try:
            request = await exchange.parse()
            plan = exchange.plan(request)
            answer = await exchange.relay(plan)
            exchange.settle(answer)
        except OutpostError as error:
            answer = exchange.fail(error)
        except asyncio.CancelledError:
            stopped = watch.caught()
            if stopped is None:
                exchange.abandon()
                raise
            answer = exchange.fail(stopped)
        except Exception:
            logger.exception("exchange_failed", extra={"request_id": incoming.id})
            answer = exchange.fail(InternalError("The gateway made a mistake; it is in its log under the request id."))
        watch.close()
        return await exchange.record(answer)
