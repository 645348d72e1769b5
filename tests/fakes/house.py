"""A gateway without a database or an engine process: the real door, exchange, routing and providers."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from appliance.account import Limits as UsageLimits
from appliance.door.access_log import AccessLog
from appliance.door.admin import Operator
from appliance.door.http import Limits
from appliance.door.serve import Doors
from appliance.errors import OutpostError, RecordsUnavailable
from appliance.gateway import Gateway
from appliance.identity.authenticator import Authenticator
from appliance.identity.principal import Principal
from appliance.limits.admission import Gates
from appliance.limits.book import Book
from appliance.limits.clock import Now
from appliance.limits.counters import Reservation
from appliance.pricing import Prices
from appliance.providers.http import make_session
from appliance.providers.local import LocalUpstream
from appliance.providers.upstream import READY, Capabilities, Readiness, Upstream
from appliance.records.rows import ExchangeRow
from appliance.routing.health import Health
from appliance.routing.routes import Deadlines, Route, Router, Target
from appliance.routing.watch import Running
from appliance.settings.recording import Content
from appliance.telemetry.metrics import Ledger, Metrics, Sources
from appliance.telemetry.observer import Observer
from tests.fakes.engine import FakeEngine
from tests.fakes.providers import upstream as openai_upstream
from tests.fakes.responses import NoResponses
from tests.fakes.upstream import FakeUpstream

USER_KEY = "op-user-key-0123456789"
ADMIN_KEY = "op-admin-key-0123456789"
UPSTREAM_KEY = "sk-upstream-key"

CHAT_MODEL = Capabilities(
    kinds=frozenset(("chat.completions", "completions")),
    features=frozenset(
        (
            "tools",
            "json_object",
            "json_schema",
            "logprobs",
            "logit_bias",
            "top_k",
            "min_p",
            "repetition_penalty",
            "token_prompts",
        )
    ),
    context_length=8192,
)
EMBEDDER = Capabilities(
    kinds=frozenset(("embeddings",)), features=frozenset(("token_prompts",)), context_length=512, dimensions=2
)


class Clock:
    def wall(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


def now() -> Now:
    return Now(time.time(), time.monotonic())


class NoStore:
    """Limits that do not outlive the process. `allowed` and `recorded` count what was asked of it."""

    def __init__(self) -> None:
        self.allowed = self.recorded = self.unrecorded = 0

    async def ensure(self, reservation: Reservation, now: Now) -> None:
        self.allowed += 1

    def release(self, reservation: Reservation) -> None:
        self.recorded += 1

    def lost(self, reservation: Reservation, exchange_id: str) -> None:
        self.unrecorded += 1


class NoContents:
    """Keeps no texts."""

    most = 0

    def policy(self, principal: Principal, route: str) -> Content:
        return "none"

    async def keep(
        self, principal: Principal, row: ExchangeRow, policy: Content, request: bytes, answer: bytes
    ) -> asyncio.Future[int] | None:
        return None


class FakeKeys:
    """Two keys. Who administers keys is tested with the real ring (tests/door/desk.py)."""

    directory = None

    def __init__(self) -> None:
        self.known = {
            USER_KEY: Principal(key_id="k-user", key_name="user", role="member"),
            ADMIN_KEY: Principal(key_id="k-admin", key_name="admin", role="admin"),
        }

    def identify(self, presented: str, address: str | None = None) -> Principal | None:
        return self.known.get(presented)


class FakeRecorder:
    """Rows in a list; `failing` refuses them (`available` says so once it is `noticed`); `gate` holds commits back
    while it is cleared."""

    def __init__(self) -> None:
        self.rows: list[ExchangeRow] = []
        self.failing = False
        self.noticed = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def available(self) -> bool:
        return not self.noticed

    def submit(self, row: ExchangeRow) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self.failing:
            future.set_exception(RecordsUnavailable("The disk is full.", retry_after_s=1.0))
            return future
        task = asyncio.ensure_future(self._commit(row, future))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return future

    async def _commit(self, row: ExchangeRow, future: asyncio.Future[int]) -> None:
        await self.gate.wait()
        self.rows.append(row)
        if not future.done():
            future.set_result(len(self.rows))
        async with self.changed:
            self.changed.notify_all()

    async def wait_for(self, count: int) -> ExchangeRow:
        """The newest row once there are `count`."""
        async with asyncio.timeout(5), self.changed:
            await self.changed.wait_for(lambda: len(self.rows) >= count)
        return self.rows[-1]

    async def list(
        self, after_seq: int | None = None, limit: int = 100, *, organization: str | None = None
    ) -> Sequence[ExchangeRow]:
        found = [row for row in self.rows[after_seq or 0 :] if organization in (None, row.organization_id)]
        return found[:limit]

    async def find(self, exchange_id: str) -> ExchangeRow | None:
        return next((row for row in self.rows if row.id == exchange_id), None)


@dataclass
class House:
    gateway: Gateway
    recorder: FakeRecorder
    keys: FakeKeys
    engine: FakeEngine
    upstream: FakeUpstream
    doors: Doors
    session: aiohttp.ClientSession
    log: list[bytes]
    control: Path
    readiness: list[Readiness] = field(default_factory=lambda: [READY])
    """The last one is what the local models say of themselves."""
    reloads: list[dict[str, Any] | OutpostError] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.doors.public_port}"

    @property
    def operator_url(self) -> str:
        return f"http://127.0.0.1:{self.doors.operator_port}"

    def provider(self, model: str, **overrides: Any) -> Target:
        """A model of the fake upstream as a target; its name is its behaviour."""
        upstream = openai_upstream(
            f"fake/{model}",
            model=model,
            base_url=self.upstream.url,
            api_key=UPSTREAM_KEY,
            session=self.session,
        )
        return Target(upstream, overrides, "cloud")

    def route(self, model: str, *targets: str | Target, **options: Any) -> None:
        """Add a route to the fake upstream's behaviours."""
        made = tuple(self.provider(target) if isinstance(target, str) else target for target in targets)
        self.gateway.router = Router([*self.gateway.router.routes, Route(model=model, targets=made, **options)])

    async def post(
        self, path: str, body: Mapping[str, Any] | bytes, *, key: str | None = USER_KEY, **headers: str
    ) -> aiohttp.ClientResponse:
        """The response, with its body read."""
        data = body if isinstance(body, bytes) else None
        auth = {"Authorization": f"Bearer {key}"} if key else {}
        response = await self.session.post(
            self.url + path, data=data, json=None if data is not None else body, headers={**auth, **headers}
        )
        await response.read()
        return response

    async def chat(self, model: str, said: str = "Hi", **fields: Any) -> aiohttp.ClientResponse:
        return await self.post(
            "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": said}], **fields}
        )


