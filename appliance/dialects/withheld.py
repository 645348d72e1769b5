"""Keys of the gateway's own that come back in answers, and must not pass. Pure.

A net, not a wall: it finds a key as it stands in the request, and with some of it escaped as JSON allows. What a target
cuts into several events, or encodes in some other way, passes.
"""

from __future__ import annotations

import re

from appliance.errors import UpstreamFailed

_ESCAPED = re.compile(rb"\\{1,8}(?:u00([2-7][0-9A-Fa-f])|/)")
"""A printable character of ASCII, in JSON, or in JSON within JSON."""
_LONGEST = 6
"""Bytes in which JSON writes one of ASCII."""


def check_secret(data: bytes, secret: bytes, target: str) -> None:
    """Raises UpstreamFailed for an answer that holds the key which it was asked with."""
    if secret and (secret in data or (b"\\" in data and secret in _plain(data))):
        raise UpstreamFailed(f"{target} repeated the gateway's credential in its answer, which is withheld.")


class Net:
    """The same for an answer that comes in pieces, however they are cut."""

    __slots__ = ("_before", "_secret", "_target")

    def __init__(self, secret: bytes, target: str) -> None:
        """`secret` may not be empty."""
        self._secret = secret
        self._target = target
        self._before = b""
        """The end of what was read before, which may be the secret's beginning."""

    def check(self, read: bytes) -> None:
        """Raises UpstreamFailed."""
        probe, secret = self._before + read, self._secret
        check_secret(probe, secret, self._target)
        self._before = probe[-len(secret) * (_LONGEST if b"\\" in probe else 1) :]


def _plain(data: bytes) -> bytes:
    if b"\\u00" not in data and b"\\/" not in data:
        return b""
    return _ESCAPED.sub(_character, data)


def _character(found: re.Match[bytes]) -> bytes:
    return b"/" if found[1] is None else bytes.fromhex(found[1].decode())
