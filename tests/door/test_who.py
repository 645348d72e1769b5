"""Whatever a request brings, over real sockets: forged tokens, and certificates over TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from appliance.door.door import Door
from appliance.door.endpoint import Endpoint, Visit
from appliance.door.http import Limits
from appliance.door.listen import Listener
from appliance.door.render import openai_error, respond
from appliance.door.terms import Terms
from appliance.door.who import who_asks
from appliance.identity.authenticator import Authenticator
from appliance.identity.certificates import Subject, require
from appliance.identity.oidc import build_providers
from appliance.identity.principal import Principal, Restrictions
from appliance.settings import from_mapping
from tests.door.login_console import Clock, Keys
from tests.fakes.issuer import FakePeople, ec, ed, key_set, rsa, sign
from tests.identity.test_certificates import Authority
from tests.identity.test_jwt import FORGED, ISSUER, NOW, OTHER, claims


@asynccontextmanager
async def listening(
    who: Authenticator, tls: ssl.SSLContext | None = None, limits: Limits | None = None
) -> AsyncIterator[str]:
    """A door with one endpoint that says who asks."""

    async def show(visit: Visit) -> web.StreamResponse:
        principal: Principal = await who_asks(who, None, visit.request)
        return respond(f"{principal.key_id} {principal.key_name}".encode(), visit.id)

    methods: tuple[Literal["GET", "POST"], ...] = ("GET", "POST")
    door = Door(
        tuple(Endpoint(method, "/thing", "models.use", show, identifies=True) for method in methods),
        authenticator=who,
        render=openai_error,
        clock=Clock(),
        new_id=lambda: "id1",
        terms=Terms(),
    )
    listener = Listener(door, Terms(limits))
    port = await listener.tcp("127.0.0.1", 0, tls=tls)
    try:
        yield f"{'https://localhost' if tls else 'http://127.0.0.1'}:{port}/thing"
    finally:
        listener.stop_accepting()
        await listener.close(0.1)


async def ask(session: aiohttp.ClientSession, url: str, credential: str | None = None, **how: Any) -> tuple[int, str]:
    headers = {} if credential is None else {"Authorization": f"Bearer {credential}"}
    method, headers = how.pop("method", "GET"), headers | how.pop("headers", {})
    async with session.request(method, url, headers=headers, **how) as answer:
        return answer.status, await answer.text()


async def test_forged_tokens_get_401(tmp_path: Path) -> None:
    own, other = tmp_path / "own.json", tmp_path / "other.json"
    own.write_bytes(key_set(rsa(), ec(), ed(), ec("ec-384", "P-384"), rsa("rsa-2")))
    other.write_bytes(key_set(rsa("other")))
    corp = {"name": "corp", "issuer": ISSUER, "audience": ["outpost", "api"], "default_role": "member"}
    identity = from_mapping(
        {
            "identity": {
                "oidc": [
                    {**corp, "jwks": {"file": str(own)}},
                    {**corp, "name": "other", "issuer": OTHER, "jwks": {"file": str(other)}, "algorithms": ["RS256"]},
                ]
            }
        }
    ).identity
    async with aiohttp.ClientSession() as session:
        people = FakePeople()
        providers = build_providers(identity, {}, session, lambda: 0.0)
        who = Authenticator(Keys(), people, providers, clock=lambda: NOW)
        async with listening(who) as url:
            right = sign(claims(), rsa())
            assert await ask(session, url, right) == (200, "jwt:corp jwt:corp")
            sent = 0
            for name, forge in FORGED.items():
                token = forge()
                if len(token) > 15_000 or not token.isascii() or not token.isprintable() or not token:
                    continue  # no HTTP client can send it
                sent += 1
                status, text = await ask(session, url, token)
                assert status == 401, name
                assert token not in text
                assert '"type":"authentication_error"' in text
            assert sent >= 80
            assert len(people.calls) == 1
            assert await ask(session, url, right) == (200, "jwt:corp jwt:corp")


async def test_certificates_at_the_door(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    server_file = ours.issue("server", ExtendedKeyUsageOID.SERVER_AUTH, san=[x509.DNSName("localhost")])
    agent, unknown = (
        ours.issue(name, ExtendedKeyUsageOID.CLIENT_AUTH, san=[x509.DNSName(f"{name}.test")])
        for name in ("agent", "unknown")
    )
    stranger = theirs.issue("stranger", ExtendedKeyUsageOID.CLIENT_AUTH, san=[x509.DNSName("agent.test")])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(server_file)
    require(context, ours.file)
    here, elsewhere = Restrictions(addresses=("127.0.0.0/8",)), Restrictions(addresses=("10.0.0.0/8",))
    subject = Subject("agent", "dns", "agent.test", "member", restrictions=here)
    who = Authenticator(Keys(), FakePeople(), (), (subject,), clock=Clock().wall)

    def client(file: Path | None) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=ours.file)
        if file is not None:
            made.load_cert_chain(file)
        return made

    async with listening(who, context) as url, aiohttp.ClientSession() as session:
        assert await ask(session, url, ssl=client(agent)) == (200, "mtls agent")
        assert await ask(session, url, "op-key", ssl=client(agent)) == (200, "key_1 one")
        assert (await ask(session, url, "op-wrong", ssl=client(agent)))[0] == 401
        assert (await ask(session, url, ssl=client(unknown)))[0] == 403
        assert (await ask(session, url, ssl=client(None)))[0] == 401
        assert await ask(session, url, "op-key", ssl=client(None)) == (200, "key_1 one")
        with pytest.raises(aiohttp.ClientError):
            await ask(session, url, ssl=client(stranger))
        who.change((), (Subject("agent", "dns", "agent.test", "member", restrictions=elsewhere),))
        assert (await ask(session, url, ssl=client(agent)))[0] == 403
        who.change((), ())
        assert (await ask(session, url, ssl=client(agent)))[0] == 401, "an entry that is gone counts no longer"


async def test_pages_of_other_sites_cannot_use_a_browser_s_certificate(tmp_path: Path) -> None:
    """A browser shows the certificate by itself, whoever's page makes it ask."""
    ours = Authority(tmp_path, "ours")
    server_file = ours.issue("server", ExtendedKeyUsageOID.SERVER_AUTH, san=[x509.DNSName("localhost")])
    agent = ours.issue("agent", ExtendedKeyUsageOID.CLIENT_AUTH, san=[x509.DNSName("agent.test")])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(server_file)
    require(context, ours.file)
    who = Authenticator(
        Keys(), FakePeople(), (), (Subject("agent", "dns", "agent.test", "member"),), clock=Clock().wall
    )
    tls = ssl.create_default_context(cafile=ours.file)
    tls.load_cert_chain(agent)
    async with listening(who, context) as url, aiohttp.ClientSession() as session:
        own = url.removesuffix("/thing")

        async def post(credential: str | None = None, **headers: str) -> int:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return (await ask(session, url, credential, method="POST", headers=named, ssl=tls))[0]

        assert await post() == 200, "a program sends neither"
        assert await post(Origin=own, Sec_Fetch_Site="same-origin") == 200
        assert await post(Origin=own) == 200
        for origin in ("https://evil.test", "null", own.replace("https", "http"), "https://localhost", own + "0"):
            assert await post(Origin=origin) == 401, origin
        for site in ("cross-site", "same-site", "nonsense"):
            assert await post(Sec_Fetch_Site=site) == 401, site
            assert await post(Origin=own, Sec_Fetch_Site=site) == 401, site
        assert await post("op-key", Origin="https://evil.test", Sec_Fetch_Site="cross-site") == 200, "no page has a key"
        assert (await ask(session, url, headers={"Sec-Fetch-Site": "cross-site"}, ssl=tls))[0] == 200, "a link"


async def test_a_handshake_that_hangs_is_cut_like_a_head(tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(ours.issue("server", ExtendedKeyUsageOID.SERVER_AUTH, san=[x509.DNSName("localhost")]))
    who = Authenticator(Keys(), FakePeople(), clock=Clock().wall)
    async with listening(who, context, Limits(header_timeout=0.2)) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2].removesuffix("/thing")))
        async with asyncio.timeout(5.0):
            assert await reader.read() == b""
        writer.close()
