"""Keys, tokens and certificates become principals; what was found once counts only as long as it is true."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from appliance.errors import PermissionDenied, Unauthenticated
from appliance.identity.authenticator import Authenticator
from appliance.identity.certificates import Subject
from appliance.identity.directory import Directory
from appliance.identity.jwks import ProviderError
from appliance.identity.jwt import BadToken
from appliance.identity.oidc import Provider, build_providers, build_subjects
from appliance.identity.people_work import ORGANIZATION, TEAM, USER
from appliance.identity.principal import DEFAULT_ORGANIZATION, Principal, Restrictions
from appliance.settings import from_mapping
from tests.fakes.issuer import FakeIssuer, FakePeople, key_set, open_issuer, rsa, sign
from tests.identity.conftest import OWNER, Box

NOW = time.time()
KEY = Principal("key_1", "one", "admin")


class FakeKeys:
    """One key, and one declared key that looks like a token."""

    known = {"op-key": KEY, "eyJ.a.b": KEY}

    def __init__(self) -> None:
        self.asked: list[str] = []

    def identify(self, presented: str, address: str | None = None) -> Principal | None:
        self.asked.append(presented)
        return self.known.get(presented)


class Clock:
    def __init__(self) -> None:
        self.now = NOW
        self.monotonic = 1000.0

    def wall(self) -> float:
        return self.now


class Scene:
    """An authenticator over a fake issuer."""

    def __init__(self, issuer: FakeIssuer, session: aiohttp.ClientSession) -> None:
        self.issuer = issuer
        self.session = session
        self.clock = Clock()
        self.people = FakePeople()
        self.keys = FakeKeys()
        self.who = Authenticator(self.keys, self.people, self.providers(), clock=self.clock.wall)

    def providers(self, *, before: Any = (), **changes: Any) -> tuple[Provider, ...]:
        entry = {
            "name": "corp",
            "issuer": self.issuer.url,
            "audience": "outpost",
            "claims": {"role": "groups"},
            "roles": {"admins": "admin", "users": "member"},
            **changes,
        }
        identity = from_mapping({"identity": {"oidc": [entry]}}).identity
        return build_providers(identity, {}, self.session, lambda: self.clock.monotonic, before=before)

    def token(self, **claims: Any) -> str:
        body = {
            "iss": self.issuer.url, "aud": "outpost", "sub": "ann", "iat": NOW, "exp": NOW + 300,
            "groups": ["admins"], **claims,
        }  # fmt: skip
        return sign({name: value for name, value in body.items() if value is not ...}, self.issuer.keys[0])


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    async with open_issuer() as issuer, aiohttp.ClientSession() as session:
        yield Scene(issuer, session)


async def test_keys_need_no_waiting(scene: Scene) -> None:
    assert scene.who.identify_now("op-key") is KEY
    assert scene.who.identify_now("op-wrong") is None
    assert await scene.who.identify("op-key") is KEY
    assert scene.issuer.hits == {}
    for wrong in ("op-wrong", "x", "", "a.b.c", "op-a.b.c"):
        with pytest.raises(Unauthenticated, match="not known here"):
            await scene.who.identify(wrong)
    with pytest.raises(Unauthenticated, match="No API key"):
        await scene.who.identify(None)


async def test_a_token_is_verified_once(scene: Scene) -> None:
    token = scene.token(preferred_username="Ann", team="x")
    assert scene.who.identify_now(token) is None
    found = await scene.who.identify(token)
    assert (found.key_id, found.key_name, found.role, found.user) == (
        "jwt:corp",
        "jwt:corp",
        "admin",
        "user_0000000000000000",
    )
    assert found.expires_at == NOW + 360
    assert scene.who.identify_now(token) == found
    assert await scene.who.identify(token) == found
    assert len(scene.people.calls) == 1
    assert scene.issuer.hits == {"/.well-known/openid-configuration": 1, "/jwks": 1}


async def test_a_token_is_worth_nothing_after_its_end(scene: Scene) -> None:
    token = scene.token()
    await scene.who.identify(token)
    scene.clock.now = NOW + 300
    assert scene.who.identify_now(token) is None
    await scene.who.identify(token)
    scene.clock.now = NOW + 360
    with pytest.raises(Unauthenticated, match="expired"):
        await scene.who.identify(token)


async def test_a_token_is_remembered_no_longer_than_its_age_allows(scene: Scene) -> None:
    who = Authenticator(scene.keys, scene.people, scene.providers(max_age="10m"), clock=scene.clock.wall)
    token = scene.token(exp=NOW + 86_400)
    found = await who.identify(token)
    assert found.expires_at == NOW + 600 + 60, "what is made with it ends with it"
    scene.clock.now = NOW + 661
    with pytest.raises(BadToken) as refused:
        await who.identify(token)
    assert refused.value.reason == "max_age"


async def test_tokens_with_equal_beginnings_never_share_an_identity(scene: Scene) -> None:
    """Same header, same claims up to the subject, and for some the same payload with another signature."""
    tokens = [scene.token(sub=f"person-{n:05d}", groups=["admins" if n % 2 else "users"]) for n in range(40)]
    assert len({token[:130] for token in tokens}) == 1
    found = [await scene.who.identify(token) for token in tokens]
    assert len({each.user for each in found}) == 40
    for n, token in enumerate(tokens):
        assert scene.who.identify_now(token) == found[n]
        assert found[n].role == ("admin" if n % 2 else "member")
        for wrong in (token[:-1] + ("A" if token[-1] != "A" else "Q"), token[:-2], token + "A", token[:130]):
            assert scene.who.identify_now(wrong) is None
            with pytest.raises(Unauthenticated):
                await scene.who.identify(wrong)
    mixed = ".".join([*tokens[0].split(".")[:2], tokens[1].split(".")[2]])
    with pytest.raises(BadToken):
        await scene.who.identify(mixed)


async def test_a_declared_key_may_look_like_a_token(scene: Scene) -> None:
    assert await scene.who.identify("eyJ.a.b") is KEY
    assert scene.issuer.hits == {}


async def test_whoever_is_disabled_is_out_at_once(scene: Scene) -> None:
    token = scene.token()
    found = await scene.who.identify(token)
    assert found.user is not None
    scene.people.disabled.add(found.user)
    for ask in (scene.who.identify(token), scene.who.identify(scene.token(jti="x"))):
        with pytest.raises(Unauthenticated, match="disabled"):
            await ask
    with pytest.raises(Unauthenticated, match="disabled"):
        scene.who.identify_now(token)


async def test_an_unknown_key_asks_the_provider_at_most_once_a_minute(scene: Scene) -> None:
    await scene.who.identify(scene.token())
    forged = sign({"iss": scene.issuer.url, "aud": "outpost", "sub": "x", "exp": NOW + 99}, rsa("evil"))
    for _ in range(20):
        with pytest.raises(BadToken):
            await scene.who.identify(forged)
    assert scene.issuer.hits["/jwks"] == 1
    scene.clock.monotonic += 61
    for _ in range(20):
        with pytest.raises(BadToken):
            await scene.who.identify(forged)
    assert scene.issuer.hits["/jwks"] == 2


async def test_keys_are_rotated_while_tokens_are_cached(scene: Scene) -> None:
    old = scene.token()
    await scene.who.identify(old)
    scene.clock.monotonic += 61
    scene.issuer.keys = [rsa("rsa-2")]
    await scene.who.identify(scene.token())
    assert scene.issuer.hits["/jwks"] == 2
    assert scene.who.identify_now(old) is None, "its key is no longer the issuer's"
    with pytest.raises(BadToken):
        await scene.who.identify(old)


async def test_a_provider_that_is_down_says_so(scene: Scene) -> None:
    scene.issuer.status = 500
    with pytest.raises(ProviderError, match="cannot be had at the moment") as refused:
        await scene.who.identify(scene.token())
    assert refused.value.status == 503
    assert refused.value.retry_after_s == 5.0


async def test_a_forged_issuer_costs_no_request(scene: Scene) -> None:
    for issuer in ("https://evil.example.com", "", None, 7, ["x"]):
        with pytest.raises(BadToken):
            await scene.who.identify(scene.token(iss=issuer))
    assert scene.issuer.hits == {}


async def test_however_many_log_in_the_provider_is_asked_once(scene: Scene) -> None:
    """Anybody may open /login, before anything is known of who they are."""
    (provider,) = scene.providers(login={"client_id": "console", "redirect_base": "http://127.0.0.1:8081"})
    scene.issuer.gate = asyncio.Event()
    asking = [asyncio.create_task(provider.endpoints()) for _ in range(20)]
    await scene.issuer.entered.wait()
    asking[0].cancel()
    scene.issuer.gate.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert {repr(each) for each in found[1:]} == {repr(await provider.endpoints())}
    assert scene.issuer.hits == {"/.well-known/openid-configuration": 1}


async def test_a_failure_that_is_told_again_and_again_gathers_no_frames(scene: Scene) -> None:
    scene.issuer.metadata["issuer"] = "https://somebody.else"
    (provider,) = scene.providers(login={"client_id": "console", "redirect_base": "http://127.0.0.1:8081"})
    depths = []
    for _ in range(20):
        with pytest.raises(ProviderError) as refused:
            await provider.endpoints()
        depths.append(len(refused.traceback))
    assert max(depths) < 10
    assert scene.issuer.hits == {"/.well-known/openid-configuration": 1}


async def test_an_older_token_gives_nothing_back(scene: Scene) -> None:
    """Somebody loses a role; the token from before is still valid, but the issuer's newest word counts."""
    old, new = scene.token(), scene.token(iat=NOW + 10, groups=["users"])
    assert (await scene.who.identify(old)).role == "admin"
    assert (await scene.who.identify(new)).role == "member"
    assert scene.who.identify_now(old) is None
    assert (await scene.who.identify(old)).role == "member"
    assert (await scene.who.identify(new)).role == "member"
    out = scene.token(iat=NOW + 20, groups=[])
    for token in (out, old, new):
        with pytest.raises(PermissionDenied, match="no role"):
            await scene.who.identify(token)
    assert (await scene.who.identify(scene.token(iat=NOW + 30))).role == "admin"


