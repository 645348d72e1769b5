"""Who has less than a key changes it neither into more than they have, nor at all where it is above them."""

from __future__ import annotations

import msgspec
import pytest

from appliance.errors import PermissionDenied
from appliance.identity.people_work import USER
from appliance.identity.principal import Principal, Restrictions
from tests.identity.conftest import OWNER, Box


@pytest.fixture
def box(any_box: Box) -> Box:
    """On either kind of database."""
    return any_box


async def test_who_is_limited_does_not_rotate_a_key_that_is_not(box: Box) -> None:
    _, key = await box.key("app")
    before = await box.events()
    batch = Principal("key_admin", "admin", "admin", restrictions=Restrictions(priority="batch"))
    with pytest.raises(PermissionDenied) as refused:
        await box.ring.rotate(batch, "app")
    assert refused.value.param == "restrictions.priority"
    assert box.ring.identify(key) is not None
    assert await box.events() == before
    await box.key("slow", restrictions=Restrictions(priority="batch"))
    assert (await box.ring.rotate(batch, "slow"))[0].restrictions == batch.restrictions


async def test_a_rotated_key_ends_with_the_one_that_rotated_it(box: Box) -> None:
    box.as_of(1000.0)
    await box.key("endless")
    await box.key("long", expires_at=9000.0)
    await box.key("short", expires_at=1500.0)
    ending = Principal("key_admin", "admin", "admin", expires_at=2000.0)
    ends = [(await box.ring.rotate(ending, name))[0].expires_at for name in ("endless", "long", "short")]
    assert ends == [2000.0, 2000.0, 1500.0]
    with pytest.raises(PermissionDenied) as refused:
        await box.ring.rotate(ending, "short", expires_at=2001.0)
    assert refused.value.param == "expires_at"


async def test_a_lesser_token_of_ones_own_ends_no_greater_one(box: Box) -> None:
    ada = (await box.directory.create(OWNER, USER, {"name": "Ada", "role": "admin"})).id
    _, key = await box.key("great", "admin", user=ada)
    await box.key("small", "member", user=ada)
    member = Principal("key_1", "one", "member", user=ada)
    with pytest.raises(PermissionDenied) as refused:
        await box.ring.revoke(member, "great", own=True)
    assert refused.value.param == "role"
    assert box.ring.identify(key) is not None
    assert (await box.ring.revoke(member, "small", own=True)).revoked_at is not None
    admin = msgspec.structs.replace(member, role="admin")
    assert (await box.ring.revoke(admin, "great", own=True)).revoked_at is not None
