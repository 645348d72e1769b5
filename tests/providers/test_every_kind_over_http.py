"""Every kind of provider, from its settings to an answer over a real connection; and several keys of one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from appliance.dialects.kinds import CHAT
from appliance.dialects.tally import Tally
from appliance.errors import OutpostError, TargetLimited, TargetUsedUp, UpstreamError
from appliance.providers.catalogue import row
from appliance.providers.connect import connect
from appliance.providers.http import HttpUpstream, make_session
from appliance.providers.kinds import make_upstream
from appliance.providers.upstream import Call
from appliance.settings import Provider
from appliance.settings.providers import KINDS
from tests.fakes.replies import Reply, Seen
from tests.fakes.sink import taken
from tests.fakes.upstream import FakeUpstream, chat_whole

ENV = {"KEY": "sk-key-of-the-provider", "FIRST": "sk-first-of-two-keys", "SECOND": "sk-second-of-two-keys"}
KEY = {"env": "KEY"}
VERSIONS = {"gemini": "v1beta", "vertex": "v1/projects/p/locations/global/publishers/google", "cohere": "v2"}
OPTIONS: dict[str, dict[str, Any]] = {
    "vertex": {"project": "p"},
    "bedrock": {"region": "eu-central-1"},
    "openai_compatible": {"zone": "on_box"},
}


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as running:
        yield running


def call(*, stream: bool = False, **fields: Any) -> Call:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": stream, **fields}
    return Call("1", 0, CHAT, CHAT.parse(json.dumps(body).encode(), 64).request, "m", "p", 1.0, Tally())


def address(fake: FakeUpstream, kind: str) -> str:
    host = fake.url.removesuffix("/v1")
    return host if kind == "bedrock" else f"{host}/{VERSIONS.get(kind, 'v1')}"


def provider(**keys: Any) -> Provider:
    return Provider.model_validate({"name": "lab", **keys})


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_each_kind_answers(fake: FakeUpstream, kind: str, stream: bool) -> None:
    settings = provider(
        kind=kind, base_url=address(fake, kind), api_key=KEY, headers={"x-project": "r"}, **OPTIONS.get(kind, {})
    )
    async with make_session() as session:
        upstream = make_upstream("lab/ok", model="ok", connection=connect(settings, ENV, session), session=session)
        asked = call(stream=stream, max_completion_tokens=7, user="ann")
        answer = await taken(await upstream.stream(asked)) if stream else await upstream.whole(asked)
    assert "wörld 🌍".encode() in answer or b"w\\u00f6rld" in answer
    assert asked.tally.source == "reported"
    (seen,) = fake.seen
    assert seen.headers["x-project"] == "r"
    header = row(kind).auth.removeprefix("header:") if row(kind).auth.startswith("header:") else "authorization"
    assert ENV["KEY"] in seen.headers[header]
    for name, value in row(kind).headers.items():
        assert seen.headers[name] == value
    quirks = row(kind).quirks
    if row(kind).dialect == "openai":
        name = "max_completion_tokens" if quirks.token_limit == "as_sent" else quirks.token_limit
        assert seen.body[name] == 7
        assert ("user" in seen.body) == ("user" in quirks.pass_on)
        assert ("stream_options" in seen.body) == (stream and quirks.usage_in_streams == "asked")


async def test_the_older_azure_has_an_address_for_each_deployment(fake: FakeUpstream) -> None:
    settings = provider(kind="azure", base_url=fake.url + "/openai", api_version="2024-10-21", api_key={"env": "KEY"})
    async with make_session() as session:
        upstream = make_upstream("lab/ok", model="ok", connection=connect(settings, ENV, session), session=session)
        await upstream.whole(call())
    assert fake.seen[0].path == "/v1/openai/deployments/ok/chat/completions?api-version=2024-10-21"


# --- several keys ---------------------------------------------------------------------------------


def by_key(refusal: Reply) -> Any:
    """Refuses the first key, and answers the second."""

    def reply(seen: Seen) -> Reply:
        return refusal if ENV["FIRST"] in seen.headers["authorization"] else Reply(body=chat_whole())

    return reply


def refusal(status: int, code: str | None = None, **headers: str) -> Reply:
    body = json.dumps({"error": {"message": "no", "code": code}}).encode()
    return Reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


async def two_keys(fake: FakeUpstream, session: Any, **keys: Any) -> HttpUpstream:
    settings = provider(
        base_url=fake.url,
        zone="on_box",
        keys=[
            {"name": "first", "key": {"env": "FIRST"}, "weight": 1000},
            {"name": "second", "key": {"env": "SECOND"}},
        ],
        **keys,
    )
    connection = connect(settings, ENV, session)
    connection.keys.draw = lambda: 0.0  # the first, as long as it does not rest
    return make_upstream("lab/m", model="m", connection=connection, session=session)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (refusal(429, Retry_After="30"), TargetLimited),
        (refusal(429, "insufficient_quota"), TargetUsedUp),
        (refusal(401), UpstreamError),
        (refusal(403), UpstreamError),
    ],
)
async def test_where_one_key_is_refused_the_next_request_goes_out_with_another(
    fake: FakeUpstream, reply: Reply, kind: type[OutpostError]
) -> None:
    fake.behave("m", by_key(reply))
    async with make_session() as session:
        upstream = await two_keys(fake, session)
        with pytest.raises(kind) as caught:
            await upstream.whole(call())
        # At once, at the same target.
        assert caught.value.again
        assert caught.value.retry_after_s == 0.0
        for _ in range(3):
            assert await upstream.whole(call())
    assert [ENV["FIRST"] in seen.headers["authorization"] for seen in fake.seen] == [True, False, False, False]


async def test_a_provider_is_asked_no_more_often_than_the_operator_allows(fake: FakeUpstream) -> None:
    fake.behave("m", lambda seen: Reply(body=chat_whole()))
    async with make_session() as session:
        upstream = await two_keys(fake, session, max_requests_per_minute=2)
        for _ in range(2):
            await upstream.whole(call())
        with pytest.raises(TargetLimited, match="operator allows") as caught:
            await upstream.whole(call())
    assert 50 < (caught.value.retry_after_s or 0) <= 60
    assert len(fake.seen) == 2
