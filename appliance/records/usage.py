"""Who used how much: the chargeback's numbers, summed by the database from the exchanges on record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import (
    Column,
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
from appliance.records.rows import SHADOW
from appliance.records.tables import exchanges, organizations, service_accounts, teams, users
from appliance.records.usage_rows import DIMENSIONS, NAMES, NOBODY, Dimension, Usage

MAX_GROUPS = 100_000
_PART = 1000
"""Groups that are taken over before others get a turn."""


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
    sources: list[tuple[TableValuedAlias, ColumnElement[bool]]] = []
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
        tags = _each(exchanges.c.tags, dialect, "tags")
        sources.append((tags, true()))
        columns["tag"] = tags.c.value if dialect == "sqlite" else tags.c.value.op("#>>")(literal_column("'{}'"))
    if "target" in by:
        attempts, others = [_each(exchanges.c.attempts, dialect, name) for name in ("tries", "others")]
        part, other = _parts(attempts, dialect), _parts(others, dialect)
        # A shadow's attempt is none at the caller's answer.
        sources.append((attempts, part("outcome").is_distinct_from(SHADOW)))
        columns["target"] = part("target")
        # What no target was asked for ended as the exchange did: refused, or its client had left.
        sums["failed"] = func.sum(cast(func.coalesce(part("outcome"), exchanges.c.outcome) != "completed", Integer))
        for name in ("prompt_tokens", "completion_tokens", "cost_nanousd"):
            sums[name] = func.sum(cast(func.coalesce(part(name), "0"), exchanges.c[name].type))
        # Only the exchange as a whole knows these; its target's last attempt is the one that they belong to.
        last = (
            select(func.max(others.c.place))
            .where(other("target") == exchanges.c.target, other("outcome").is_distinct_from(SHADOW))
            .correlate(exchanges)
            .scalar_subquery()
        )
        for name in ("cached_tokens", "reasoning_tokens"):
            sums[name] = func.sum(exchanges.c[name] * cast(attempts.c.place == last, Integer))
    groups = [func.coalesce(columns[name], NOBODY).label(name) for name in DIMENSIONS if name in by]
    totals = [cast(func.coalesce(value, 0), exchanges.c.cost_nanousd.type).label(name) for name, value in sums.items()]
    source: Any = exchanges
    for extra, counts in sources:
        source = source.join(extra, counts, isouter=True)
    query = (
        select(*groups, *totals)
        .select_from(source)
        .where(exchanges.c.started_at >= since, exchanges.c.started_at < until)
        .limit(MAX_GROUPS + 1)
    )
    if organization is not None:
        query = query.where(exchanges.c.organization_id == organization)
    return _named(query.group_by(*groups), by) if groups else query


_HOLDERS = {"organization": organizations, "team": teams, "user": users, "service_account": service_accounts}
"""Where the names are that `NAMES` speaks of."""


def _named(sums: Select[Any], by: Sequence[Dimension]) -> Select[Any]:
    """The sums in the order of their dimensions, with the name that each id has now. After the summing: each name is
    looked up once, and a renamed team is one group."""
    found = sums.subquery()
    columns: list[ColumnElement[Any]] = [*found.c]
    source: Any = found
    for each, table in _HOLDERS.items():
        if each in by:
            source = source.join(table, table.c.id == found.c[each], isouter=True)
            columns.append(func.coalesce(table.c.name, found.c[each]).label(NAMES[each]))
    return select(*columns).select_from(source).order_by(*(found.c[each] for each in by))


_SUMMED = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "cost_nanousd")


def _day(dialect: str) -> ColumnElement[Any]:
    if dialect == "sqlite":
        # Whole seconds: SQLite would round the last half millisecond of a day up.
        return func.date(cast(exchanges.c.started_at, Integer), "unixepoch")
    return cast(func.to_char(func.timezone("UTC", func.to_timestamp(exchanges.c.started_at)), "YYYY-MM-DD"), String)


def _each(column: ColumnElement[Any], dialect: str, name: str) -> TableValuedAlias:
    """The entries of a JSON list as rows: `value`, and `place` in the list."""
    if dialect == "sqlite":
        return func.json_each(column).table_valued(Column("value"), Column("key", key="place"), name=name)
    entries = func.jsonb_array_elements(cast(column, JSONB))
    return entries.table_valued("value", with_ordinality="place", name=name).render_derived()


def _parts(entries: TableValuedAlias, dialect: str) -> Callable[[str], ColumnElement[Any]]:
    """Gives a field of the entries, as text."""
    value = entries.c.value

    def part(name: str) -> ColumnElement[Any]:
        return func.json_extract(value, f"$.{name}") if dialect == "sqlite" else value.op("->>")(name)

    return part
