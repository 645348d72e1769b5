"""A stream that breaks after all was said is an answer; one that breaks before is none."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from appliance.dialects.kinds import CHAT, MESSAGES, RESPONSES, Kind
from appliance.dialects.sse import DONE_EVENT, event
from appliance.dialects.tally import Tally
from appliance.errors import UpstreamFailed
from appliance.providers import relayed
from appliance.providers.http import make_session
from appliance.providers.upstream import Call
from tests.fakes.providers import upstream
from tests.fakes.sink import taken
from tests.fakes.tongue_openai import chunk
from tests.fakes.upstream import FakeUpstream, Reply, chat_events

EVENTS = [*map(event, chat_events(["The answer", " is 42."])), DONE_EVENT]
SAID = b"".join(EVENTS[:-2])
"""All up to the reason for the end."""
WHOLE = b"".join(EVENTS)
BODIES = {
    CHAT: b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"stream":true,'
    b'"stream_options":{"include_usage":true}}',
    MESSAGES: b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"Hi"}],"stream":true}',
    RESPONSES: b'{"model":"m","input":"Hi","stream":true}',
}
End = Callable[[asyncio.StreamWriter], None]


def close(writer: asyncio.StreamWriter) -> None:
    pass


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def bad_chunk(writer: asyncio.StreamWriter) -> None:
    writer.write(b"this is no size of a chunk\r\n")


ENDS = {"closed": close, "reset": reset, "no chunk": bad_chunk}


@asynccontextmanager
async def sending(pieces: Iterator[tuple[bytes, End]]) -> AsyncIterator[Callable[[Kind, Tally], Awaitable[bytes]]]:
    """A server that sends one piece of a stream to each who asks, and then ends the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        data, end = next(pieces)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            await asyncio.sleep(0)  # the client takes it; else the HTTP client forgets it over what is no chunk
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))
        await writer.drain()
        end(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    async with make_session() as session:
        target = upstream("u", model="m", base_url=url, api_key=None, session=session)

        async def ask(kind: Kind, tally: Tally) -> bytes:
            asked = kind.parse(BODIES[kind], 64)
            call = Call("1", 0, kind, asked.request, "m", "p", 1.0, tally, native=asked.native)
            async with asyncio.timeout(10):
                stream = await target.stream(call)
                return await taken(stream) + stream.end()

        yield ask
        async with asyncio.timeout(5):
            while target.lingering:
                await asyncio.sleep(0)
    server.close()


CLEAN = {CHAT: b"data: [DONE]", MESSAGES: b"event: message_stop", RESPONSES: b"event: response.completed"}


@pytest.mark.parametrize("end", ENDS.values(), ids=list(ENDS))
@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.name)
async def test_however_the_connection_ends_an_answer_with_its_reason_is_complete(kind: Kind, end: End) -> None:
    async with sending((WHOLE[:cut], end) for cut in range(len(SAID), len(WHOLE) + 1)) as ask:
        for _ in range(len(SAID), len(WHOLE) + 1):
            tally = Tally()
            said = await ask(kind, tally)
            assert b"The answer" in said
            assert said.count(b"is 42.") >= 1
            assert CLEAN[kind] in said
            assert tally.reasons() == ["stop"]


@pytest.mark.parametrize("end", ENDS.values(), ids=list(ENDS))
@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.name)
async def test_and_one_without_is_a_failure(kind: Kind, end: End) -> None:
    async with sending((WHOLE[:cut], end) for cut in range(len(SAID) - 1)) as ask:
        for _ in range(len(SAID) - 1):
            with pytest.raises(UpstreamFailed):
                await ask(kind, Tally())


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        yield running


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with make_session() as made:
        yield made


