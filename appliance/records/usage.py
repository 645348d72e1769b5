"""Who used how much: the chargeback's numbers, summed by the database from the exchanges on record."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, get_args

import msgspec
from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    String,
    TableValuedAlias,
    cast,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB

from appliance.errors import BadRequest
from appliance.records.database import Database
from appliance.records.tables import exchanges

Dimension = Literal["organization", "team", "user", "service_account", "key", "model", "target", "tag", "day"]
"""`model` is the name that was asked for; `target` is what did the work, each attempt by itself."""

DIMENSIONS: tuple[Dimension, ...] = get_args(Dimension)
NOBODY = ""
"""Stands for "belongs to none", e.g. requests without a team."""
MAX_GROUPS = 100_000
_PART = 1000
"""Groups that are taken over before others get a turn."""


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
    """`team,day` and the like. Raises BadRequest (param `by`)."""
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    for name in wanted:
        if name not in DIMENSIONS:
            raise BadRequest(f"by: there is no {name!r}; choose from {', '.join(DIMENSIONS)}", param="by")
    if len(set(wanted)) < len(wanted):
        raise BadRequest("by: names the same thing twice", param="by")
    return tuple(name for name in DIMENSIONS if name in wanted)


def parse_day(text: str, field: str) -> float:
    """Unix seconds at which a UTC day begins. Raises BadRequest."""
    try:
        day = date.fromisoformat(text)
        return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        raise BadRequest(f"{field}: write a day as YYYY-MM-DD", param=field) from None


def month_of(now: float) -> tuple[float, float]:
    """The running UTC month around `now`, as (begin, end) in unix seconds."""
    today = datetime.fromtimestamp(now, UTC)
    first = datetime(today.year, today.month, 1, tzinfo=UTC)
    return first.timestamp(), (first + timedelta(days=32)).replace(day=1).timestamp()


class UsageStore:
    """Every method may raise RecordsUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def report(
        self, by: Sequence[Dimension], since: float, until: float, *, organization: str | None = None
    ) -> list[Usage]:
        """Sums of the exchanges that began in [since, until), unix seconds; `organization`: only its own.

        Ordered by the dimensions. Raises BadRequest when there are too many groups.
        """
        async with self._database.read() as connection:
            query = report_query(by, since, until, organization, connection.dialect.name)
            found = await connection.stream(query)
            names, rows = [*found.keys()], [row async for part in found.partitions(_PART) for row in part]
        if len(rows) > MAX_GROUPS:
            raise BadRequest(
                f"by: more than {MAX_GROUPS} groups; choose fewer dimensions or a shorter time", param="by"
            )
        # Up to a second of work, during which no token would pass.
        return await asyncio.to_thread(lambda: [Usage(**dict(zip(names, row, strict=True))) for row in rows])


def report_query(
    by: Sequence[Dimension], since: float, until: float, organization: str | None, dialect: str
) -> Select[Any]:
    """The sums as one SELECT. An exchange with two tags counts for both; attempts are taken apart for `target`."""
    sources: list[TableValuedAlias] = []
    columns: dict[str, ColumnElement[Any]] = {
        "organization": exchanges.c.organization_id,
        "team": exchanges.c.team_id,
        "user": exchanges.c.user_id,
        "service_account": exchanges.c.service_account_id,
        "key": exchanges.c.key_name,
        "model": exchanges.c.route,
        "day": _day(dialect),
    }
    sums: dict[str, ColumnElement[Any]] = {
        "requests": func.count(),
        "failed": func.sum(cast(exchanges.c.outcome != "completed", Integer)),
        **{name: func.sum(exchanges.c[name]) for name in _SUMMED},
    }
    if "tag" in by:
        tags, value = _each(exchanges.c.tags, dialect, "tags")
        sources.append(tags)
        columns["tag"] = value if dialect == "sqlite" else value.op("#>>")(literal_column("'{}'"))
    if "target" in by:
        attempts, value = _each(exchanges.c.attempts, dialect, "tries")
        sources.append(attempts)

        def part(name: str) -> ColumnElement[Any]:
            return func.json_extract(value, f"$.{name}") if dialect == "sqlite" else value.op("->>")(name)

        columns["target"] = part("target")
        sums["failed"] = func.sum(cast(part("outcome") != "completed", Integer))
        for name in ("prompt_tokens", "completion_tokens", "cost_nanousd"):
            sums[name] = func.sum(cast(func.coalesce(part(name), "0"), exchanges.c[name].type))
        # Only the exchange as a whole knows these; its last attempt is the one that they belong to.
        last = part("target") == exchanges.c.target
        for name in ("cached_tokens", "reasoning_tokens"):
            sums[name] = func.sum(exchanges.c[name] * cast(last, Integer))
    groups = [func.coalesce(columns[name], NOBODY).label(name) for name in DIMENSIONS if name in by]
    totals = [cast(func.coalesce(value, 0), exchanges.c.cost_nanousd.type).label(name) for name, value in sums.items()]
    source: Any = exchanges
    for extra in sources:
        source = source.join(extra, true(), isouter=True)
    query = (
        select(*groups, *totals)
        .select_from(source)
        .where(exchanges.c.started_at >= since, exchanges.c.started_at < until)
        .limit(MAX_GROUPS + 1)
    )
    if organization is not None:
        query = query.where(exchanges.c.organization_id == organization)
    return query.group_by(*groups).order_by(*groups) if groups else query


_SUMMED = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "cost_nanousd")


def _day(dialect: str) -> ColumnElement[Any]:
    if dialect == "sqlite":
        # Whole seconds: SQLite would round the last half millisecond of a day up.
        return func.date(cast(exchanges.c.started_at, Integer), "unixepoch")
    return cast(func.to_char(func.timezone("UTC", func.to_timestamp(exchanges.c.started_at)), "YYYY-MM-DD"), String)


def _each(column: ColumnElement[Any], dialect: str, name: str) -> tuple[TableValuedAlias, ColumnElement[Any]]:
    """The entries of a JSON list as rows."""
    if dialect == "sqlite":
        table = func.json_each(column).table_valued("value", name=name)
    else:
        table = func.jsonb_array_elements(cast(column, JSONB)).table_valued("value", name=name)
        table = table.render_derived()
    return table, table.c.value


FIELDS = tuple(name for name in Usage.__struct_fields__ if name not in DIMENSIONS)


def to_plain(rows: Iterable[Usage], by: Sequence[Dimension]) -> list[dict[str, Any]]:
    """Rows for JSON: the asked dimensions, the counts, and the cost as decimal text."""
    return [
        {
            **{name: getattr(row, name) for name in by},
            **{name: getattr(row, name) for name in FIELDS if name != "cost_nanousd"},
            "cost_usd": row.cost_usd,
        }
        for row in rows
    ]


def to_csv(rows: Iterable[dict[str, Any]], by: Sequence[Dimension]) -> str:
    """CSV with a header; a cell that a spreadsheet would take for a formula gets an apostrophe before it."""
    file = io.StringIO()
    names = [*by, *(name for name in FIELDS if name != "cost_nanousd"), "cost_usd"]
    writer = csv.writer(file, lineterminator="\r\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_cell(row[name]) for name in names])
    return file.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value
