"""The row says for whom and what for; a credential's limits hold; what callers say of themselves is not believed."""

from __future__ import annotations

import pytest

from appliance.identity.principal import Principal, Priority, Restrictions
from appliance.wishes import MAX_TAGS, PRIORITY_HEADER, parse_tags
from tests.fakes.house import USER_KEY, House


def known_as(house: House, **fields: object) -> None:
    house.keys.known[USER_KEY] = Principal("k-user", "user", "member", **fields)  # type: ignore[arg-type]


async def test_the_row_names_the_people_and_the_tags(house: House) -> None:
    known_as(house, organization="org_a", team="team_b", user="user_c")
    body = {"model": "local", "messages": [{"role": "user", "content": "Hi"}]}
    forged = {"x-team": "other", "x-outpost-team": "other", "x-organization": "other", "x-forwarded-for": "10.0.0.1"}
    response = await house.post(
        "/v1/chat/completions", body, **{"x-outpost-tags": "project:x, research,project:x", **forged}
    )
    assert response.status == 200
    row = await house.recorder.wait_for(1)
    assert (row.organization_id, row.team_id, row.user_id, row.service_account_id) == (
        "org_a",
        "team_b",
        "user_c",
        None,
    )
    assert row.tags == ["project:x", "research"]
    assert row.client == "127.0.0.1"


@pytest.mark.parametrize("bad", ["=cmd", "a b", "x" * 65, ",".join(str(n) for n in range(MAX_TAGS + 1)), "é"])
async def test_bad_tags_are_refused_by_name(house: House, bad: str) -> None:
    body = {"model": "local", "messages": [{"role": "user", "content": "Hi"}]}
    response = await house.post("/v1/chat/completions", body, **{"x-outpost-tags": bad})
    error = (await response.json())["error"]
    assert (response.status, error["param"]) == (400, "x-outpost-tags")
    assert (await house.recorder.wait_for(1)).outcome == "refused"


def test_no_tags() -> None:
    assert parse_tags(None) == parse_tags("") == parse_tags(" , ,") == []


async def test_a_key_sees_and_uses_only_its_routes(house: House) -> None:
    known_as(house, restrictions=Restrictions(routes=("remote",)))
    assert (await house.chat("remote")).status == 200
    refused = await house.chat("local")
    error = (await refused.json())["error"]
    assert (refused.status, error["code"]) == (404, "model_not_found")
    assert "There is: remote." in error["message"]
    auth = {"Authorization": f"Bearer {USER_KEY}"}
    async with house.session.get(house.url + "/v1/models", headers=auth) as response:
        assert [model["id"] for model in (await response.json())["data"]] == ["remote"]
    async with house.session.get(house.url + "/v1/models/local", headers=auth) as response:
        assert response.status == 404


async def test_what_a_key_for_batches_asks_is_one(house: House) -> None:
    body = {"model": "local", "messages": [{"role": "user", "content": "Hi"}]}
    given: list[tuple[Priority | None, Priority, Priority]] = [
        ("batch", "batch", "batch"),
        (None, "normal", "interactive"),
    ]
    for limited, default, asked in given:
        known_as(house, restrictions=Restrictions(priority=limited))
        for header, priority in (({}, default), ({PRIORITY_HEADER: "interactive"}, asked)):
            before = len(house.recorder.rows)
            assert (await house.post("/v1/chat/completions", body, **header)).status == 200
            assert (await house.recorder.wait_for(before + 1)).priority == priority


async def test_a_key_for_one_zone_reaches_no_other(house: House) -> None:
    known_as(house, restrictions=Restrictions(zones=("on_box",)))
    house.route("abroad", house.provider("ok"))
    route = house.gateway.router.find("abroad")
    assert route.targets[0].zone == "cloud"
    refused = await house.chat("abroad")
    assert (refused.status, (await refused.json())["error"]["code"]) == (403, "permission_denied")
    assert not house.upstream.seen
    assert (await house.chat("local")).status == 200
