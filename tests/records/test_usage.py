"""Usage reports agree with sums made by hand, for any rows and any grouping."""

from __future__ import annotations

import asyncio
import csv
import io
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Table, insert

from appliance.errors import BadRequest
from appliance.records.database import Database, Where
from appliance.records.rows import COLUMNS, SHADOW, Attempt, ExchangeRow, flatten
from appliance.records.tables import exchanges, organizations, service_accounts, teams, users
from appliance.records.usage import UsageStore
from appliance.records.usage_rows import (
    DIMENSIONS,
    NAMES,
    Usage,
    month_of,
    parse_dimensions,
    parse_span,
    to_csv,
    to_plain,
    usd,
)
from tests.records.altering import altering

names = st.sampled_from(["a", "b", "=cmd"])
tokens = st.integers(0, 10_000)
moments = st.integers(0, 400_000_000_000).map(lambda us: us / 1e6)
"""As records keep them: whole microseconds."""
attempts = st.builds(
    Attempt,
    target=names,
    started_s=st.just(0.0),
    duration_s=st.just(1.0),
    outcome=st.sampled_from(["completed", "failed", SHADOW]),
    prompt_tokens=tokens,
    completion_tokens=tokens,
    cost_nanousd=st.integers(0, 10**14),
)
rows = st.builds(
    ExchangeRow,
    id=st.just("x"),
    kind=st.just("chat.completions"),
    started_at=moments,
    organization_id=names,
    team_id=st.none() | names,
    user_id=st.none() | names,
    service_account_id=st.none() | names,
    key_name=names,
    route=st.none() | names,
    target=st.none() | names,
    outcome=st.sampled_from(["completed", "refused"]),
    tags=st.lists(names, max_size=2, unique=True),
    attempts=st.lists(attempts, max_size=4),
    prompt_tokens=tokens,
    cached_tokens=tokens,
    completion_tokens=tokens,
    reasoning_tokens=tokens,
    cost_nanousd=st.integers(0, 10**15),
)


def by_hand(kept: list[ExchangeRow], by: tuple[str, ...]) -> list[Usage]:
    sums: dict[tuple[str, ...], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in kept:
        for tag in (row.tags or [None]) if "tag" in by else [None]:
            tries = [each for each in row.attempts if each.outcome != SHADOW]
            last = [each for each in tries if each.target == row.target][-1:]
            for attempt in (tries or [None]) if "target" in by else [None]:
                facts = {
                    "organization": row.organization_id,
                    "team": row.team_id,
                    "user": row.user_id,
                    "service_account": row.service_account_id,
                    "key": row.key_name,
                    "model": row.route,
                    "target": attempt.target if attempt else None,
                    "tag": tag,
                    "day": datetime.fromtimestamp(row.started_at, UTC).date().isoformat(),
                }
                total = sums[tuple(facts[name] or "" for name in by)]
                source: Any = row if "target" not in by else attempt
                total["requests"] += 1
                total["failed"] += (source or row).outcome != "completed"
                if source is None:
                    continue
                for name in ("prompt_tokens", "completion_tokens", "cost_nanousd"):
                    total[name] += getattr(source, name)
                if "target" not in by or any(source is each for each in last):
                    total["cached_tokens"] += row.cached_tokens
                    total["reasoning_tokens"] += row.reasoning_tokens
    # Nobody of these is known any more, so that each is called by its id.
    return [
        Usage(
            **dict(zip(by, key, strict=True)),
            **{NAMES[each]: value for each, value in zip(by, key, strict=True) if each in NAMES},
            **sums[key],
        )
        for key in sorted(sums)
    ]


class Reports:
    """Reports over rows that are put into one database, in the place of those before."""

    def __init__(self, where: Where) -> None:
        self._runner = asyncio.Runner()
        self._database = self._runner.run(Database.open(where))

    def close(self) -> None:
        self._runner.run(self._database.close())
        self._runner.close()

    def report(self, kept: list[ExchangeRow], *args: Any, **more: Any) -> list[Usage]:
        async def run() -> list[Usage]:
            async with altering(self._database) as connection:
                await connection.execute(exchanges.delete())
                for seq, row in enumerate(kept, 1):
                    values = dict(zip(COLUMNS, flatten(seq, row), strict=False))
                    await connection.execute(insert(exchanges).values(**values))
            return await UsageStore(self._database).report(*args, **more)

        return self._runner.run(run())

    def put(self, table: Table, values: dict[str, Any]) -> None:
        async def run() -> None:
            async with altering(self._database) as connection:
                await connection.execute(insert(table).values(**values))

        self._runner.run(run())


@pytest.fixture
def reports(where: Where) -> Iterator[Reports]:
    opened = Reports(where)
    yield opened
    opened.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    given_rows=st.lists(rows, max_size=12),
    by=st.lists(st.sampled_from(DIMENSIONS), unique=True, max_size=3).map(tuple),
    window=st.tuples(moments, moments).map(sorted),
    organization=st.none() | names,
)
def test_sums_are_those_made_by_hand(
    reports: Reports,
    given_rows: list[ExchangeRow],
    by: tuple[Any, ...],
    window: list[float],
    organization: str | None,
) -> None:
    since, until = window
    found = reports.report(given_rows, by, since, until, organization=organization)
    kept = [
        row for row in given_rows if since <= row.started_at < until and organization in (None, row.organization_id)
    ]
    assert found == (by_hand(kept, by) if kept or by else [Usage()])


