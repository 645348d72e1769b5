"""Identity providers (OpenID Connect): what the settings say of each, its keys, and browser login with it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import ssl
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from urllib.parse import quote_plus, urlencode

import aiohttp
import msgspec
from aiohttp import encode_basic_auth

from appliance.identity.certificates import Subject
from appliance.identity.claims import Rules
from appliance.identity.jwks import (
    RETRY_S,
    Fetcher,
    FileKeys,
    Keys,
    Metadata,
    ProviderError,
    RemoteKeys,
    discovery_url,
    parse_metadata,
)
from appliance.identity.jwt import BadToken, Claims, Policy, Trusted, UnknownKey, verify
from appliance.identity.restrictions import restrictions_of
from appliance.settings.people import Issuer
from appliance.settings.schema import Identity
from appliance.settings.secrets import resolve

MAX_CODE = 2048


class Source:
    """Where an issuer's keys and endpoints are had from. Outlives a reload that leaves its settings as they were.

    clock: monotonic seconds.
    """

    def __init__(self, settings: Issuer, session: aiohttp.ClientSession, clock: Callable[[], float]) -> None:
        """Raises ProviderError for a pinned file or a `ca` that cannot be used."""
        self.settings = settings
        self.fetcher = Fetcher(session, _trust(settings.ca))
        self.metadata: Metadata | None = None
        """What discovery last said."""
        self._clock = clock
        self._failed: tuple[float, str] | None = None
        self._asking: asyncio.Task[Metadata] | None = None
        self.keys: Keys
        jwks = settings.jwks
        if jwks is not None and jwks.file is not None:
            self.keys = FileKeys(jwks.file)
        else:
            self.keys = RemoteKeys(self.fetcher, self._jwks_url, clock=clock, max_stale=settings.max_stale)

    def serves(self, settings: Issuer) -> bool:
        """Whether it does for other settings too. A file is read anew."""
        names = ("issuer", "jwks", "ca", "max_stale")
        same = all(getattr(self.settings, name) == getattr(settings, name) for name in names)
        return same and isinstance(self.keys, RemoteKeys)

    async def discover(self) -> Metadata:
        """What the issuer says of itself; asked for once, whoever waits for it, and after a failure at most once a
        minute. Raises ProviderError."""
        if self.metadata is not None:
            return self.metadata
        if self._asking is None:
            self._asking = asyncio.create_task(self._discover())
            self._asking.add_done_callback(self._asked)
        # Whoever stops waiting must not stop it for the others.
        return await asyncio.shield(self._asking)

    def _asked(self, task: asyncio.Task[Metadata]) -> None:
        self._asking = None
        if not task.cancelled():
            task.exception()  # nobody may be left to hear of it

    async def _jwks_url(self) -> str:
        jwks = self.settings.jwks
        if jwks is not None and jwks.url is not None:
            return jwks.url
        # Anew each time the keys are: an issuer may move them.
        return (await self._discover(patient=True)).jwks_uri

    async def _discover(self, *, patient: bool = False) -> Metadata:
        now = self._clock()
        if not patient and self._failed is not None and now - self._failed[0] < RETRY_S:
            # A new error each time: the frames that it passes through stay with it.
            raise ProviderError(self._failed[1])
        try:
            got = await self.fetcher.get(discovery_url(self.settings.issuer))
            self.metadata = parse_metadata(got.body or b"", self.settings.issuer)
        except ProviderError as error:
            self._failed = (now, error.message)
            raise
        self._failed = None
        return self.metadata


class Endpoints(msgspec.Struct, frozen=True):
    """Where a login goes."""

    authorization: str
    token: str
    names_issuer: bool
    auth_methods: tuple[str, ...]


class Provider:
    """One issuer with its rules. Immutable but for its source."""

    def __init__(self, settings: Issuer, source: Source, secret: str | None) -> None:
        self.settings = settings
        self.source = source
        self.name = settings.name
        self.policy = Policy(
            name=settings.name,
            issuer=settings.issuer,
            audience=settings.audience,
            algorithms=frozenset(settings.algorithms),
            max_age=settings.max_age,
            skew=settings.skew,
        )
        self.rules = Rules(
            user=settings.claims.user,
            name=settings.claims.name,
            role=settings.claims.role,
            team=settings.claims.team,
            organization=settings.claims.organization,
            roles=settings.roles,
            teams=settings.teams,
            default_role=settings.default_role,
            fixed_organization=settings.organization,
        )
        self._secret = secret

    def __repr__(self) -> str:
        """Without the secret."""
        return f"Provider({self.name!r})"

    @property
    def keys(self) -> Keys:
        return self.source.keys

    async def verify(self, token: str, policy: Policy, now: float) -> Claims:
        """The claims of a token of this issuer; keys that are not known are asked for, at most once a minute.

        now: unix seconds. Raises BadToken, and ProviderError while no keys can be had at all.
        """
        before = self.keys.current
        try:
            return verify(token, {policy.issuer: Trusted(policy, before)}, now)
        except UnknownKey:
            await self.keys.refresh()
            if self.keys.current is None:
                message = f"The keys of the identity provider {self.name} cannot be had at the moment; try again soon."
                raise ProviderError(message, retry_after_s=5.0) from None
            if self.keys.current is before:
                raise
        return verify(token, {policy.issuer: Trusted(policy, self.keys.current)}, now)

    # --- browser login ---

    @property
    def redirect_uri(self) -> str:
        assert self.settings.login is not None
        return self.settings.login.redirect_base + "/login/callback"

    async def endpoints(self) -> Endpoints:
        """Raises ProviderError."""
        login = self.settings.login
        assert login is not None
        if login.authorization_endpoint is not None and login.token_endpoint is not None:
            return Endpoints(login.authorization_endpoint, login.token_endpoint, False, ())
        found = await self.source.discover()
        authorization = login.authorization_endpoint or found.authorization_endpoint
        token = login.token_endpoint or found.token_endpoint
        if authorization is None or token is None:
            raise ProviderError(
                f"{self.name} names no endpoints for logins on its own host; set login.authorization_endpoint and "
                "login.token_endpoint."
            )
        return Endpoints(authorization, token, found.names_issuer, found.auth_methods)

    async def authorization_url(self, state: str, nonce: str, verifier: str) -> str:
        """Where a browser is sent to log in. Raises ProviderError."""
        login = self.settings.login
        assert login is not None
        query = {
            "response_type": "code",
            "client_id": login.client_id,
            "redirect_uri": self.redirect_uri,
            "scope": " ".join(login.scopes),
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge(verifier),
            "code_challenge_method": "S256",
        }
        address = (await self.endpoints()).authorization
        return f"{address}{'&' if '?' in address else '?'}{urlencode(query)}"

    async def redeem(self, code: str, verifier: str, nonce: str, now: float) -> Claims:
        """The claims of the ID token that a code is good for. now: unix seconds. Raises BadToken, ProviderError."""
        login = self.settings.login
        assert login is not None
        endpoints = await self.endpoints()
        fields = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "code_verifier": verifier,
        }
        auth: str | None = None
        if self._secret is None:
            fields["client_id"] = login.client_id
        elif "client_secret_basic" in endpoints.auth_methods or "client_secret_post" not in endpoints.auth_methods:
            auth = encode_basic_auth(quote_plus(login.client_id), quote_plus(self._secret))
        else:
            fields |= {"client_id": login.client_id, "client_secret": self._secret}
        status, body = await self.source.fetcher.post_form(endpoints.token, fields, auth)
        if 400 <= status < 500:
            raise BadToken("code", "The identity provider does not accept the code; log in again.")
        if status != 200:
            raise ProviderError(f"{endpoints.token} answered with the status {status}.")
        policy = msgspec.structs.replace(self.policy, audience=(login.client_id,))
        claims = await self.verify(_id_token(body), policy, now)
        _check_id_token(claims, login.client_id, nonce)
        return claims


def challenge(verifier: str) -> str:
    """PKCE (RFC 7636), S256."""
    return urlsafe_b64encode(hashlib.sha256(verifier.encode("ascii")).digest()).rstrip(b"=").decode()


def _id_token(body: bytes) -> str:
    try:
        token = json.loads(body)["id_token"]
    except (ValueError, RecursionError, TypeError, KeyError):
        token = None
    if not isinstance(token, str):
        raise ProviderError("The identity provider's answer to the code has no ID token.")
    return token


def _check_id_token(claims: Claims, client_id: str, nonce: str) -> None:
    """What an ID token must say beyond what every token must. Raises BadToken."""
    said = claims.all.get("nonce")
    if not isinstance(said, str) or not hmac.compare_digest(said.encode(), nonce.encode()):
        raise BadToken("nonce", "The login does not belong to this browser; log in again.")
    party, audience = claims.all.get("azp"), claims.all.get("aud")
    if (party is not None and party != client_id) or (
        party is None and isinstance(audience, list) and len(audience) > 1
    ):
        raise BadToken("azp", "The identity provider made the token for another client.")


# --- from the settings ------------------------------------------------------------------------------


def build_providers(
    identity: Identity,
    env: Mapping[str, str],
    session: aiohttp.ClientSession,
    clock: Callable[[], float],
    *,
    before: Iterable[Provider] = (),
) -> tuple[Provider, ...]:
    """The settings' identity providers; keys that those of `before` have are kept where they come from the same place.

    clock: monotonic seconds. Reads files. Raises ProviderError, SecretMissing.
    """
    sources = {each.settings.issuer: each.source for each in before}
    found = []
    for settings in identity.oidc:
        source = sources.get(settings.issuer)
        if source is None or not source.serves(settings):
            source = Source(settings, session, clock)
        secret = settings.login.client_secret if settings.login is not None else None
        found.append(Provider(settings, source, None if secret is None else resolve(secret, env)))
    return tuple(found)


def build_subjects(identity: Identity) -> tuple[Subject, ...]:
    """The settings' client certificates."""
    found = []
    for entry in identity.client_certificates:
        for field in ("common_name", "dns", "uri", "email"):
            value = getattr(entry, field)
            if value is not None:
                found.append(
                    Subject(
                        name=entry.name,
                        field=field,
                        value=value,
                        role=entry.role,
                        organization=entry.organization,
                        team=entry.team,
                        restrictions=restrictions_of(entry),
                    )
                )
    return tuple(found)


def _trust(ca: Path | None) -> ssl.SSLContext | bool:
    if ca is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # ssl.SSLError is one
        raise ProviderError(f"The certificates in {ca} cannot be used: {type(error).__name__}.") from None
