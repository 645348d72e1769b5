"""The ledger's chain: what of a record is hashed, and how. Pure.

    hash(n) = SHA-256(hash(n-1) || body(n))

A body is one JSON object in the canonical form of RFC 8785. Times are integer microseconds and money is
integer nano-USD, so no body holds a fraction, whose text differs between programs. What is None is left out:
a column that a later version adds changes no record from before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

GENESIS = bytes(32)
"""The hash before the first record."""

MAX_EXACT = 2**53 - 1
"""The largest integer that every reader of JSON takes exactly (RFC 7493)."""

RESERVED = frozenset({"at_us", "kind", "seq", "type"})
"""Names in an event's body that are the ledger's own."""

_encode = msgspec.json.Encoder().encode
_sha256 = hashlib.sha256
_MILLION = 1e6


class _Exchange(msgspec.Struct, omit_defaults=True):
    """The body of an exchange: names in the order of RFC 8785. All may be left out, so that it is built by position."""

    attempts: msgspec.Raw | None = None
    cached_tokens: int | None = None
    charges: msgspec.Raw | None = None
    client: str | None = None
    completion_tokens: int | None = None
    content_digest: str | None = None
    cost_nanousd: int | None = None
    duration_us: int | None = None
    error_code: str | None = None
    finish_reasons: msgspec.Raw | None = None
    id: str | None = None
    key_id: str | None = None
    key_name: str | None = None
    kind: str | None = None
    organization_id: str | None = None
    outcome: str | None = None
    priority: str | None = None
    prompt_tokens: int | None = None
    queue_us: int | None = None
    reasoning_tokens: int | None = None
    route: str | None = None
    seq: int | None = None
    service_account_id: str | None = None
    started_at_us: int | None = None
    status: int | None = None
    stream: bool | None = None
    tags: msgspec.Raw | None = None
    target: str | None = None
    team_id: str | None = None
    ttft_us: int | None = None
    type: str | None = None
    usage_source: str | None = None
    user_id: str | None = None


def link(previous: bytes, body: bytes) -> bytes:
    """The hash (32 bytes) of the record with this body that follows the one with the hash `previous`."""
    return _sha256(previous + body).digest()


def micro(seconds: float) -> int:
    """Whole microseconds. Raises ValueError, OverflowError for what is no number."""
    return round(seconds * _MILLION)


def exact(*numbers: int) -> None:
    """Raises ValueError for an integer that is negative or beyond MAX_EXACT."""
    for number in numbers:
        if number >> 53:
            raise ValueError(f"{number} is not a count that the ledger can keep")


def exchange_body(values: Sequence[Any]) -> bytes:
    """The body of an exchange from its columns, in the order of `rows.COLUMNS`.

    Raises ValueError, TypeError for values that no row of ours has.
    """
    # fmt: off
    (seq, id_, kind, started_at, key_id, key_name, route, target, stream, status, outcome, error_code,
     finish_reasons, attempts, prompt_tokens, cached_tokens, completion_tokens, usage_source, queue_s, ttft_s,
     duration_s, client, organization_id, team_id, user_id, service_account_id, tags, priority, reasoning_tokens,
     cost_nanousd, charges, content_digest) = values
    # fmt: on
    started, took = round(started_at * _MILLION), round(duration_s * _MILLION)
    queued = None if queue_s is None else round(queue_s * _MILLION)
    first = None if ttft_s is None else round(ttft_s * _MILLION)
    whole = seq | started | took | (queued or 0) | (first or 0) | status | prompt_tokens | cached_tokens
    if (whole | completion_tokens | reasoning_tokens | cost_nanousd) >> 53:
        raise ValueError("an exchange has a number that the ledger cannot keep")
    raw = msgspec.Raw
    return _encode(
        _Exchange(
            raw(attempts),
            cached_tokens,
            raw(charges),
            client,
            completion_tokens,
            content_digest,
            cost_nanousd,
            took,
            error_code,
            raw(finish_reasons),
            id_,
            key_id,
            key_name,
            kind,
            organization_id,
            outcome,
            priority,
            prompt_tokens,
            queued,
            reasoning_tokens,
            route,
            seq,
            service_account_id,
            started,
            status,
            bool(stream),
            raw(tags),
            target,
            team_id,
            first,
            "exchange",
            usage_source,
            user_id,
        )
    )


def event_body(seq: int, kind: str, at_us: int, body: Mapping[str, Any]) -> bytes:
    """The body of any other record. Raises ValueError for a reserved name, TypeError for a value that JSON of the
    ledger has no form for (a fraction, bytes, …), each with its place."""
    if taken := RESERVED & body.keys():
        raise ValueError(f"an event's body must not have {', '.join(sorted(taken))}: the ledger says these itself")
    return canonical({**body, "at_us": at_us, "kind": kind, "seq": seq, "type": "event"})


def canonical(value: Any) -> bytes:
    """RFC 8785 of plain data: None (left out of objects), booleans, integers, texts, lists, objects.

    Lone surrogates are written out as text, and integers beyond MAX_EXACT as texts of their digits.
    """
    return _encode(_canonical(value, "body"))


def _canonical(value: Any, place: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return value if -MAX_EXACT <= value <= MAX_EXACT else str(value)
    if isinstance(value, Mapping):
        named = {}
        for name, item in value.items():
            if not isinstance(name, str):
                raise TypeError(f"{place} has the name {name!r}; names must be texts")
            if item is not None:
                named[_text(name)] = _canonical(item, f"{place}.{name}")
        # The standard orders names by their UTF-16 code units, which is not the order of their code points.
        return {name: named[name] for name in sorted(named, key=lambda each: each.encode("utf-16-be"))}
    if isinstance(value, (list, tuple)):
        return [_canonical(item, f"{place}[{index}]") for index, item in enumerate(value)]
    raise TypeError(f"{place} is of the type {type(value).__name__}; use texts, integers, booleans, lists or objects")


def _text(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()
