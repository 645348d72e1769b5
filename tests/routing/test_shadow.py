"""How two answers compare."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.routing.shadow import COMPARED, Said, compare, same_calls, similarity

TEXTS = st.text(max_size=200)


@given(TEXTS, TEXTS)
@settings(deadline=None)
def test_similarity_is_a_share_and_has_no_direction(one: str, other: str) -> None:
    assert 0.0 <= similarity(one, other) <= 1.0
    assert similarity(one, other) == similarity(other, one)
    assert similarity(one, one) == 1.0


@pytest.mark.parametrize(
    ("one", "other", "least", "most"),
    [
        ("", "", 1, 1),
        ("a", "", 0, 0),
        ("Paris", "paris ", 1, 1),
        ("It is\n\n warm.", "it is warm.", 1, 1),
        ("The capital of France is Paris.", "Paris is the capital of France.", 0.7, 0.99),
        ("The capital of France is Paris.", "I cannot help with that request.", 0, 0.25),
        ("今天天气很好，我们去公园吧。", "今天天气很好，我们去海边吧。", 0.5, 0.9),
    ],
)
def test_what_is_alike(one: str, other: str, least: float, most: float) -> None:
    assert least <= similarity(one, other) <= most


def test_only_beginnings_are_compared_so_that_it_takes_no_time() -> None:
    one, other = "x" * COMPARED + "y" * 10_000_000, "x" * COMPARED + "z" * 10_000_000
    began = time.process_time()
    assert similarity(one, other) == 1.0
    assert similarity(one, "w" + other) < 1.0
    assert time.process_time() - began < 0.2


@pytest.mark.parametrize(
    ("calls", "others", "same"),
    [
        ((), (), True),
        ((("f", '{"a": 1, "b": [2]}'),), (("f", '{ "b":[2],"a":1}'),), True),
        ((("f", "{}"), ("g", "{}")), (("g", "{}"), ("f", "{}")), True),
        ((("g", "{}"), ("f", "{}")), (("f", "{}"), ("g", "{}")), True),
        ((("f", ""),), (("f", "{}"),), True),
        ((("f", '{"a": 1}'),), (("f", '{"a": 2}'),), False),
        ((("f", "{}"),), (("g", "{}"),), False),
        ((("f", "{}"),), (("f", "{}"), ("f", "{}")), False),
        ((("f", '{"a":'),), (("f", '{"a":'),), True),
        ((("f", "[" * 100_000),), (("f", "{}"),), False),
        ((("f", '"\\ud800"'),), (("f", '"\\ud800"'),), True),
    ],
)
def test_which_tool_calls_are_the_same(calls: Any, others: Any, same: bool) -> None:
    assert same_calls(calls, others) == same


def test_a_comparison_is_plain_and_holds_nothing_of_what_was_said() -> None:
    said = Said("The secret is blue.", (), "stop", 0.2, 1.0, 6, 900)
    shadow = Said("The secret is green!", (("f", '{"x": "hidden"}'),), "tool_calls", 0.5, 3.0, 8, 100)
    compared = compare(said, shadow)
    assert compared.characters == 19
    assert compared.shadow_characters == 20
    assert not compared.same_tool_calls
    assert not compared.same_finish_reason
    assert (compared.tokens_more, compared.seconds_more, compared.nanousd_more) == (2, 2.0, -800)
    assert compared.ttft_more_s == pytest.approx(0.3)
    written = msgspec.json.encode(compared)
    assert b"secret" not in written
    assert b"hidden" not in written


def test_a_shadow_that_failed_is_compared_too() -> None:
    compared = compare(Said("Hi", finish_reason="stop", ttft_s=0.1), Said(error="upstream_error", seconds=2.0))
    assert compared.error == "upstream_error"
    assert compared.similarity == 0.0
    assert compared.ttft_more_s is None
