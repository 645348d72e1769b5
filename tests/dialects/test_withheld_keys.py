from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dialects.withheld import Net, check_secret
from appliance.errors import UpstreamFailed

KEY = b"sk-up/stream_1.2+3"
printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)


def escaped(key: str, which: list[bool], upper: bool) -> str:
    """With some of its characters as JSON may write them."""
    code = "\\u{:04X}" if upper else "\\u{:04x}"
    return "".join(code.format(ord(each)) if this else each for each, this in zip(key, which, strict=True))


spellings = st.builds(
    escaped, st.just(KEY.decode()), st.lists(st.booleans(), min_size=len(KEY), max_size=len(KEY)), st.booleans()
) | st.just(KEY.decode().replace("/", "\\/"))


@given(spellings, printable, printable)
def test_a_key_is_found_however_json_spells_it(spelled: str, before: str, after: str) -> None:
    body = f"{json.dumps(before)[:-1]}{spelled}{json.dumps(after)[1:]}"
    assert KEY.decode() in json.loads(body)
    with pytest.raises(UpstreamFailed, match="credential"):
        check_secret(body.encode(), KEY, "u")
    with pytest.raises(UpstreamFailed, match="credential"):
        check_secret(json.dumps({"arguments": body}).encode(), KEY, "u")


@given(spellings, st.data())
def test_and_however_it_is_cut(spelled: str, data: st.DataObject) -> None:
    body = f'data: {{"a":"\\n {spelled} b"}}\n\n'.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(body) - 1), max_size=6)))
    net = Net(KEY, "u")
    with pytest.raises(UpstreamFailed):
        for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
            net.check(body[start:end])


def test_each_cut_and_byte_by_byte() -> None:
    body = b'{"a":"' + b"".join(b"\\u%04x" % each for each in KEY) + b'"}'
    for cut in range(len(body)):
        net = Net(KEY, "u")
        with pytest.raises(UpstreamFailed):
            net.check(body[:cut])
            net.check(body[cut:])
    net = Net(KEY, "u")
    with pytest.raises(UpstreamFailed):
        for each in body:
            net.check(bytes([each]))


@given(st.binary(max_size=200))
def test_what_holds_no_key_passes(data: bytes) -> None:
    check_secret(data, KEY, "u")
    Net(KEY, "u").check(data)
    check_secret(data, b"", "u")


def test_a_key_of_one_character() -> None:
    net = Net(b"k", "u")
    net.check(b"abc")
    with pytest.raises(UpstreamFailed):
        net.check(b"k")


def test_many_backslashes_cost_no_more_than_their_number() -> None:
    began = time.perf_counter()
    check_secret(b"\\u00" + b"\\" * 1_000_000, KEY, "u")
    assert time.perf_counter() - began < 5  # it is below one; of each by each it would be hours
