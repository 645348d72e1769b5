"""Tokens for a service account, from a token endpoint on loopback."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping
from typing import Any
from urllib.parse import parse_qs

import aiohttp
import pytest
import yarl
from joserfc import jwt

from appliance.errors import UpstreamError, UpstreamTimeout, UpstreamUnavailable
from appliance.providers import auth_google
from appliance.providers.auth import make
from appliance.providers.auth_base import Surroundings
from appliance.providers.auth_google import RETRY_S, ServiceAccount
from tests.fakes.issuer import FakeIssuer, ec, open_issuer, rsa

URL = yarl.URL("https://cloud.example/v1")
EMAIL = "outpost@project.iam.example"


class Clock:
    """Two clocks that go together; unix time began at 1,700,000,000."""

    def __init__(self) -> None:
        self.now = 1000.0

    def clock(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now


class Bank(FakeIssuer):
    """Keeps what was posted to it."""

    def __init__(self) -> None:
        super().__init__()
        self.forms: list[dict[str, list[str]]] = []
        self.count = 0

    async def _token(self, request: Any) -> Any:
        self.forms.append(parse_qs((await request.read()).decode()))
        return await super()._token(request)

    def gives(self, token: str, **more: Any) -> None:
        shape = {"access_token": token, "expires_in": 3600, "token_type": "Bearer", **more}
        self.token_answer = 200, json.dumps(shape).encode()

    @property
    def asked(self) -> int:
        return self.hits.get("/token", 0)


@pytest.fixture
async def bank(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bank]:
    monkeypatch.setattr("tests.fakes.issuer.FakeIssuer", Bank)
    async with open_issuer() as bank:
        assert isinstance(bank, Bank)
        bank.gives("ya29.first")
        yield bank


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


def file(**changes: Any) -> str:
    shape = {
        "type": "service_account",
        "client_email": EMAIL,
        "private_key": rsa().as_pem(private=True).decode(),
        "private_key_id": "key-1",
        "token_uri": "https://tokens.example/token",
        **changes,
    }
    return json.dumps({name: value for name, value in shape.items() if value is not ...})


@pytest.fixture
def account(bank: Bank, session: aiohttp.ClientSession) -> tuple[ServiceAccount, Clock]:
    time = Clock()
    around = Surroundings("vertex", session, wall=time.wall, clock=time.clock)
    made = make("google_service_account", {"service_account": file(), "token_uri": f"{bank.url}/token"}, around)
    assert isinstance(made, ServiceAccount)
    return made, time


def ask(account: ServiceAccount) -> Coroutine[Any, Any, Mapping[str, str]]:
    return account.headers("POST", URL, b"{}", {}, None)


async def test_an_assertion_is_exchanged_for_a_token(bank: Bank, account: tuple[ServiceAccount, Clock]) -> None:
    made, _ = account
    assert made.per_request
    assert await ask(made) == {"Authorization": "Bearer ya29.first"}
    [form] = bank.forms
    assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
    token = jwt.decode(form["assertion"][0], rsa(), algorithms=["RS256"])
    assert token.header == {"alg": "RS256", "typ": "JWT", "kid": "key-1"}
    now = 1_700_001_000
    assert token.claims == {
        "iss": EMAIL,
        "scope": "https://www.googleapis.com/auth/cloud-platform",
        "aud": f"{bank.url}/token",
        "iat": now,
        "exp": now + 3600,
    }


async def test_a_token_serves_until_a_minute_before_its_end(bank: Bank, account: tuple[ServiceAccount, Clock]) -> None:
    made, time = account
    first = await ask(made)
    time.now += 3539.9
    assert await ask(made) is first
    bank.gives("ya29.second")
    time.now += 0.2
    assert await ask(made) == {"Authorization": "Bearer ya29.second"}
    assert bank.asked == 2


async def test_a_short_token_serves_half_its_time(bank: Bank, account: tuple[ServiceAccount, Clock]) -> None:
    made, time = account
    bank.gives("ya29.short", expires_in=20)
    await ask(made)
    time.now += 9
    await ask(made)
    assert bank.asked == 1
    time.now += 2
    await ask(made)
    assert bank.asked == 2


async def test_many_requests_wait_for_one_fetch(bank: Bank, account: tuple[ServiceAccount, Clock]) -> None:
    made, _ = account
    bank.gate = asyncio.Event()
    waiting = [asyncio.create_task(ask(made)) for _ in range(20)]
    await bank.entered.wait()
    waiting[0].cancel()  # it began the fetch; the others still get its token
    await asyncio.gather(waiting[0], return_exceptions=True)
    bank.gate.set()
    assert await asyncio.gather(*waiting[1:]) == [{"Authorization": "Bearer ya29.first"}] * 19
    assert bank.asked == 1


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (400, b'{"error":"invalid_grant","error_description":"secret words"}', UpstreamError, "upstream_credentials"),
        (401, b"secret words", UpstreamError, "upstream_credentials"),
        (403, b'{"error":{"message":"secret words"}}', UpstreamError, "upstream_credentials"),
        (503, b"secret words", UpstreamUnavailable, "upstream_unavailable"),
        (429, b"", UpstreamUnavailable, "upstream_unavailable"),
        (302, b"", UpstreamUnavailable, "upstream_unavailable"),
        (200, b"secret words", UpstreamUnavailable, "upstream_unavailable"),
        (200, b'{"access_token":"secret words","expires_in":60}', UpstreamUnavailable, "upstream_unavailable"),
        (200, b'{"access_token":"t","expires_in":0}', UpstreamUnavailable, "upstream_unavailable"),
        (200, b'{"access_token":"t","expires_in":60,"token_type":"MAC"}', UpstreamUnavailable, "upstream_unavailable"),
        (200, b'{"access_token":"t"}', UpstreamUnavailable, "upstream_unavailable"),
        (200, b'{"access_token":"t","expires_in":60,"more":"' + b"x" * 70_000 + b'"}', UpstreamUnavailable, None),
    ],
)
async def test_without_a_token_there_is_an_error(
    bank: Bank,
    account: tuple[ServiceAccount, Clock],
    caplog: pytest.LogCaptureFixture,
    status: int,
    body: bytes,
    kind: type[UpstreamError],
    code: str | None,
) -> None:
    made, time = account
    bank.token_answer = status, body
    with caplog.at_level(logging.DEBUG), pytest.raises(UpstreamError) as caught:
        await ask(made)
    assert type(caught.value) is kind
    assert caught.value.code == (code or kind.code)
    assert "vertex" in caught.value.message
    told = caught.value.message + "".join(str(vars(record)) for record in caplog.records if "outpost" in record.name)
    assert "secret" not in told
    assert bank.url not in caught.value.message
    # It is not asked again at once, but soon.
    bank.gives("ya29.second")
    with pytest.raises(kind):
        await ask(made)
    assert bank.asked == 1
    time.now += RETRY_S
    assert await ask(made) == {"Authorization": "Bearer ya29.second"}


async def test_an_endpoint_that_is_not_there(session: aiohttp.ClientSession, unused_tcp_port: int) -> None:
    options = {"service_account": file(token_uri=f"http://127.0.0.1:{unused_tcp_port}/token")}
    with pytest.raises(UpstreamUnavailable) as caught:
        await make("google_service_account", options, Surroundings("vertex", session)).headers(
            "POST", URL, b"", {}, None
        )
    assert str(unused_tcp_port) not in caught.value.message


async def test_an_endpoint_that_never_answers(
    bank: Bank, account: tuple[ServiceAccount, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_google, "FETCH_S", 0.05)
    bank.gate = asyncio.Event()
    with pytest.raises(UpstreamTimeout):
        await ask(account[0])
    bank.gate.set()


async def test_the_old_token_does_until_its_end_while_there_is_no_new_one(
    bank: Bank, account: tuple[ServiceAccount, Clock]
) -> None:
    made, time = account
    first = await ask(made)
    bank.token_answer = 503, b""
    time.now += 3550
    assert await ask(made) is first
    time.now += 51
    with pytest.raises(UpstreamUnavailable):
        await ask(made)


async def test_a_token_that_was_refused_is_fetched_anew_unless_it_is_new(
    bank: Bank, account: tuple[ServiceAccount, Clock]
) -> None:
    made, time = account
    first = await ask(made)
    bank.gives("ya29.second")
    made.refused()
    assert await ask(made) is first
    time.now += RETRY_S
    made.refused()
    assert await ask(made) == {"Authorization": "Bearer ya29.second"}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{", "no JSON file"),
        ("[]", "no JSON file"),
        (file(type="authorized_user"), "no JSON file"),
        (file(client_email=...), "no JSON file"),
        (file(private_key="secret-words"), "no RSA key"),
        (file(private_key="-----BEGIN PRIVATE KEY-----\nsecret-words\n-----END PRIVATE KEY-----"), "no RSA key"),
        (file(private_key=rsa().as_pem(private=False).decode()), "no RSA key"),
        (file(private_key=ec().as_pem(private=True).decode()), "no RSA key"),
        (file(token_uri="http://tokens.example/token"), "https"),
        (file(token_uri="https:///token"), "https"),
        (file(token_uri="nonsense"), "https"),
    ],
)
async def test_a_file_that_cannot_be_used_is_refused_unseen(
    session: aiohttp.ClientSession, bad: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make("google_service_account", {"service_account": bad}, Surroundings("vertex", session))
    assert "secret" not in str(caught.value)


async def test_a_key_is_in_no_repr(account: tuple[ServiceAccount, Clock]) -> None:
    made, _ = account
    await ask(made)
    assert "ya29" not in repr(made)
    assert "PRIVATE" not in repr(made)
