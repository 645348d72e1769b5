"""Keys as pure functions: their look, their keyed hash, and the secrets that are derived for a purpose.

A key is looked up by the HMAC of all of it, also when it is nonsense. So the time taken tells
nothing about which keys exist, and a stolen database holds nothing that can be presented or guessed
offline without the secret file.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Iterable

from appliance.errors import BadRequest
from appliance.identity.principal import DEFAULT_ORGANIZATION, UNRESTRICTED, Restrictions, Role
from appliance.identity.restrictions import checked
from appliance.identity.snapshot import KeyRecord

PREFIX = "op-"
SHOWN = 7
"""Characters of a key that are kept to recognise it by: the fixed prefix and four of its own."""
KEY_BYTES = 32
ROTATED_NAME, ROTATED_DIGITS = 55, 8
"""A key that was rotated is called by so much of its name, a `+` and so many of the last characters of its id."""
MIN_FIXED_LENGTH = 20
"""A key that a person declared must not be one that can be guessed in passing."""


def new_key(random: Callable[[int], bytes]) -> str:
    """A fresh key: `op-` and 43 url-safe characters, which are 256 bits of `random`."""
    return PREFIX + base64.urlsafe_b64encode(random(KEY_BYTES)).decode().rstrip("=")


def hkdf(secret: bytes, info: bytes, length: int = 32, salt: bytes = b"") -> bytes:
    """HKDF with SHA-256 (RFC 5869): `length` bytes for the purpose `info`. Raises ValueError over 8160 bytes."""
    if length > 255 * 32:
        raise ValueError("HKDF-SHA256 gives at most 8160 bytes")
    pseudo_random = hmac.digest(salt or bytes(32), secret, hashlib.sha256)
    block, output = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(pseudo_random, block + info + bytes([counter]), hashlib.sha256)
        output += block
    return output[:length]


class KeyHasher:
    """Hashes keys under one secret. `secret_id` tells, without giving it away, which secret that was."""

    def __init__(self, secret: bytes) -> None:
        # Copied for each key. hmac.digest lets go of the interpreter's lock, however short the text, and then waits
        # for whatever another thread is doing: ten times as long as the hash takes.
        self._hmac = hmac.new(hkdf(secret, b"outpost api keys v1"), digestmod="sha256")
        self.secret_id = hkdf(secret, b"outpost secret id v1", 8).hex()

    def digest(self, presented: str) -> bytes:
        """32 bytes for any text, lone surrogates included. One hash of the whole text."""
        keyed = self._hmac.copy()
        keyed.update(presented.encode("utf-8", "surrogatepass"))
        return keyed.digest()


class FixedKey:
    """A key that the settings declare: valid while they do, never in the database.

    organization, team: names or ids; they need not be there yet, the key is worth nothing until they are.
    """

    __slots__ = ("key", "name", "organization", "restrictions", "role", "team")

    def __init__(
        self,
        name: str,
        key: str,
        role: Role,
        *,
        organization: str | None = None,
        team: str | None = None,
        restrictions: Restrictions = UNRESTRICTED,
    ) -> None:
        self.name = name
        self.key = key
        self.role = role
        self.organization = organization or DEFAULT_ORGANIZATION
        self.team = team
        self.restrictions = restrictions

    @property
    def id(self) -> str:
        return f"fixed:{self.name}"

    def __repr__(self) -> str:
        """Without the key: a representation ends up in logs and tracebacks."""
        return f"FixedKey(name={self.name!r}, role={self.role!r})"


def fixed_entries(hasher: KeyHasher, fixed: Iterable[FixedKey]) -> dict[bytes, KeyRecord]:
    """Declared keys by their hashes. Raises ValueError naming the entry for a short key, one declared twice, or
    restrictions that cannot be."""
    entries: dict[bytes, KeyRecord] = {}
    for entry in fixed:
        if len(entry.key) < MIN_FIXED_LENGTH:
            raise ValueError(
                f"identity.keys: the key of {entry.name!r} has under {MIN_FIXED_LENGTH} characters; use a longer one"
            )
        digest = hasher.digest(entry.key)
        if digest in entries:
            raise ValueError(
                f"identity.keys: {entry.name!r} and {entries[digest].name!r} have the same key; give each its own"
            )
        try:
            restrictions = checked(entry.restrictions)
        except BadRequest as error:
            raise ValueError(f"identity.keys: {entry.name!r}: {error.message}") from error
        entries[digest] = KeyRecord(
            digest=digest,
            id=entry.id,
            name=entry.name,
            role=entry.role,
            organization=entry.organization,
            team=entry.team,
            restrictions=restrictions,
        )
    return entries
