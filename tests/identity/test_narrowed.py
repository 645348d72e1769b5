"""What a list is to be narrowed to, by id or name, on either kind of database."""

from __future__ import annotations

import pytest

from appliance.errors import BadRequest, PermissionDenied
from appliance.identity.people_work import ORGANIZATION, TEAM
from appliance.identity.principal import Principal
from tests.identity.conftest import OWNER, Box


async def test_ids_for_names_within_what_one_sees(any_box: Box) -> None:
    box, directory = any_box, any_box.directory
    acme = await directory.create(OWNER, ORGANIZATION, {"name": "acme"})
    ours = await directory.create(OWNER, TEAM, {"name": "lab"})
    theirs = await directory.create(OWNER, TEAM, {"name": "lab", "organization": acme.id})
    lone = await directory.create(OWNER, TEAM, {"name": "lone"})
    for team in (ours, theirs):
        await box.key("app", team=team.id, organization=team.organization)
    assert await directory.narrowed(OWNER, {}) == {}
    assert await directory.narrowed(OWNER, {"team": "lone"}) == {"team": lone.id}
    both = {"organization": acme.id, "team": theirs.id}
    assert await directory.narrowed(OWNER, {"team": "lab", "organization": "acme"}) == both
    auditor = Principal("key_a", "a", "auditor", organization=acme.id)
    assert await directory.narrowed(auditor, {"team": "lab"}) == {"team": theirs.id}
    assert [key.team for key in await box.ring.list(auditor, only={"team": "lab"})] == [theirs.id]
    assert [key.team for key in await box.ring.list(OWNER, only=both)] == [theirs.id]
    for actor, wish, said in (
        (OWNER, {"team": "lab"}, "team: several are named 'lab'; give the id"),
        (OWNER, {"team": "a\0b"}, "team: there is no team"),
        (auditor, {"team": "lone"}, "team: there is no team 'lone'"),
        (auditor, {"team": ours.id}, "team: there is no team"),
    ):
        with pytest.raises(BadRequest, match=said) as caught:
            await directory.narrowed(actor, wish)
        assert caught.value.param == "team"
    for place in ("default", "org_default", "nowhere"):
        with pytest.raises(PermissionDenied, match="only look at your own"):
            await directory.list(auditor, TEAM, organization=place)
    assert await directory.list(auditor, TEAM, organization="acme") == [theirs]
