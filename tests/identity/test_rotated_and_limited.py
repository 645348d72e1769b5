"""A limit that names a key holds for it until it ends, also while another has its name already."""

from __future__ import annotations

import pytest

from appliance.identity.key_store import KeyInfo
from appliance.limits.rules import Bound, Context
from tests.identity.conftest import OWNER, Box
from tests.limits.book_samples import DAY, REQUESTS, limit


def names(scope: str, id: str) -> str | None:
    """Keys are named by their credential alone."""
    return None


def context_of(key: KeyInfo) -> Context:
    return Context(key=key.id, key_name=key.name)


@pytest.mark.parametrize("name", ["app", "app+one", "a" * 55, "a" * 64])
async def test_a_limit_that_names_a_key_holds_while_it_is_rotated(box: Box, name: str) -> None:
    first, _ = await box.key(name)
    second, _ = await box.ring.rotate(OWNER, first.id, overlap_s=60.0)
    third, _ = await box.ring.rotate(OWNER, second.id, overlap_s=60.0)
    other, _ = await box.key("b" * 63)
    rule = limit("key", Bound(REQUESTS, 1, DAY), key=name)
    for each in (first, second, third):
        assert rule.applies(context_of(await box.ring.show(OWNER, each.id)), names), each
    assert not rule.applies(context_of(other), names)


@pytest.mark.parametrize("name", ["app+iv5pr2dh", "app+", "app+pr2dh", "+", "app"])
def test_a_name_that_only_looks_like_that_of_a_rotated_key_is_none(name: str) -> None:
    rule = limit("key", Bound(REQUESTS, 1, DAY), key="ap,,app-2")
    assert not rule.applies(Context(key="key_7kpyux55iv5pr2dh", key_name=name), names)
    assert not limit("key", key="app").applies(Context(key="key_aaaaaaaaaaaaaaaa", key_name="app+iv5pr2dh"), names)
