"""Bearer tokens on a running gateway: of a real identity provider on loopback, and forged ones over HTTP."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from oidc_provider_mock import User, run_server_in_thread

from appliance.errors import Unauthenticated
from appliance.identity.jwt import looks_like_token, verify
from tests.e2e.people import Office, open_office
from tests.fakes.issuer import ec, ed, key_set, rsa, sign
from tests.identity import test_jwt as forging

pytestmark = [pytest.mark.timeout(240), pytest.mark.filterwarnings("ignore:get_jwt_config:DeprecationWarning")]

LONG = "s" * 255
USERS = [
    User(sub="ann", claims={"preferred_username": "Ann", "groups": ["admins"]}),
    User(sub="bob", claims={"preferred_username": "Bob", "groups": ["readers"], "team": "lab"}),
    User(sub="eve", claims={"preferred_username": "Eve"}),
    User(sub=LONG, claims={"preferred_username": "n" * 300, "groups": ["members"]}),
]
ROLES = {"admins": "admin", "readers": "auditor", "members": "member"}
MOST_SENT = 7000
"""Bytes of a token that fits into a request's head."""


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    with run_server_in_thread(user_claims=USERS) as server:
        yield f"http://localhost:{server.server_port}"


@pytest.fixture(scope="module")
def office(provider: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    folder = tmp_path_factory.mktemp("tokens")
    pinned = folder / "keys.json"
    pinned.write_bytes(key_set(rsa(), ec(), ed(), ec("ec-384", "P-384"), rsa("rsa-2")))
    live = {
        "name": "corp",
        "issuer": provider,
        "audience": "my-client",
        "claims": {"role": "groups", "team": "team"},
        "roles": ROLES,
    }
    still = {
        "name": "pinned",
        "issuer": forging.ISSUER,
        "audience": list(forging.POLICY.audience),
        "jwks": {"file": str(pinned)},
        "default_role": "member",
    }
    with open_office(folder, identity={"oidc": [live, still]}) as opened:
        opened.data("POST", "/teams", {"name": "lab"})
        yield opened


def token_of(provider: str, subject: str) -> str:
    """An ID token for my-client, by the way that a real client goes."""
    query = {
        "client_id": "my-client",
        "redirect_uri": "http://localhost/x",
        "response_type": "code",
        "scope": "openid profile",
        "nonce": "n",
        "state": "s",
    }
    with httpx.Client(trust_env=False, timeout=30.0) as browser:
        given = browser.post(httpx.URL(f"{provider}/oauth2/authorize", params=query), data={"sub": subject})
        code = parse_qs(urlsplit(given.headers["Location"]).query)["code"][0]
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": query["redirect_uri"]}
        found: str = browser.post(f"{provider}/oauth2/token", data=form, auth=("my-client", "x")).json()["id_token"]
        return found


def test_a_person_of_a_real_provider_asks(office: Office, provider: str) -> None:
    token = token_of(provider, "ann")
    row = office.row(office.chat(token))
    assert (row["key_id"], row["key_name"], row["outcome"]) == ("jwt:corp", "jwt:corp", "completed")
    me = office.data("GET", "/me", key=token)
    assert (me["role"], me["organization"], me["user"]) == ("admin", "org_default", row["user_id"])
    user = office.data("GET", f"/users/{row['user_id']}")
    assert (user["name"], user["role"], user["issuer"], user["subject"]) == ("Ann", "admin", provider, "ann")
    # On the ledger with who vouched, and never the token.
    made = next(event for event in office.events("admin.user.create") if event["object"] == user["id"])
    assert made["actor"]["key"] == f"jwt:{provider}"
    assert token not in str(office.data("GET", "/ledger", limit=1000))
    # What an admin may do, they may; and it is on the ledger as theirs.
    team = office.data("POST", "/teams", {"name": "of-ann"}, key=token)
    made = next(event for event in office.events("admin.team.create") if event["object"] == team["id"])
    assert made["actor"] == {"key": "jwt:corp", "role": "admin", "organization": "org_default", "user": user["id"]}


def test_the_role_and_the_team_are_the_providers_word(office: Office, provider: str) -> None:
    token = token_of(provider, "bob")
    me = office.data("GET", "/me", key=token)
    team = office.data("GET", "/teams/lab")["id"]
    assert (me["role"], me["team"]) == ("auditor", team)
    assert office.data("GET", f"/teams/{team}/members")[0]["id"] == me["user"]
    assert office.ask("GET", "/requests", key=token).status_code == 200
    assert office.ask("POST", "/teams", {"name": "x"}, key=token).status_code == 403
    assert office.chat(token).status_code == 403, "an auditor asks no models"
    nobody = token_of(provider, "eve")
    for refused in (office.chat(nobody), office.ask("GET", "/me", key=nobody)):
        assert refused.status_code == 403
        assert "no role" in refused.text


def test_whoever_is_disabled_is_out_at_once(office: Office, provider: str) -> None:
    token = token_of(provider, "ann")
    user = office.data("GET", "/me", key=token)["user"]
    for disabled in (True, False):
        office.data("PATCH", f"/users/{user}", {"disabled": disabled})
        assert office.chat(token).status_code == (401 if disabled else 200)
        assert office.ask("GET", "/me", key=token).status_code == (401 if disabled else 200)


def test_the_longest_names_fit_on_record(office: Office, provider: str) -> None:
    """What a provider may call somebody is longer than any column: records hold the directory's id."""
    row = office.row(office.chat(token_of(provider, LONG)))
    assert row["user_id"].startswith("user_")
    assert (len(row["user_id"]), row["key_name"]) == (21, "jwt:corp")
    user = office.data("GET", f"/users/{row['user_id']}")
    assert (user["subject"], len(user["name"])) == (LONG, 128)


def test_a_token_ends(office: Office) -> None:
    now = time.time()
    token = sign({"iss": forging.ISSUER, "aud": "api", "sub": "brief", "iat": now - 300, "exp": now - 59}, rsa())
    assert office.chat(token).status_code == 200, "the clocks may differ by a minute"
    while office.chat(token).status_code == 200:
        assert time.time() < now + 1.5
    refused = office.chat(token)
    assert (refused.status_code, "expired" in refused.text) == (401, True)
    assert time.time() >= now + 0.9


# --- forged ---

AT_THE_SIGNATURE = {
    "a PSS signature under RS256", "r = s = 0", "r = s = 1", "r = s = the order", "ECDSA in DER", "a bit flipped",
    "an RSA signature of zeros", "an RSA signature of ones", "an empty RSA signature", "payload tampered",
    "expiry tampered", "a stranger's key under a known kid", "another issuer's key under our kid",
}  # fmt: skip


def forged(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, str | None]]:
    """Tokens that a request's head can carry; with what is said to whoever has signed them, None to those who have
    not."""
    now = int(time.time())
    monkeypatch.setattr(forging, "NOW", now)
    monkeypatch.setitem(forging.CLAIMS, "iat", now - 10)
    monkeypatch.setitem(forging.CLAIMS, "exp", now + 300)
    only = {forging.ISSUER: forging.ISSUERS[forging.ISSUER]}
    found: dict[str, tuple[str, str | None]] = {}
    # The clock goes on meanwhile.
    later: dict[str, Callable[[], str]] = {
        "not yet valid": lambda: sign(forging.claims(nbf=now + 600), rsa()),
        "made in the future": lambda: sign(forging.claims(iat=now + 600), rsa()),
    }
    for name, forge in {**forging.FORGED, **later}.items():
        token = forge()
        if not (token.isascii() and token.isprintable() and " " not in token and 0 < len(token) < MOST_SENT):
            continue
        with pytest.raises(Unauthenticated) as refused:
            verify(token, only, now)
        message = refused.value.message
        found[name] = token, None if message == "The token is not accepted here." else message
    return found


