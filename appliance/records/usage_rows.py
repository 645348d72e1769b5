"""The rows of a usage report: what may be asked for, and its forms. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, get_args

import msgspec

from appliance.errors import BadRequest

Dimension = Literal["organization", "team", "user", "service_account", "key", "model", "target", "tag", "day"]
"""`model` is the name that was asked for; `target` is what did the work, each attempt by itself."""

DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
NAMES = {each: f"{each}_name" for each in ("organization", "team", "user", "service_account")}
"""Dimension whose values are ids → what holds the names. The others' values are names already, a key's too."""
NOBODY = ""
"""Stands for "belongs to none", e.g. requests without a team."""


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """The sum of one group. A dimension that was not asked for is None; tokens and requests are counts."""

    organization: str | None = None
    team: str | None = None
    user: str | None = None
    service_account: str | None = None
    key: str | None = None
    model: str | None = None
    target: str | None = None
    tag: str | None = None
    day: str | None = None
    """UTC, YYYY-MM-DD."""
    organization_name: str | None = None
    team_name: str | None = None
    user_name: str | None = None
    service_account_name: str | None = None
    """What each is called now; the id of one that is not there any more."""
    requests: int = 0
    failed: int = 0
    """Of these, how many ended without a complete answer."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nanousd: int = 0

    @property
    def cost_usd(self) -> str:
        return usd(self.cost_nanousd)


def usd(nanousd: int) -> str:
    """Decimal text of an amount in 10^-9 US dollars: "0.000123", "12.5", "0"."""
    text = f"{Decimal(nanousd).scaleb(-9):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def parse_dimensions(text: str) -> tuple[Dimension, ...]:
    """`team,day` and the like, in the order in which they are named. Raises BadRequest (param `by`)."""
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    for name in wanted:
        if name not in DIMENSIONS:
            raise BadRequest(f"by: there is no {name!r}; choose from {', '.join(DIMENSIONS)}", param="by")
    if len(set(wanted)) < len(wanted):
        raise BadRequest("by: names the same thing twice", param="by")
    return tuple(DIMENSIONS[DIMENSIONS.index(name)] for name in wanted)


def parse_span(since: str | None, until: str | None, now: float) -> tuple[float, float]:
    """Begin and end in unix seconds, each left out that of the running UTC month. Raises BadRequest."""
    first, last = month_of(now)
    if since is not None or until is not None:
        # It loads what reads settings; a command that asks for the running month need not.
        from appliance.records.export.moments import parse_moment

        first = first if since is None else parse_moment(since, now, "since")
        last = last if until is None else parse_moment(until, now, "until")
    if last <= first:
        raise BadRequest("until: must be later than since", param="until")
    return first, last


def month_of(now: float) -> tuple[float, float]:
    """The running UTC month around `now`, as (begin, end) in unix seconds."""
    today = datetime.fromtimestamp(now, UTC)
    first = datetime(today.year, today.month, 1, tzinfo=UTC)
    return first.timestamp(), (first + timedelta(days=32)).replace(day=1).timestamp()


COUNTS = (
    "requests",
    "failed",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "cost_usd",
)
"""What stands behind the dimensions of a row, in the order of the columns."""


def names_in(by: Sequence[Dimension]) -> list[str]:
    """The columns of names that a report with these dimensions has."""
    return [NAMES[each] for each in by if each in NAMES]


def to_plain(rows: Iterable[Usage], by: Sequence[Dimension]) -> list[dict[str, Any]]:
    """Rows for JSON: the asked dimensions, the names of ids, the counts, and the cost as decimal text."""
    columns = (*by, *names_in(by), *COUNTS)
    return [{name: getattr(row, name) for name in columns} for row in rows]


def to_csv(rows: Iterable[dict[str, Any]], by: Sequence[Dimension]) -> str:
    """CSV with a header; a cell that a spreadsheet would take for a formula gets an apostrophe before it. The names of
    ids are the last columns: who counts columns finds the others where they always were."""
    file = io.StringIO()
    names = [*by, *COUNTS, *names_in(by)]
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_cell(row[name]) for name in names])
    return file.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value
