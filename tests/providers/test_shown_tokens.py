"""Tokens that a provider is shown in place of a key, and that it repeats in what it says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import pytest

from appliance.dialects.kinds import CHAT
from appliance.dialects.tally import Tally
from appliance.errors import OutpostError, UpstreamFailed
from appliance.providers.auth import make
from appliance.providers.auth_base import Surroundings
from appliance.providers.connect import connect
from appliance.providers.http import HttpUpstream, make_session
from appliance.providers.kinds import make_upstream
from appliance.providers.upstream import Call
from appliance.settings import Provider
from tests.fakes.replies import Reply, Seen
from tests.fakes.sink import taken
from tests.fakes.upstream import FakeUpstream, chat_whole

TOKEN = "ya29.a-token-that-serves-for-an-hour"


class Token:
    """As a service account's."""

    per_request = True
    secret = ""

    async def headers(self, *_: Any) -> Mapping[str, str]:
        self.secret = TOKEN
        return {"Authorization": f"Bearer {TOKEN}"}

    def refused(self) -> None:
        pass


def whole(seen: Seen) -> Reply:
    return Reply(body=chat_whole(f"You said {seen.headers['authorization']}."))


def refusal(seen: Seen) -> Reply:
    return Reply(status=400, body=json.dumps({"error": {"message": f"Bad {seen.headers['authorization']}"}}).encode())


@pytest.fixture
async def upstream() -> AsyncIterator[tuple[FakeUpstream, HttpUpstream]]:
    settings = Provider.model_validate({"name": "lab", "base_url": "http://x/v1", "zone": "on_box"})
    async with FakeUpstream() as fake, make_session() as session:
        settings = settings.model_copy(update={"base_url": fake.url})
        connection = msgspec.structs.replace(connect(settings, {}, session), auth=Token())
        yield fake, make_upstream("lab/m", model="m", connection=connection, session=session)


def call(**fields: Any) -> Call:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return Call("1", 0, CHAT, CHAT.parse(json.dumps(body).encode(), 64).request, "m", "p", 1.0, Tally())


async def test_an_answer_that_repeats_a_token_is_withheld(upstream: tuple[FakeUpstream, HttpUpstream]) -> None:
    fake, asked = upstream
    fake.behave("m", whole)
    with pytest.raises(UpstreamFailed, match="withheld"):
        await asked.whole(call())
    said = {"choices": [{"index": 0, "delta": {"content": f"It is {TOKEN}."}}]}
    fake.behave("m", lambda _: Reply(events=[json.dumps(said).encode()]))
    with pytest.raises(UpstreamFailed, match="withheld"):
        await taken(await asked.stream(call(stream=True)))


async def test_a_refusal_is_told_without_the_token(upstream: tuple[FakeUpstream, HttpUpstream]) -> None:
    fake, asked = upstream
    fake.behave("m", refusal)
    with pytest.raises(OutpostError, match="Bad") as caught:
        await asked.whole(call())
    assert TOKEN not in caught.value.message


def test_a_sessions_token_is_shown_too() -> None:
    options = {"access_key": "AKIA", "secret_key": "never sent", "region": "eu-central-1"}
    assert make("sigv4", options, Surroundings("bedrock")).secret == ""
    assert make("sigv4", {**options, "session_token": TOKEN}, Surroundings("bedrock")).secret == TOKEN
