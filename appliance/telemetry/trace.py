"""The ids of a trace, and the header that carries them (W3C Trace Context)."""

from __future__ import annotations

import re
from collections.abc import Callable

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


def parse_traceparent(header: str | None) -> tuple[str, str] | None:
    """Trace id and parent's span id of a `traceparent` (W3C Trace Context), None for one that is none.

    Its flags are not looked at: whether a trace is sent is not for strangers to say.
    """
    if header is None or len(header) > 512:
        return None
    match = _TRACEPARENT.fullmatch(header.strip())
    if match is None:
        return None
    version, trace_id, span_id, more = match.groups()
    if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not span_id.strip("0"):
        return None
    return trace_id, span_id


class Trace:
    """The ids of one exchange under way. Hexadecimal, as they are sent."""

    __slots__ = ("_random", "attempts", "parent", "sampled", "span_id", "trace_id")

    def __init__(
        self, trace_id: str, span_id: str, parent: str | None, sampled: bool, random: Callable[[int], bytes]
    ) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent = parent
        """The span id that the caller named."""
        self.sampled = sampled
        self.attempts: list[str] = []
        """The span ids of the attempts that were given one, in order."""
        self._random = random

    def attempt(self) -> str:
        """The `traceparent` for the next attempt; to be asked for once an attempt, in their order."""
        span_id = self._random(8).hex()
        self.attempts.append(span_id)
        return f"00-{self.trace_id}-{span_id}-0{int(self.sampled)}"
