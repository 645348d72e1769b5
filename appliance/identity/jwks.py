"""Where an issuer's keys come from: a pinned file, or an address that is asked again in time."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
import msgspec

from appliance.errors import Unavailable
from appliance.identity.key_set import KeySet, parse_key_set

logger = logging.getLogger("outpost.identity")

MAX_DOCUMENT = 512 * 1024
"""Bytes."""
FETCH_S = 10.0
MIN_FRESH_S = 60.0
DEFAULT_FRESH_S = 3600.0
MAX_FRESH_S = 86400.0
RETRY_S = 60.0
"""The least time between two fetches, whoever asks for them."""
FIRST_RETRY_S = 5.0
"""The same while there are no keys at all."""
DISCOVERY = "/.well-known/openid-configuration"
_MAX_AGE = re.compile(r"(?:^|[,\s])max-age\s*=\s*\"?(\d{1,10})", re.IGNORECASE)
_AGE = re.compile(r"\d{1,10}")


class ProviderError(Unavailable):
    """An identity provider did not give what was needed. The message names the address and repeats nothing of the
    answer."""

    code = "identity_provider_failed"


class Fetched(msgspec.Struct, frozen=True):
    """An answer. `body` None: what was had before still holds. `fresh_s`: how long it may be used unasked."""

    body: bytes | None
    etag: str | None
    fresh_s: float


class Keys(Protocol):
    """Where an issuer's keys are had from."""

    @property
    def current(self) -> KeySet | None:
        """The keys that count now; None: there are none, or they were not confirmed for too long."""
        ...

    @property
    def due_s(self) -> float | None:
        """Seconds until they should be asked for again; None: never."""
        ...

    async def refresh(self) -> None:
        """Ask for newer ones, if that was not done just now. Trouble is logged, and the old ones stay."""
        ...


class FileKeys:
    """Keys pinned in a file. Raises ProviderError when it cannot be used."""

    due_s = None

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                data = file.read(MAX_DOCUMENT + 1)
            if len(data) > MAX_DOCUMENT:
                raise ValueError("it is larger than a set of keys can be")
            self.current: KeySet | None = parse_key_set(data)
        except OSError as error:
            reason = (error.strerror or "unreadable").lower()
            raise ProviderError(f"The key set {path} cannot be read: {reason}.") from None
        except ValueError as error:
            raise ProviderError(f"The key set {path} cannot be used: {error}.") from None

    async def refresh(self) -> None:
        """A file is read again by a reload only."""


