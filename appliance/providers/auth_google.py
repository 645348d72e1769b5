"""Google's service accounts: a signed assertion is exchanged for a token, which serves until it runs out (RFC 7523)."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
from collections.abc import Mapping

import aiohttp
import msgspec
import yarl
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import RSAKey

from appliance import errors
from appliance.providers.auth_base import Surroundings, header_value

logger = logging.getLogger("outpost.providers")

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
FETCH_S = 10.0
EARLY_S = 60.0
"""So long before its end a token is not used any more, if another one can be had."""
RETRY_S = 5.0
"""The least time between two fetches that fail."""
_ASSERTED_S = 3600
_MOST_FRESH_S = 86_400.0
_MAX_ANSWER = 64 * 1024
_ERROR = re.compile(r"[a-z_]{1,40}")


class _File(msgspec.Struct, frozen=True):
    """A service account's file, as far as it is used."""

    client_email: str
    private_key: str
    private_key_id: str | None = None
    token_uri: str = "https://oauth2.googleapis.com/token"
    type: str = "service_account"


class _Token(msgspec.Struct, frozen=True):
    access_token: str
    expires_in: float
    token_type: str = "Bearer"


class _Refusal(msgspec.Struct, frozen=True):
    error: str = ""


_decode_file = msgspec.json.Decoder(_File).decode
_decode_token = msgspec.json.Decoder(_Token).decode
_decode_refusal = msgspec.json.Decoder(_Refusal).decode
_BAD_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class ServiceAccount:
    """`file` is the JSON that Google hands out for the account. Raises ValueError, if it cannot be used."""

    per_request = True

    def __init__(self, file: str, around: Surroundings, *, token_uri: str | None = None) -> None:
        try:
            found = _decode_file(file)
        except _BAD_JSON:
            found = None
        if found is None or found.type != "service_account":
            raise ValueError("the service account is no JSON file of one, with client_email and private_key")
        self._key = _private_key(found.private_key)
        self._url = _endpoint(token_uri or found.token_uri)
        self._email = found.client_email
        self._kid = found.private_key_id
        if around.session is None:
            raise ValueError("a service account needs a session to fetch its tokens with")
        self._session = around.session
        self._name = around.name
        self._wall = around.wall
        self._clock = around.clock
        self._headers: Mapping[str, str] | None = None
        self.secret = ""
        """The token that the headers hold."""
        self._fetched_at = 0.0
        self._renew_at = 0.0
        self._ends_at = 0.0
        self._failed: errors.UpstreamError | None = None
        self._failed_at = 0.0
        self._fetching: asyncio.Task[None] | None = None

    async def headers(
        self, method: str, url: yarl.URL, body: bytes, sent: Mapping[str, str], key: str | None = None
    ) -> Mapping[str, str]:
        held = self._headers
        if held is not None and self._clock() < self._renew_at:
            return held
        await self._fetch()
        held = self._headers
        if held is not None and self._clock() < self._ends_at:
            return held
        failed = self._failed
        if failed is None:
            raise errors.UpstreamUnavailable(f"{self._name} gave a token that had run out.")
        raise type(failed)(failed.message, code=failed.code)

    def refused(self) -> None:
        # One that was just fetched was not refused for its age, and another one would be no better.
        if self._clock() - self._fetched_at >= RETRY_S:
            self._headers = None

    async def _fetch(self) -> None:
        """One at a time, for all who wait. Whoever stops waiting does not stop it for the others."""
        if self._fetching is None:
            if self._failed is not None and self._clock() - self._failed_at < RETRY_S:
                return
            self._fetching = asyncio.create_task(self._renew())
            self._fetching.add_done_callback(self._fetched)
        await asyncio.shield(self._fetching)

    def _fetched(self, task: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _renew(self) -> None:
        """Take a new token, or note why there is none: the old one may still do."""
        try:
            token = await self._ask()
        except errors.UpstreamError as error:
            self._failed, self._failed_at = error, self._clock()
            return
        lives = min(token.expires_in, _MOST_FRESH_S)
        self._fetched_at = now = self._clock()
        self._headers = {"Authorization": f"Bearer {token.access_token}"}
        self.secret = token.access_token
        self._ends_at = now + lives
        self._renew_at = self._ends_at - min(EARLY_S, lives / 2)
        self._failed = None

    async def _ask(self) -> _Token:
        form = {"grant_type": GRANT, "assertion": self._assertion()}
        try:
            async with self._session.post(
                self._url,
                data=aiohttp.FormData(form)(),
                headers={
                    "Content-Type": "application/x-www-form-urlencoded",
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                },
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=FETCH_S),
            ) as answer:
                status, body = answer.status, await _body(answer)
        except TimeoutError:
            raise errors.UpstreamTimeout(f"{self._name} gave no token in time.") from None
        except (aiohttp.ClientError, OSError) as error:
            logger.warning("token_not_fetched", extra={"provider": self._name, "cause": type(error).__name__})
            raise errors.UpstreamUnavailable(f"{self._name}: its tokens cannot be fetched at the moment.") from None
        if status == 200:
            return self._read(body)
        cause = f"status {status}"
        try:
            said = _decode_refusal(body).error
        except _BAD_JSON:
            said = ""
        if _ERROR.fullmatch(said):
            cause += f", {said}"
        logger.warning("token_not_fetched", extra={"provider": self._name, "cause": cause})
        if status in (400, 401, 403):
            raise errors.UpstreamError(
                f"{self._name} did not accept the gateway's credentials; the operator must correct them.",
                code="upstream_credentials",
            )
        raise errors.UpstreamUnavailable(f"{self._name}: its tokens cannot be fetched at the moment.")

    def _read(self, body: bytes) -> _Token:
        try:
            token = _decode_token(body)
            header_value(token.access_token)
            if token.token_type.lower() != "bearer" or not token.expires_in > 0:
                raise ValueError("no bearer token")
        except (*_BAD_JSON, ValueError):
            raise errors.UpstreamUnavailable(f"{self._name} gave something else than a token.") from None
        return token

    def _assertion(self) -> str:
        now = int(self._wall())
        header = {"alg": "RS256", "typ": "JWT", **({"kid": self._kid} if self._kid else {})}
        claims = {
            "iss": self._email,
            "scope": SCOPE,
            "aud": str(self._url),
            "iat": now,
            "exp": now + _ASSERTED_S,
        }
        return jwt.encode(header, claims, self._key, algorithms=["RS256"])


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    """As much of it as a token can take."""
    body = bytearray()
    async for part in answer.content.iter_any():
        body += part
        if len(body) > _MAX_ANSWER:
            break
    return bytes(body[:_MAX_ANSWER])


def _private_key(pem: str) -> RSAKey:
    try:
        key = RSAKey.import_key(pem)
    except (JoseError, ValueError, TypeError):
        key = None
    if key is None or not key.is_private:
        raise ValueError("the private_key of the service account is no RSA key in PEM")
    return key


def _endpoint(address: str) -> yarl.URL:
    """An assertion is worth a token to whoever reads it: it goes nowhere in the clear, but on this machine."""
    try:
        url = yarl.URL(address)
        host = url.host or ""
    except ValueError:
        host = ""
    if not host or (url.scheme != "https" and not (url.scheme == "http" and _loopback(host))):
        raise ValueError("the token_uri of the service account must be an https address")
    return url


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
