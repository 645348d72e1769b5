"""An issuer's public keys, and which of them may verify which signature. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey, import_key

MAX_KEYS = 100
MAX_KID = 256
MIN_RSA_BITS = 2048
_CURVES = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521", "EdDSA": "Ed25519", "Ed25519": "Ed25519"}
ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", *_CURVES})
"""What may ever be allowed. Neither `none` nor anything symmetric is in it, whatever an issuer or a token says."""


class PublicKey(NamedTuple):
    kid: str | None
    key: Key
    algorithms: frozenset[str]
    """What the key may verify, by its type, its curve, and its own `alg`."""


class KeySet:
    """Immutable. Keys are found by their `kid`; a token without one finds the only key of its set."""

    __slots__ = ("_by_kid", "_keys")

    def __init__(self, keys: Iterable[PublicKey]) -> None:
        self._keys = tuple(keys)
        self._by_kid: dict[str, list[PublicKey]] = {}
        for each in self._keys:
            if each.kid is not None:
                self._by_kid.setdefault(each.kid, []).append(each)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, kid: str | None, algorithm: str) -> Key | None:
        """The key that may verify this signature, None if there is none or no single one."""
        found = self._keys if kid is None and len(self._keys) == 1 else self._by_kid.get(kid or "", ())
        fitting = [each.key for each in found if algorithm in each.algorithms]
        return fitting[0] if len(fitting) == 1 else None


def parse_key_set(data: bytes) -> KeySet:
    """A JWK set (RFC 7517). Keys that cannot verify a signature are left out.

    Raises ValueError for what is no set, for one without a key that can be used, and for one that gives a private
    key away; its text says what is wrong and repeats nothing of the set.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list):
        raise ValueError('it is not a JWK set: it must be {"keys": […]}')
    if len(members) > MAX_KEYS:
        raise ValueError(f"it has more than {MAX_KEYS} keys")
    keys = []
    for member in members:
        if isinstance(member, dict) and member.get("kty") in ("RSA", "EC", "OKP") and "d" in member:
            raise ValueError("it holds a private key; replace that key, and publish only public ones")
        if (key := _usable(member)) is not None:
            keys.append(key)
    if not keys:
        raise ValueError("none of its keys can verify a signature")
    return KeySet(keys)


def _usable(member: Any) -> PublicKey | None:
    if not isinstance(member, dict) or member.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    if member.get("use", "sig") != "sig" or "verify" not in member.get("key_ops", ["verify"]):
        return None
    kid = member.get("kid")
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= MAX_KID):
        return None
    try:
        # Only what the key is made of: certificates and addresses beside it mean nothing here.
        material = {name: member[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in member}
        if member["kty"] == "RSA" and len(material["n"]) < MIN_RSA_BITS // 6:
            return None
        key = import_key(material)
        fits = _fitting(key)
    except (JoseError, ValueError, TypeError, KeyError):
        return None
    if "alg" in member:
        fits &= {member["alg"]} if isinstance(member["alg"], str) else frozenset()
    return PublicKey(kid, key, fits) if fits else None


def _fitting(key: Key) -> frozenset[str]:
    """The algorithms that a key can be used with by its type and curve."""
    if isinstance(key, RSAKey):
        enough = key.public_key.key_size >= MIN_RSA_BITS
        return frozenset(each for each in ALGORITHMS if each[:2] in ("RS", "PS")) if enough else frozenset()
    if isinstance(key, (ECKey, OKPKey)):
        return frozenset(name for name, curve in _CURVES.items() if curve == key.curve_name)
    return frozenset()
