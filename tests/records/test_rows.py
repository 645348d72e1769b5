"""The flat form of a row and its inverse."""

from __future__ import annotations

import json
import string

import msgspec
import pytest
import rfc8785
from hypothesis import assume, given
from hypothesis import strategies as st

from appliance.records.chain import MAX_EXACT
from appliance.records.rows import (
    COLUMNS,
    Attempt,
    Charge,
    ExchangeRow,
    RecordedExchange,
    attempts_text,
    charges_text,
    flatten,
    read_attempts,
    storable,
    unflatten,
)
from appliance.records.tables import exchanges

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SECONDS = st.integers(0, 2**51).map(lambda micros: micros / 1e6)
COUNT = st.integers(0, MAX_EXACT)
ATTEMPTS = st.builds(Attempt, TEXT, SECONDS, SECONDS, TEXT, st.none() | TEXT, COUNT, COUNT, COUNT)
CHARGES = st.builds(Charge, TEXT, COUNT, SECONDS)
ROWS = st.builds(
    ExchangeRow,
    id=TEXT,
    kind=TEXT,
    started_at=SECONDS,
    key_id=st.none() | TEXT,
    key_name=st.none() | TEXT,
    route=st.none() | TEXT,
    target=st.none() | TEXT,
    stream=st.booleans(),
    status=st.integers(100, 599),
    outcome=st.sampled_from(["completed", "refused", "client_closed", "upstream_error", "internal_error"]),
    error_code=st.none() | TEXT,
    finish_reasons=st.lists(TEXT, max_size=3),
    attempts=st.lists(ATTEMPTS, max_size=3),
    prompt_tokens=COUNT,
    cached_tokens=COUNT,
    completion_tokens=COUNT,
    usage_source=st.sampled_from(["reported", "estimated", "none"]),
    queue_s=st.none() | SECONDS,
    ttft_s=st.none() | SECONDS,
    duration_s=SECONDS,
    client=TEXT,
    organization_id=st.none() | TEXT,
    team_id=st.none() | TEXT,
    user_id=st.none() | TEXT,
    service_account_id=st.none() | TEXT,
    tags=st.lists(TEXT, max_size=3),
    priority=st.none() | TEXT,
    reasoning_tokens=COUNT,
    cost_nanousd=COUNT,
    charges=st.lists(CHARGES, max_size=3),
    content_digest=st.none() | TEXT,
)


@given(ROWS, COUNT)
def test_unflatten_undoes_flatten(row: ExchangeRow, seq: int) -> None:
    back = unflatten(flatten(seq, row))
    assert back.seq == seq
    assert {name: getattr(back, name) for name in ExchangeRow.__struct_fields__} == {
        name: getattr(row, name) for name in ExchangeRow.__struct_fields__
    }


@given(ROWS)
def test_storable_leaves_good_rows_alone(row: ExchangeRow) -> None:
    assume("\\x00" not in repr(row))  # PostgreSQL takes no NUL, so that it is written another way
    assert storable(row) == row


def test_columns_are_those_of_the_table_and_in_the_order_of_flatten() -> None:
    assert [*COLUMNS, "hash"] == [column.name for column in exchanges.columns]
    names = dict(zip(string.ascii_letters, COLUMNS, strict=False))
    row = ExchangeRow(id="i", kind="k", started_at=1.5, client="c", duration_s=2.5, route="r", target="t")
    values = dict(zip(names.values(), flatten(7, row), strict=True))
    assert values["seq"] == 7
    assert (values["id"], values["kind"], values["started_at"]) == ("i", "k", 1.5)
    assert (values["route"], values["target"], values["duration_s"], values["client"]) == ("r", "t", 2.5, "c")


def test_storable_replaces_what_no_database_takes() -> None:
    row = ExchangeRow(
        id="x",
        kind="chat.completions",
        started_at=0.0,
        route="\ud800model",
        prompt_tokens=2**80,
        finish_reasons=["\udfff"],
        attempts=[Attempt("\ud800", 0.0, 0.0, "failed")],
    )
    better = storable(row)
    assert better.route == "\\ud800model"
    assert better.prompt_tokens == MAX_EXACT
    assert isinstance(unflatten(flatten(1, better)), RecordedExchange)


@given(st.floats(0, 2**31), st.floats(0, 1e6))
def test_times_are_kept_to_the_microsecond_and_only_once_rounded(started: float, took: float) -> None:
    row = ExchangeRow(id="i", kind="k", started_at=started, duration_s=took, queue_s=took, ttft_s=took)
    values = flatten(1, row)
    back = unflatten(values)
    assert abs(back.started_at - started) <= 1e-6
    assert abs(back.duration_s - took) <= 1e-6
    assert flatten(1, back) == values


@given(st.lists(ATTEMPTS, max_size=3), st.lists(CHARGES, max_size=3))
def test_stored_lists_are_canonical(attempts: list[Attempt], charges: list[Charge]) -> None:
    for text in (attempts_text(attempts), charges_text(charges)):
        assert rfc8785.dumps(json.loads(text)).decode() == text


def test_attempts_from_before_the_ledger_are_read() -> None:
    attempts = [Attempt("deployment:m", 0.25, 1.5, "failed", "overloaded"), Attempt("deployment:n", 2.0, 1.5, "done")]
    assert read_attempts(msgspec.json.encode(attempts).decode()) == attempts


@pytest.mark.parametrize("field", ["prompt_tokens", "cost_nanousd"])
@pytest.mark.parametrize("value", [-1, MAX_EXACT + 1])
def test_counts_that_json_cannot_carry_are_refused(field: str, value: int) -> None:
    with pytest.raises(ValueError, match="count"):
        attempts_text([msgspec.structs.replace(Attempt("t", 0.0, 0.0, "done"), **{field: value})])
    with pytest.raises(ValueError, match="count"):
        charges_text([Charge("limit", value, 0.0)])
