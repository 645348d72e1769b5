"""The row of an exchange as plain data, and its flat form for the database.

`COLUMNS` is the one place where the order of the flat form is said; `flatten` and `unflatten` are
each other's inverse and are pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

Outcome = Literal["completed", "refused", "client_closed", "upstream_error", "internal_error"]
UsageSource = Literal["reported", "estimated", "none"]


class Attempt(msgspec.Struct, frozen=True):
    """One try at one target. `started_s` counts from the start of the exchange; both times are seconds."""

    target: str
    started_s: float
    duration_s: float
    outcome: str
    error_code: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_nanousd: int = 0
    """10^-9 US dollars."""


class Charge(msgspec.Struct, frozen=True, array_like=True):
    """What an exchange has used up of one limit's counter."""

    counter: str
    amount: int
    at: float
    """Unix seconds at which it counts."""


class ExchangeRow(msgspec.Struct, kw_only=True):
    """What is kept of one request: never its content, never a credential.

    `started_at` is unix seconds by the wall clock and is for people; order is that of the sequence
    number that the recorder gives. The other times are seconds, None where the event never came.
    """

    id: str
    kind: str
    """The endpoint's operation, "chat.completions" for example."""
    started_at: float
    key_id: str | None = None
    key_name: str | None = None
    route: str | None = None
    target: str | None = None
    """The target that gave the answer (or the last one tried)."""
    stream: bool = False
    status: int = 200
    outcome: Outcome = "completed"
    error_code: str | None = None
    finish_reasons: list[str] = []
    """One a choice, in order."""
    attempts: list[Attempt] = []
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    usage_source: UsageSource = "none"
    queue_s: float | None = None
    ttft_s: float | None = None
    duration_s: float = 0.0
    client: str = ""
    """The client's network address."""
    organization_id: str | None = None
    team_id: str | None = None
    user_id: str | None = None
    service_account_id: str | None = None
    tags: list[str] = []
    """Cost centres that the caller named."""
    priority: str | None = None
    reasoning_tokens: int = 0
    cost_nanousd: int = 0
    """10^-9 US dollars, of all attempts."""
    charges: list[Charge] = []
    content_digest: str | None = None
    """HMAC-SHA-256 (hex) of what is kept of its content, under the subject's key."""


class RecordedExchange(ExchangeRow, kw_only=True):
    """A row as it was read back."""

    seq: int
    """Rises by one a row in the order of writing; never used twice."""


COLUMNS = ("seq", *ExchangeRow.__struct_fields__)

_encoder = msgspec.json.Encoder()
_reasons = msgspec.json.Decoder(list[str])
_attempts = msgspec.json.Decoder(list[Attempt])
_charges = msgspec.json.Decoder(list[Charge])
_I64 = 2**63


def flatten(seq: int, row: ExchangeRow) -> tuple[Any, ...]:
    """The values of `COLUMNS`. Written out, not looped over: this is done for every request."""
    return (
        seq,
        row.id,
        row.kind,
        row.started_at,
        row.key_id,
        row.key_name,
        row.route,
        row.target,
        row.stream,
        row.status,
        row.outcome,
        row.error_code,
        _encoder.encode(row.finish_reasons).decode(),
        _encoder.encode(row.attempts).decode(),
        row.prompt_tokens,
        row.cached_tokens,
        row.completion_tokens,
        row.usage_source,
        row.queue_s,
        row.ttft_s,
        row.duration_s,
        row.client,
        row.organization_id,
        row.team_id,
        row.user_id,
        row.service_account_id,
        _encoder.encode(row.tags).decode() if row.tags else "[]",
        row.priority,
        row.reasoning_tokens,
        row.cost_nanousd,
        _encoder.encode(row.charges).decode() if row.charges else "[]",
        row.content_digest,
    )


def unflatten(values: Sequence[Any]) -> RecordedExchange:
    """The row of `values`, which stand in the order of `COLUMNS`."""
    fields = dict(zip(COLUMNS, values, strict=True))
    fields["stream"] = bool(fields["stream"])
    fields["finish_reasons"] = _reasons.decode(fields["finish_reasons"])
    fields["attempts"] = _attempts.decode(fields["attempts"])
    fields["tags"] = _reasons.decode(fields["tags"])
    fields["charges"] = _charges.decode(fields["charges"])
    return RecordedExchange(**fields)


def storable(row: ExchangeRow) -> ExchangeRow:
    """The same row with what no database takes (lone surrogates, integers over 64 bits) made takeable."""
    fields = {name: _storable(getattr(row, name)) for name in ExchangeRow.__struct_fields__}
    return ExchangeRow(**fields)


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int) and not isinstance(value, bool):
        return min(max(value, -_I64), _I64 - 1)
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, (Attempt, Charge)):
        return type(value)(**{name: _storable(getattr(value, name)) for name in value.__struct_fields__})
    return value
