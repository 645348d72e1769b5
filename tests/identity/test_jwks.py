"""Sets of keys: what is in them, when they are asked for again, and what counts while a provider is down."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st
from joserfc import jwk

from appliance.identity import jwks
from appliance.identity.jwks import (
    Fetcher,
    FileKeys,
    ProviderError,
    RemoteKeys,
    fresh_for,
    parse_metadata,
    same_origin,
)
from appliance.identity.key_set import parse_key_set
from tests.fakes.issuer import FakeIssuer, ec, ed, key_set, open_issuer, rsa


def member(key: jwk.Key, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in {**key.as_dict(private=False), **changes}.items() if value is not ...}


def a_set(*members: Any) -> bytes:
    return json.dumps({"keys": list(members)}).encode()


# --- sets ---


def test_each_key_verifies_what_its_type_and_curve_allow() -> None:
    keys = parse_key_set(key_set(rsa(), ec(), ec("ec-384", "P-384"), ed()))
    fits = {
        (kid, alg)
        for kid in ("rsa-1", "ec-1", "ec-384", "ed-1")
        for alg in ("RS256", "PS256", "ES256", "ES384", "ES512", "EdDSA", "Ed25519", "HS256", "none")
        if keys.find(kid, alg) is not None
    }
    assert fits == {
        ("rsa-1", "RS256"), ("rsa-1", "PS256"), ("ec-1", "ES256"), ("ec-384", "ES384"), ("ed-1", "EdDSA"),
        ("ed-1", "Ed25519"),
    }  # fmt: skip


def repr_of(value: object) -> str:
    """A name for a case that is the same in every process, though its keys are made anew: without what is random."""
    shown = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return re.sub(r"[A-Za-z0-9_-]{16,}", "…", shown)[:120]


@pytest.mark.parametrize(
    "bad",
    [
        member(rsa(), use="enc"),
        member(rsa(), key_ops=["sign"]),
        member(rsa(), alg="RS512", kty="RSA", n="AQAB"),
        member(rsa(), kid=7),
        member(rsa(), kid=""),
        member(rsa(), kid="k" * 257),
        member(rsa(), n=...),
        member(rsa(), alg="HS256"),
        member(rsa(), alg=["RS256"]),
        member(rsa("weak", 1024)),
        member(ec(), crv="P-384"),
        member(ec(), crv="secp256k1"),
        member(ec(), y=...),
        member(ec(), x="AAAA"),
        member(ed("ed-448", "Ed448")),
        member(ed("x-1", "X25519")),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "rsa-1"},
        {"kty": "AKP", "kid": "rsa-1"},
        {"kty": ["RSA"]},
        "text",
        None,
        [],
    ],
    ids=repr_of,
)
def test_a_key_that_cannot_be_used_is_left_out(bad: Any) -> None:
    with pytest.raises(ValueError, match="none of its keys"):
        parse_key_set(a_set(bad))
    keys = parse_key_set(a_set(bad, member(rsa("good"))))
    assert len(keys) == 1
    assert keys.find("good", "RS256") is not None


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "not a JWK set"),
        (b'{"keys": {}}', "not a JWK set"),
        (b'{"keys": []}', "none of its keys"),
        (a_set(*[{}] * 101), "more than 100"),
        (a_set(rsa().as_dict(private=True)), "private key"),
        (a_set(member(rsa()), ec().as_dict(private=True)), "private key"),
    ],
    ids=repr_of,
)
def test_what_is_no_set(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        parse_key_set(data)
    assert str(rsa().as_dict(private=True)["d"]) not in str(refused.value)


def test_two_keys_under_one_name_are_told_apart_by_their_type_or_not_at_all() -> None:
    mixed = parse_key_set(a_set(member(rsa(), kid="k"), member(ec(), kid="k")))
    assert mixed.find("k", "RS256") is not None
    assert mixed.find("k", "ES256") is not None
    twice = parse_key_set(a_set(member(rsa(), kid="k"), member(rsa("rsa-2"), kid="k")))
    assert twice.find("k", "RS256") is None


def test_without_a_name_only_a_single_key_is_found() -> None:
    assert parse_key_set(a_set(member(rsa(), kid=...))).find(None, "RS256") is not None
    assert parse_key_set(a_set(member(rsa(), kid=...))).find("rsa-1", "RS256") is None
    assert parse_key_set(a_set(member(rsa()), member(ec()))).find(None, "RS256") is None


@bounds(deadline=None, max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_set_or_a_reason(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_key_set(data)


# --- files ---


def test_a_pinned_file(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(key_set(rsa()))
    keys = FileKeys(path)
    assert keys.current is not None
    assert keys.current.find("rsa-1", "RS256") is not None
    assert keys.due_s is None
    for content, why in ((b"{}", "not a JWK set"), (b" " * (jwks.MAX_DOCUMENT + 1), "larger")):
        path.write_bytes(content)
        with pytest.raises(ProviderError, match=why):
            FileKeys(path)
    with pytest.raises(ProviderError, match="cannot be read"):
        FileKeys(tmp_path / "missing.json")


# --- addresses ---


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Remote:
    """Keys of a fake issuer, and the clock that they go by."""

    def __init__(self, issuer: FakeIssuer, session: aiohttp.ClientSession, **how: Any) -> None:
        self.issuer = issuer
        self.clock = Clock()
        self.url = f"{issuer.url}/jwks"

        async def locate() -> str:
            return self.url

        self.keys = RemoteKeys(Fetcher(session, **how), locate, clock=self.clock, max_stale=7200.0)

    @property
    def hits(self) -> int:
        return self.issuer.hits.get("/jwks", 0)

    def has(self, kid: str) -> bool:
        return self.keys.current is not None and self.keys.current.find(kid, "RS256") is not None


@pytest.fixture
async def remote() -> AsyncIterator[Remote]:
    async with open_issuer() as issuer, aiohttp.ClientSession() as session:
        yield Remote(issuer, session)


async def test_keys_are_fetched_and_rotated(remote: Remote) -> None:
    assert remote.keys.current is None
    assert remote.keys.due_s == 0.0
    await remote.keys.refresh()
    assert remote.has("rsa-1")
    assert remote.keys.due_s == pytest.approx(3600.0)
    remote.issuer.keys = [rsa("rsa-2")]
    remote.clock.now += 61
    await remote.keys.refresh()
    assert remote.has("rsa-2")
    assert not remote.has("rsa-1"), "a key that the provider gives up is given up here"


async def test_at_most_one_fetch_a_minute_whoever_asks(remote: Remote) -> None:
    await asyncio.gather(*(remote.keys.refresh() for _ in range(50)))
    assert remote.hits == 1
    for _ in range(100):
        await remote.keys.refresh()
    remote.clock.now += 59.9
    await remote.keys.refresh()
    assert remote.hits == 1
    remote.clock.now += 0.2
    await remote.keys.refresh()
    assert remote.hits == 2


async def test_whoever_stops_waiting_does_not_stop_the_others(remote: Remote) -> None:
    remote.issuer.gate = asyncio.Event()
    first, second = (asyncio.create_task(remote.keys.refresh()) for _ in range(2))
    await remote.issuer.entered.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    remote.issuer.gate.set()
    await second
    assert remote.has("rsa-1")


@pytest.mark.parametrize(
    "breakage",
    [
        {"status": 500},
        {"status": 302, "headers": {"Location": "/elsewhere"}},
        {"body": b"no set"},
        {"body": b'{"keys": []}'},
        {"body": b" " * (jwks.MAX_DOCUMENT + 1)},
        {"headers": {"Content-Encoding": "gzip"}},
        {"status": 304},
    ],
    ids=str,
)
async def test_old_keys_serve_while_the_provider_is_down(remote: Remote, breakage: dict[str, Any]) -> None:
    await remote.keys.refresh()
    for name, value in breakage.items():
        setattr(remote.issuer, name, value)
    for _ in range(7):
        remote.clock.now += 1000
        await remote.keys.refresh()
        assert remote.has("rsa-1")
    assert "/elsewhere" not in remote.issuer.hits
    remote.clock.now += 201
    assert remote.keys.current is None, "but not for ever"
    remote.issuer.status, remote.issuer.body, remote.issuer.headers = 200, None, {}
    await remote.keys.refresh()
    assert remote.has("rsa-1")


async def test_a_provider_that_was_never_reached_is_asked_again_soon(remote: Remote) -> None:
    remote.issuer.status = 503
    await remote.keys.refresh()
    await remote.keys.refresh()
    assert remote.hits == 1
    assert remote.keys.due_s == pytest.approx(5.0)
    remote.clock.now += 5.1
    remote.issuer.status = 200
    await remote.keys.refresh()
    assert remote.has("rsa-1")


async def test_what_has_not_changed_is_not_sent_again(remote: Remote) -> None:
    remote.issuer.headers = {"ETag": '"1"', "Cache-Control": "max-age=120"}
    await remote.keys.refresh()
    before = remote.keys.current
    remote.clock.now += 7000
    await remote.keys.refresh()
    assert remote.issuer.etags == [None, '"1"']
    assert remote.keys.current is before
    remote.clock.now += 7000
    assert remote.keys.current is before, "that nothing has changed confirms the keys"
    assert remote.keys.due_s == 0.0


async def test_an_address_that_nobody_listens_on(remote: Remote) -> None:
    remote.url = "http://127.0.0.1:1/jwks"
    await remote.keys.refresh()
    assert remote.keys.current is None


async def test_a_provider_that_does_not_answer() -> None:
    async with open_issuer() as issuer, aiohttp.ClientSession() as session:
        issuer.gate = asyncio.Event()
        slow = Remote(issuer, session, timeout_s=0.05)
        await slow.keys.refresh()
        assert slow.keys.current is None
        issuer.gate.set()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 3600.0),
        ({"Cache-Control": "max-age=600"}, 600.0),
        ({"Cache-Control": "public, MAX-AGE=600, must-revalidate"}, 600.0),
        ({"Cache-Control": "max-age=600", "Age": "100"}, 500.0),
        ({"Cache-Control": "max-age=600", "Age": "x"}, 600.0),
        ({"Cache-Control": "max-age=1"}, 60.0),
        ({"Cache-Control": "max-age=600", "Age": "9999"}, 60.0),
        ({"Cache-Control": "max-age=9999999999"}, 86400.0),
        ({"Cache-Control": "s-max-age=600"}, 3600.0),
        ({"Cache-Control": "max-age=-5"}, 3600.0),
        ({"Cache-Control": "no-store"}, 60.0),
        ({"Cache-Control": "no-cache, max-age=9000"}, 60.0),
    ],
    ids=str,
)
def test_how_long_an_answer_is_fresh(headers: dict[str, str], seconds: float) -> None:
    assert fresh_for(headers) == seconds


@given(st.text(max_size=60), st.text(max_size=12))
def test_any_cache_control_is_within_a_minute_and_a_day(control: str, age: str) -> None:
    assert 60.0 <= fresh_for({"Cache-Control": control, "Age": age}) <= 86400.0


# --- discovery ---

ISSUER = "https://login.example.com/realms/lab"
DOCUMENT = {
    "issuer": ISSUER,
    "jwks_uri": "https://login.example.com/realms/lab/certs",
    "authorization_endpoint": "https://login.example.com/auth",
    "token_endpoint": "https://LOGIN.example.com:443/token",
    "end_session_endpoint": "https://elsewhere.example.com/logout",
    "authorization_response_iss_parameter_supported": True,
    "token_endpoint_auth_methods_supported": ["client_secret_post", 1],
}


def test_a_discovery_document() -> None:
    found = parse_metadata(json.dumps(DOCUMENT).encode(), ISSUER)
    assert found.jwks_uri == DOCUMENT["jwks_uri"]
    assert found.token_endpoint == DOCUMENT["token_endpoint"]
    assert found.end_session_endpoint is None, "another host's endpoint counts as not there"
    assert found.names_issuer
    assert found.auth_methods == ("client_secret_post",)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"issuer": ISSUER + "/"}, "another issuer"),
        ({"issuer": "https://evil.example.com"}, "another issuer"),
        ({"issuer": None}, "another issuer"),
        ({"jwks_uri": "https://evil.example.com/certs"}, "no keys on the issuer's own host"),
        ({"jwks_uri": "http://login.example.com/certs"}, "no keys on the issuer's own host"),
        ({"jwks_uri": "https://login.example.com:8443/certs"}, "no keys on the issuer's own host"),
        ({"jwks_uri": "https://login.example.com@evil.example.com/"}, "no keys on the issuer's own host"),
        ({"jwks_uri": "file:///etc/passwd"}, "no keys on the issuer's own host"),
        ({"jwks_uri": ["https://login.example.com/certs"]}, "no keys on the issuer's own host"),
        ({"jwks_uri": "https://[login"}, "no keys on the issuer's own host"),
    ],
    ids=str,
)
def test_a_discovery_document_that_does_not_count(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ProviderError, match=why) as refused:
        parse_metadata(json.dumps({**DOCUMENT, **changes}).encode(), ISSUER)
    assert "evil" not in refused.value.message


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_no_discovery_document(data: bytes) -> None:
    with pytest.raises(ProviderError):
        parse_metadata(data, ISSUER)


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("https://a/x", "https://A:443/y", True),
        ("http://a:80", "http://a/", True),
        ("https://a", "http://a", False),
        ("https://a", "https://a.b", False),
        ("https://a", "https://a:444", False),
        ("ftp://a", "ftp://a", False),
        ("https://u@a", "https://a", False),
        ("https://a:x", "https://a", False),
        ("//a", "//a", False),
    ],
)
def test_origins(one: str, two: str, same: bool) -> None:
    assert same_origin(one, two) is same
