"""Ids: in the order of time, and never the same twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.ids import make_id, new_id

times = st.integers(0, (1 << 48) - 1)
noise = st.binary(min_size=10, max_size=10)


@given(times, times, noise, noise)
def test_later_ids_sort_later(a: int, b: int, x: bytes, y: bytes) -> None:
    if a < b:
        assert make_id(a, x) < make_id(b, y)


@given(times, noise)
def test_an_id_is_26_characters_of_the_alphabet(at: int, random: bytes) -> None:
    value = make_id(at, random)
    assert len(value) == 26
    assert set(value) <= set("0123456789abcdefghjkmnpqrstvwxyz")


@given(times, noise)
def test_the_time_is_in_the_first_ten_characters(at: int, random: bytes) -> None:
    assert make_id(at, random) == make_id(at, bytes(10))[:10] + make_id(0, random)[10:]


def test_fresh_ids_differ() -> None:
    assert len({new_id() for _ in range(1000)}) == 1000
