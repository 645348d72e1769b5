"""What must hold on this machine for `identity`: client secrets, pinned keys, certificates."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath

from appliance.settings.document import Finding, Path
from appliance.settings.schema import Settings
from appliance.settings.secrets import SecretMissing, readable_by_others, resolve

MAX_JWKS_BYTES = 512 * 1024


def check_machine(settings: Settings, env: Mapping[str, str]) -> Iterator[Finding]:
    """Secrets that are missing, key files that cannot be read, certificates that do not load."""
    for index, issuer in enumerate(settings.identity.oidc):
        path: Path = ("identity", "oidc", index)
        if issuer.jwks is not None and issuer.jwks.file is not None:
            yield from _file((*path, "jwks", "file"), issuer.jwks.file)
        if issuer.ca is not None:
            yield from _certificates((*path, "ca"), issuer.ca)
        if issuer.login is not None and issuer.login.client_secret is not None:
            try:
                resolve(issuer.login.client_secret, env)
            except SecretMissing as missing:
                yield Finding((*path, "login", "client_secret"), missing.message, missing.cure)
    if settings.identity.client_ca is not None:
        yield from _certificates(("identity", "client_ca"), settings.identity.client_ca)


def warn_machine(settings: Settings) -> Iterator[Finding]:
    """Secrets that every user of the machine may read."""
    for index, issuer in enumerate(settings.identity.oidc):
        secret = issuer.login.client_secret if issuer.login is not None else None
        if secret is not None and secret.file is not None and readable_by_others(secret.file):
            path: Path = ("identity", "oidc", index, "login", "client_secret", "file")
            yield Finding(path, f"every user of this machine can read {secret.file}", f"run chmod 600 {secret.file}")


def _file(place: Path, path: FilePath) -> Iterator[Finding]:
    try:
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        yield Finding(place, f"{path} cannot be read ({reason})", "create it, or correct the path")
        return
    if size > MAX_JWKS_BYTES:
        yield Finding(place, f"{path} is larger than a set of keys can be", "name a file that holds only the JWK set")


def _certificates(place: Path, path: FilePath) -> Iterator[Finding]:
    broken = list(_file(place, path))
    if broken:
        yield from broken
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=path)
        found = context.cert_store_stats()["x509_ca"]
    except ssl.SSLError:
        found = 0
    if not found:
        yield Finding(place, f"{path} holds no certificate of an authority", "write its certificates into it, as PEM")