async def ask(fake: FakeUpstream, session: aiohttp.ClientSession, kind: Kind, tally: Tally) -> bytes:
    target = upstream("u", model="x", base_url=fake.url, api_key=None, session=session)
    asked = kind.parse(BODIES[kind], 64)
    stream = await target.stream(Call("1", 0, kind, asked.request, "m", "p", 1.0, tally, native=asked.native))
    async with asyncio.timeout(20):
        return await taken(stream) + stream.end()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relayed, "GRACE_S", 0.01)
    monkeypatch.setattr(relayed, "COUNTS_S", 0.04)


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.name)
async def test_counts_are_awaited_for_longer(
    kind: Kind, fake: FakeUpstream, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relayed, "GRACE_S", 0.01)
    monkeypatch.setattr(relayed, "COUNTS_S", 60.0)
    fake.behave("x", lambda seen: Reply(events=chat_events(), pause_after=6, pause_s=0.1))
    tally = Tally()
    await ask(fake, session, kind, tally)
    assert (tally.source, tally.prompt_tokens, tally.completion_tokens) == ("reported", 5, 4)


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.name)
async def test_but_not_for_ever(hasty: None, kind: Kind, fake: FakeUpstream, session: aiohttp.ClientSession) -> None:
    fake.behave("x", lambda seen: Reply(events=chat_events(), hold_after=6))
    tally = Tally()
    assert CLEAN[kind] in await ask(fake, session, kind, tally)
    assert tally.source == "estimated"


async def test_who_has_counted_has_less_time_for_the_marker(
    fake: FakeUpstream, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relayed, "GRACE_S", 0.01)
    monkeypatch.setattr(relayed, "COUNTS_S", 60.0)
    fake.behave("x", lambda seen: Reply(events=chat_events(), hold_after=len(chat_events())))
    tally = Tally()
    assert CLEAN[CHAT] in await ask(fake, session, CHAT, tally)
    assert tally.source == "reported"


async def test_a_reason_in_each_chunk_does_not_cut_a_slow_answer(
    hasty: None, fake: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    texts = [chunk({"content": f"{i} "}, "stop") for i in range(20)]
    fake.behave("x", lambda seen: Reply(events=texts, pace_s=0.02))
    assert b'"19 "' in await ask(fake, session, CHAT, Tally())


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: kind.name)
async def test_an_empty_reason_is_none_yet(
    hasty: None, kind: Kind, fake: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    texts = [chunk({"content": "a"}, ""), chunk({"content": "b"}, "")]
    fake.behave("x", lambda seen: Reply(events=texts, end="cut"))
    with pytest.raises(UpstreamFailed):
        await ask(fake, session, kind, Tally())
    texts += [chunk({}, "stop")]
    fake.behave("x", lambda seen: Reply(events=texts, pause_after=1, pause_s=0.2))
    tally = Tally()
    said = await ask(fake, session, kind, tally)
    assert CLEAN[kind] in said
    assert b'"b"' in said
    assert tally.reasons() == ["stop"]


def reasons(said: bytes) -> list[str | None]:
    """Of the chunks of a chat."""
    found = []
    for line in said.split(b"\n\n"):
        if line.startswith(b"data: {"):
            found += [each["finish_reason"] for each in json.loads(line[6:])["choices"]]
    return found


@pytest.mark.parametrize(
    ("delta", "reason", "stop"),
    [
        ({"content": "a"}, "stop", b"end_turn"),
        (
            {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]},
            "tool_calls",
            b"tool_use",
        ),
    ],
    ids=["text", "call"],
)
async def test_a_marker_without_a_reason_ends_the_answer_with_one(
    delta: dict[str, Any], reason: str, stop: bytes, fake: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    fake.behave("x", lambda seen: Reply(events=[chunk(delta), chunk({})]))
    tally = Tally()
    said = await ask(fake, session, CHAT, tally)
    assert reasons(said) == [None, None, reason]
    assert tally.reasons() == [reason]
    last = json.loads(said.split(b"\n\n")[-3][6:])
    first = json.loads(said.split(b"\n\n")[0][6:])
    assert {name: last[name] for name in ("id", "model", "object")} == {
        name: first[name] for name in ("id", "model", "object")
    }
    assert stop in await ask(fake, session, MESSAGES, Tally())


async def test_a_marker_after_reasons_adds_none(fake: FakeUpstream, session: aiohttp.ClientSession) -> None:
    fake.behave("x", lambda seen: Reply(events=chat_events()))
    assert [each for each in reasons(await ask(fake, session, CHAT, Tally())) if each] == ["stop"]
