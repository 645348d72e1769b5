"""A busy model on a real gateway: who goes first, that all advance, and that what is said of the wait is true."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.clients import PATIENCE_S, engine_of, settled
from tests.gateway import CHAT, Gateway, open_gateway

pytestmark = pytest.mark.timeout(300)

SLOTS, WAITING = 2, 8
INSIDE = SLOTS + 1
"""What the gateway lets into an engine with so many slots."""
WEIGHT = 4
"""Interactive work for one of batch."""


@pytest.fixture(scope="module")
def busy(model_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    settings = {
        "deployments": [
            {"name": CHAT, "model": CHAT, "engine": "llamacpp", "args": {"context": 512, "slots": SLOTS}},
        ],
        "admission": {
            "max_waiting": WAITING,
            "max_wait": {"interactive": "100s", "normal": "1s", "batch": "1h"},
            "weights": {"interactive": WEIGHT, "normal": 2, "batch": 1},
        },
    }
    with open_gateway(tmp_path_factory.mktemp("busy"), settings, store=model_store) as gateway:
        yield gateway


@dataclass
class Told:
    """What one client saw, by the monotonic clock."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    began: float = 0.0
    first: float = 0.0
    ended: float = 0.0


class Visitors:
    """Clients of one test; those that still wait at its end go."""

    def __init__(self, gateway: Gateway, http: httpx.AsyncClient) -> None:
        self.gateway = gateway
        self._http = http
        self._tasks: list[asyncio.Task[Told]] = []

    def send(self, priority: str, max_tokens: int, **fields: Any) -> asyncio.Task[Told]:
        """Ask for so many tokens, as a stream."""
        # The end of text is out of the question, so that each answer takes as long as it was asked to.
        body = {
            "model": CHAT,
            "prompt": "Once upon a time",
            "max_tokens": max_tokens,
            "temperature": 0,
            "logit_bias": {"0": -100, "2": -100},
            "stream": True,
            **fields,
        }
        task = asyncio.create_task(self._ask(priority, body))
        self._tasks.append(task)
        return task

    async def _ask(self, priority: str, body: dict[str, Any]) -> Told:
        told = Told(began=time.monotonic())
        async with self._http.stream(
            "POST", "/v1/completions", json=body, headers={"x-outpost-priority": priority}
        ) as response:
            told.status, told.headers = response.status_code, dict(response.headers)
            data = b""
            async for chunk in response.aiter_bytes():
                told.first = told.first or time.monotonic()
                data += chunk
        told.ended = time.monotonic()
        if told.status != 200:
            told.error = json.loads(data)["error"]["code"]
        return told

    async def running(self, count: int) -> None:
        """Until the gateway has exactly so many requests in hand."""
        end = time.monotonic() + PATIENCE_S
        while (found := (await asyncio.to_thread(self.gateway.status))["running"]) != count:
            assert time.monotonic() < end, f"{found} are running instead of {count}"

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def visitors(gateway: Gateway) -> AsyncIterator[Visitors]:
    limits = httpx.Limits(max_connections=None)
    async with gateway.async_http(limits=limits, timeout=PATIENCE_S) as http, engine_of(gateway) as engine:
        here = Visitors(gateway, http)
        try:
            yield here
        finally:
            await here.end()
            await settled(engine)
            await here.running(0)


async def test_an_urgent_request_goes_before_the_batch_that_waits(busy: Gateway) -> None:
    async with visitors(busy) as here:
        batch = [here.send("batch", 24) for _ in range(INSIDE + 6)]
        await here.running(len(batch))
        urgent = here.send("interactive", 4)
        told = await urgent
        ended_before = sum(task.done() for task in batch)
        assert told.status == 200
        rest = await asyncio.gather(*batch)
        assert {each.status for each in rest} == {200}
        later = [each for each in rest if each.first > told.first]
        assert len(later) >= len(batch) - INSIDE - sum(each.ended < told.began for each in rest)
        assert ended_before <= INSIDE
    rows = {row["priority"]: row for row in busy.rows()[-len(batch) - 1 :]}
    assert set(rows) == {"batch", "interactive"}


