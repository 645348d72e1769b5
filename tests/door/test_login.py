"""Browser login over real sockets: with a real provider, and with one that misbehaves."""

from __future__ import annotations

import asyncio
import base64
import itertools
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import httpx
import pytest
from aiohttp import web
from oidc_provider_mock import User, run_server_in_thread

from appliance.door.door import Door
from appliance.door.endpoint import Endpoint, Visit
from appliance.door.listen import Listener
from appliance.door.login import CSRF_HEADER, Login
from appliance.door.render import problem, respond
from appliance.door.terms import Terms
from appliance.door.who import who_asks
from appliance.identity.authenticator import Authenticator
from appliance.identity.oidc import Provider, build_providers
from appliance.identity.principal import Principal
from appliance.identity.sessions import ABSOLUTE_S, IDLE_S, Logins, Sessions
from appliance.settings import from_mapping
from tests.fakes.issuer import FakeIssuer, FakePeople, open_issuer, rsa, sign

pytestmark = pytest.mark.filterwarnings("ignore:get_jwt_config:DeprecationWarning")

KEY = Principal("key_1", "one", "admin")
LIFE = {"name": "corp", "audience": "outpost", "claims": {"role": "groups"}, "roles": {"admins": "admin"}}


class Keys:
    def identify(self, presented: str, address: str | None = None) -> Principal | None:
        return KEY if presented == "op-key" else None


class Clock:
    def __init__(self) -> None:
        self.ahead = 0.0

    def wall(self) -> float:
        return time.time() + self.ahead

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