class RemoteKeys:
    """Keys from an address. `locate` gives the address; it is asked anew before each fetch.

    clock: monotonic seconds. max_stale: seconds that keys outlive their last confirmation.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        locate: Callable[[], Awaitable[str]],
        *,
        clock: Callable[[], float],
        max_stale: float = MAX_FRESH_S,
    ) -> None:
        self._fetcher = fetcher
        self._locate = locate
        self._clock = clock
        self._max_stale = max_stale
        self._keys: KeySet | None = None
        self._etag: str | None = None
        self._url: str | None = None
        self._confirmed = 0.0
        self._expires = 0.0
        self._tried: float | None = None
        self._fetching: asyncio.Task[None] | None = None

    @property
    def current(self) -> KeySet | None:
        if self._keys is not None and self._clock() - self._confirmed > self._max_stale:
            return None
        return self._keys

    @property
    def due_s(self) -> float | None:
        now = self._clock()
        if self._tried is None:
            return 0.0
        return max(self._expires - now, self._tried + self._pause - now, 0.0)

    @property
    def _pause(self) -> float:
        return FIRST_RETRY_S if self._keys is None else RETRY_S

    async def refresh(self) -> None:
        if self._fetching is None:
            if self._tried is not None and self._clock() - self._tried < self._pause:
                return
            self._tried = self._clock()
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._fetched)
        # Whoever stops waiting must not stop the fetch for the others.
        await asyncio.shield(self._fetching)

    def _fetched(self, task: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _fetch(self) -> None:
        try:
            url = await self._locate()
            got = await self._fetcher.get(url, etag=self._etag if url == self._url else None)
            if got.body is not None:
                try:
                    self._keys = parse_key_set(got.body)
                except ValueError as error:
                    raise ProviderError(f"The key set at {url} cannot be used: {error}.") from None
            self._url, self._etag = url, got.etag
            self._confirmed = self._clock()
            self._expires = self._confirmed + got.fresh_s
        except ProviderError as error:
            logger.warning("issuer_keys_not_fetched", extra={"cause": error.message})


class Fetcher:
    """GET and POST to one identity provider: its own certificates, no redirects, small answers, little time."""

    def __init__(
        self, session: aiohttp.ClientSession, tls: ssl.SSLContext | bool = True, *, timeout_s: float = FETCH_S
    ) -> None:
        self._session = session
        self._tls = tls
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def get(self, url: str, *, etag: str | None = None) -> Fetched:
        """A JSON document; with `etag`, only if it has changed. Raises ProviderError."""
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if etag is not None:
            headers["If-None-Match"] = etag
        status, answer, body = await self._ask("GET", url, headers)
        if status == 304 and etag is not None:
            return Fetched(None, answer.get("ETag", etag), fresh_for(answer))
        if status != 200:
            raise ProviderError(f"{url} answered with the status {status}.")
        return Fetched(body, answer.get("ETag"), fresh_for(answer))

    async def post_form(self, url: str, fields: Mapping[str, str], auth: str | None) -> tuple[int, bytes]:
        """Status and body of the answer to a form. auth: the header Authorization. Raises ProviderError."""
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        if auth is not None:
            headers["Authorization"] = auth
        status, _, body = await self._ask("POST", url, headers, data=aiohttp.FormData(fields)())
        return status, body

    async def _ask(
        self, method: str, url: str, headers: dict[str, str], **how: Any
    ) -> tuple[int, Mapping[str, str], bytes]:
        try:
            async with self._session.request(
                method,
                url,
                headers=headers,
                allow_redirects=False,
                ssl=self._tls,
                timeout=self._timeout,
                **how,
            ) as answer:
                if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise ProviderError(f"{url} compresses its answer, although that was not asked for.")
                body = bytearray()
                async for part in answer.content.iter_any():
                    body += part
                    if len(body) > MAX_DOCUMENT:
                        raise ProviderError(f"{url} answers with more than {MAX_DOCUMENT} bytes.")
                return answer.status, answer.headers, bytes(body)
        except TimeoutError:
            raise ProviderError(f"{url} did not answer within {self._timeout.total:g} s.") from None
        except aiohttp.ClientConnectorCertificateError:
            raise ProviderError(f"{url} shows a certificate that nobody trusted vouches for; set `ca`.") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ProviderError(f"{url} cannot be reached ({type(error).__name__}).") from None


def fresh_for(headers: Mapping[str, str]) -> float:
    """Seconds that an answer may be used unasked: its Cache-Control, within a minute and a day."""
    control = headers.get("Cache-Control", "")
    if re.search(r"\bno-(?:store|cache)\b", control, re.IGNORECASE):
        return MIN_FRESH_S
    found = _MAX_AGE.search(control)
    if found is None:
        return DEFAULT_FRESH_S
    age = headers.get("Age", "0")
    passed = int(age) if _AGE.fullmatch(age) else 0
    return min(max(float(int(found[1]) - passed), MIN_FRESH_S), MAX_FRESH_S)


# --- discovery --------------------------------------------------------------------------------------


class Metadata(msgspec.Struct, frozen=True):
    """What an issuer publishes of itself (OpenID Connect Discovery 1.0), as far as it is used here."""

    issuer: str
    jwks_uri: str
    authorization_endpoint: str | None = None
    token_endpoint: str | None = None
    end_session_endpoint: str | None = None
    names_issuer: bool = False
    """Answers to a login name the issuer (RFC 9207)."""
    auth_methods: tuple[str, ...] = ("client_secret_basic",)


def parse_metadata(data: bytes, issuer: str) -> Metadata:
    """Raises ProviderError. The issuer must be the one that was asked; endpoints elsewhere than on its own host
    count as not there."""
    where = discovery_url(issuer)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise ProviderError(f"{where} is not JSON.") from None
    if not isinstance(found, dict) or found.get("issuer") != issuer:
        raise ProviderError(f"{where} is about another issuer than {issuer}; write the issuer to the letter.")

    def endpoint(name: str) -> str | None:
        url = found.get(name)
        return url if isinstance(url, str) and same_origin(url, issuer) else None

    jwks_uri = endpoint("jwks_uri")
    if jwks_uri is None:
        raise ProviderError(f"{where} names no keys on the issuer's own host; set jwks: {{url: ADDRESS}}.")
    methods = found.get("token_endpoint_auth_methods_supported")
    return Metadata(
        issuer=issuer,
        jwks_uri=jwks_uri,
        authorization_endpoint=endpoint("authorization_endpoint"),
        token_endpoint=endpoint("token_endpoint"),
        end_session_endpoint=endpoint("end_session_endpoint"),
        names_issuer=found.get("authorization_response_iss_parameter_supported") is True,
        auth_methods=tuple(m for m in methods if isinstance(m, str))
        if isinstance(methods, list)
        else ("client_secret_basic",),
    )


def discovery_url(issuer: str) -> str:
    return issuer.rstrip("/") + DISCOVERY


def same_origin(url: str, other: str) -> bool:
    """Whether two addresses have the same scheme, host and port."""
    try:
        one, two = origin(url), origin(other)
    except ValueError:
        return False
    return one == two


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port. Raises ValueError for what has none."""
    parts = urlsplit(url)
    standard = {"https": 443, "http": 80}.get(parts.scheme)
    if standard is None or not parts.hostname or parts.username is not None or parts.password is not None:
        raise ValueError("not an http(s) address")
    return parts.scheme, parts.hostname.lower(), parts.port or standard
