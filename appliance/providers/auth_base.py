"""What every kind of authentication is, and what it may use."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import aiohttp
import msgspec
import yarl

HEADER_VALUE = re.compile(r"[\x21-\x7e]+")
"""What a header can carry of a key."""


class Auth(Protocol):
    @property
    def per_request(self) -> bool:
        """Whether `headers` has to be asked for each request; otherwise once for each key is enough."""
        ...

    @property
    def secret(self) -> str:
        """What the last headers have shown beside the key, and must not come back in an answer; "" where there is
        nothing."""
        ...

    async def headers(
        self, method: str, url: yarl.URL, body: bytes, sent: Mapping[str, str], key: str | None
    ) -> Mapping[str, str]:
        """What to add to the headers `sent`. `url` must be the very one that is asked. `key` is None where there is
        none, or where the secrets are the Auth's own. Raises UpstreamError, if there is nothing that can be shown."""
        ...

    def refused(self) -> None:
        """The provider did not take the last headers (401): a token that is kept is not used again."""
        ...


class Surroundings(msgspec.Struct, frozen=True):
    """What an Auth may use beside its secrets."""

    name: str
    """The provider's, for messages."""
    session: aiohttp.ClientSession | None = None
    wall: Callable[[], float] = time.time
    """Unix seconds."""
    clock: Callable[[], float] = time.monotonic
    """Seconds."""


def header_value(key: str) -> str:
    """`key`, if a header can carry it. Raises ValueError, which does not show it."""
    if not HEADER_VALUE.fullmatch(key):
        raise ValueError("it holds blanks or other characters that no header can carry; write it again")
    return key
