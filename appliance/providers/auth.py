"""How a provider is told who asks: a table of kinds of authentication.

A key makes the same headers for every request: whoever holds the key asks once and keeps them, so that a request pays
nothing. Signatures and tokens that run out have to be asked for with each request (`per_request`).

Secrets stay inside: no text of an exception, no `repr` and no log has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec
import yarl

from appliance import errors
from appliance.providers.auth_base import HEADER_VALUE, Auth, Surroundings

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
HEADER = "header:"
"""A kind that begins like this names the header that holds the key."""


class Kind(msgspec.Struct, frozen=True):
    """`needs` and `takes` are names of options: those that must be there, and those that may. They hold the secrets,
    unless `keyed`: then there is a key, or several, and each comes with the request."""

    make: Callable[[Mapping[str, str], Surroundings], Auth]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    keyed: bool = False


class InHeader:
    """A key as it is, behind `prefix`, in one header. Without a key there is no header."""

    __slots__ = ("_header", "_name", "_prefix")
    per_request = False
    secret = ""

    def __init__(self, name: str, header: str, prefix: str = "") -> None:
        self._name = name
        self._header = header
        self._prefix = prefix

    async def headers(
        self, method: str, url: yarl.URL, body: bytes, sent: Mapping[str, str], key: str | None
    ) -> Mapping[str, str]:
        if not key:
            return {}
        if not HEADER_VALUE.fullmatch(key):
            raise errors.UpstreamError(
                f"{self._name}: the gateway's key cannot be sent; the operator must correct it.",
                code="upstream_credentials",
            )
        return {self._header: self._prefix + key}

    def refused(self) -> None:
        pass


class Nothing:
    """For who does not ask who asks."""

    __slots__ = ()
    per_request = False
    secret = ""

    async def headers(
        self, method: str, url: yarl.URL, body: bytes, sent: Mapping[str, str], key: str | None
    ) -> Mapping[str, str]:
        return {}

    def refused(self) -> None:
        pass


def _none(options: Mapping[str, str], around: Surroundings) -> Auth:
    return Nothing()


def _bearer(options: Mapping[str, str], around: Surroundings) -> Auth:
    return InHeader(around.name, "Authorization", "Bearer ")


def _sigv4(options: Mapping[str, str], around: Surroundings) -> Auth:
    from appliance.providers.auth_sigv4 import SigV4  # the library is large, and few need it

    return SigV4(options, around)


def _google(options: Mapping[str, str], around: Surroundings) -> Auth:
    from appliance.providers.auth_google import ServiceAccount

    return ServiceAccount(options["service_account"], around, token_uri=options.get("token_uri"))


KINDS: Mapping[str, Kind] = {
    "none": Kind(_none),
    "bearer": Kind(_bearer, keyed=True),
    "bedrock_api_key": Kind(_bearer, keyed=True),
    "sigv4": Kind(_sigv4, ("access_key", "secret_key", "region"), ("session_token", "service")),
    "google_service_account": Kind(_google, ("service_account",), ("token_uri",)),
}
"""Beside them there is `header:NAME` for any name of a header."""


def kind_of(name: str) -> Kind:
    """Raises ValueError for a kind that there is not."""
    if name.startswith(HEADER):
        header = name.removeprefix(HEADER)
        if not _HEADER_NAME.fullmatch(header):
            raise ValueError(f"{name}: this is no name of a header; write one such as header:x-api-key")
        return Kind(lambda options, around: InHeader(around.name, header), keyed=True)
    try:
        return KINDS[name]
    except KeyError:
        raise ValueError(
            f"{name}: there is no such kind of authentication; use {', '.join(KINDS)} or header:NAME"
        ) from None


def make(kind: str, options: Mapping[str, str], around: Surroundings) -> Auth:
    """`options`: what the kind needs, secrets as they are. Raises ValueError, which names an option that is missing,
    unknown or cannot be used, and never what is in it."""
    row = kind_of(kind)
    missing = [name for name in row.needs if not options.get(name)]
    if missing:
        raise ValueError(f"{kind} needs {', '.join(missing)}")
    unknown = [name for name in options if name not in row.needs + row.takes]
    if unknown:
        raise ValueError(f"{kind} takes no {', '.join(unknown)}")
    return row.make(options, around)
