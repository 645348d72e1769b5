"""What keys look like, said once more for those who are handed one."""

from __future__ import annotations

import re

_KEY = re.compile(r"op-[A-Za-z0-9_-]{43}")


def is_key(text: str) -> bool:
    """Whether a text has the form of a key that Outpost makes."""
    return _KEY.fullmatch(text) is not None
