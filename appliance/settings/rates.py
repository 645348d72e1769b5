"""How limits and prices are written: `600/minute`, `100/5m`, `200/month`, `0.15`. Pure, exact, both ways.

Money is nano-USD inside: 10^-9 US dollars, as a whole number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, TypeVar
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, PlainSerializer, PlainValidator, WithJsonSchema

from appliance.settings.units import BadForm, format_duration, parse_duration, quote
from appliance.settings.values import Form, read_text, refuse

UNITS: dict[str, int] = {
    "second": 1,
    "minute": 60,
    "hour": 3600,
    "day": 86_400,
    "week": 604_800,
    "month": 2_592_000,
}
"""Unit → seconds. A rolling month has 30 days."""

NANO = 10**9
_MOST_COUNT = 10**15
_MOST_USD = 10**9
_QUOTA = re.compile(
    r"(?P<amount>[\d_.]{1,40})\s*(?:/|\s+per\s+)\s*(?P<period>[a-z0-9]{1,20})", re.ASCII | re.IGNORECASE
)
_DECIMAL = re.compile(r"\d{1,16}(?:_\d{1,16}){0,5}(?:\.\d{1,20})?", re.ASCII)
_LONGEST_S = 366 * 86_400

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Quota:
    """So much in so long. `amount` is a count, or nano-USD; `unit` is None for a period like 5m."""

    amount: int
    seconds: int
    unit: str | None = None

    @property
    def period(self) -> str:
        """As it is written: minute, 5m."""
        return self.unit or format_duration(float(self.seconds))


class Quotas(tuple[Quota, ...]):
    """One or several quotas of one measure; all of them hold."""

    __slots__ = ()


class Budgets(Quotas):
    """Quotas of money."""

    __slots__ = ()


class Names(tuple[str, ...]):
    """One or several names; one of them has to fit."""

    __slots__ = ()


def parse_quota(text: str, *, money: bool) -> Quota:
    """Raises BadForm."""
    example = "200/month" if money else "600/minute"
    match = _QUOTA.fullmatch(text.strip())
    if match is None:
        raise BadForm(f"{quote(text)} is not an amount per time", f"write e.g. {example} or 100/5m")
    amount = parse_usd(match["amount"]) if money else _count(match["amount"])
    return Quota(amount, *_period(match["period"].lower(), example))


def format_quota(quota: Quota, *, money: bool) -> str:
    """`parse_quota` reads it back to the same."""
    amount = format_usd(quota.amount) if money else str(quota.amount)
    return f"{amount}/{quota.period}"


def parse_usd(text: str) -> int:
    """Nano-USD of a decimal number of US dollars. Raises BadForm."""
    stripped = text.strip()
    if not _DECIMAL.fullmatch(stripped):
        raise BadForm(f"{quote(text)} is not an amount of US dollars", "write a decimal number, e.g. 0.15")
    value = Decimal(stripped.replace("_", "")) * NANO
    if value > _MOST_USD * NANO:
        raise BadForm(f"{quote(text)} is more than {_MOST_USD:,} USD", "write a smaller amount")
    if value != value.to_integral_value():
        raise BadForm(f"{quote(text)} has more than nine decimals", "write a rounder amount, e.g. 0.15")
    return int(value)


def format_usd(nanousd: int) -> str:
    """The shortest exact decimal text: 150_000_000 → `0.15`."""
    whole, rest = divmod(nanousd, NANO)
    return f"{whole}.{rest:09d}".rstrip("0").rstrip(".")


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,16}(?:_\d{1,16}){0,5}", text, re.ASCII):
        raise BadForm(f"{quote(text)} is not a whole number", "write a whole number, e.g. 600/minute")
    value = int(text.replace("_", ""))
    if value > _MOST_COUNT:
        raise BadForm(f"{quote(text)} is more than {_MOST_COUNT:,}", "write a smaller number")
    return value


def _period(text: str, example: str) -> tuple[int, str | None]:
    name = text[:-1] if text.endswith("s") and text[:-1] in UNITS else text
    if name in UNITS:
        return UNITS[name], name
    try:
        seconds = parse_duration(text) if text[-1:].isalpha() else 0.0
    except BadForm:
        seconds = 0.0
    if seconds != int(seconds) or not 1 <= seconds <= _LONGEST_S:
        raise BadForm(
            f"{quote(text)} is not a period",
            f"write {', '.join(UNITS)} or whole seconds to a year such as 30s, 5m, 12h, e.g. {example}",
        )
    return int(seconds), None


# --- the types of the settings ---------------------------------------------------------------------


def _several(value: Any, form: Form, one: Callable[[str], T]) -> list[T]:
    """A text or a list of texts, each read by `one`."""
    given = value if isinstance(value, (list, tuple)) else [value]
    cure = f"write {form.expected}, e.g. {form.example}"
    if not given:
        raise refuse("is empty", cure)
    if len(given) > 100:
        raise refuse("holds more than 100 entries", "write fewer entries, or several limits")
    for each in given:
        if each is None:
            raise refuse("has no value", f"{cure}, or remove the line")
        if not isinstance(each, str):
            raise refuse(f"expected {form.expected}, found {_kind(each)}", cure)
    try:
        return [one(each) for each in given]
    except BadForm as bad:
        raise refuse(bad.message, bad.cure) from None


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, (list, tuple)) else quote(value)


def _periods_once(quotas: Iterable[Quota]) -> None:
    seen: set[int] = set()
    for quota in quotas:
        if quota.seconds in seen:
            raise refuse(f"says twice what is allowed per {quota.period}", "keep the smaller one")
        seen.add(quota.seconds)


def _read_quotas(value: Any) -> Quotas:
    if isinstance(value, Quotas):
        return value
    found = Quotas(_several(value, QUOTAS, lambda text: parse_quota(text, money=False)))
    _periods_once(found)
    return found


def _read_budgets(value: Any) -> Budgets:
    if isinstance(value, Budgets):
        return value
    found = Budgets(_several(value, BUDGETS, lambda text: parse_quota(text, money=True)))
    _periods_once(found)
    return found


def _read_names(value: Any) -> Names:
    if isinstance(value, Names):
        return value
    found = Names(read_text(each).strip() for each in _several(value, NAMES, str))
    for name in found:
        if not 1 <= len(name) <= 256:
            raise refuse(f"{quote(name)} is not a name", "write 1 to 256 characters")
    if len(set(found)) < len(found):
        raise refuse("names something twice", "keep one of the two")
    return found


def _read_usd(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value  # nano-USD, from code
    if not isinstance(value, str):
        raise refuse(f"expected {USD.expected}, found {_kind(value)}", f"write e.g. {USD.example}")
    try:
        return parse_usd(value)
    except BadForm as bad:
        raise refuse(bad.message, bad.cure) from None


def _read_zone(value: Any) -> str:
    name = read_text(value)
    try:
        ZoneInfo(name)
    except (OSError, ValueError):  # ZoneInfoNotFoundError is a KeyError
        raise refuse(f"{quote(name)} is not a time zone", f"write e.g. {ZONE.example}") from None
    except KeyError:
        raise refuse(f"the machine knows no time zone {quote(name)}", f"write e.g. {ZONE.example}") from None
    return name


def _one_or_all(texts: list[str]) -> str | list[str]:
    return texts[0] if len(texts) == 1 else texts


def _write_quotas(quotas: Quotas) -> str | list[str]:
    return _one_or_all([format_quota(each, money=False) for each in quotas])


def _write_budgets(quotas: Quotas) -> str | list[str]:
    return _one_or_all([format_quota(each, money=True) for each in quotas])


def _flow(write: Callable[[Any], str | list[str]]) -> Callable[[Any], str]:
    def render(value: Any) -> str:
        written = write(value)
        return written if isinstance(written, str) else f"[{', '.join(written)}]"

    return render


QUOTAS = Form("an amount per time, or a list of these", "600/minute", unit="N/period", render=_flow(_write_quotas))
BUDGETS = Form("US dollars per time, or a list of these", "200/month", unit="USD/period", render=_flow(_write_budgets))
NAMES = Form("a name or a list of names", "research", render=_flow(lambda names: _one_or_all(list(names))))
USD = Form("an amount of US dollars", "0.15", unit="USD", render=format_usd)
ZONE = Form("a time zone", "Europe/Berlin")

_A_QUOTA = {"type": "string", "pattern": r"^[0-9_.]+ *(/| per ) *[A-Za-z0-9]+$"}


def _text_or_list(item: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [item, {"type": "array", "items": item, "minItems": 1, "maxItems": 100}]})


QuotasField = Annotated[
    Quotas,
    PlainValidator(_read_quotas),
    PlainSerializer(_write_quotas, when_used="json"),
    _text_or_list(_A_QUOTA),
    QUOTAS,
]
BudgetsField = Annotated[
    Budgets,
    PlainValidator(_read_budgets),
    PlainSerializer(_write_budgets, when_used="json"),
    _text_or_list(_A_QUOTA),
    BUDGETS,
]
NamesField = Annotated[
    Names,
    PlainValidator(_read_names),
    PlainSerializer(lambda names: _one_or_all(list(names)), when_used="json"),
    _text_or_list({"type": "string", "minLength": 1, "maxLength": 256}),
    NAMES,
]
Usd = Annotated[
    int,
    BeforeValidator(_read_usd),
    PlainSerializer(format_usd, return_type=str, when_used="json"),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": r"^[0-9_]+(\.[0-9]+)?$"}, {"type": "number", "minimum": 0}]}
    ),
    USD,
]
"""Nano-USD."""
Zone = Annotated[str, BeforeValidator(_read_zone), ZONE]
