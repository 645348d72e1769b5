from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dialects import chat
from appliance.dialects.wire import explain, lone_surrogates, too_deep
from appliance.errors import BadRequest, OutpostError


def depth(value: Any) -> int:
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 0


texts = st.text(st.sampled_from('[]{}"\\ab, :é'), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=25,
)


@given(values, st.integers(0, 5), st.booleans())
def test_depth_is_that_of_the_value(value: Any, limit: int, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert too_deep(body, limit) == (depth(value) > limit)


@pytest.mark.parametrize("n", [63, 64, 65, 10_000, 1_000_000])
@pytest.mark.parametrize(("left", "right"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"":', b"}]")])
def test_depth_of_closed_and_unclosed_nesting(n: int, left: bytes, right: bytes) -> None:
    levels = n * left.count(b"[") + n * left.count(b"{")
    assert too_deep(left * n + b"1" + right * n, 64) == (levels > 64)
    assert too_deep(left * n, 64) == (levels > 64)


def test_brackets_in_strings_do_not_count() -> None:
    assert not too_deep(json.dumps(["[" * 1000, '\\"' + "{" * 1000, "]" * 70]).encode(), 4)


@given(st.binary(max_size=60), st.integers(0, 4))
def test_any_bytes_have_an_answer(body: bytes, limit: int) -> None:
    assert too_deep(body, limit) in (True, False)


def refusal(body: bytes) -> OutpostError:
    with pytest.raises(OutpostError) as caught:
        chat.parse(body)
    return caught.value


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"{", "too early (line 1, column 2)"),
        (b'{"model": "m",\n "messages": @}', "line 2, column 14"),
        (b'{"temperature": NaN}', "line 1, column 17"),
        (b'{"temperature": -Infinity}', "line 1"),
        (b'{"model": "\xff"}', "not valid UTF-8 (line 1, column 12)"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "x"}]} trailing', "line 1"),
        (b"\xef\xbb\xbf{}", "line 1, column 1"),
        (b"[]", "must be an object, not an array"),
        (b"null", "must be an object, not null"),
        (b"[" * 10_000, "deeper than 64"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "deeper than 64"),
    ],
)
def test_what_is_no_request_is_refused_with_the_place(body: bytes, says: str) -> None:
    error = refusal(body)
    assert error.status == 400
    assert says in error.message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model":"\\ud800","messages":[]}', "model"),
        (b'{"model":"m","messages":[{"role":"user","content":"a\\udc00b"}]}', "messages[0].content"),
        (b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"\\ud83d"}]}]}',
         "messages[0].content[0].text"),
        (b'{"model":"m","tools":[{"function":{"parameters":{"x":{"\\ud800":1}}}}]}', "tools[0].function.parameters.x"),
        (b'{"model":"m","user":"\\ud83d\\ud83d"}', "user"),
    ],
)  # fmt: skip
def test_lone_surrogates_are_refused_by_field(body: bytes, param: str) -> None:
    error = refusal(body)
    assert error.status == 400
    assert error.param == param
    assert "surrogate" in error.message
    error.message.encode()  # the message itself can be sent


def test_pairs_of_surrogates_are_characters() -> None:
    request = chat.parse(b'{"model":"m","messages":[{"role":"user","content":"\\ud83c\\udf0d"}]}')
    assert request.messages[0].content == "🌍"


@given(values)
def test_values_without_surrogates_have_none(value: Any) -> None:
    assert list(lone_surrogates(value)) == []


@given(st.text(), st.text())
def test_any_complaint_becomes_an_error(what: str, path: str) -> None:
    error = explain(f"{what} - at `$.{path}`", {}, {})
    assert isinstance(error, BadRequest)
    assert error.message


def test_duplicate_keys_take_the_last() -> None:
    body = b'{"model":"a","model":"b","messages":[{"role":"user","content":"x"}]}'
    assert chat.parse(body).model == "b"