async def test_batch_advances_however_many_urgent_requests_keep_coming(busy: Gateway) -> None:
    async with visitors(busy) as here:
        over = asyncio.Event()
        served: list[float] = []

        async def keep_coming() -> None:
            while not over.is_set():
                told = await here.send("interactive", 3)
                assert told.status == 200
                served.append(told.first)

        async with asyncio.TaskGroup() as group:
            # Enough of them that some always wait.
            for _ in range(INSIDE + 3):
                group.create_task(keep_coming())
            await here.running(INSIDE + 3)
            batch = await asyncio.gather(*(here.send("batch", 3) for _ in range(4)))
            over.set()
        assert {each.status for each in batch} == {200}
        began = min(each.began for each in batch)
        for number, first in enumerate(sorted(each.first for each in batch), 1):
            passed = sum(began < at < first for at in served)
            # Those that were in already, and for each of batch as many as the weights say.
            assert passed <= 2 * INSIDE + (WEIGHT + 1) * number
        last = max(each.first for each in batch)
        assert sum(began < at < last for at in served) >= WEIGHT, "batch waits for its turn"


async def test_clients_that_leave_the_queue_are_gone(busy: Gateway) -> None:
    async with visitors(busy) as here, engine_of(busy) as engine:
        working = [here.send("batch", 60) for _ in range(INSIDE)]
        await here.running(INSIDE)
        leaving = [here.send("normal", 200, prompt=[1000 + n] * 50) for n in range(5)]
        await here.running(INSIDE + 5)
        stays = here.send("batch", 3)
        await here.running(INSIDE + 6)
        before = await engine.status()
        for task in leaving:
            task.cancel()
        await here.running(INSIDE + 1 - sum(task.done() for task in working))
        assert (await stays).status == 200
        after = await engine.status()
        assert after.tokens_prefilled - before.tokens_prefilled < 50, "nothing of those that left was read"
        await asyncio.gather(*working)
    left = [row for row in busy.rows()[-INSIDE - 6 :] if row["outcome"] == "client_closed"]
    assert len(left) == 5
    assert all(row["completion_tokens"] == 0 for row in left)


async def test_a_full_queue_says_honestly_when_to_come_back(busy: Gateway) -> None:
    async with visitors(busy) as here:
        # First some that are served, so that the gateway knows how long they take.
        first = [here.send("batch", 20) for _ in range(INSIDE + WAITING)]
        await here.running(INSIDE + WAITING)
        pending = set(first)
        while len(pending) > INSIDE:
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        accepted = [*pending, *(here.send("batch", 20) for _ in range(INSIDE + WAITING - len(pending)))]
        turned_away: list[Told] = []
        while not turned_away:
            # Whoever is let in, since one has ended meanwhile, waits with the others. They come faster than any engine
            # serves them.
            accepted.append(here.send("batch", 20))
            await asyncio.wait([accepted[-1]], timeout=0.03)
            turned_away = [each.result() for each in accepted if each.done() and each.result().status != 200]
        refused = turned_away[0]
        assert (refused.status, refused.error) == (503, "overloaded")
        promised = int(refused.headers["retry-after"])
        told = [each for each in await asyncio.gather(*accepted) if each.status == 200]
        # It would have been the next one after all those that wait.
        waited = max(each.first for each in told) - refused.ended
        assert promised / 2 - 1 <= waited <= 2 * promised + 1, (promised, waited)


async def test_who_waits_too_long_is_told_so(busy: Gateway) -> None:
    async with visitors(busy) as here:
        for _ in range(INSIDE):
            here.send("batch", 300)
        await here.running(INSIDE)
        told = await here.send("normal", 4)
        assert (told.status, told.error) == (503, "queue_timeout")
        assert 1.0 <= told.ended - told.began < 10.0
        assert int(told.headers["retry-after"]) >= 1


async def test_a_request_for_many_choices_is_served_and_lets_others_in(busy: Gateway) -> None:
    async with visitors(busy) as here:
        many = here.send("batch", 8, n=16)
        await here.running(1)
        one = await here.send("interactive", 2)
        assert one.status == 200
        assert (await many).status == 200


async def test_an_unknown_class_is_refused_by_name(busy: Gateway) -> None:
    async with visitors(busy) as here:
        told = await here.send("urgent", 4)
        assert (told.status, told.error) == (400, "invalid_value")
