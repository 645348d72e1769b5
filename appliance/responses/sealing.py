"""Texts that a caller carries home and brings again, which only its own key opens: compacted conversations.

Nothing of them is stored. They are worth nothing once the caller is erased.
"""

from __future__ import annotations

import base64
import binascii
import zlib

from cryptography.exceptions import InvalidTag

from appliance.errors import BadRequest
from appliance.records.subject_keys import Random, SubjectKey

MARK = "outpost1."
"""Before what is ours."""
_NONCE_BYTES = 12
_PURPOSE = b"compaction\0"


def seal_text(key: SubjectKey, text: str, random: Random) -> str:
    """The text as printable characters."""
    nonce = random(_NONCE_BYTES)
    plain = zlib.compress(text.encode("utf-8", "replace"))
    sealed = nonce + key.cipher.encrypt(nonce, plain, _PURPOSE + key.subject.encode())
    return MARK + base64.urlsafe_b64encode(sealed).decode()


def open_text(key: SubjectKey | None, sealed: str) -> str | None:
    """None for what is not ours. Raises BadRequest for what is, and does not open with this key."""
    if not sealed.startswith(MARK):
        return None
    try:
        if key is None:
            raise ValueError
        data = base64.b64decode(sealed[len(MARK) :], b"-_", validate=True)
        plain = key.cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], _PURPOSE + key.subject.encode())
        return zlib.decompress(plain).decode()
    except (InvalidTag, ValueError, binascii.Error, zlib.error):
        raise BadRequest(
            "input: a compaction item does not open: it was altered, is somebody else's, or is of somebody who was "
            "erased since. Leave it out.",
            param="input",
        ) from None
