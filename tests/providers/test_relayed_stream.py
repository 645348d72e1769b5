"""A stream that is taken from the transport's own callback: pace, ends, and the connection afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import aiohttp
import pytest
import uvloop

from appliance.dialects.kinds import CHAT
from appliance.dialects.sse import event
from appliance.dialects.tally import Tally
from appliance.errors import UpstreamFailed
from appliance.providers.http import make_session
from appliance.providers.pool import Connector
from appliance.providers.upstream import Call, Stream
from tests.fakes.providers import upstream as openai_upstream
from tests.fakes.sink import Taker, taken
from tests.fakes.tls import client_side, server_side
from tests.fakes.upstream import FakeUpstream, Reply, chat_events

BODY = (
    b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"stream":true,"stream_options":{"include_usage":true}}'
)
MANY = chat_events([f"{i} " * 20 for i in range(3000)])
WHOLE = b"".join(map(event, MANY))


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        running.behave("many", lambda seen: Reply(events=MANY))
        running.behave("many-then-cut", lambda seen: Reply(events=MANY[:-2], end="cut"))
        running.behave("many-then-lost", lambda seen: Reply(events=MANY, end="cut"))
        yield running


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with make_session() as made:
        yield made


async def ask(fake: FakeUpstream, session: aiohttp.ClientSession, model: str) -> Stream:
    upstream = openai_upstream("u", model=model, base_url=fake.url, api_key=None, session=session)
    return await upstream.stream(Call("1", 0, CHAT, CHAT.parse(BODY, 64).request, "m", "p", 1.0, Tally()))


async def test_a_long_stream_arrives_whole_and_its_connection_is_used_again(
    fake: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    for _ in range(3):
        assert await taken(await ask(fake, session, "many")) == WHOLE
        await asyncio.sleep(0)
    assert fake.connections == 1


async def test_nothing_is_handed_out_while_the_client_is_slow_and_nothing_is_lost(
    fake: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    stream = await ask(fake, session, "many")
    taker = Taker(pace=True)
    pumping = asyncio.ensure_future(stream.pump(taker))
    async with asyncio.timeout(20):
        while not pumping.done():
            coming = asyncio.ensure_future(taker.came.acquire())
            await asyncio.wait((coming, pumping), return_when=asyncio.FIRST_COMPLETED)
            coming.cancel()
            count = len(taker.pieces)
            for _ in range(20):
                await asyncio.sleep(0)  # as much as may come in the meantime
            assert len(taker.pieces) == count
            taker.more.release()
    await stream.aclose()
    assert stream.first + b"".join(taker.pieces) == WHOLE
    assert len(taker.pieces) > 2


async def test_a_stream_that_broke_while_the_client_was_slow_is_a_failure(
    fake: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    stream = await ask(fake, session, "many-then-cut")
    taker = Taker(pace=True)
    taker.more = asyncio.Semaphore(10_000)
    with pytest.raises(UpstreamFailed, match="broke off"):
        async with asyncio.timeout(20):
            await stream.pump(taker)
    await stream.aclose()


async def test_an_answer_that_was_complete_before_it_broke_is_whole_for_a_slow_client(
    fake: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    stream = await ask(fake, session, "many-then-lost")
    taker = Taker(pace=True)
    taker.more = asyncio.Semaphore(10_000)
    async with asyncio.timeout(20):
        await stream.pump(taker)
    await stream.aclose()
    assert stream.first + b"".join(taker.pieces) == WHOLE


async def test_an_answer_that_waits_for_its_client_does_not_disturb_the_next_on_its_connection(
    fake: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    fake.behave("short", lambda seen: Reply(events=chat_events(), hold_after=3))
    slow = await ask(fake, session, "short")
    taker = Taker(pace=True)
    pumping = asyncio.ensure_future(slow.pump(taker))
    fake.release.set()
    async with asyncio.timeout(20):
        await taker.came.acquire()
        # The rest comes while the client is slow, and gives the connection back.
        while fake.connections == 1 and len(fake.seen) == 1:
            assert await taken(await ask(fake, session, "many")) == WHOLE
        for _ in range(100):
            taker.more.release()
        await pumping
    await slow.aclose()
    assert slow.first + b"".join(taker.pieces) == b"".join(map(event, chat_events()))


async def test_a_stream_that_is_left_while_it_is_pumped_hangs_up(
    fake: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    stream = await ask(fake, session, "stall")
    pumping = asyncio.ensure_future(stream.pump(Taker()))
    await fake.sending.acquire()
    pumping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pumping
    await stream.aclose()
    async with asyncio.timeout(5):
        await fake.hung_up.acquire()


async def test_a_sink_that_fails_ends_the_stream_with_its_error(
    fake: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    class Broken(Taker):
        def send(self, data: bytes) -> bool:
            raise RuntimeError("no more room")

    stream = await ask(fake, session, "many")
    with pytest.raises(RuntimeError, match="no more room"):
        await stream.pump(Broken())
    await stream.aclose()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_both_loops_and_tls(tls: bool, run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def story() -> None:
        async with (
            FakeUpstream(server_side() if tls else None) as fake,
            aiohttp.ClientSession(connector=Connector(ssl=client_side() if tls else True)) as session,
        ):
            fake.behave("many", lambda seen: Reply(events=MANY))
            for _ in range(3):
                assert await taken(await ask(fake, session, "many")) == WHOLE
                await asyncio.sleep(0)
            assert fake.connections == 1

    run(story())
