"""The flat form of a row and its inverse."""

from __future__ import annotations

import string

from hypothesis import given
from hypothesis import strategies as st

from appliance.records.rows import COLUMNS, Attempt, ExchangeRow, RecordedExchange, flatten, storable, unflatten
from appliance.records.tables import exchanges

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SECONDS = st.floats(0, 1e6)
COUNT = st.integers(0, 2**40)
ATTEMPTS = st.builds(Attempt, TEXT, SECONDS, SECONDS, TEXT, st.none() | TEXT)
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
    assert storable(row) == row


def test_columns_are_those_of_the_table_and_in_the_order_of_flatten() -> None:
    assert list(COLUMNS) == [column.name for column in exchanges.columns]
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
    assert better.prompt_tokens == 2**63 - 1
    assert isinstance(unflatten(flatten(1, better)), RecordedExchange)
