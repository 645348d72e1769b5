"""Texts that a caller carries home and brings again, which only its own key opens: compacted conversations.

Nothing of them is stored. They are worth nothing once the caller is erased.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import NamedTuple

from cryptography.exceptions import InvalidTag

from appliance.errors import BadRequest
from appliance.records.subject_keys import Random, SubjectKey

MARK = "outpost2."
"""Before what is ours."""
_EARLIER = "outpost1."
"""Before what an earlier version made, which has no reach."""
_NONCE_BYTES = 12
_PURPOSES = {MARK: b"compaction2\0", _EARLIER: b"compaction\0"}


class Opened(NamedTuple):
    """reach: how far it may go, see `reach`; None: nobody noted it."""

    text: str
    reach: str | None


def seal_text(key: SubjectKey, text: str, reach: str, random: Random) -> str:
    """The text, with how far it may go, as printable characters."""
    nonce = random(_NONCE_BYTES)
    plain = zlib.compress(f"{reach}\0{text}".encode("utf-8", "replace"))
    sealed = nonce + key.cipher.encrypt(nonce, plain, _PURPOSES[MARK] + key.subject.encode())
    return MARK + base64.urlsafe_b64encode(sealed).decode()


def open_text(key: SubjectKey | None, sealed: str) -> Opened | None:
    """None for what is not ours. Raises BadRequest for what is, and does not open with this key."""
    mark = sealed[: len(MARK)]
    if mark not in _PURPOSES:
        return None
    try:
        if key is None:
            raise ValueError
        data = base64.b64decode(sealed[len(MARK) :], b"-_", validate=True)
        plain = key.cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], _PURPOSES[mark] + key.subject.encode())
        text = zlib.decompress(plain).decode()
    except (InvalidTag, ValueError, binascii.Error, zlib.error):
        raise BadRequest(
            "input: a compaction item does not open: it was altered, is somebody else's, or is of somebody who was "
            "erased since. Leave it out.",
            param="input",
        ) from None
    if mark == _EARLIER:
        return Opened(text, None)
    reach, _, text = text.partition("\0")
    return Opened(text, reach)