class Pauses:
    """Pauses between attempts that take no time, but for the clock that targets rest by."""

    def __init__(self) -> None:
        self._skipped = 0.0

    def clock(self) -> float:
        return time.monotonic() + self._skipped

    async def pause(self, seconds: float) -> None:
        self._skipped += seconds


def text_deadlines(seconds: float) -> Deadlines:
    """Every deadline the same."""
    return Deadlines(connect=seconds, first_token=seconds, idle=seconds, total=30.0)


@asynccontextmanager
async def open_house(folder: Path, limits: Limits | None = None) -> AsyncIterator[House]:
    """A house with the models `local` (chat), `embedder`, and `remote` (the fake upstream, well-behaved)."""
    limits = limits or Limits(drain_timeout=5.0)
    engine, keys, recorder = FakeEngine(), FakeKeys(), FakeRecorder()
    ids = itertools.count(1)
    pauses = Pauses()
    gateway = Gateway(
        authenticator=Authenticator(keys, None, clock=time.time),  # type: ignore[arg-type]  # nobody signs in
        observer=Observer(Metrics(Sources(lambda: 0, lambda: Ledger(0, 0.0, True)), "test")),
        contents=NoContents(),
        recorder=recorder,
        router=Router([]),
        running=Running(),
        clock=Clock(),
        gates=Gates(),
        limits=UsageLimits(Book((), now()), NoStore(), Prices(), now, lambda request: 64),
        responses=NoResponses(),
        health=Health(clock=pauses.clock),
        pause=pauses.pause,
        new_id=lambda: f"{next(ids):012d}",
        max_json_depth=limits.max_json_depth,
        write_timeout_s=limits.write_timeout,
    )
    lines: list[bytes] = []
    log = AccessLog(lines.append, time.time)
    async with FakeUpstream() as upstream, make_session() as session:
        house = House(gateway, recorder, keys, engine, upstream, None, session, lines, folder / "c.sock")  # type: ignore[arg-type]

        async def reload(actor: Principal) -> dict[str, Any]:
            result = house.reloads.pop(0)
            if isinstance(result, OutpostError):
                raise result
            return result

        def local(name: str, capabilities: Capabilities) -> Upstream:
            return LocalUpstream(name, engine.lease, capabilities, lambda: house.readiness[-1])

        gateway.router = Router(
            [
                Route("local", (Target(local("local", CHAT_MODEL)),), aliases=("gpt-4o-mini",)),
                Route("embedder", (Target(local("embedder", EMBEDDER)),)),
            ]
        )
        house.route("remote", "ok")
        house.doors = Doors(Operator(gateway, keys, recorder, lambda: {"replicas": []}, reload), limits, log)
        await house.doors.open(("127.0.0.1", 0), ("127.0.0.1", 0), house.control)
        try:
            yield house
        finally:
            engine.release.set()
            upstream.release.set()
            await gateway.shadows.close()
            await house.doors.close(0.2)


def target_of(
    house: House, kind: str, model: str, *, base_url: str | None = None, fetches_media: bool = False
) -> Target:
    """A model of a provider of a kind, played by the house's fake upstream."""
    made = openai_upstream(
        f"{kind}/{model}",
        model=model,
        base_url=base_url or house.upstream.url,
        api_key=UPSTREAM_KEY,
        session=house.session,
        kind=kind,
        fetches_media=fetches_media,
    )
    return Target(made, {}, "cloud")
