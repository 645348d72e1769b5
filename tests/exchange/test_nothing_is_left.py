"""What belonged to an exchange is gone with it: no circle of references keeps it until a garbage collection.

Where one did, the collector took a tenth of the process, and every request worked on memory that had gone cold.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from appliance.account import Account
from appliance.exchange import Exchange
from appliance.limits.counters import Reservation
from appliance.relay import Relay
from appliance.routing.routes import Deadlines, Rescue
from appliance.routing.watch import Watch
from tests.fakes.answers import events_of
from tests.fakes.house import House

SHORT = Deadlines(connect=0.2, first_token=0.2, idle=0.2, total=0.4)
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9},
    "/v1/responses": {"input": "Hi"},
}
OWN = (Exchange, Relay, Account, Reservation, Watch)


@contextlib.asynccontextmanager
async def nothing_left(house: House) -> AsyncIterator[None]:
    """What is done within leaves nothing behind, once the connections' tasks are done with what they answered."""
    gc.collect()
    gc.disable()
    before = there()
    try:
        yield
        async with asyncio.timeout(10):
            while house.gateway.running or there() - before:
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"still there: {there() - before}")
    finally:
        gc.enable()


def there() -> Counter[str]:
    return Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, OWN))


@pytest.mark.parametrize("model", ["local", "remote"])
@pytest.mark.parametrize("stream", [False, True])
async def test_of_an_answer(house: House, model: str, stream: bool) -> None:
    async with nothing_left(house):
        for _ in range(3):
            response = await house.chat(model, stream=stream)
            assert response.status == 200
            await (events_of(response) if stream else response.read())


@pytest.mark.parametrize("fault", ["500", "429", "silent", "stall", "cut", "closed", "error-in-stream", "garbage"])
@pytest.mark.parametrize("stream", [False, True])
async def test_of_a_failure(house: House, fault: str, stream: bool) -> None:
    house.route("faulty", fault, deadlines=SHORT)
    async with nothing_left(house):
        for _ in range(3):
            if fault in ("cut", "error-in-stream"):
                house.upstream.release.set()
            with contextlib.suppress(aiohttp.ClientError):
                await house.chat("faulty", stream=stream)
        house.upstream.release.set()


async def test_of_one_whose_client_has_gone(house: House) -> None:
    house.route("faulty", "silent")
    async with nothing_left(house):
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await house.chat("faulty")


@pytest.mark.parametrize("fault", ["500", "429", "silent", "stall", "cut"])
@pytest.mark.parametrize("path", sorted(BODIES))
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("rescue", ["off", "buffer", "resume"])
async def test_of_one_that_another_target_answers(
    house: House, fault: str, path: str, stream: bool, rescue: Rescue
) -> None:
    house.route("faulty", fault, "ok", deadlines=SHORT, rescue=rescue)
    async with nothing_left(house):
        for _ in range(2):
            if fault == "cut":
                house.upstream.release.set()
            with contextlib.suppress(aiohttp.ClientError):
                await house.post(path, {"model": "faulty", "stream": stream, **BODIES[path]})
        house.upstream.release.set()
