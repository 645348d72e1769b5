"""Client certificates as credentials: what a verified one says, and whom the settings take it for.

Whether a certificate is genuine is the TLS library's to say; `require` makes it ask. The rest is pure, over the
dict that `ssl.SSLObject.getpeercert()` gives.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from appliance.errors import PermissionDenied, Unauthenticated
from appliance.identity.permissions import Role
from appliance.identity.principal import UNRESTRICTED, Restrictions

ISSUER = "client-certificate"
"""What the directory knows as the issuer of those who come in by a certificate."""
PeerCertificate = Mapping[str, Any]
Field = Literal["common_name", "dns", "uri", "email"]
_SAN: Mapping[str, Field] = {"DNS": "dns", "URI": "uri", "email": "email"}
_NAMES = frozenset({"dns"})
"""Fields in which upper and lower case are the same."""


class Subject(msgspec.Struct, frozen=True):
    """Whose certificate it is: the settings' entry. organization and team: names."""

    name: str
    field: Field
    value: str
    role: Role
    organization: str | None = None
    team: str | None = None
    restrictions: Restrictions = UNRESTRICTED

    @property
    def key(self) -> str:
        """The same for the same entry, whatever else of it changes; the directory's subject."""
        return f"{self.field}:{self.value}"


def require(context: ssl.SSLContext, ca: Path) -> None:
    """Have a server's TLS ask clients for a certificate that one of `ca` vouches for; who shows a wrong one is cut
    off, who shows none may still come with a key. Raises OSError."""
    context.load_verify_locations(cafile=ca)
    context.verify_mode = ssl.CERT_OPTIONAL


def subject_of(certificate: PeerCertificate, subjects: Sequence[Subject], now: float) -> tuple[Subject, float]:
    """The first entry that a verified certificate fits, and when the certificate ends (unix seconds).

    Raises Unauthenticated for one that has ended, PermissionDenied for one that no entry speaks of.
    """
    until = _expiry(certificate)
    if until <= now:
        raise Unauthenticated("The client certificate has expired; get a new one.", code="invalid_certificate")
    found = names_of(certificate)
    for subject in subjects:
        value = subject.value.lower() if subject.field in _NAMES else subject.value
        if value in found[subject.field]:
            return subject, until
    raise PermissionDenied("The client certificate is genuine, but identity.client_certificates has no entry for it.")


def names_of(certificate: PeerCertificate) -> dict[Field, frozenset[str]]:
    """Everything that a certificate calls its owner, by the kind of name."""
    found: dict[Field, set[str]] = {"common_name": set(), "dns": set(), "uri": set(), "email": set()}
    names = [value for rdn in certificate.get("subject", ()) for kind, value in rdn if kind == "commonName"]
    if len(names) == 1:
        # Of several it would be anybody's guess which one was meant.
        found["common_name"].add(names[0])
    for kind, value in certificate.get("subjectAltName", ()):
        field = _SAN.get(kind)
        if field is not None:
            found[field].add(value.lower() if field in _NAMES else value)
    return {field: frozenset(each for each in values if _plain(each)) for field, values in found.items()}


def _plain(value: object) -> bool:
    """Without NUL and other characters that two readers could take differently."""
    return isinstance(value, str) and 0 < len(value) <= 255 and not re.search(r"[\x00-\x1f\x7f]", value)


def _expiry(certificate: PeerCertificate) -> float:
    try:
        return float(ssl.cert_time_to_seconds(certificate["notAfter"]))
    except (KeyError, TypeError, ValueError):
        return 0.0
