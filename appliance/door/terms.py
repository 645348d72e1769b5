"""What the doors go by at the moment: one holder for all of them, whose contents a reload swaps."""

from __future__ import annotations

from appliance.door.access_log import AccessLog
from appliance.door.http import Limits


class Terms:
    """Read it where a request or a connection begins, and keep what was read: the next one may find other limits.

    Both are replaced whole and never changed in place, so that no request sees half of a reload.
    """

    __slots__ = ("limits", "log")

    def __init__(self, limits: Limits | None = None, log: AccessLog | None = None) -> None:
        self.limits = limits or Limits()
        self.log = log
        """None: requests are not logged."""
