"""Who is asking, whatever they show: a key, a token of an identity provider, a client certificate."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from appliance.errors import PermissionDenied, Unauthenticated
from appliance.identity.certificates import ISSUER, PeerCertificate, Subject, subject_of
from appliance.identity.claims import Forgotten, People, Person, issued_at, person_of, who
from appliance.identity.jwt import MAX_TOKEN, BadToken, Claims, looks_like_token
from appliance.identity.key_set import KeySet
from appliance.identity.keys import PREFIX
from appliance.identity.oidc import Provider
from appliance.identity.principal import Principal
from appliance.identity.restrictions import admits, networks

logger = logging.getLogger("outpost.identity")

MAX_CACHED = 4096
MAX_PEOPLE = 16_384
WATCH_S = 60.0


class Keys(Protocol):
    """The keys of this box. Raises Unauthenticated for a right key that has ended, PermissionDenied from a wrong
    address."""

    def identify(self, presented: str, address: str | None = None) -> Principal | None: ...


class _Cached(msgspec.Struct, frozen=True):
    """What a token was found to be worth, as long as the keys are the same. until: unix seconds."""

    principal: Principal
    provider: Provider
    keys: KeySet | None
    until: float
    owner: tuple[str, str]
    """Issuer and subject."""


class Authenticator:
    """Turns credentials into principals. `change` what the settings say of issuers and certificates at a reload.

    clock: unix seconds.
    """

    def __init__(
        self,
        keys: Keys,
        people: People,
        providers: Iterable[Provider] = (),
        subjects: Iterable[Subject] = (),
        *,
        clock: Callable[[], float],
    ) -> None:
        self._keys = keys
        self._people = people
        self._clock = clock
        self._epoch = 0
        self._cache: OrderedDict[bytes, _Cached] = OrderedDict()
        self._newest: OrderedDict[tuple[str, str], tuple[float, Person | PermissionDenied]] = OrderedDict()
        self._changed = asyncio.Event()
        self.change(providers, subjects)

    def change(self, providers: Iterable[Provider], subjects: Iterable[Subject]) -> None:
        """Go by these from now on: nothing that was found under the old settings counts any longer."""
        self._providers = {each.settings.issuer: each for each in providers}
        self._subjects = tuple(subjects)
        self._epoch += 1
        self._cache.clear()
        self._newest.clear()
        self._changed.set()

    @property
    def providers(self) -> tuple[Provider, ...]:
        return tuple(self._providers.values())

    # --- identifying ---

    def identify_now(self, credential: str | None, address: str | None = None) -> Principal | None:
        """The owner of a key, or of a token that was verified before: what needs no waiting. None for anything else.

        Raises Unauthenticated for what has ended, PermissionDenied for a key from a wrong address.
        """
        if credential is None:
            return None
        if self._providers and not credential.startswith(PREFIX) and looks_like_token(credential):
            return self._remembered(credential)
        return self._keys.identify(credential, address)

    async def identify(
        self, credential: str | None, peer: PeerCertificate | None = None, address: str | None = None
    ) -> Principal:
        """Who is asking. A credential counts before the connection's certificate.

        peer: the verified certificate of the connection (`getpeercert()`), if it has one. Raises Unauthenticated,
        PermissionDenied, ProviderError (503), RecordsUnavailable.
        """
        if credential is None:
            if peer and self._subjects:
                return await self._by_certificate(peer, address)
            raise Unauthenticated("No API key was sent; send the header Authorization: Bearer YOUR_KEY.")
        if (found := self.identify_now(credential, address)) is not None:
            return found
        if self._providers and looks_like_token(credential):
            try:
                return await self._by_token(credential)
            except BadToken as bad:
                # A key of the settings may look like a token.
                if (found := self._keys.identify(credential, address)) is not None:
                    return found
                logger.info("token_refused", extra={"reason": bad.reason})
                raise
        raise Unauthenticated("The API key is not known here; it may be mistyped or revoked.")

    def _remembered(self, token: str) -> Principal | None:
        key = self._key(token)
        cached = self._cache.get(key)
        if cached is None:
            return None
        if cached.until <= self._clock() or cached.provider.keys.current is not cached.keys:
            del self._cache[key]
            return None
        self._cache.move_to_end(key)
        try:
            return self._people.standing(cached.principal)
        except Forgotten:
            del self._cache[key]
            return None

    def _key(self, token: str) -> bytes:
        """The SHA-256 of all of the token, which holds its issuer, under the settings of now."""
        return hashlib.sha256(b"%d\n%b" % (self._epoch, token.encode("utf-8", "surrogatepass"))).digest()

    async def _by_token(self, token: str) -> Principal:
        provider = self._providers.get(_issuer(token) or "")
        if provider is None:
            raise BadToken("unknown_issuer")
        epoch, key = self._epoch, self._key(token)
        claims = await provider.verify(token, provider.policy, self._clock())
        keys = provider.keys.current
        issued, person = self._newest_word(claims, provider)
        expires_at = claims.expires_at + provider.policy.skew
        principal = await sign_in(self._people, person, f"jwt:{provider.name}", expires_at, issued)
        if epoch == self._epoch:
            self._cache[key] = _Cached(principal, provider, keys, claims.expires_at, (person.issuer, person.subject))
            while len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        return principal

    def _newest_word(self, claims: Claims, provider: Provider) -> tuple[float, Person]:
        """What the issuer last said of somebody, and when: an older token, though still valid, gives nothing back that
        a newer one has taken. Raises BadToken, PermissionDenied."""
        owner = (claims.issuer, who(claims, provider.rules))
        at = issued_at(claims)
        known = self._newest.get(owner)
        if known is not None and at < known[0]:
            at, word = known
        else:
            try:
                word = person_of(claims, provider.rules)
            except PermissionDenied as refusal:
                word = refusal
            if known is not None and known[1] != word:
                for key in [key for key, cached in self._cache.items() if cached.owner == owner]:
                    del self._cache[key]
            self._newest[owner] = (at, word)
            self._newest.move_to_end(owner)
            while len(self._newest) > MAX_PEOPLE:
                self._newest.popitem(last=False)
        if isinstance(word, PermissionDenied):
            raise PermissionDenied(word.message)
        return at, word

    async def _by_certificate(self, peer: PeerCertificate, address: str | None) -> Principal:
        subject, until = subject_of(peer, self._subjects, self._clock())
        if (allowed := networks(subject.restrictions)) and not admits(allowed, address):
            raise PermissionDenied("The client certificate may not be used from this address.")
        person = Person(ISSUER, subject.key, subject.name, subject.role, subject.team, subject.organization)
        principal = await sign_in(self._people, person, "mtls", until)
        return msgspec.structs.replace(principal, key_name=subject.name, restrictions=subject.restrictions)

    # --- keys of the providers ---

    async def watch(self) -> None:
        """Keep the providers' keys fresh, until cancelled; so that a key that a provider gives up is given up here."""
        while True:
            self._changed.clear()
            try:
                wait_s = await self._refresh()
            except Exception:
                logger.exception("issuer_watch_failed")
                wait_s = WATCH_S
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _refresh(self) -> float:
        """Fetch the keys that are due; seconds until the next are."""
        due = [each for each in self._providers.values() if each.keys.due_s == 0.0]
        done = await asyncio.gather(*(each.keys.refresh() for each in due), return_exceptions=True)
        for each, error in zip(due, done, strict=True):
            if isinstance(error, Exception):
                logger.error("issuer_keys_not_fetched", extra={"provider": each.name}, exc_info=error)
        waits = [each.keys.due_s for each in self._providers.values()]
        return min([WATCH_S, *(max(each, 1.0) for each in waits if each is not None)])


async def sign_in(
    people: People, person: Person, credential: str, expires_at: float, issued: float | None = None
) -> Principal:
    """The person as a principal of this credential. issued: when the issuer said all that, in unix seconds; None for
    what the settings say. Raises Unauthenticated, PermissionDenied, RecordsUnavailable."""
    principal = await people.signed_in(
        person.issuer,
        person.subject,
        person.name,
        person.role,
        person.team,
        person.organization,
        teams=person.teams,
        issued=issued,
        organization_claimed=person.organization_claimed,
    )
    return msgspec.structs.replace(principal, key_id=credential, key_name=credential, expires_at=expires_at)


def _issuer(token: str) -> str | None:
    """Whom a token claims to be from, only to choose whose keys to try. Nothing of it is believed."""
    if len(token) > MAX_TOKEN or not token.isascii():
        return None
    part = token.split(".")[1]
    try:
        found: Any = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, RecursionError):
        return None
    issuer = found.get("iss") if isinstance(found, dict) else None
    return issuer if isinstance(issuer, str) else None
