"""The row of an exchange as plain data, and its flat form for the database.

`COLUMNS` is the one place where the order of the flat form is said; `flatten` and `unflatten` are
each other's inverse, to the microsecond, and are pure. A row has exactly one flat form: its times are
whole microseconds and its lists canonical JSON, as the ledger hashes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from appliance.records.chain import MAX_EXACT, exact

Outcome = Literal["completed", "refused", "client_closed", "upstream_error", "internal_error"]
UsageSource = Literal["reported", "estimated", "none"]


SHADOW = "shadow"
"""The outcome of what is no try at an answer: a shadow is to be sent the request. What it uses is nobody's here."""


class Attempt(msgspec.Struct, frozen=True):
    """One try at one target. `started_s` counts from the start of the exchange; both times are seconds. Those with the
    outcome SHADOW come last, and are not begun when the row is written."""

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
    """Of all attempts, as `completion_tokens` and the cost; the other counts are the last one's."""
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


def tries(row: ExchangeRow) -> list[Attempt]:
    """The attempts at the caller's own answer, without shadows."""
    attempts = row.attempts
    if not attempts or attempts[-1].outcome != SHADOW:
        return attempts
    return [attempt for attempt in attempts if attempt.outcome != SHADOW]


COLUMNS = ("seq", *ExchangeRow.__struct_fields__)


class _StoredAttempt(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """An attempt as it is stored: names in canonical order. What is later added must have a default."""

    completion_tokens: int = 0
    cost_nanousd: int = 0
    duration_us: int = 0
    error_code: str | None = None
    outcome: str = ""
    prompt_tokens: int = 0
    started_us: int = 0
    target: str = ""


class _StoredCharge(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A charge as it is stored; another order than `Charge`, so that one cannot be taken for the other."""

    amount: int
    at_us: int
    counter: str


_encoder = msgspec.json.Encoder()
_reasons = msgspec.json.Decoder(list[str])
_stored_attempts = msgspec.json.Decoder(list[_StoredAttempt])
_older_attempts = msgspec.json.Decoder(list[Attempt])
_plain_charges = msgspec.json.Decoder(list[tuple[int, int, str]])
_MILLION = 1e6


def flatten(seq: int, row: ExchangeRow) -> tuple[Any, ...]:
    """The values of `COLUMNS`. Written out, not looped over: this is done for every request.

    Raises ValueError, TypeError, OverflowError for values that cannot be kept; `storable` mends most of them.
    """
    queue_s, ttft_s = row.queue_s, row.ttft_s
    return (
        seq,
        row.id,
        row.kind,
        round(row.started_at * _MILLION) / _MILLION,
        row.key_id,
        row.key_name,
        row.route,
        row.target,
        row.stream,
        row.status,
        row.outcome,
        row.error_code,
        _encoder.encode(row.finish_reasons).decode(),
        attempts_text(row.attempts) if row.attempts else "[]",
        row.prompt_tokens,
        row.cached_tokens,
        row.completion_tokens,
        row.usage_source,
        None if queue_s is None else round(queue_s * _MILLION) / _MILLION,
        None if ttft_s is None else round(ttft_s * _MILLION) / _MILLION,
        round(row.duration_s * _MILLION) / _MILLION,
        row.client,
        row.organization_id,
        row.team_id,
        row.user_id,
        row.service_account_id,
        _encoder.encode(row.tags).decode() if row.tags else "[]",
        row.priority,
        row.reasoning_tokens,
        row.cost_nanousd,
        charges_text(row.charges) if row.charges else "[]",
        row.content_digest,
    )


def unflatten(values: Sequence[Any]) -> RecordedExchange:
    """The row of `values`, which stand in the order of `COLUMNS`."""
    fields = dict(zip(COLUMNS, values, strict=True))
    fields["stream"] = bool(fields["stream"])
    fields["finish_reasons"] = _reasons.decode(fields["finish_reasons"])
    fields["attempts"] = read_attempts(fields["attempts"])
    fields["tags"] = _reasons.decode(fields["tags"])
    fields["charges"] = read_charges(fields["charges"])
    return RecordedExchange(**fields)


def attempts_text(attempts: Sequence[Attempt]) -> str:
    """The column `attempts`: canonical JSON, times in microseconds."""
    stored = []
    for each in attempts:
        started, took = round(each.started_s * _MILLION), round(each.duration_s * _MILLION)
        exact(started, took, each.prompt_tokens, each.completion_tokens, each.cost_nanousd)
        stored.append(
            _StoredAttempt(
                each.completion_tokens,
                each.cost_nanousd,
                took,
                each.error_code,
                each.outcome,
                each.prompt_tokens,
                started,
                each.target,
            )
        )
    return _encoder.encode(stored).decode()


def read_attempts(text: str) -> list[Attempt]:
    """The attempts in the column of that name. Raises msgspec.DecodeError."""
    try:
        stored = _stored_attempts.decode(text)
    except msgspec.ValidationError:
        # Rows from before the ledger have seconds.
        return _older_attempts.decode(text)
    return [
        Attempt(
            each.target,
            each.started_us / _MILLION,
            each.duration_us / _MILLION,
            each.outcome,
            each.error_code,
            each.prompt_tokens,
            each.completion_tokens,
            each.cost_nanousd,
        )
        for each in stored
    ]


def charges_text(charges: Sequence[Charge]) -> str:
    """The column `charges`: canonical JSON, [amount, microseconds, counter] each."""
    stored = [_StoredCharge(each.amount, round(each.at * _MILLION), each.counter) for each in charges]
    for each in stored:
        exact(each.amount, each.at_us)
    return _encoder.encode(stored).decode()


def plain_charges(text: str) -> list[tuple[int, int, str]]:
    """As `read_charges`, for who reads thousands: amount, microseconds, counter."""
    return _plain_charges.decode(text)


def read_charges(text: str) -> list[Charge]:
    """The charges in the column of that name. Raises msgspec.DecodeError."""
    return [Charge(counter, amount, at_us / _MILLION) for amount, at_us, counter in plain_charges(text)]


def storable(row: ExchangeRow) -> ExchangeRow:
    """The same row with what cannot be kept (lone surrogates, negative or huge integers) made keepable."""
    fields = {name: _storable(getattr(row, name)) for name in ExchangeRow.__struct_fields__}
    return ExchangeRow(**fields)


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    if isinstance(value, int) and not isinstance(value, bool):
        return min(max(value, 0), MAX_EXACT)
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, (Attempt, Charge)):
        return type(value)(**{name: _storable(getattr(value, name)) for name in value.__struct_fields__})
    return value