def test_cached_tokens_are_counted_once_however_often_a_target_was_asked(reports: Reports) -> None:
    tries = [Attempt("lab/m", 0.0, 1.0, outcome) for outcome in ("failed", "failed", "completed", SHADOW)]
    asked = row(1.0, target="lab/m", attempts=tries, cached_tokens=7, reasoning_tokens=3)
    (found,) = reports.report([asked], ("target",), 0.0, 9.0)
    assert (found.requests, found.failed, found.cached_tokens, found.reasoning_tokens) == (3, 2, 7, 3)


def test_a_day_ends_with_its_last_microsecond(reports: Reports) -> None:
    ends = [row(86_399.9996), row(86_399.999999), row(86_400.0)]
    found = reports.report(ends, ("day",), 0.0, 200_000.0)
    assert [(each.day, each.requests) for each in found] == [("1970-01-01", 2), ("1970-01-02", 1)]


def test_a_span_holds_its_beginning_and_not_its_end(reports: Reports) -> None:
    edges = [row(10.0, tags=["begin"]), row(19.999999, tags=["last"]), row(20.0, tags=["end"])]
    assert [each.tag for each in reports.report(edges, ("tag",), 10.0, 20.0)] == ["begin", "last"]


def row(started_at: float, **fields: Any) -> ExchangeRow:
    return ExchangeRow(id="x", kind="chat.completions", started_at=started_at, **fields)


def test_ids_come_with_the_names_of_now(reports: Reports) -> None:
    """Two of a name in two organisations stay two; what was deleted is called by its id, what belongs to nobody by
    nothing."""
    dates = {"created_at": 0.0}
    acme = {"organization_id": "org_acme", **dates}
    reports.put(organizations, {"id": "org_acme", "name": "Acme", **dates})
    reports.put(teams, {"id": "team_1", "name": "lab", "organization_id": "org_default", **dates})
    reports.put(teams, {"id": "team_2", "name": "lab", **acme})
    reports.put(users, {"id": "user_1", "name": "Ada", "role": "member", **acme})
    reports.put(service_accounts, {"id": "sa_1", "name": "bot", "role": "member", **acme})
    found = reports.report(
        [
            row(1.0, organization_id="org_default", team_id="team_1", user_id="user_gone"),
            row(2.0, organization_id="org_acme", team_id="team_2", user_id="user_1"),
            row(3.0, organization_id="org_acme", team_id="team_2", user_id="user_1"),
            row(4.0, organization_id="org_acme", service_account_id="sa_1"),
        ],
        ("organization", "team", "user", "service_account"),
        0.0,
        9.0,
    )
    assert [
        (each.organization_name, each.team, each.team_name, each.user_name, each.service_account_name, each.requests)
        for each in found
    ] == [
        ("Acme", "", "", "", "bot", 1),
        ("Acme", "team_2", "lab", "Ada", "", 2),
        ("default", "team_1", "lab", "user_gone", "", 1),
    ]


def test_csv_has_names_behind_all_that_was_there_before() -> None:
    rows = to_plain([Usage(team="team_1", team_name="=lab", day="2026-01-01", requests=1)], ("team", "day"))
    header, only = csv.reader(io.StringIO(to_csv(rows, ("team", "day"))))
    assert header[:3] == ["team", "day", "requests"]
    assert header[-2:] == ["cost_usd", "team_name"]
    assert dict(zip(header, only, strict=True))["team_name"] == "'=lab"


@given(st.integers(0, 2**62))
def test_usd_is_exact(amount: int) -> None:
    from decimal import Decimal

    text = usd(amount)
    assert Decimal(text) * 10**9 == amount
    assert "e" not in text.lower()
    assert not text.endswith(".")


def test_csv_holds_no_formulas() -> None:
    rows = to_plain([Usage(tag="=HYPERLINK(1)", requests=1, cost_nanousd=5), Usage(tag="-x", requests=2)], ("tag",))
    header, first, second = csv.reader(io.StringIO(to_csv(rows, ("tag",))))
    assert header[0] == "tag"
    assert first[0] == "'=HYPERLINK(1)"
    assert first[-1] == "0.000000005"
    assert second[:2] == ["'-x", "2"]


@pytest.mark.parametrize("text", ["teams", "team,team", "team;day", "tag, Team"])
def test_unknown_dimensions_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="by:"):
        parse_dimensions(text)


def test_dimensions_and_days() -> None:
    assert parse_dimensions("day, team") == ("day", "team")
    now = datetime(2026, 12, 24, tzinfo=UTC).timestamp()
    month = month_of(now)
    assert month == (datetime(2026, 12, 1, tzinfo=UTC).timestamp(), datetime(2027, 1, 1, tzinfo=UTC).timestamp())
    assert parse_span(None, None, now) == month
    assert parse_span("1970-01-02", "1970-01-02T00:00:01Z", now) == (86_400, 86_401)
    assert parse_span("7d", None, now) == (now - 7 * 86_400, month[1])
    assert parse_span("20261201", "12h", now) == (month[0], now - 43_200)
    for since, until, told in (
        ("02.01.1970", None, "since: expected a date"),
        ("2026", None, "since: expected a date"),
        (None, "", "until: expected a date"),
        ("7d", "8d", "until: must be later than since"),
    ):
        with pytest.raises(BadRequest, match=told):
            parse_span(since, until, now)