def test_forged_tokens_are_all_refused_alike(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = forged(monkeypatch)
    right = sign(forging.claims(), rsa())
    assert office.chat(right).status_code == 200, "only the forgery is what is wrong with them"
    assert len(tokens) >= 40
    before = len(office.data("GET", "/users"))
    said: dict[str, set[str]] = {}
    for name, (token, told) in tokens.items():
        for answer in (office.chat(token), office.ask("GET", "/me", key=token)):
            assert answer.status_code == 401, name
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert not any(len(piece) > 8 and piece in answer.text for piece in token.split("."))
            kind = told or ("token" if looks_like_token(token) else "key")
            said.setdefault(kind, set()).add(shown(answer.json()))
            if told is not None:
                assert told in answer.text
    # One answer of each listener for all that nobody has signed.
    assert len(said["token"]) == len(said["key"]) == 2
    assert len(office.data("GET", "/users")) == before
    assert office.chat(right).status_code == 200


def shown(answer: Any) -> str:
    """An answer without its request's id."""
    return str({name: value for name, value in answer.items() if name != "request_id"})


def test_the_time_of_a_refusal_tells_nothing(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a token failed at its form or at its signature is not to be seen in the time."""
    taken: dict[str, list[float]] = {"signature": [], "form": []}
    tokens = [
        (token, "signature" if name in AT_THE_SIGNATURE else "form")
        for name, (token, told) in forged(monkeypatch).items()
        if told is None and looks_like_token(token)
    ]
    assert len(tokens) >= 40
    for _ in range(12):
        for token, failed_at in tokens:
            begun = time.perf_counter()
            office.http.get(f"{office.gateway.url}/v1/models", headers={"Authorization": f"Bearer {token}"})
            taken[failed_at].append(time.perf_counter() - begun)
    assert len(taken["signature"]) >= 100
    # What others do on this machine makes some slower, none faster.
    checked, unchecked = (statistics.quantiles(taken[kind], n=4)[0] for kind in ("signature", "form"))
    told = f"with a signature checked {checked * 1e3:.2f} ms, without {unchecked * 1e3:.2f} ms"
    assert abs(checked - unchecked) < 0.001, told
