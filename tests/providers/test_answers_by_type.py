"""What servers say that their answers are, and what these are all the same."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from appliance import errors
from appliance.dialects.kinds import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Kind
from appliance.dialects.tally import Tally
from appliance.providers.http import make_session
from appliance.providers.upstream import Call
from tests.fakes.providers import upstream
from tests.fakes.sink import taken
from tests.fakes.tongue_openai import completion_whole, without_usage
from tests.fakes.upstream import FakeUpstream, Reply, chat_events, chat_whole

BODIES: dict[Kind, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}], "stream_options": {"include_usage": True}},
    MESSAGES: {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9},
    RESPONSES: {"input": "Hi"},
    COMPLETIONS: {"prompt": "Hi"},
}
kinds = pytest.mark.parametrize("kind", [CHAT, MESSAGES, RESPONSES], ids=lambda kind: kind.name)


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        yield running


async def ask(fake: FakeUpstream, kind: Kind, reply: Reply, tally: Tally | None = None, key: str = "sk-1") -> bytes:
    """The stream that comes of a reply, with its end."""
    fake.behave("x", lambda seen: reply)
    async with make_session() as session:
        target = upstream("u", model="x", base_url=fake.url, api_key=key, session=session)
        asked = kind.parse(json.dumps({"model": "m", "stream": True, **BODIES[kind]}).encode(), 64)
        call = Call("1", 0, kind, asked.request, "m", "p", 1.0, tally or Tally(), native=asked.native)
        stream = await target.stream(call)
        return await taken(stream) + stream.end()


CLEAN = {
    CHAT: b"data: [DONE]",
    MESSAGES: b"event: message_stop",
    RESPONSES: b"event: response.completed",
    COMPLETIONS: b"data: [DONE]",
}


@kinds
async def test_a_whole_answer_to_who_asked_for_a_stream_is_streamed(kind: Kind, fake: FakeUpstream) -> None:
    tally = Tally()
    said = await ask(fake, kind, Reply(body=chat_whole("The answer.")), tally)
    assert b"The answer." in said
    assert CLEAN[kind] in said
    assert (tally.source, tally.prompt_tokens, tally.completion_tokens) == ("reported", 5, 4)
    assert tally.reasons() == ["stop"]


async def test_a_completion_too(fake: FakeUpstream) -> None:
    said = await ask(fake, COMPLETIONS, Reply(body=completion_whole()))
    assert b'"text":"Hello"' in said
    assert b'"finish_reason":"length"' in said
    assert CLEAN[COMPLETIONS] in said


async def test_it_is_not_for_nothing(fake: FakeUpstream) -> None:
    tally = Tally()
    await ask(fake, CHAT, Reply(body=without_usage(chat_whole("a" * 400))), tally)
    assert tally.source == "estimated"
    assert tally.completion_tokens > 100


@kinds
async def test_an_error_in_place_of_a_stream_is_told_for_what_it_is(kind: Kind, fake: FakeUpstream) -> None:
    body = {"error": {"message": "slow down", "type": "rate_limit_error", "code": "rate_limit_exceeded"}}
    with pytest.raises(errors.TargetLimited):
        await ask(fake, kind, Reply(body=json.dumps(body).encode()))


@kinds
@pytest.mark.parametrize("body", [b"{}", b"[]", b"", b"no JSON", b'{"choices":[]}', chat_whole("")[:50]])
async def test_and_what_is_no_answer_is_a_failure(kind: Kind, body: bytes, fake: FakeUpstream) -> None:
    with pytest.raises(errors.UpstreamFailed):
        await ask(fake, kind, Reply(body=body))


async def test_nor_does_a_key_pass_that_way(fake: FakeUpstream) -> None:
    body = chat_whole("your key: sk-secret-1").replace(b"sk-", b"sk\\u002d")
    with pytest.raises(errors.UpstreamFailed, match="credential"):
        await ask(fake, CHAT, Reply(body=body), key="sk-secret-1")


@kinds
@pytest.mark.parametrize("told", ["", "text/plain; charset=utf-8", "application/octet-stream", "text/event-stream;x=y"])
async def test_a_stream_is_one_whatever_its_type(kind: Kind, told: str, fake: FakeUpstream) -> None:
    said = await ask(fake, kind, Reply(events=chat_events(["The answer."]), content_type=told))
    assert b"The answer." in said
    assert CLEAN[kind] in said


@kinds
@pytest.mark.parametrize("told", ["", "text/plain", "text/html", "image/png"])
async def test_a_page_is_no_stream(kind: Kind, told: str, fake: FakeUpstream) -> None:
    page = b"<html><body>Bad gateway</body></html>"
    with pytest.raises(errors.UpstreamFailed):
        await ask(fake, kind, Reply(body=page, headers={"Content-Type": told}))


@kinds
async def test_what_is_said_to_be_as_it_is_is_not_compressed(kind: Kind, fake: FakeUpstream) -> None:
    plain = {"Content-Encoding": "identity"}
    assert CLEAN[kind] in await ask(fake, kind, Reply(events=chat_events(), headers=plain))
    with pytest.raises(errors.UpstreamError, match="compressed"):
        await ask(fake, kind, Reply(events=chat_events(), headers={"Content-Encoding": "gzip"}))
