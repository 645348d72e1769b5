"""An HTTP upstream's refusals and failures in the gateway's error tree. Pure.

The caller learns what it can act on – its own mistakes, a rate limit, an outage. It never learns about the
gateway's own credentials, addresses or account at the upstream.
"""

from __future__ import annotations

import email.utils
import re
from collections.abc import Mapping

import msgspec

from appliance import errors
from appliance.redact import MIN_SECRET, REDACTED, redact_looks, spellings

_LIMIT = 1000
_MOST_READ = 16 * 1024
_MOST_PARAM = 128
_CODE = re.compile(r"[a-z][a-z0-9]*(?:[_.-][a-z0-9]+){0,7}")
"""What may be on record as the code of an error; other words of an upstream may be anything."""


class _Error(msgspec.Struct, frozen=True):
    message: str | None = None
    code: str | int | None = None
    param: str | None = None
    type: str | None = None


class _Body(msgspec.Struct, frozen=True):
    error: _Error | str | None = None
    message: str | None = None
    detail: str | None = None


_decode = msgspec.json.Decoder(_Body).decode

_CONTEXT = ("context length", "context window", "context size", "maximum context", "context_length", "too many tokens")


def from_status(
    target: str, status: int, headers: Mapping[str, str], body: bytes, *, now: float, secret: str | None = None
) -> errors.OutpostError:
    """The error for an answer that is not 200. `now` is unix seconds; `secret` never appears in a message."""
    if status in (400, 413, 422):
        return _refused(target, status, body, secret)
    if status in (401, 403):
        return errors.UpstreamError(
            f"{target} did not accept the gateway's credentials; the operator must correct them.",
            code="upstream_credentials",
        )
    if status == 404:
        return errors.UpstreamError(
            f"{target} does not know the model or the endpoint; the operator must correct the route.",
            code="upstream_not_found",
        )
    after = retry_after(headers.get("Retry-After"), now)
    if status == 429:
        return errors.RateLimited(f"{target} limits the rate of requests; slow down.", retry_after_s=after)
    if status in (408, 504):
        return errors.UpstreamTimeout(f"{target} timed out by its own account ({status}).")
    if status in (503, 529):
        return errors.UpstreamUnavailable(f"{target} is not available at the moment ({status}).", retry_after_s=after)
    if status >= 500:
        return errors.UpstreamFailed(f"{target} failed ({status}).")
    return errors.UpstreamError(f"{target} gave an unexpected answer ({status}).")


def _refused(target: str, status: int, body: bytes, secret: str | None) -> errors.OutpostError:
    try:
        found = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = _Body()
    error = found.error
    if isinstance(error, str) or error is None:
        error = _Error(message=error or found.message or found.detail)
    code = error.code if isinstance(error.code, str) and len(error.code) <= 64 else None
    if code is not None and (not _CODE.fullmatch(code) or clean(code, secret) != code):
        code = None
    param = clean(error.param, secret)[:_MOST_PARAM] or None
    message = clean(error.message, secret) or f"{target} refused the request ({status}) and did not say why."
    lowered = message.lower()
    if code == "context_length_exceeded" or any(words in lowered for words in _CONTEXT):
        return errors.ContextLengthExceeded(message, param=param or "messages")
    if status == 413:
        return errors.BadRequest(message, param=param, code="request_too_large")
    return errors.BadRequest(message, param=param, code=code or "invalid_request")


def clean(message: str | None, secret: str | None) -> str:
    """An upstream's words as they may be repeated: bounded, on one line, without our secret however it is spelled,
    and without what looks like one of the upstream's own."""
    if not message:
        return ""
    text = message[:_MOST_READ]
    if secret:
        known = set(spellings(secret)) if len(secret) >= MIN_SECRET else {secret}
        for spelling in sorted(known, key=lambda each: (-len(each), each)):
            text = text.replace(spelling, REDACTED)
    # Redacted before it is cut: nobody knows half a key for one.
    text = redact_looks(text)[:_LIMIT]
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds from a `Retry-After` header (a number or a date), at most an hour; None if there is none."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return None
    if seconds != seconds:
        return None
    return min(max(seconds, 0.0), 3600.0)
