"""Browser login with a provider that misbehaves, and with what the settings say of it."""

from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.door.login_console import LIFE, Console, log_in, open_console, refreshed_to
from tests.fakes.issuer import FakeIssuer, open_issuer, rsa, sign


@pytest.fixture
async def console() -> AsyncIterator[Console]:
    async with open_console() as opened:
        yield opened


@pytest.fixture
async def issuer() -> AsyncIterator[FakeIssuer]:
    async with open_issuer() as opened:
        yield opened


@pytest.fixture
async def browser() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield client


async def begin(console: Console, browser: httpx.AsyncClient) -> str:
    """The address that the provider sends the browser back to."""
    begun = await browser.get(console.url + "/login")
    return str((await browser.get(begun.headers["Location"])).headers["Location"])


async def test_an_answer_counts_once_and_in_its_own_browser(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient
) -> None:
    console.use(console.entry(issuer.url))
    back = await begin(console, browser)
    async with httpx.AsyncClient() as other:
        assert (await other.get(back)).status_code == 401, "no cookie"
        await other.get(console.url + "/login")
        assert (await other.get(back)).status_code == 401, "another login's cookie"
    assert (await browser.get(back)).status_code == 200
    assert (await browser.get(back)).status_code == 401
    assert len(console.sessions) == 1


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"error": "access_denied"}, 401),
        ({"state": "wrong"}, 401),
        ({"state": ""}, 401),
        ({"code": ""}, 401),
        ({"code": "x" * 2049}, 401),
        ({"code": "unknown"}, 401),
        ({"error": "server_error"}, 401),
        ({"error": "<script>alert(1)</script>"}, 401),
        ({"iss": "https://evil.example.com"}, 401),
    ],
    ids=str,
)
async def test_answers_that_are_refused(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient, query: dict[str, str], status: int
) -> None:
    console.use(console.entry(issuer.url))
    back = await begin(console, browser)
    page = await browser.get(httpx.URL(back).copy_merge_params(query))
    assert page.status_code == status
    assert "<script" not in page.text
    assert "outpost_session" not in page.headers.get("Set-Cookie", "")
    assert len(console.sessions) == 0


async def test_an_issuer_that_promises_to_name_itself_must(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient
) -> None:
    issuer.metadata["authorization_response_iss_parameter_supported"] = True
    console.use(console.entry(issuer.url))
    assert (await log_in(console, browser)).status_code == 401
    issuer.iss_parameter = issuer.url
    assert (await log_in(console, browser)).status_code == 200


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"nonce": "another"}, "does not belong to this browser"),
        ({"nonce": None}, "does not belong to this browser"),
        ({"aud": "another"}, "meant for somebody else"),
        ({"aud": "outpost"}, "meant for somebody else"),
        ({"aud": ["console", "another"]}, "another client"),
        ({"aud": ["console", "another"], "azp": "another"}, "another client"),
        ({"azp": "another"}, "another client"),
        ({"iss": "https://evil.example.com"}, "not accepted here"),
        ({"exp": 1}, "expired"),
        ({"sub": ""}, "does not say whose"),
    ],
    ids=str,
)
async def test_id_tokens_that_are_refused(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient, claims: dict[str, Any], says: str
) -> None:
    console.use(console.entry(issuer.url))
    issuer.id_claims = claims
    page = await log_in(console, browser)
    assert (page.status_code, len(console.sessions)) == (401, 0)
    assert says in unescape(page.text)


async def test_an_id_token_by_a_strangers_key(console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient) -> None:
    console.use(console.entry(issuer.url))
    issuer.sign_with = rsa("evil")
    assert (await log_in(console, browser)).status_code == 401


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ((200, b"{}"), 503),
        ((200, b"[]"), 503),
        ((200, b"no json"), 503),
        ((200, b'{"id_token": 7}'), 503),
        ((200, b'{"id_token": "x"}'), 401),
        ((400, b'{"error": "invalid_grant"}'), 401),
        ((500, b""), 503),
        ((302, b""), 503),
    ],
    ids=str,
)
async def test_answers_to_the_code(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient, answer: tuple[int, bytes], status: int
) -> None:
    console.use(console.entry(issuer.url))
    issuer.token_answer = answer
    page = await log_in(console, browser)
    assert (page.status_code, len(console.sessions)) == (status, 0)


