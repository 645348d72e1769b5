"""The headers that tell a client how much it may still ask for. Pure.

`x-ratelimit-*` as OpenAI's clients know them, for requests and for tokens; `RateLimit` and `RateLimit-Policy` as
draft-ietf-httpapi-ratelimit-headers writes them. Each measure is told of the limit that will be met first.
"""

from __future__ import annotations

import math
from functools import lru_cache

from appliance.limits.standing import Near


def headers(requests: Near | None, tokens: Near | None) -> dict[str, str]:
    """For an answer, of what `Book.tightest` gave; none where no limit applies. Money is not shown to those who ask
    models."""
    if requests is None:
        return {} if tokens is None else _one(tokens, "tokens")
    found = _one(requests, "requests")
    if tokens is not None:
        policy, limit = found["RateLimit-Policy"], found["RateLimit"]
        found |= _one(tokens, "tokens")
        found["RateLimit-Policy"] = f"{policy}, {found['RateLimit-Policy']}"
        found["RateLimit"] = f"{limit}, {found['RateLimit']}"
    return found


def _one(near: Near, name: str) -> dict[str, str]:
    amount, quoted, policy = _constant(near.limit, near.measure, near.amount, near.window_s)
    remaining = near.remaining
    return {
        f"x-ratelimit-limit-{name}": amount,
        f"x-ratelimit-remaining-{name}": str(remaining),
        f"x-ratelimit-reset-{name}": reset_text(near.reset_s),
        "RateLimit-Policy": policy,
        "RateLimit": f"{quoted};r={remaining};t={math.ceil(near.reset_s)}",
    }


@lru_cache(maxsize=1024)
def _constant(limit: str, measure: str, amount: int, window_s: int) -> tuple[str, str, str]:
    """What of it stays the same as long as the limit does."""
    quoted = _quoted(f"{limit}-{measure}")
    return str(amount), quoted, f"{quoted};q={amount};w={window_s}"


def reset_text(seconds: float) -> str:
    """As OpenAI writes it: 6m0s, 1.5s, 20ms."""
    ms = max(0, math.ceil(seconds * 1000))
    if ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    rest = f"{ms / 1000:g}s" if ms < 60_000 else "0s"
    if hours:
        return f"{hours}h{minutes}m{rest}"
    return f"{minutes}m{rest}" if minutes else rest


def _quoted(text: str) -> str:
    """A string of structured fields (RFC 9651). Names of limits are printable ASCII."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
