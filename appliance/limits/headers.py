"""The headers that tell a client how much it may still ask for. Pure.

`x-ratelimit-*` as OpenAI's clients know them, for requests and for tokens; `RateLimit` and `RateLimit-Policy` as
draft-ietf-httpapi-ratelimit-headers writes them. Each measure is told of the limit that will be met first.
"""

from __future__ import annotations

import math

from appliance.limits.book import Standing
from appliance.limits.refusal import IN_FLIGHT, Refusal


def headers(requests: Standing | None, tokens: Standing | None) -> dict[str, str]:
    """For an answer, of what `Book.tightest` gave; none where no limit applies. Money is not shown to those who ask
    models."""
    found: dict[str, str] = {}
    policies: list[str] = []
    limits: list[str] = []
    for name, standing in (("requests", requests), ("tokens", tokens)):
        if standing is None:
            continue
        remaining, reset_s = standing.remaining, standing.reset_s
        found[f"x-ratelimit-limit-{name}"] = str(standing.amount)
        found[f"x-ratelimit-remaining-{name}"] = str(remaining)
        found[f"x-ratelimit-reset-{name}"] = reset_text(reset_s)
        quoted = _quoted(f"{standing.limit}-{standing.measure}")
        policies.append(f"{quoted};q={standing.amount};w={standing.window_s}")
        limits.append(f"{quoted};r={remaining};t={math.ceil(reset_s)}")
    if limits:
        found["RateLimit-Policy"] = ", ".join(policies)
        found["RateLimit"] = ", ".join(limits)
    return found


def refusal_headers(refusal: Refusal) -> dict[str, str]:
    """For a refusal: `Retry-After` and the limit that is in the way."""
    if refusal.retry_after_s is None:
        return {}
    seconds = max(1, math.ceil(refusal.retry_after_s))
    found = {"Retry-After": str(seconds)}
    if refusal.measure not in ("usd", IN_FLIGHT):
        remaining = max(0, refusal.amount - refusal.used)
        found["RateLimit"] = f"{_quoted(f'{refusal.limit}-{refusal.measure}')};r={remaining};t={seconds}"
    return found


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
