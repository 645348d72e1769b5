from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from appliance.dialects.kinds import CHAT
from appliance.dialects.tally import Tally
from appliance.providers.http import make_session
from appliance.providers.upstream import Call
from tests.fakes.providers import upstream as openai_upstream
from tests.fakes.sink import taken
from tests.fakes.upstream import FakeUpstream


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        yield running


def call(*, stream: bool) -> Call:
    body = b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"stream":%b}' % (b"true" if stream else b"false")
    return Call("1", 0, CHAT, CHAT.parse(body, 64).request, "m", "p", 1.0, Tally())


async def test_a_connection_is_used_again_though_its_message_ends_after_the_marker(fake: FakeUpstream) -> None:
    async with make_session() as session:
        upstream = openai_upstream("u", model="slices", base_url=fake.url, api_key=None, session=session)
        for _ in range(3):
            assert await taken(await upstream.stream(call(stream=True)))
            # The rest of the message is read behind the caller's back.
            async with asyncio.timeout(5):
                while upstream.lingering:
                    await asyncio.sleep(0)
    assert fake.connections == 1


async def test_a_stream_that_is_left_closes_its_connection(fake: FakeUpstream) -> None:
    async with make_session() as session:
        upstream = openai_upstream("u", model="stall", base_url=fake.url, api_key=None, session=session)
        stream = await upstream.stream(call(stream=True))
        assert stream.first
        await stream.aclose()
        async with asyncio.timeout(5):
            await fake.hung_up.acquire()


async def test_no_cookie_is_kept(fake: FakeUpstream) -> None:
    async with make_session() as session:
        upstream = openai_upstream("u", model="ok", base_url=fake.url + "/", api_key="sk", session=session)
        for _ in range(2):
            await upstream.whole(call(stream=False))
    assert all("cookie" not in seen.headers for seen in fake.seen)
    assert fake.seen[0].path == "/v1/chat/completions"