async def test_a_provider_that_is_down(console: Console, browser: httpx.AsyncClient) -> None:
    console.use(console.entry("http://127.0.0.1:1"))
    page = await browser.get(console.url + "/login")
    assert page.status_code == 503
    assert "cannot be reached" in page.text


async def test_the_settings_change_while_somebody_logs_in(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient
) -> None:
    console.use(console.entry(issuer.url))
    back = await begin(console, browser)
    issuer.gate = asyncio.Event()
    issuer.entered.clear()
    finishing = asyncio.create_task(browser.get(back))
    await issuer.entered.wait()
    console.use(console.entry(issuer.url, roles={}))
    issuer.gate.set()
    assert (await finishing).status_code == 401
    assert len(console.sessions) == 0


# --- clients and providers ---


@pytest.mark.parametrize(
    ("methods", "header"), [(None, True), (["client_secret_basic"], True), (["client_secret_post"], False)]
)
async def test_how_the_secret_is_sent(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient, methods: list[str] | None, header: bool
) -> None:
    if methods is not None:
        issuer.metadata["token_endpoint_auth_methods_supported"] = methods
    console.use(console.entry(issuer.url, login={"client_secret": {"env": "SECRET"}}))
    assert (await log_in(console, browser)).status_code == 200
    assert (issuer.auth[0] is not None) is header
    if header:
        assert base64.b64decode((issuer.auth[0] or "").removeprefix("Basic ")) == b"console:a%2Bb+c%2F%25"


async def test_pinned_endpoints_need_no_discovery(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient, tmp_path: Path
) -> None:
    pins = {"authorization_endpoint": f"{issuer.url}/authorize", "token_endpoint": f"{issuer.url}/token"}
    console.use(console.entry(issuer.url, jwks={"url": f"{issuer.url}/jwks"}, login=pins))
    assert (await log_in(console, browser)).status_code == 200
    assert "/.well-known/openid-configuration" not in issuer.hits


async def test_endpoints_elsewhere_are_not_followed(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient
) -> None:
    issuer.metadata["token_endpoint"] = "http://127.0.0.1:1/token"
    console.use(console.entry(issuer.url))
    page = await browser.get(console.url + "/login")
    assert page.status_code == 503
    assert "login.token_endpoint" in page.text


async def test_of_several_providers_one_is_chosen(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient
) -> None:
    other = console.entry("http://127.0.0.1:1", name="other")
    console.use(console.entry(issuer.url), other)
    page = await browser.get(console.url + "/login?next=/x")
    links = [unescape(link) for link in re.findall(r'href="([^"]+)"', page.text)]
    assert links == ["/login?provider=corp&next=%2Fx", "/login?provider=other&next=%2Fx"]
    assert refreshed_to(await log_in(console, browser, links[0])) == "/x"
    assert (await browser.get(console.url + "/login?provider=none")).status_code == 404


async def test_without_a_login_in_the_settings(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient
) -> None:
    for path in ("/login", "/login/callback"):
        assert (await browser.get(console.url + path)).status_code == 404
    assert (await browser.get(console.url + "/admin/v1/session")).status_code == 401
    console.use({**LIFE, "issuer": issuer.url})
    assert (await browser.get(console.url + "/login")).status_code == 404
    now = time.time()
    body = {"iss": issuer.url, "aud": "outpost", "sub": "ann", "exp": now + 99, "groups": ["admins"]}
    headers = {"Authorization": f"Bearer {sign(body, rsa())}"}
    assert (await browser.get(console.url + "/thing", headers=headers)).text == "jwt:corp"