class Console:
    """An operator's listener with logins, and two endpoints of its own to try them on."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.clock = Clock()
        self.people = FakePeople()
        numbers = itertools.count(1)
        random = lambda size: next(numbers).to_bytes(size, "big")  # noqa: E731
        self.sessions = Sessions(self.clock.monotonic, random)
        self.login = Login(self.people, self.sessions, Logins(self.clock.monotonic, random), clock=self.clock.wall)
        self.who = Authenticator(Keys(), self.people, clock=self.clock.wall)
        self.terms = Terms()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def use(self, *entries: Mapping[str, Any], before: tuple[Provider, ...] = ()) -> tuple[Provider, ...]:
        """Go by these issuers from now on."""
        env = {"SECRET": "a+b c/%"}
        identity = from_mapping({"identity": {"oidc": list(entries)}}).identity
        providers = build_providers(identity, env, self.session, self.clock.monotonic, before=before)
        self.who.change(providers, ())
        self.login.change(providers)
        return providers

    def entry(self, issuer: str, **changes: Any) -> dict[str, Any]:
        login = {"client_id": "console", "redirect_base": self.url, **changes.pop("login", {})}
        return {**LIFE, "issuer": issuer, "login": login, **changes}

    def endpoints(self) -> tuple[Endpoint, ...]:
        async def show(visit: Visit) -> web.StreamResponse:
            principal = await who_asks(self.who, self.login, visit.request)
            return respond(principal.key_name.encode(), visit.id)

        return (
            *self.login.endpoints(),
            Endpoint("GET", "/thing", "status.read", show, identifies=True),
            Endpoint("POST", "/thing", "status.read", show, identifies=True),
        )


@pytest.fixture
async def console() -> AsyncIterator[Console]:
    async with aiohttp.ClientSession() as session:
        made = Console(session)
        door = Door(
            made.endpoints(),
            keyring=Keys(),
            render=problem,
            clock=made.clock,
            new_id=lambda: "id1",
            terms=made.terms,
        )
        listener = Listener(door, made.terms)
        made.port = await listener.tcp("127.0.0.1", 0)
        try:
            yield made
        finally:
            listener.stop_accepting()
            for server in listener.servers:
                server.close()
            await listener.close(0.1)


@pytest.fixture
async def issuer() -> AsyncIterator[FakeIssuer]:
    async with open_issuer() as opened:
        yield opened


@pytest.fixture
async def browser() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield client


def refreshed_to(page: httpx.Response) -> str:
    found = re.search(r'<meta http-equiv="refresh" content="0;url=([^"]*)">', page.text)
    assert found is not None, page.text
    return unescape(found[1])


async def log_in(console: Console, browser: httpx.AsyncClient, path: str = "/login") -> httpx.Response:
    """The page that a login with the fake issuer ends on."""
    return await browser.get(console.url + path, follow_redirects=True)


async def change(console: Console, browser: httpx.AsyncClient, **headers: str | None) -> httpx.Response:
    csrf = (await browser.get(console.url + "/admin/v1/session")).json()["data"]["csrf"]
    sent = {CSRF_HEADER: csrf, "Origin": console.url, **{k.replace("_", "-"): v for k, v in headers.items()}}
    return await browser.post(
        console.url + "/thing", headers={name: value for name, value in sent.items() if value is not None}
    )


# --- a real provider ---


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    users = [User(sub="ann", claims={"preferred_username": "Ann", "groups": ["admins"]}), User(sub="bob")]
    with run_server_in_thread(user_claims=users) as server:
        yield f"http://localhost:{server.server_port}"


async def test_a_login_with_a_real_provider(console: Console, provider: str, browser: httpx.AsyncClient) -> None:
    console.use(console.entry(provider, login={"client_secret": {"env": "SECRET"}}))
    assert (await browser.get(console.url + "/thing")).status_code == 401
    asked = await browser.get(console.url + "/login?next=/overview%3Ftab=1", follow_redirects=True)
    assert asked.url.path == "/oauth2/authorize"
    given = await browser.post(asked.url, data={"sub": "ann"})
    assert given.status_code == 302
    page = await browser.get(given.headers["Location"])
    assert page.status_code == 200, page.text
    assert refreshed_to(page) == "/overview?tab=1"
    assert "Logged in as Ann." in page.text
    assert (await browser.get(console.url + "/thing")).text == "Ann"
    view = (await browser.get(console.url + "/admin/v1/session")).json()["data"]
    assert (view["name"], view["role"], view["idle"]) == ("Ann", "admin", IDLE_S)
    assert ABSOLUTE_S - 60 < view["expires_in"] <= ABSOLUTE_S
    assert (await change(console, browser)).text == "Ann"
    sent = {CSRF_HEADER: view["csrf"], "Origin": console.url}
    gone = await browser.post(console.url + "/logout", headers=sent)
    assert (await browser.get(console.url + "/thing")).status_code == 401
    leaving = await browser.get(gone.json()["data"]["provider_logout"])
    assert leaving.status_code == 200
    assert leaving.url.path == "/oauth2/end_session"


async def test_bearer_tokens_of_a_real_provider(console: Console, provider: str, browser: httpx.AsyncClient) -> None:
    console.use(console.entry(provider, audience=["my-client"]))
    query = {"client_id": "my-client", "redirect_uri": "http://localhost/x", "response_type": "code", "scope": "openid"}
    url = httpx.URL(f"{provider}/oauth2/authorize", params={**query, "nonce": "n", "state": "s"})
    given = await browser.post(url, data={"sub": "ann"})
    code = parse_qs(urlsplit(given.headers["Location"]).query)["code"][0]
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": query["redirect_uri"]}
    answer = await browser.post(f"{provider}/oauth2/token", data=form, auth=("my-client", "x"))
    token = answer.json()["id_token"]
    for _ in range(2):
        shown = await browser.get(console.url + "/thing", headers={"Authorization": f"Bearer {token}"})
        assert (shown.status_code, shown.text) == (200, "ann")
    opaque = answer.json()["access_token"]
    for wrong in (token[:-6] + "AAAAAA", opaque, token.rpartition(".")[0] + "."):
        refused = await browser.get(console.url + "/thing", headers={"Authorization": f"Bearer {wrong}"})
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert wrong not in refused.text


async def test_whoever_has_no_role_is_told(console: Console, provider: str, browser: httpx.AsyncClient) -> None:
    console.use(console.entry(provider, login={"client_secret": {"env": "SECRET"}}))
    asked = await browser.get(console.url + "/login", follow_redirects=True)
    given = await browser.post(asked.url, data={"sub": "bob"})
    page = await browser.get(given.headers["Location"])
    assert (page.status_code, len(console.sessions)) == (403, 0)
    assert "no role" in page.text


async def test_whoever_says_no_is_told(console: Console, provider: str, browser: httpx.AsyncClient) -> None:
    console.use(console.entry(provider))
    asked = await browser.get(console.url + "/login", follow_redirects=True)
    given = await browser.post(asked.url, data={"action": "deny"})
    page = await browser.get(given.headers["Location"])
    assert (page.status_code, len(console.sessions)) == (401, 0)


# --- cookies ---


async def test_cookies(console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient) -> None:
    console.use(console.entry(issuer.url))
    begun = await browser.get(console.url + "/login")
    assert begun.status_code == 302
    cookie = begun.headers["Set-Cookie"]
    assert {part.strip() for part in cookie.split(";")[1:]} == {
        "HttpOnly",
        "Max-Age=600",
        "Path=/login",
        "SameSite=Lax",
    }
    sent = parse_qs(urlsplit(begun.headers["Location"]).query)
    assert sent["code_challenge_method"] == ["S256"]
    assert sent["redirect_uri"] == [f"{console.url}/login/callback"]
    back = await browser.get(begun.headers["Location"])
    page = await browser.get(back.headers["Location"])
    first, second = page.headers.get_list("Set-Cookie")
    assert first.startswith("outpost_session=")
    assert {part.strip() for part in first.split(";")[1:]} == {"HttpOnly", "Path=/", "SameSite=Strict"}
    assert second.startswith('outpost_login=""')
    assert "Max-Age=0" in second
    for answer in (begun, page):
        assert answer.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "<script" not in answer.text


async def test_cookies_behind_https(console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient) -> None:
    console.use(console.entry(issuer.url, login={"redirect_base": "https://outpost.example.com"}))
    begun = await browser.get(console.url + "/login", headers={"Host": "outpost.example.com"})
    cookie = begun.headers["Set-Cookie"]
    assert cookie.startswith("__Secure-outpost_login=")
    assert "Secure" in cookie
    back = await browser.get(begun.headers["Location"])
    query = urlsplit(back.headers["Location"]).query
    headers = {"Host": "outpost.example.com", "Cookie": cookie.partition(";")[0]}
    page = await browser.get(f"{console.url}/login/callback?{query}", headers=headers)
    assert page.headers.get_list("Set-Cookie")[0].startswith("__Host-outpost_session=")
    assert "Secure" in page.headers["Set-Cookie"]


async def test_a_login_makes_a_new_session_each_time(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient
) -> None:
    console.use(console.entry(issuer.url))
    await log_in(console, browser)
    old = browser.cookies["outpost_session"]
    await log_in(console, browser)
    assert browser.cookies["outpost_session"] != old
    assert len(console.sessions) == 1
    shown = await httpx.AsyncClient().get(console.url + "/thing", headers={"Cookie": f"outpost_session={old}"})
    assert shown.status_code == 401


async def test_a_planted_session_is_not_taken_over(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient
) -> None:
    console.use(console.entry(issuer.url))
    planted = {"Cookie": "outpost_session=planted"}
    assert (await browser.get(console.url + "/thing", headers=planted)).status_code == 401
    begun = await browser.get(console.url + "/login", headers=planted)
    back = await browser.get(begun.headers["Location"])
    page = await browser.get(back.headers["Location"])
    assert page.status_code == 200
    assert "planted" not in page.headers["Set-Cookie"]
    assert (await browser.get(console.url + "/thing", headers=planted)).status_code == 401


# --- requests of somebody else's ---


@pytest.mark.parametrize(
    "headers",
    [
        {"x_outpost_csrf": None},
        {"x_outpost_csrf": ""},
        {"x_outpost_csrf": "wrong"},
        {"Origin": None},
        {"Origin": "null"},
        {"Origin": "https://evil.example.com"},
        {"Origin": "http://127.0.0.1:1"},
    ],
    ids=str,
)
async def test_changes_need_the_token_and_our_origin(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient, headers: dict[str, str | None]
) -> None:
    console.use(console.entry(issuer.url))
    await log_in(console, browser)
    refused = await change(console, browser, **headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "csrf")
    assert (await browser.post(console.url + "/logout", headers={"Origin": console.url})).status_code == 403
    assert (await change(console, browser)).status_code == 200


async def test_the_token_of_another_session_does_not_count(console: Console, issuer: FakeIssuer) -> None:
    console.use(console.entry(issuer.url))
    async with httpx.AsyncClient() as one, httpx.AsyncClient() as two:
        await log_in(console, one)
        await log_in(console, two)
        stolen = (await two.get(console.url + "/admin/v1/session")).json()["data"]["csrf"]
        assert (await change(console, one, x_outpost_csrf=stolen)).status_code == 403


async def test_a_key_needs_no_csrf_token_and_counts_before_the_session(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient
) -> None:
    console.use(console.entry(issuer.url))
    await log_in(console, browser)
    shown = await browser.post(console.url + "/thing", headers={"Authorization": "Bearer op-key"})
    assert shown.text == "one"
    for wrong in ("Bearer op-wrong", "Basic abc", "Bearer"):
        assert (await browser.get(console.url + "/thing", headers={"Authorization": wrong})).status_code == 401


@pytest.mark.parametrize("host", ["evil.example.com", "127.0.0.1", "127.0.0.1:1", "localhost:{port}", ""])
async def test_names_that_are_not_ours(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient, host: str
) -> None:
    """A page of somebody else's whose name leads here by DNS."""
    console.use(console.entry(issuer.url))
    await log_in(console, browser)
    headers = {"Host": host.format(port=console.port)}
    for path in ("/login", "/login/callback?code=1&state=1", "/admin/v1/session", "/thing"):
        refused = await browser.get(console.url + path, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "foreign_host"), path
        assert "set-cookie" not in refused.headers