async def test_of_two_tokens_of_one_second_the_one_that_comes_later_counts(scene: Scene) -> None:
    assert (await scene.who.identify(scene.token())).role == "admin"
    later = scene.token(groups=["users"])
    assert (await scene.who.identify(later)).role == "member"
    assert (await scene.who.identify(later)).role == "member"


async def test_a_reload_makes_all_that_was_found_void(scene: Scene) -> None:
    token = scene.token()
    await scene.who.identify(token)
    scene.who.change(scene.providers(before=scene.who.providers, roles={"admins": "auditor"}), ())
    assert scene.who.identify_now(token) is None
    assert (await scene.who.identify(token)).role == "auditor"
    assert scene.issuer.hits["/jwks"] == 1, "the keys are still those of before"
    scene.who.change(scene.providers(before=scene.who.providers, audience="another"), ())
    with pytest.raises(BadToken, match="somebody else"):
        await scene.who.identify(token)
    scene.who.change((), ())
    with pytest.raises(Unauthenticated):
        await scene.who.identify(token)


async def test_pinned_keys_need_no_provider(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(key_set(rsa()))
    token = scene.token()
    scene.who.change(scene.providers(jwks={"file": str(path)}), ())
    assert (await scene.who.identify(token)).role == "admin"
    path.write_bytes(key_set(rsa("rsa-2")))
    scene.who.change(scene.providers(before=scene.who.providers, jwks={"file": str(path)}), ())
    with pytest.raises(BadToken):
        await scene.who.identify(token)
    assert scene.issuer.hits == {}


async def test_a_pinned_address(scene: Scene) -> None:
    scene.issuer.metadata = {"issuer": "https://evil.example.com"}
    scene.who.change(scene.providers(jwks={"url": f"{scene.issuer.url}/jwks"}), ())
    assert (await scene.who.identify(scene.token())).role == "admin"
    assert list(scene.issuer.hits) == ["/jwks"]


async def test_the_watch_keeps_keys_fresh(scene: Scene) -> None:
    watching = asyncio.create_task(scene.who.watch())
    try:
        await scene.issuer.entered.wait()
        token = scene.token()
        assert (await scene.who.identify(token)).role == "admin"
        scene.issuer.entered.clear()
        scene.clock.monotonic += 3601
        scene.who.change(scene.who.providers, ())
        await scene.issuer.entered.wait()
        assert not watching.done()
    finally:
        watching.cancel()


# --- certificates ---

AGENT = {"subject": ((("commonName", "agent"),),), "notAfter": "Jan  1 00:00:00 2100 GMT"}
SUBJECT = Subject("agent", "common_name", "agent", "operator", "lab", "ops", Restrictions(addresses=("10.0.0.0/8",)))


async def test_a_certificate(scene: Scene) -> None:
    scene.who.change((), (SUBJECT,))
    found = await scene.who.identify(None, AGENT, "10.1.2.3")
    assert (found.key_id, found.key_name, found.role, found.team) == ("mtls", "agent", "operator", "team_ops")
    assert found.restrictions == SUBJECT.restrictions
    assert found.expires_at == 4102444800.0
    assert scene.people.calls == [("client-certificate", "common_name:agent", "agent", "operator", "ops", "lab")]
    for address in ("11.0.0.1", None, "unix"):
        with pytest.raises(PermissionDenied, match="this address"):
            await scene.who.identify(None, AGENT, address)


async def test_a_key_counts_before_a_certificate_also_a_wrong_one(scene: Scene) -> None:
    scene.who.change((), (msgspec.structs.replace(SUBJECT, restrictions=Restrictions()),))
    assert await scene.who.identify("op-key", AGENT) is KEY
    with pytest.raises(Unauthenticated):
        await scene.who.identify("op-wrong", AGENT)
    with pytest.raises(Unauthenticated):
        await scene.who.identify("", AGENT)


async def test_a_certificate_that_the_settings_do_not_speak_of(scene: Scene) -> None:
    with pytest.raises(Unauthenticated, match="No API key"):
        await scene.who.identify(None, AGENT)
    scene.who.change((), (msgspec.structs.replace(SUBJECT, value="other"),))
    with pytest.raises(PermissionDenied, match="no entry"):
        await scene.who.identify(None, AGENT)


def test_subjects_from_the_settings() -> None:
    entry = {"name": "mesh", "uri": "spiffe://x", "role": "operator", "team": "ops", "zones": ["on_box"]}
    settings = from_mapping(
        {
            "server": {"tls": {"cert": "c.pem", "key": "k.pem"}},
            "identity": {"client_ca": "ca.pem", "client_certificates": [entry]},
        }
    )
    assert build_subjects(settings.identity) == (
        Subject("mesh", "uri", "spiffe://x", "operator", None, "ops", Restrictions(zones=("on_box",))),
    )


# --- over the real directory ---


async def test_people_are_made_known_and_can_be_disabled(scene: Scene, box: Box) -> None:
    directory: Directory = box.directory
    box.as_of(NOW)
    await directory.create(OWNER, TEAM, {"name": "ops"})
    who = Authenticator(box.ring, directory, scene.providers(claims={"role": "groups", "team": "t"}), clock=lambda: NOW)
    token = scene.token(t="ops", preferred_username="Ann/Lee")
    found = await who.identify(token)
    users = await directory.list(OWNER, USER)
    assert [(each.name, each.role, each.issuer, each.subject) for each in users] == [
        ("Ann_Lee", "admin", scene.issuer.url, "ann")
    ]
    assert found.user == users[0].id
    assert found.team is not None
    assert who.identify_now(token) == found
    before = await box.events()
    assert await who.identify(scene.token(t="ops", preferred_username="Ann/Lee", jti="2")) == found
    assert await box.events() == before, "a known person is no news"
    await directory.alter(OWNER, USER, users[0].id, {"disabled": True})
    for ask in (who.identify(token), who.identify(scene.token(t="ops", jti="3", preferred_username="Ann/Lee"))):
        with pytest.raises(Unauthenticated, match="disabled"):
            await ask
    with pytest.raises(PermissionDenied, match="not known here"):
        await who.identify(scene.token(sub="bob", t="nowhere"))
    info, key = await box.key("one", role="member")
    assert (await who.identify(key)).key_id == info.id


async def test_no_token_names_the_organization_that_runs_the_box_whatever_it_is_called(
    scene: Scene, any_box: Box
) -> None:
    directory = any_box.directory
    any_box.as_of(NOW)
    await directory.alter(OWNER, ORGANIZATION, "default", {"name": "acme"})
    other = await directory.create(OWNER, ORGANIZATION, {"name": "default"})
    by_claim = scene.providers(claims={"role": "groups", "organization": "org"})
    who = Authenticator(any_box.ring, directory, by_claim, clock=lambda: NOW)
    before = await any_box.events()
    for claimed in ("acme", ["acme"], DEFAULT_ORGANIZATION):
        with pytest.raises(PermissionDenied, match="that runs the box"):
            await who.identify(scene.token(org=claimed))
    assert await any_box.events() == before, "nobody became known by it"
    found = await who.identify(scene.token(org="default"))
    assert (found.organization, found.oversees) == (other.id, other.id), "a name that is free again is as any other"
    # The settings may.
    who.change(scene.providers(organization="acme"), ())
    assert (await who.identify(scene.token(sub="bob"))).organization == DEFAULT_ORGANIZATION
