"""An identity provider on loopback that can be told to misbehave; and tokens signed in every right and wrong way."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, cast
from urllib.parse import parse_qs, urlencode

from aiohttp import web
from joserfc import jwk, jws
from joserfc.errors import SecurityWarning
from joserfc.jws import JWSRegistry

from appliance.errors import Unauthenticated
from appliance.identity.principal import Principal, Role


def b64(data: bytes | str | dict[str, Any]) -> str:
    """base64url without padding; a dict as JSON."""
    raw = json.dumps(data).encode() if isinstance(data, dict) else data.encode() if isinstance(data, str) else data
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@cache
def rsa(name: str = "rsa-1", bits: int = 2048) -> jwk.RSAKey:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # of weak keys
        return jwk.RSAKey.generate_key(bits, {"kid": name})


@cache
def ec(name: str = "ec-1", curve: Any = "P-256") -> jwk.ECKey:
    return jwk.ECKey.generate_key(curve, {"kid": name})


@cache
def ed(name: str = "ed-1", curve: Any = "Ed25519") -> jwk.OKPKey:
    return jwk.OKPKey.generate_key(curve, {"kid": name})


def key_set(*keys: jwk.Key) -> bytes:
    return json.dumps({"keys": [key.as_dict(private=False) for key in keys]}).encode()


class _Lenient(JWSRegistry):
    max_header_length = 64 * 1024


def sign(claims: dict[str, Any] | bytes, key: jwk.Key, alg: str = "RS256", **header: Any) -> str:
    """A token; header parameters that are None are left out."""
    head = {"alg": alg, "kid": key.kid, **header}
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    names = {name: value for name, value in head.items() if value is not None}
    registry = _Lenient(algorithms=[alg], strict_check_header=False)
    return jws.serialize_compact(names, payload, key, registry=registry)


class FakePeople:
    """Keeps to what `claims.People` promises."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str], Principal] = {}
        self.calls: list[tuple[str, str, str, Role, str | None, str | None]] = []
        self.said: list[tuple[frozenset[str], float | None]] = []
        """All teams of each call, and when it was issued."""
        self.disabled: set[str] = set()

    async def signed_in(
        self,
        issuer: str,
        subject: str,
        name: str,
        role: Role,
        team: str | None = None,
        organization: str | None = None,
        *,
        teams: frozenset[str] = frozenset(),
        issued: float | None = None,
        organization_claimed: bool = False,
    ) -> Principal:
        self.calls.append((issuer, subject, name, role, team, organization))
        self.said.append((teams, issued))
        user = f"user_{len(self.known):016d}"
        known = self.known.get((issuer, subject))
        principal = Principal(
            key_id="directory",
            key_name=name,
            role=role,
            organization="org_default" if organization is None else f"org_{organization}",
            team=None if team is None else f"team_{team}",
            user=known.user if known else user,
        )
        self.known[issuer, subject] = principal
        return self.standing(principal)

    def standing(self, principal: Principal) -> Principal:
        if principal.user in self.disabled:
            raise Unauthenticated("The credential belongs to somebody who is disabled; ask an admin of this gateway.")
        return principal


class FakeIssuer:
    """Public knobs change what it answers. `hits` counts requests by path; `entered` is set when one comes in."""

    def __init__(self) -> None:
        self.url = ""
        self.keys: list[jwk.Key] = [rsa()]
        self.headers: dict[str, str] = {}
        self.status = 200
        self.body: bytes | None = None
        self.metadata: dict[str, Any] = {}
        self.claims: dict[str, Any] = {"sub": "ann", "preferred_username": "ann", "groups": ["admins"]}
        self.id_claims: dict[str, Any] = {}
        self.sign_with: jwk.Key | None = None
        self.token_answer: tuple[int, bytes] | None = None
        self.iss_parameter: str | None = None
        self.hits: dict[str, int] = {}
        self.entered = asyncio.Event()
        self.gate: asyncio.Event | None = None
        self.etags: list[str | None] = []
        self.auth: list[str | None] = []
        self._codes: dict[str, dict[str, str]] = {}

    def document(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/jwks",
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "end_session_endpoint": f"{self.url}/logout",
            **self.metadata,
        }

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        self.hits[path] = self.hits.get(path, 0) + 1
        self.entered.set()
        if self.gate is not None:
            await self.gate.wait()
        if path == "/.well-known/openid-configuration":
            return web.json_response(self.document())
        if path == "/jwks":
            return self._jwks(request)
        if path == "/authorize":
            return self._authorize(dict(request.query))
        if path == "/token":
            return await self._token(request)
        return web.Response(status=404)

    def _jwks(self, request: web.BaseRequest) -> web.Response:
        body = key_set(*self.keys) if self.body is None else self.body
        etag = self.headers.get("ETag")
        self.etags.append(request.headers.get("If-None-Match"))
        if etag is not None and request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers=self.headers)
        return web.Response(body=body, status=self.status, headers=self.headers)

    def _authorize(self, query: dict[str, str]) -> web.Response:
        if query.get("code_challenge_method") != "S256" or query.get("response_type") != "code":
            return web.Response(status=400)
        code = f"code-{len(self._codes)}"
        self._codes[code] = query
        back = {"code": code, "state": query["state"]}
        if self.iss_parameter is not None:
            back["iss"] = self.iss_parameter
        return web.Response(status=302, headers={"Location": f"{query['redirect_uri']}?{urlencode(back)}"})

    async def _token(self, request: web.BaseRequest) -> web.Response:
        form = {name: values[0] for name, values in parse_qs((await request.read()).decode()).items()}
        self.auth.append(request.headers.get("Authorization"))
        if self.token_answer is not None:
            return web.Response(status=self.token_answer[0], body=self.token_answer[1])
        asked = self._codes.pop(form.get("code", ""), None)
        if asked is None or form.get("redirect_uri") != asked["redirect_uri"]:
            return web.json_response({"error": "invalid_grant"}, status=400)
        verifier = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        if b64(verifier) != asked["code_challenge"]:
            return web.json_response({"error": "invalid_grant"}, status=400)
        header = request.headers.get("Authorization")
        basic = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")[0] if header else None
        client = basic or form.get("client_id")
        if client != asked["client_id"]:
            return web.json_response({"error": "invalid_client"}, status=401)
        now = int(time.time())
        claims = {
            "iss": self.url, "aud": asked["client_id"], "iat": now, "exp": now + 300, "nonce": asked["nonce"],
            **self.claims, **self.id_claims,
        }  # fmt: skip
        key = self.sign_with or self.keys[0]
        alg = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}[key.key_type]
        return web.json_response({"access_token": "opaque", "token_type": "Bearer", "id_token": sign(claims, key, alg)})


@asynccontextmanager
async def open_issuer() -> AsyncIterator[FakeIssuer]:
    issuer = FakeIssuer()
    server = web.Server(issuer.answer)
    listening = await asyncio.get_running_loop().create_server(cast(Any, server), "127.0.0.1", 0)
    issuer.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield issuer
    finally:
        listening.close()
        server.pre_shutdown()
        await server.shutdown(0.1)
