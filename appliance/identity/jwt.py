"""Bearer tokens (JWT, RFC 7519) by the rules of RFC 8725: what they claim counts only once all of it is verified. Pure.

Which algorithms and keys are right is the issuer's settings' to say, never the token's. Signatures are joserfc's.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import msgspec
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jws import JWSRegistry

from appliance.errors import Unauthenticated
from appliance.identity.key_set import ALGORITHMS, MAX_KID, KeySet

MAX_TOKEN = 16 * 1024
"""Bytes."""
MAX_SUBJECT = 255
MAX_AUDIENCES = 64
_PART = re.compile(r"[A-Za-z0-9_-]+")
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
_REFUSED = frozenset({"crit", "b64", "jwk", "jku", "x5u", "x5c", "zip", "enc", "cty"})
"""Header parameters that would bring keys along, or another reading of the token."""


class BadToken(Unauthenticated):
    """A token that is not accepted. `reason` is for the log; it holds nothing of the token."""

    code = "invalid_token"

    def __init__(self, reason: str, message: str = "The token is not accepted here.") -> None:
        super().__init__(message)
        self.reason = reason


class UnknownKey(BadToken):
    """The issuer is known, but not the key that the token names; newer keys may have it."""

    def __init__(self, issuer: str) -> None:
        super().__init__("unknown_key")
        self.issuer = issuer


class Policy(msgspec.Struct, frozen=True):
    """What an issuer's tokens must be like. Times in seconds."""

    name: str
    issuer: str
    audience: tuple[str, ...]
    algorithms: frozenset[str]
    max_age: float | None = None
    skew: float = 60.0


class Trusted(NamedTuple):
    """An issuer with the keys that it has at the moment; None: they were never had."""

    policy: Policy
    keys: KeySet | None


class Claims(msgspec.Struct, frozen=True):
    """What a verified token says. `expires_at`: unix seconds until which it is accepted, without the tolerance for
    clocks."""

    policy: Policy
    subject: str
    expires_at: float
    all: dict[str, Any]

    @property
    def issuer(self) -> str:
        return self.policy.issuer


def looks_like_token(credential: str) -> bool:
    """Whether a credential has the form of a JWT: three parts between dots, the first one a JSON object."""
    return credential.startswith("eyJ") and credential.count(".") == 2


def verify(token: str, issuers: Mapping[str, Trusted], now: float) -> Claims:
    """The claims of a token that one of the `issuers` (by their `iss`) has signed for us.

    now: unix seconds. Raises BadToken, and UnknownKey where another set of keys may know better.
    """
    if len(token) > MAX_TOKEN or not token.isascii():
        raise BadToken("size")
    parts = token.split(".")
    if len(parts) != 3 or not all(_PART.fullmatch(part) for part in parts):
        raise BadToken("form")
    header, claims = _object(_decoded(parts[0])), _object(_decoded(parts[1]))
    _decoded(parts[2])
    algorithm, kid = _read_header(header)
    trusted = issuers.get(issuer) if isinstance(issuer := claims.get("iss"), str) else None
    if trusted is None:
        raise BadToken("unknown_issuer")
    policy, keys = trusted
    if algorithm not in policy.algorithms or algorithm not in ALGORITHMS:
        raise BadToken("algorithm")
    key = keys.find(kid, algorithm) if keys is not None else None
    if key is None:
        raise UnknownKey(policy.issuer)
    try:
        jws.deserialize_compact(token, key, registry=_Registry(algorithm))
    except (JoseError, ValueError, TypeError) as error:
        # Without a name for the key it may be one that the issuer has taken since.
        raise (UnknownKey(policy.issuer) if kid is None else BadToken("signature")) from error
    return _read_claims(policy, claims, now)


class _Registry(JWSRegistry):
    """One algorithm for one token. joserfc's own sends a warning for EdDSA, whose curve is fixed here by the key."""

    max_header_length = 4096

    def __init__(self, algorithm: str) -> None:
        super().__init__(algorithms=[algorithm], strict_check_header=False)
        self._algorithm = algorithm

    def get_alg(self, name: str) -> Any:
        if name != self._algorithm:
            raise ValueError("another algorithm")
        return self.algorithms[name]


def _read_header(header: dict[str, Any]) -> tuple[str, str | None]:
    """The algorithm and the name of the key."""
    if _REFUSED & header.keys():
        raise BadToken("header")
    kind, kid, algorithm = header.get("typ", "JWT"), header.get("kid"), header.get("alg")
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise BadToken("type")
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= MAX_KID):
        raise BadToken("kid")
    if not isinstance(algorithm, str):
        raise BadToken("algorithm")
    return algorithm, kid


def _read_claims(policy: Policy, claims: dict[str, Any], now: float) -> Claims:
    # From here on the issuer has signed what it says: whoever holds the token may be told what is wrong with it.
    audience = claims.get("aud")
    named = [audience] if isinstance(audience, str) else audience
    if not isinstance(named, list) or len(named) > MAX_AUDIENCES or not all(isinstance(each, str) for each in named):
        raise BadToken("audience", "The token does not say whom it is meant for.")
    if not set(named) & set(policy.audience):
        raise BadToken("audience", "The token is meant for somebody else.")
    expires = _time(claims, "exp")
    if expires is None:
        raise BadToken("exp", "The token never expires; such tokens are not accepted.")
    if expires + policy.skew <= now:
        raise BadToken("expired", "The token has expired; get a new one.")
    not_before, issued = _time(claims, "nbf"), _time(claims, "iat")
    if any(time is not None and time - policy.skew > now for time in (not_before, issued)):
        raise BadToken("not_yet", "The token is not valid yet; check the clocks.")
    if policy.max_age is not None and (issued is None or issued + policy.max_age + policy.skew <= now):
        raise BadToken("max_age", "The token was made too long ago; get a new one.")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT or not subject.isprintable():
        raise BadToken("subject", "The token does not say whose it is.")
    if policy.max_age is not None and issued is not None:
        # Whoever keeps what a token was worth must not keep it for longer than it is accepted.
        expires = min(expires, issued + policy.max_age)
    return Claims(policy, subject, expires, claims)


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
        raise BadToken("time", f"The token's {name} is not a time.")
    return float(value)


def _decoded(part: str) -> bytes:
    """Strict base64url: no padding, and only one way to write the same bytes."""
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except (binascii.Error, ValueError):
        raise BadToken("encoding") from None
    if base64.urlsafe_b64encode(data).rstrip(b"=") != part.encode():
        raise BadToken("encoding")
    return data


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadToken("json") from None
    if not isinstance(found, dict):
        raise BadToken("json")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # Two readers could take different ones.
        raise ValueError("a name stands twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError("not a JSON number")
