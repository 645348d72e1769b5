"""Names of keys: one of a kind within an organization, and nobody's business outside of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance.errors import BadRequest, NotFound
from appliance.identity.key_ring import KeyRing
from appliance.identity.key_store import NewKey
from appliance.identity.keys import FixedKey
from appliance.identity.people_work import ORGANIZATION
from appliance.identity.principal import Principal
from tests.identity.conftest import OWNER, Box


@pytest.fixture
def box(any_box: Box) -> Box:
    """On either kind of database."""
    return any_box


async def admin_of(box: Box, name: str) -> Principal:
    made = await box.directory.create(OWNER, ORGANIZATION, {"name": name})
    return Principal(f"key_{name}", name, "admin", made.id)


async def test_two_organizations_have_keys_of_one_name(box: Box) -> None:
    one, two = await admin_of(box, "one"), await admin_of(box, "two")
    first, key = await box.ring.create(one, NewKey("prod"))
    second, other = await box.ring.create(two, NewKey("prod"))
    with pytest.raises(BadRequest, match="named 'prod' already"):
        await box.ring.create(two, NewKey("prod"))
    # Whoever sees one of them means that; whoever sees both must say which.
    assert (await box.ring.show(one, "prod")).id == first.id
    assert (await box.ring.show(two, "prod")).id == second.id
    asked: list[Callable[..., Any]] = [box.ring.show, box.ring.rotate, box.ring.revoke]
    for ask in asked:
        with pytest.raises(BadRequest, match="several are named 'prod'; give the id, see `outpost keys list`"):
            await ask(OWNER, "prod")
        with pytest.raises(NotFound):
            await ask(two, first.id)
    assert (await box.ring.show(OWNER, first.id)).organization == one.organization
    await box.ring.rotate(two, "prod", overlap_s=0.0)
    assert (await box.ring.revoke(two, "prod")).organization == two.organization
    assert box.ring.identify(other) is None
    assert box.ring.identify(key) is not None
    assert (await box.ring.show(OWNER, "prod")).id == first.id, "the others have ended"
    again = await KeyRing.open(box.database, box.folder)
    assert again.identify(key) is not None


async def test_a_key_of_the_settings_has_the_name_of_one_that_can_be_revoked(box: Box) -> None:
    admin = await admin_of(box, "theirs")
    ours, key = await box.key("ci")
    theirs, _ = await box.ring.create(admin, NewKey("ci"))
    await box.ring.reload([FixedKey("ci", "a-key-of-the-settings-file", "member", organization=admin.organization)])
    asked: list[Callable[..., Any]] = [box.ring.rotate, box.ring.revoke]
    for ask in asked:
        with pytest.raises(BadRequest, match=f"other key of this name: .*{ours.id}"):
            await ask(OWNER, "ci")
        with pytest.raises(BadRequest, match=f"other key of this name: {theirs.id}$"):
            await ask(admin, "ci")
        with pytest.raises(BadRequest, match="change it there and reload$"):
            await ask(OWNER, "fixed:ci")
    await box.ring.revoke(OWNER, ours.id)
    assert box.ring.identify(key) is None


async def test_an_id_counts_before_a_name_that_looks_like_it(box: Box) -> None:
    first, _ = await box.key("app")
    for name in ("one", "two"):
        await box.ring.create(await admin_of(box, name), NewKey(first.id))
    assert (await box.ring.show(OWNER, first.id)).name == "app"
    assert (await box.ring.revoke(OWNER, first.id)).name == "app"


async def test_only_a_key_of_the_same_organization_gives_its_name_up(box: Box) -> None:
    box.as_of(1000.0)
    one, two = await admin_of(box, "one"), await admin_of(box, "two")
    old, _ = await box.ring.create(one, NewKey("prod", expires_at=1060.0))
    box.as_of(2000.0)
    await box.ring.create(two, NewKey("prod"))
    assert (await box.ring.show(one, old.id)).revoked_at is None, "what others do does not touch it"
    new, _ = await box.ring.create(one, NewKey("prod"))
    assert (await box.ring.show(one, old.id)).revoked_at == 1060.0
    # What was changed of it is on the ledger, and by whom.
    (ended, made) = (await box.events("admin.key."))[-2:]
    assert (ended[0], ended[1]["object"], ended[1]["actor"]["key"]) == ("admin.key.expire", old.id, "key_one")
    assert "revoked_at_us" not in ended[1]["before"]
    assert ended[1]["after"]["revoked_at_us"] == 1_060_000_000
    assert (made[0], made[1]["object"]) == ("admin.key.create", new.id)
