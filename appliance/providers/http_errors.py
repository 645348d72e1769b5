"""An HTTP upstream's refusals and failures in the gateway's error tree, whatever the vendor's own shape. Pure.

The caller learns what it can act on – its own mistakes, a rate limit, an outage. It never learns about the
gateway's own credentials, addresses or account at the upstream.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from appliance import errors
from appliance.providers.waits import retry_after, wait_of
from appliance.redact import MIN_SECRET, REDACTED, redact_looks, spellings

__all__ = ["clean", "from_status", "retry_after"]

CREDENTIALS = "upstream_credentials"

_LIMIT = 1000
_MOST_READ = 16 * 1024
_MOST_PARAM = 128
_CODE = re.compile(r"[a-z][a-z0-9]*(?:[_.-][a-z0-9]+){0,7}")
"""What may be on record as the code of an error; other words of an upstream may be anything."""

_CONTEXT_CODES = frozenset({"context_length_exceeded", "string_above_max_length", "context_window_exceeded"})
_CONTEXT = re.compile(
    r"context[ _](?:length|window|size|limit)"
    r"|maximum (?:context|prompt|input|sequence) length"
    r"|(?:prompt|input)(?: is)? too long"
    r"|input token count.{0,40}exceeds|too many (?:input |prompt )?tokens"
    r"|exceeds the (?:maximum|max)(?:imum)? number of (?:input )?tokens"
    r"|tokens`? ?\+ ?`?max_(?:new_)?tokens|(?:inputs?|prompt) must have less than \d+ tokens"
    r"|reduce the length of (?:the|your) (?:messages|prompt|input)"
)
_FILTER_CODES = frozenset(
    {
        "content_filter",
        "content_filtered",
        "content_policy_violation",
        "responsibleaipolicyviolation",
        "moderation_blocked",
        "prohibited_content",
    }
)
_FILTER = re.compile(
    r"content (?:management policy|filter|policy|moderation)|content exists risk|content_policy"
    r"|usage (?:policy|policies|guidelines)|safety system|responsible ai polic|blocked by our (?:content|safety)"
    r"|flagged (?:as|for|by)|requires moderation"
)
_FLAGGED = re.compile(r"violates usage guidelines|requires moderation|input was flagged")
"""The same for a status that mostly speaks of credentials."""
_QUOTA_CODES = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "credit_balance_too_low",
        "insufficient_balance",
        "account_deactivated",
        "access_terminated",
    }
)
_QUOTA_WORDS = re.compile(
    r"credit balance is too low|insufficient (?:balance|quota|credits?)|exceeded your current quota, please check"
    r"|monthly included credits|spending limit|requires more credits|out of credits"
)
_MODEL_FAULTS = frozenset({"tool_use_failed", "json_validate_failed", "output_parse_failed"})
"""A 400 for what the model wrote, not for what it was asked: another try may well do better."""


class _Told(msgspec.Struct, frozen=True):
    """An error body, whatever its vendor calls the fields."""

    message: str = ""
    codes: tuple[str, ...] = ()
    """Words in lower case by which the vendor knows the error, the most telling one first."""
    code: str | None = None
    """As OpenAI has it."""
    param: str | None = None
    wait_s: float | None = None
    """How long the body says to wait."""


def from_status(
    target: str, status: int, headers: Mapping[str, str], body: bytes, *, now: float, secret: str | None = None
) -> errors.OutpostError:
    """The error for an answer that is not 200. `now` is unix seconds; `secret` never appears in a message."""
    told = _read(headers, body)
    for code in told.codes:
        if (make := _BY_CODE.get(code)) is not None:
            return make(target, status, _wait(headers, told, now))
    if status in (400, 413, 422):
        return _refused(target, status, told, _wait(headers, told, now), secret)
    if status == 402 or (status in (403, 429) and _used_up(told)):
        return _quota(target, status, None)
    if status == 403 and (set(told.codes) & _FILTER_CODES or _FLAGGED.search(told.message.lower())):
        return _filtered(target, told, secret)
    if (make := _BY_STATUS.get(status)) is not None:
        return make(target, status, _wait(headers, told, now))
    if status >= 500:
        return _failed(target, status, None)
    return errors.UpstreamError(f"{target} gave an unexpected answer ({status}).")


def _wait(headers: Mapping[str, str], told: _Told, now: float) -> float | None:
    found = wait_of(headers, now)
    return told.wait_s if found is None else found


# --- one error each -------------------------------------------------------------------------------


def _credentials(target: str, status: int, wait_s: float | None) -> errors.OutpostError:
    return errors.UpstreamError(
        f"{target} did not accept the gateway's credentials; the operator must correct them.", code=CREDENTIALS
    )


def _not_found(target: str, status: int, wait_s: float | None) -> errors.OutpostError:
    return errors.UpstreamError(
        f"{target} does not know the model or the endpoint; the operator must correct the route.",
        code="upstream_not_found",
    )


def _limited(target: str, status: int, wait_s: float | None) -> errors.OutpostError:
    return errors.TargetLimited(f"{target} limits the rate of requests; slow down.", retry_after_s=wait_s)


def _quota(target: str, status: int, wait_s: float | None) -> errors.OutpostError:
    return errors.TargetUsedUp(f"{target} has no quota left for the gateway's account; the operator must raise it.")


def _timed_out(target: str, status: int, wait_s: float | None) -> errors.OutpostError:
    error = errors.UpstreamTimeout(f"{target} timed out by its own account ({status}).")
    error.again = True  # it has answered, so that it may well answer the next time
    return error


def _unavailable(target: str, status: int, wait_s: float | None) -> errors.OutpostError:
    return errors.UpstreamUnavailable(f"{target} is not available at the moment ({status}).", retry_after_s=wait_s)


def _failed(target: str, status: int, wait_s: float | None) -> errors.OutpostError:
    return errors.UpstreamFailed(f"{target} failed ({status}).")


_Make = Callable[[str, int, float | None], errors.OutpostError]

_BY_STATUS: dict[int, _Make] = {
    401: _credentials,
    403: _credentials,
    404: _not_found,
    408: _timed_out,
    409: _failed,  # two requests got into each other's way
    424: _failed,  # the model failed, by Bedrock's account
    425: _failed,  # too early
    429: _limited,
    498: _unavailable,  # Groq: no room in this tier
    503: _unavailable,
    504: _timed_out,
    522: _timed_out,
    524: _timed_out,
    529: _unavailable,  # Anthropic: overloaded
}

_BY_CODE: dict[str, _Make] = {
    # AWS tells the kind of an error in a header, and its status is not always the usual one.
    "throttlingexception": _limited,
    "toomanyrequestsexception": _limited,
    "servicequotaexceededexception": _limited,
    "modeltimeoutexception": _timed_out,
    "modelnotreadyexception": _unavailable,
    "serviceunavailableexception": _unavailable,
    "modelerrorexception": _failed,
    "modelstreamerrorexception": _failed,
    "internalserverexception": _failed,
    "accessdeniedexception": _credentials,
    "unrecognizedclientexception": _credentials,
    "expiredtokenexception": _credentials,
    "invalidsignatureexception": _credentials,
    "missingauthenticationtokenexception": _credentials,
    "resourcenotfoundexception": _not_found,
    # Google answers 400 for a key that it does not know.
    "api_key_invalid": _credentials,
    "overloaded_error": _unavailable,
    **dict.fromkeys(sorted(_MODEL_FAULTS), _failed),
}


def _used_up(told: _Told) -> bool:
    return bool(set(told.codes) & _QUOTA_CODES) or _QUOTA_WORDS.search(told.message.lower()) is not None


def _filtered(target: str, told: _Told, secret: str | None) -> errors.OutpostError:
    message = clean(told.message, secret) or f"{target} refused the request for what it says."
    return errors.ContentFiltered(message, param=clean(told.param, secret)[:_MOST_PARAM] or None)


def _refused(target: str, status: int, told: _Told, wait_s: float | None, secret: str | None) -> errors.OutpostError:
    code = told.code if told.code is not None and len(told.code) <= 64 else None
    if code is not None and (not _CODE.fullmatch(code) or clean(code, secret) != code):
        code = None
    param = clean(told.param, secret)[:_MOST_PARAM] or None
    message = clean(told.message, secret) or f"{target} refused the request ({status}) and did not say why."
    lowered = told.message[:_MOST_READ].lower()
    if not set(told.codes).isdisjoint(_CONTEXT_CODES) or _CONTEXT.search(lowered):
        return errors.ContextLengthExceeded(message, param=param or "messages")
    if not set(told.codes).isdisjoint(_FILTER_CODES) or _FILTER.search(lowered):
        return _filtered(target, told, secret)
    if _used_up(told):
        return _quota(target, status, None)
    if status == 413 and "rate_limit_exceeded" in told.codes:
        return _limited(target, status, wait_s)  # Groq: more tokens than the account has in a minute
    if status == 413:
        large = errors.BodyTooLarge(message, param=param)
        large.elsewhere = True  # other targets have other bounds
        return large
    return errors.BadRequest(message, param=param, code=code or "invalid_request")


# --- the vendors' shapes --------------------------------------------------------------------------

_decode = msgspec.json.Decoder().decode


def _read(headers: Mapping[str, str], body: bytes) -> _Told:
    """What the body tells. Anything that it is not told in a known way is left out."""
    kind = headers.get("x-amzn-ErrorType") or headers.get("x-amzn-errortype") or ""
    first = (kind.partition(":")[0].rpartition("#")[2].lower(),) if kind else ()
    try:
        shape = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Told(codes=first)
    if isinstance(shape, list) and shape:  # Google's answer to what would have been a stream
        shape = shape[0]
    if not isinstance(shape, dict):
        return _Told(codes=first)
    inner = shape.get("error")
    error: dict[str, Any] = inner if isinstance(inner, dict) else shape
    message = _text(inner) if isinstance(inner, str) else ""
    message = message or next(
        (found for name in _WORDS for where in (error, shape) if (found := _message(where.get(name)))), ""
    )
    deep = error.get("innererror")
    said = (
        *first,
        *(_text(error.get(name)) for name in ("code", "type", "status", "reason", "error_type")),
        _text(deep.get("code")) if isinstance(deep, dict) else "",
        _text(shape.get("code")),
        _text(shape.get("__type")).rpartition("#")[2],
        *_details(error),
    )
    meta = error.get("metadata")
    if isinstance(meta, dict) and meta.get("reasons"):
        said = (*said, "content_filter")  # OpenRouter's moderation
    return _Told(
        message=message,
        codes=tuple(word.lower() for word in said if word),
        code=_text(error.get("code")) or None,
        param=_text(error.get("param")) or None,
        wait_s=_told_wait(error, shape),
    )


_WORDS = ("message", "Message", "detail", "msg", "title")


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _message(value: object) -> str:
    """A text, or FastAPI's list of what is wrong where, or a mapping around either."""
    if isinstance(value, dict):
        return next((found for name in _WORDS if (found := _message(value.get(name)))), "")
    if isinstance(value, list):
        return "; ".join(_fault(each) for each in value[:5] if isinstance(each, dict))
    return _text(value)


def _fault(each: dict[str, Any]) -> str:
    where = each.get("loc")
    place = ".".join(str(part) for part in where if part != "body") if isinstance(where, list) else ""
    return f"{place}: {_text(each.get('msg'))}" if place else _text(each.get("msg"))


def _details(error: dict[str, Any]) -> list[str]:
    """The reasons in Google's details."""
    details = error.get("details")
    found = [each.get("reason") for each in details if isinstance(each, dict)] if isinstance(details, list) else []
    return [_text(reason) for reason in found]


_DELAY = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")


def _told_wait(error: dict[str, Any], shape: dict[str, Any]) -> float | None:
    """Google's RetryInfo, or what Hugging Face expects a model to take to load. Seconds, at most an hour."""
    details = error.get("details")
    for each in details if isinstance(details, list) else ():
        if isinstance(each, dict) and (found := _DELAY.fullmatch(_text(each.get("retryDelay")))):
            return min(float(found[1]), 3600.0)
    expected = shape.get("estimated_time")
    if isinstance(expected, (int, float)) and not isinstance(expected, bool) and 0 <= expected < 1e9:
        return min(float(expected), 3600.0)
    return None


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
