"""What is hashed of a record, against another implementation of RFC 8785."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from appliance.records.chain import GENESIS, MAX_EXACT, canonical, event_body, exchange_body, link
from appliance.records.rows import COLUMNS, ExchangeRow, flatten, storable
from tests.records.test_rows import COUNT, ROWS

TEXT = st.text(max_size=20)
PLAIN = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
EXACT = st.integers(-MAX_EXACT, MAX_EXACT)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.booleans() | EXACT | PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(PLAIN, inner, max_size=4)
)


@given(st.dictionaries(PLAIN, VALUES, max_size=6))
def test_canonical_is_that_of_the_standard(value: dict[str, Any]) -> None:
    assert canonical(value) == rfc8785.dumps(value)


@given(st.dictionaries(TEXT, TEXT, max_size=4))
def test_lone_surrogates_are_written_out(value: dict[str, str]) -> None:
    def mended(text: str) -> str:
        return text.encode("utf-8", "backslashreplace").decode()

    assert canonical(value) == rfc8785.dumps({mended(name): mended(text) for name, text in value.items()})
    assert json.loads(canonical(value)) == {mended(name): mended(text) for name, text in value.items()}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": None}, '{"b":1}'),
        ({"n": 2**53}, '{"n":"9007199254740992"}'),
        ({"n": MAX_EXACT}, '{"n":9007199254740991}'),
        # U+1F600 has a first code unit below U+FB33, though its code point is above: the standard's own example.
        ({"\ufb33": 1, "\U0001f600": 2, "\u20ac": 3, "\r": 4}, '{"\\r":4,"\u20ac":3,"\U0001f600":2,"\ufb33":1}'),
        ({"t": '\x00\x1f\x7f\u2028"\\/'}, '{"t":"\\u0000\\u001f\x7f\u2028\\"\\\\/"}'),
    ],
)
def test_canonical_cases(value: dict[str, Any], text: str) -> None:
    assert canonical(value).decode() == text


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"a": {"b": [1, 1.5]}}, r"body\.a\.b\[1\] is of the type float"),
        ({"a": b"x"}, r"body\.a is of the type bytes"),
        ({1: "x"}, "body has the name 1"),
    ],
)
def test_what_has_no_form_is_refused_with_its_place(value: Any, place: str) -> None:
    with pytest.raises(TypeError, match=place):
        canonical(value)


@given(ROWS, COUNT)
def test_the_body_of_an_exchange_is_canonical_and_has_everything(row: ExchangeRow, seq: int) -> None:
    values = dict(zip(COLUMNS, flatten(seq, row), strict=True))
    body = exchange_body(tuple(values.values()))
    assert rfc8785.dumps(json.loads(body)) == body
    found = json.loads(body)
    assert found.pop("type") == "exchange"
    for name, value in values.items():
        if name.endswith("_s") or name == "started_at":
            name = "started_at_us" if name == "started_at" else name[:-2] + "_us"
            value = None if value is None else round(value * 1e6)
        if name in ("attempts", "charges", "finish_reasons", "tags"):
            value = json.loads(value)
        assert found.pop(name, None) == value
    assert found == {}


@given(ROWS)
def test_every_column_is_in_the_hash(row: ExchangeRow) -> None:
    values = flatten(7, row)
    body = exchange_body(values)
    for place, (name, value) in enumerate(zip(COLUMNS, values, strict=True)):
        other: Any
        if name in ("attempts", "charges", "finish_reasons", "tags"):
            other = value[:-1] + (",1]" if value != "[]" else "1]")
        elif name == "stream":
            other = not value
        elif isinstance(value, float):
            other = value + 1e-6 if value < 2**30 else value - 1e-6
        elif isinstance(value, int):
            other = value ^ 1
        elif name in ("queue_s", "ttft_s"):
            other = 0.0
        else:
            other = (value or "") + "x"
        assert exchange_body((*values[:place], other, *values[place + 1 :])) != body, name


@pytest.mark.parametrize("field", ["prompt_tokens", "cost_nanousd", "status", "reasoning_tokens"])
@pytest.mark.parametrize("value", [-1, MAX_EXACT + 1])
def test_counts_that_json_cannot_carry_are_refused_or_mended(field: str, value: int) -> None:
    row = msgspec.structs.replace(ExchangeRow(id="i", kind="k", started_at=1.0), **{field: value})
    with pytest.raises(ValueError, match="cannot keep"):
        exchange_body(flatten(1, row))
    assert exchange_body(flatten(1, storable(row)))


def test_an_event_says_what_the_ledger_knows_of_it() -> None:
    body = event_body(5, "admin.key.create", 1_700_000_000_000_001, {"object": "key_1", "before": None})
    assert json.loads(body) == {
        "type": "event",
        "seq": 5,
        "kind": "admin.key.create",
        "at_us": 1_700_000_000_000_001,
        "object": "key_1",
    }
    with pytest.raises(ValueError, match="at_us, seq"):
        event_body(1, "x", 0, {"seq": 1, "at_us": 2})


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_a_hash_covers_all_that_came_before(bodies: list[bytes]) -> None:
    digest = GENESIS
    for body in bodies:
        previous, digest = digest, link(digest, body)
        assert digest == hashlib.sha256(previous + body).digest()
