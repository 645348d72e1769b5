"""Browser login at a running gateway's operator listener, with a real identity provider on loopback."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from oidc_provider_mock import User, run_server_in_thread

from appliance.door.login import CSRF_HEADER
from tests.door.login_console import refreshed_to
from tests.e2e.people import Office, client, free_port, open_office

pytestmark = [pytest.mark.timeout(240), pytest.mark.filterwarnings("ignore:get_jwt_config:DeprecationWarning")]

USERS = [
    User(sub="ann", claims={"preferred_username": "Ann", "groups": ["admins"]}),
    User(sub="bob", claims={"preferred_username": "Bob", "groups": ["readers"]}),
    User(sub="eve", claims={"preferred_username": "Eve"}),
]
SECRET = "client-secret-0123456789"


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    with run_server_in_thread(user_claims=USERS) as server:
        yield f"http://localhost:{server.server_port}"


@pytest.fixture(scope="module")
def office(provider: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    with open_console(provider, tmp_path_factory.mktemp("console")) as opened:
        yield opened


def open_console(provider: str, folder: Path) -> Any:
    port = free_port()
    corp = {
        "name": "corp",
        "issuer": provider,
        "audience": "outpost",
        "claims": {"role": "groups"},
        "roles": {"admins": "admin", "readers": "auditor"},
        "login": {
            "client_id": "console",
            "client_secret": {"env": "OIDC_SECRET"},
            "redirect_base": f"http://127.0.0.1:{port}",
        },
    }
    return open_office(
        folder,
        env={"OIDC_SECRET": SECRET},
        console={"listen": f"127.0.0.1:{port}"},
        identity={"oidc": [corp]},
    )


class Browser:
    """Somebody's browser at the console: it keeps cookies, and sends what our own pages would."""

    def __init__(self, office: Office) -> None:
        self.office = office
        self.url = office.gateway.operator_url
        self.http = client()

    def log_in(self, subject: str, goal: str = "/") -> httpx.Response:
        """The page at the end."""
        asked = self.http.get(f"{self.url}/login", params={"next": goal}, follow_redirects=True)
        assert asked.url.path == "/oauth2/authorize", asked.text
        given = self.http.post(asked.url, data={"sub": subject})
        assert given.headers["Location"].startswith(f"{self.url}/login/callback?")
        return self.http.get(given.headers["Location"])

    def get(self, path: str) -> httpx.Response:
        return self.http.get(f"{self.url}/admin/v1{path}")

    def send(self, method: str, path: str, body: Any = None, **headers: str | None) -> httpx.Response:
        """A change, as our pages make it; a header that is None is left out."""
        csrf = self.get("/session").json()["data"]["csrf"]
        wanted = {CSRF_HEADER: csrf, "Origin": self.url, **headers}
        sent = {name: text for name, text in wanted.items() if text is not None}
        return self.http.request(method, f"{self.url}{path}", json=body, headers=sent)


@pytest.fixture
def browser(office: Office) -> Iterator[Browser]:
    made = Browser(office)
    yield made
    made.http.close()


def test_a_person_logs_in_works_and_leaves(office: Office, browser: Browser) -> None:
    assert browser.get("/users").status_code == 401
    page = browser.log_in("ann", "/admin/v1/me?x=1")
    assert (page.status_code, refreshed_to(page)) == (200, "/admin/v1/me?x=1"), page.text
    cookie = browser.http.cookies["outpost_session"]
    me = browser.get("/me").json()["data"]
    assert (me["key_id"], me["key_name"], me["role"]) == ("session", "session", "admin")
    assert browser.send("POST", "/admin/v1/teams", {"name": "by-browser"}).status_code == 201
    team = next(each for each in office.events("admin.team.create") if each["after"]["name"] == "by-browser")
    actor = {"key": "session", "role": "admin", "organization": "org_default", "user": me["user"]}
    assert team["actor"] == actor
    # A session is for the console: it asks no models.
    asked = browser.http.get(f"{office.gateway.url}/v1/models")
    assert asked.status_code == 401
    assert browser.send("POST", "/logout").status_code == 200
    again = httpx.get(f"{browser.url}/admin/v1/me", headers={"Cookie": f"outpost_session={cookie}"}, trust_env=False)
    assert again.status_code == 401
    # Coming and going are on the ledger, without names and without the cookie.
    for kind in ("session.begin", "session.end"):
        event = next(each for each in office.events(kind) if each["actor"]["user"] == me["user"])
        assert (event["actor"], event["provider"], event["address"]) == (actor, "corp", "127.0.0.1")
    told = str(office.data("GET", "/ledger", limit=1000)) + office.gateway.log()
    for secret in (cookie, SECRET):
        assert secret not in told