@pytest.mark.parametrize(
    "goal",
    [
        "https://evil.example.com/", "//evil.example.com", "/\\evil.example.com", "\\\\evil", "javascript:alert(1)",
        "/login", "/logout", "/x\\y", "/x\ny", "/é", "x", "", "/" + "x" * 1024,
    ],
)  # fmt: skip
async def test_a_login_leads_nowhere_else(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient, goal: str
) -> None:
    console.use(console.entry(issuer.url))
    url = httpx.URL(console.url + "/login", params={"next": goal})
    assert refreshed_to(await browser.get(url, follow_redirects=True)) == "/"


async def test_what_others_wrote_is_shown_as_text(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient
) -> None:
    console.use(console.entry(issuer.url, claims={"role": "groups", "team": "team"}))
    issuer.claims["preferred_username"] = "<script>alert(1)</script>"
    page = await log_in(console, browser, "/login?next=/%22%3E%3Cscript%3E")
    assert "<script" not in page.text
    assert refreshed_to(page) == '/"><script>'


# --- sessions end ---


async def test_a_session_ends_with_time(console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient) -> None:
    console.use(console.entry(issuer.url))
    await log_in(console, browser)
    console.clock.ahead += IDLE_S + 1
    ended = await browser.get(console.url + "/thing")
    assert (ended.status_code, ended.json()["code"]) == (401, "session_ended")


async def test_a_session_ends_with_its_user(console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient) -> None:
    console.use(console.entry(issuer.url))
    await log_in(console, browser)
    console.people.disabled.update(p.user or "" for p in console.people.known.values())
    refused = await browser.get(console.url + "/thing")
    assert refused.status_code == 401
    assert "disabled" in refused.text
    assert len(console.sessions) == 0
    assert (await log_in(console, browser)).status_code == 401


async def test_a_session_ends_with_its_issuer(console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient) -> None:
    kept = console.entry(issuer.url)
    providers = console.use(kept)
    await log_in(console, browser)
    console.use(kept, before=providers)
    assert (await browser.get(console.url + "/thing")).status_code == 200, "a reload that changes nothing ends nothing"
    console.use({**kept, "roles": {"admins": "auditor"}})
    assert (await browser.get(console.url + "/thing")).status_code == 401
    await log_in(console, browser)
    console.use()
    assert (await browser.get(console.url + "/thing")).status_code == 401
    assert (await browser.get(console.url + "/login")).status_code == 404
    assert len(console.sessions) == 0


# --- answers that are not what they should be ---


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
    assert (await browser.get(console.url + "/thing", headers=headers)).text == "ann"
