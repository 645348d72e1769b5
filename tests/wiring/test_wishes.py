"""Headers beside the body: what is a tag, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import BadRequest
from appliance.identity.keys import new_key
from appliance.wishes import MAX_TAGS, TAGS_HEADER, parse_tags

KEYS = st.binary(min_size=32, max_size=32).map(lambda raw: new_key(lambda _: raw))


def test_tags_are_kept_once_in_their_order() -> None:
    assert parse_tags(None) == parse_tags("") == parse_tags(" , ") == []
    assert parse_tags("b, a:x/1 ,b,c@d") == ["b", "a:x/1", "c@d"]


@given(KEYS, st.sampled_from(["{}", "team,{}", "x:{}", "{},b"]))
def test_a_key_is_no_tag_and_does_not_come_back(key: str, form: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_tags(form.format(key))
    assert refused.value.param == TAGS_HEADER
    assert key[3:12] not in refused.value.message


@pytest.mark.parametrize("text", ["-x", "a b", "ü", "x" * 65, ",".join(map(str, range(MAX_TAGS + 1)))])
def test_what_is_no_tag_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match=TAGS_HEADER):
        parse_tags(text)