def test_changes_come_from_our_pages_only(office: Office, browser: Browser) -> None:
    browser.log_in("ann")
    for wrong in (
        {CSRF_HEADER: None},
        {CSRF_HEADER: "wrong"},
        {"Origin": None},
        {"Origin": "https://evil.example.com"},
        {"Origin": office.gateway.url},
    ):
        refused = browser.send("POST", "/admin/v1/teams", {"name": "foreign"}, **wrong)
        assert (refused.status_code, refused.json()["code"]) == (403, "csrf"), wrong
    rebound = browser.http.get(
        f"{browser.url}/admin/v1/me",
        headers={"Host": "evil.example.com", "Cookie": f"outpost_session={browser.http.cookies['outpost_session']}"},
    )
    assert (rebound.status_code, rebound.json()["code"]) == (403, "foreign_host")
    assert "foreign" not in {team["name"] for team in office.data("GET", "/teams")}


def test_the_role_is_the_providers_word(browser: Browser) -> None:
    browser.log_in("bob")
    assert browser.get("/requests").status_code == 200
    assert browser.send("POST", "/admin/v1/teams", {"name": "x"}).status_code == 403


def test_whoever_has_no_role_is_not_let_in_and_that_is_on_the_ledger(office: Office, browser: Browser) -> None:
    page = browser.log_in("eve")
    assert (page.status_code, "no role" in page.text) == (403, True)
    assert "outpost_session" not in browser.http.cookies
    assert browser.get("/me").status_code == 401
    forged = browser.http.get(f"{browser.url}/login/callback?code=x&state=y")
    assert forged.status_code == 401
    wanted = {"permission_denied", "login_failed"}
    end = time.monotonic() + 20
    while not wanted <= {each["code"] for each in office.events("refusal") if each["endpoint"] == "/login/callback"}:
        # Of many refusals one record is made every few seconds.
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_code_is_good_for_one_login_of_one_browser(office: Office, browser: Browser) -> None:
    asked = browser.http.get(f"{browser.url}/login", follow_redirects=True)
    back = browser.http.post(asked.url, data={"sub": "ann"}).headers["Location"]
    with client() as other:
        assert other.get(back).status_code == 401, "another browser brings no cookie of this login"
    assert browser.http.get(back).status_code == 200
    assert browser.http.get(back).status_code == 401


def test_whoever_is_disabled_is_out_at_once(office: Office, browser: Browser) -> None:
    browser.log_in("bob")
    user = browser.get("/me").json()["data"]["user"]
    office.data("PATCH", f"/users/{user}", {"disabled": True})
    assert browser.get("/me").status_code == 401
    page = browser.log_in("bob")
    assert page.status_code == 401
    office.data("PATCH", f"/users/{user}", {"disabled": False})
    assert browser.get("/me").status_code == 401, "the session is gone for good"
    assert browser.log_in("bob").status_code == 200
    assert browser.get("/me").status_code == 200


def test_a_provider_that_leaves_the_settings_takes_its_sessions_along(provider: str, tmp_path: Path) -> None:
    with open_console(provider, tmp_path) as office:
        browser = Browser(office)
        browser.log_in("ann")
        assert browser.get("/me").status_code == 200
        text = office.gateway.config.read_text(encoding="utf-8")
        office.gateway.config.write_text(text.replace("  - name: corp", "  - name: renamed"), encoding="utf-8")
        assert "identity" in office.data("POST", "/reload", key=None)["changed"]
        assert browser.get("/me").status_code == 401
        browser.http.close()
