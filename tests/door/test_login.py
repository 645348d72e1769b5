"""Browser login over real sockets: with a real provider, its cookies, its sessions, and requests of somebody else's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from oidc_provider_mock import User, run_server_in_thread

from appliance.door.login import CSRF_HEADER
from appliance.identity.sessions import ABSOLUTE_S, IDLE_S, MAX_USED
from tests.door.login_console import Console, change, log_in, open_console, refreshed_to
from tests.fakes.issuer import FakeIssuer, open_issuer

pytestmark = pytest.mark.filterwarnings("ignore:get_jwt_config:DeprecationWarning")


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


# --- a real provider ---


USERS = [
    User(sub="ann", claims={"preferred_username": "Ann", "groups": ["admins"]}),
    User(sub="bob"),
]


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    with run_server_in_thread(user_claims=USERS) as server:
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
    assert (await browser.get(console.url + "/thing")).text == "session", "no record gets a person's name"
    view = (await browser.get(console.url + "/admin/v1/session")).json()["data"]
    assert (view["name"], view["role"], view["idle"]) == ("Ann", "admin", IDLE_S)
    assert ABSOLUTE_S - 60 < view["expires_in"] <= ABSOLUTE_S
    assert (await change(console, browser)).text == "session"
    sent = {CSRF_HEADER: view["csrf"], "Origin": console.url}
    gone = await browser.post(console.url + "/logout", headers=sent)
    assert (await browser.get(console.url + "/thing")).status_code == 401
    leaving = await browser.get(gone.json()["data"]["provider_logout"])
    assert leaving.status_code == 200
    assert leaving.url.path == "/oauth2/end_session"


async def token_of(provider: str, browser: httpx.AsyncClient) -> tuple[str, str]:
    """An ID token and an access token for ann, made for my-client."""
    query = {"client_id": "my-client", "redirect_uri": "http://localhost/x", "response_type": "code", "scope": "openid"}
    url = httpx.URL(f"{provider}/oauth2/authorize", params={**query, "nonce": "n", "state": "s"})
    given = await browser.post(url, data={"sub": "ann"})
    code = parse_qs(urlsplit(given.headers["Location"]).query)["code"][0]
    form = {"grant_type": "authorization_code", "code": code, "redirect_uri": query["redirect_uri"]}
    answer = (await browser.post(f"{provider}/oauth2/token", data=form, auth=("my-client", "x"))).json()
    return answer["id_token"], answer["access_token"]


async def shown(console: Console, browser: httpx.AsyncClient, token: str) -> httpx.Response:
    return await browser.get(console.url + "/thing", headers={"Authorization": f"Bearer {token}"})


async def test_bearer_tokens_of_a_real_provider(console: Console, provider: str, browser: httpx.AsyncClient) -> None:
    console.use(console.entry(provider, audience=["my-client"]))
    token, opaque = await token_of(provider, browser)
    for _ in range(2):
        assert (await shown(console, browser, token)).text == "jwt:corp"
    assert [call[2] for call in console.people.calls] == ["ann"], "without the scope profile there is no name"
    for wrong in (token[:-6] + "AAAAAA", opaque, token.rpartition(".")[0] + "."):
        refused = await shown(console, browser, wrong)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert wrong not in refused.text


async def test_a_real_provider_takes_new_keys(console: Console, browser: httpx.AsyncClient, tmp_path: Path) -> None:
    """It is started again at the same address, with another key; its tokens name none. Then with its keys pinned."""
    with run_server_in_thread(user_claims=USERS) as server:
        port = server.server_port
        url = f"http://localhost:{port}"
        pinned = tmp_path / "keys.json"
        pinned.write_bytes((await browser.get(f"{url}/jwks")).content)
        providers = console.use(console.entry(url, audience=["my-client"]))
        old, _ = await token_of(url, browser)
        assert (await shown(console, browser, old)).status_code == 200
    assert (await shown(console, browser, old)).status_code == 200, "no provider is needed for what is known"
    with run_server_in_thread(port, user_claims=USERS):
        new, _ = await token_of(url, browser)
        assert (await shown(console, browser, new)).status_code == 401, "keys are asked for once a minute at most"
        console.clock.ahead += 61
        assert (await shown(console, browser, new)).status_code == 200
        assert (await shown(console, browser, old)).status_code == 401
    console.use(console.entry(url, audience=["my-client"], jwks={"file": str(pinned)}), before=providers)
    assert (await shown(console, browser, old)).status_code == 200
    assert (await shown(console, browser, new)).status_code == 401


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


async def test_a_login_says_which_teams_and_when(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient
) -> None:
    """So that a token from before gives nothing back that a login has taken."""
    console.use(console.entry(issuer.url, claims={"role": "groups", "team": "teams"}))
    issuer.claims |= {"teams": ["one", "two"], "iat": 1_700_000_000}
    assert (await log_in(console, browser)).status_code == 200
    assert console.people.said == [({"one", "two"}, 1_700_000_000.0)]


# --- the ledger ---


async def test_who_comes_and_goes_is_on_the_ledger(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient
) -> None:
    console.use(console.entry(issuer.url))
    await log_in(console, browser)
    csrf = (await browser.get(console.url + "/admin/v1/session")).json()["data"]["csrf"]
    await browser.post(console.url + "/logout", headers={CSRF_HEADER: csrf, "Origin": console.url})
    actor = {"key": "session", "role": "admin", "organization": "org_default", "user": "user_0000000000000000"}
    body = {"actor": actor, "provider": "corp", "address": "127.0.0.1"}
    assert console.noted == [("session.begin", body), ("session.end", body)]
    assert console.refused == []


async def test_nobody_is_let_in_without_a_record_but_out(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient
) -> None:
    console.use(console.entry(issuer.url))
    console.recording = False
    page = await log_in(console, browser)
    assert (page.status_code, len(console.sessions)) == (503, 0)
    assert "outpost_session" not in browser.cookies
    console.recording = True
    await log_in(console, browser)
    csrf = (await browser.get(console.url + "/admin/v1/session")).json()["data"]["csrf"]
    console.recording = False
    gone = await browser.post(console.url + "/logout", headers={CSRF_HEADER: csrf, "Origin": console.url})
    assert (gone.status_code, len(console.sessions)) == (200, 0)


async def test_a_refused_login_is_told_of(console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient) -> None:
    console.use(console.entry(issuer.url))
    issuer.claims = {"sub": "bob", "groups": []}
    assert (await log_in(console, browser)).status_code == 403
    assert (await browser.get(console.url + "/login/callback?code=x&state=y")).status_code == 401
    assert console.refused == [
        ("permission_denied", "127.0.0.1", "/login/callback"),
        ("login_failed", "127.0.0.1", "/login/callback"),
    ]
    assert console.noted == []


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


async def test_logins_of_nobody_do_not_push_out_one_under_way(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient
) -> None:
    console.use(console.entry(issuer.url))
    begun = await browser.get(console.url + "/login?next=/mine")
    async with httpx.AsyncClient(trust_env=False) as nobody:
        assert (await nobody.get(console.url + "/login")).status_code == 302
    for _ in range(MAX_USED + 1):
        console.login._logins.begin("corp", "/")
    back = await browser.get(begun.headers["Location"])
    page = await browser.get(back.headers["Location"])
    assert (page.status_code, refreshed_to(page)) == (200, "/mine")


async def test_a_login_is_answered_once_whoever_has_the_cookie(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient
) -> None:
    """The browser drops the cookie with the first answer; a copy of it, with the same code, is worth nothing."""
    console.use(console.entry(issuer.url))
    begun = await browser.get(console.url + "/login")
    copy = {"Cookie": begun.headers["Set-Cookie"].partition(";")[0]}
    back = (await browser.get(begun.headers["Location"])).headers["Location"]
    assert (await browser.get(back)).status_code == 200
    async with httpx.AsyncClient(trust_env=False) as other:
        again = await other.get(back, headers=copy)
    assert (again.status_code, len(console.sessions)) == (401, 1)
    assert "was not begun here" in again.text


@pytest.mark.parametrize("cookie", ["", "x", "A" * 4000, "A" * 8000, "é", "..", '"a"'])
async def test_a_cookie_that_is_not_ours_begins_nothing(
    console: Console, issuer: FakeIssuer, browser: httpx.AsyncClient, cookie: str
) -> None:
    console.use(console.entry(issuer.url))
    headers = {"Cookie": f"outpost_login={cookie}".encode()}
    page = await browser.get(console.url + "/login/callback?code=x&state=y", headers=headers)
    assert (page.status_code, len(console.sessions)) == (401, 0)
    assert "was not begun here" in page.text


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
