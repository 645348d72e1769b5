"""The operator's API for people and keys, over HTTP and a real directory."""

from __future__ import annotations

from typing import Any

from appliance.identity.permissions import Role
from tests.door.desk import ROLES, Desk
from tests.fakes.keys import is_key

KINDS = ("organizations", "teams", "users", "service-accounts")


async def test_a_thing_from_its_making_to_its_end(desk: Desk) -> None:
    for kind in KINDS:
        await from_its_making_to_its_end(desk, kind)


async def from_its_making_to_its_end(desk: Desk, kind: str) -> None:
    made = await desk.made(f"/{kind}", {"name": "Größe"})
    one = f"/{kind}/{made['id']}"
    assert await desk.ask("GET", one) == (200, {"data": made})
    assert await desk.ask("GET", f"/{kind}/Gr%C3%B6%C3%9Fe") == (200, {"data": made})
    status, found = await desk.ask("PATCH", one, {"name": "small", "disabled": True})
    assert (status, found["data"]["name"], found["data"]["disabled_at"] is None) == (200, "small", False)
    status, found = await desk.ask("PATCH", one, {})
    assert (status, "name at least one of name" in found["detail"]) == (400, True)
    assert (await desk.ask("DELETE", one, {"force": True}))[0] == 400
    assert (await desk.ask("DELETE", one))[0] == 200
    assert (await desk.ask("GET", one))[0] == 404
    assert (await desk.ask("DELETE", one))[0] == 404


async def test_lists_are_read_in_pages(desk: Desk) -> None:
    for kind in KINDS:
        await read_in_pages(desk, kind)


async def read_in_pages(desk: Desk, kind: str) -> None:
    for number in range(5):
        await desk.made(f"/{kind}", {"name": f"t{number}"})
    _, everything = await desk.ask("GET", f"/{kind}?limit=1000")
    assert everything["next"] is None
    seen: list[str] = []
    after = ""
    while after is not None:
        status, found = await desk.ask("GET", f"/{kind}?limit=2" + (f"&after={after}" if after else ""))
        assert status == 200
        seen += [thing["id"] for thing in found["data"]]
        after = found["next"]
    assert seen == [thing["id"] for thing in everything["data"]]
    assert (await desk.ask("GET", f"/{kind}?after=nobody"))[1] == {"data": [], "next": None}
    for query, param in (("limit=0", "limit"), ("limit=1001", "limit"), ("after=", "after"), ("page=2", "page")):
        status, found = await desk.ask("GET", f"/{kind}?{query}")
        assert (status, found["param"]) == (400, param)


async def test_a_question_that_no_database_can_be_asked_is_refused(desk: Desk) -> None:
    """PostgreSQL takes no NUL; that must not look like a database that is out of order."""
    for path, param in (("/users?organization=%00", "organization"), ("/keys?team=a%00b", "team")):
        status, found = await desk.ask("GET", path)
        assert (status, found["param"]) == (400, param)
    for path in ("/requests/%00", "/users/%00", "/keys/a%00b", "/teams/%00/members"):
        assert (await desk.ask("GET", path))[0] == 404, path


async def test_another_organization_is_not_there(desk: Desk) -> None:
    """An admin of one sees nothing of the others, neither in lists nor by id."""
    theirs = desk.theirs["admin"]
    for kind in KINDS[1:]:
        foreign = await desk.made(f"/{kind}", {"name": "foreign"})
        mine = await desk.made(f"/{kind}", {"name": "mine"}, key=theirs)
        assert mine["organization"] == desk.acme
        assert [t["id"] for t in (await desk.ask("GET", f"/{kind}", key=theirs))[1]["data"]] == [mine["id"]]
        for method, body in (("GET", None), ("PATCH", {"name": "x"}), ("DELETE", None)):
            for reference in (foreign["id"], "foreign"):
                assert (await desk.ask(method, f"/{kind}/{reference}", body, key=theirs))[0] == 404
        status, found = await desk.ask("GET", f"/{kind}?organization=org_default", key=theirs)
        assert (status, found["param"]) == (403, "organization")
        assert len((await desk.ask("GET", f"/{kind}?organization={desk.acme}"))[1]["data"]) == 1
    status, found = await desk.ask("GET", "/organizations", key=theirs)
    assert [place["name"] for place in found["data"]] == ["acme"]
    assert (await desk.ask("GET", "/organizations/default", key=theirs))[0] == 404
    assert (await desk.ask("POST", "/organizations", {"name": "x"}, key=theirs))[0] == 403
    _, found = await desk.ask("GET", "/keys", key=theirs)
    assert {key["name"] for key in found["data"]} == {f"acme-{role}" for role in desk.theirs}
    for method, path in (
        ("GET", "/keys/box-member"),
        ("DELETE", "/keys/box-member"),
        ("POST", "/keys/box-member/rotate"),
    ):
        assert (await desk.ask(method, path, {} if method == "POST" else None, key=theirs))[0] == 404
    assert (await desk.ask("GET", "/keys?organization=org_default", key=theirs))[0] == 403


async def test_members(desk: Desk) -> None:
    team = await desk.made("/teams", {"name": "lab"})
    users = [await desk.made("/users", {"name": name}) for name in ("Ada", "Bea")]
    for user in users:
        status, found = await desk.ask("PUT", f"/teams/lab/members/{user['id']}")
        assert (status, found["data"]) == (200, {"team": team["id"], "user": user["id"]})
    status, found = await desk.ask("GET", f"/teams/{team['id']}/members?limit=1")
    assert [user["name"] for user in found["data"]] == ["Ada"]
    status, found = await desk.ask("GET", f"/teams/{team['id']}/members?after={found['next']}")
    assert ([user["name"] for user in found["data"]], found["next"]) == (["Bea"], None)
    assert (await desk.ask("DELETE", "/teams/lab/members/Ada"))[0] == 200
    assert (await desk.ask("PUT", "/teams/lab/members/nobody"))[0] == 404
    assert (await desk.ask("PUT", "/teams/nobody/members/Ada"))[0] == 404
    assert (await desk.ask("POST", "/teams/lab/members/Ada"))[0] == 405


async def test_keys_over_http(desk: Desk) -> None:
    await desk.made("/service-accounts", {"name": "bot", "role": "operator"})
    limits = {"routes": ["chat"], "zones": ["on_box"], "priority": "batch"}
    body = {"name": "ci", "role": "operator", "service_account": "bot", "restrictions": limits, "expires_in": "1h"}
    made = await desk.made("/keys", body)
    assert is_key(made["key"])
    assert made["restrictions"] == limits
    _, me = await desk.ask("GET", "/me", key=made["key"])
    assert (me["data"]["key_id"], me["data"]["role"], me["data"]["restrictions"]) == (made["id"], "operator", limits)
    assert me["data"]["permissions"] == sorted(me["data"]["permissions"])
    assert "keys.write" not in me["data"]["permissions"]

    rotated = (await desk.ask("POST", "/keys/ci/rotate", {"overlap": "0s"}))[1]["data"]
    assert rotated["replaces"] == made["id"]
    assert (await desk.ask("GET", "/me", key=made["key"]))[0] == 401
    assert (await desk.ask("GET", "/me", key=rotated["key"]))[0] == 200
    _, shown = await desk.ask("GET", "/keys/ci")
    assert shown["data"]["last_used_at"] is not None
    assert "key" not in shown["data"]
    _, listed = await desk.ask("GET", f"/keys?service_account={made['service_account']}")
    assert [key["id"] for key in listed["data"]] == [made["id"], rotated["id"]]
    assert (await desk.ask("DELETE", "/keys/ci"))[1]["data"]["revoked_at"] is not None
    assert (await desk.ask("GET", "/me", key=rotated["key"]))[0] == 401
    for secret in (made["key"], rotated["key"]):
        assert secret not in str(await desk.ask("GET", "/keys?limit=1000"))


async def test_what_shows_a_key_is_kept_by_nobody_on_the_way(desk: Desk) -> None:
    async with desk.house.session.post(
        f"{desk.url}/admin/v1/keys", json={"name": "x"}, headers={"Authorization": f"Bearer {desk.keys['owner']}"}
    ) as response:
        assert response.status == 201
        assert response.headers["Cache-Control"] == "no-store"


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("/keys", {}, "name"),
    ("/keys", {"name": ""}, "name"),
    ("/keys", {"name": 5}, "name"),
    ("/keys", {"name": "a b"}, "name"),
    ("/keys", {"name": "box-owner"}, "name"),
    ("/keys", {"name": "x", "role": "root"}, "role"),
    ("/keys", {"name": "x", "key_id": "k"}, "key_id"),
    ("/keys", {"name": "x", "user": "nobody"}, "user"),
    ("/keys", {"name": "x", "restrictions": {"addresses": ["10.0.0.1/8"]}}, "restrictions.addresses"),
    ("/keys", {"name": "x", "restrictions": {"zones": ["moon"]}}, "restrictions.zones[0]"),
    ("/keys", {"name": "x", "expires_in": "40000d"}, "expires_in"),
    ("/keys", {"name": "x", "expires_at": 1}, "expires_at"),
    ("/keys/box-member/rotate", {"expires_in": "40000d"}, "expires_in"),
    ("/keys/box-member/rotate", {"overlap": "91d"}, "overlap"),
    ("/keys/box-member/rotate", {"overlap": "soon"}, "overlap"),
    ("/keys/box-member/rotate", {"overlap": 5}, "overlap"),
    ("/teams", {"name": "x", "organization": "nowhere"}, "organization"),
    ("/teams", {"name": " x"}, "name"),
    ("/users", {"name": "x" * 129}, "name"),
    ("/users", {"name": "x", "role": 1}, "role"),
    ("/service-accounts", {"name": "x", "team": "nobody"}, "team"),
]


async def test_wrong_bodies_are_problems_that_name_the_field(desk: Desk) -> None:
    before = await desk.box.events()
    for path, body, param in WRONG:
        status, problem = await desk.ask("POST", path, body)
        assert (status, problem["title"], problem["param"]) == (400, "Bad Request", param), (path, body)
        assert param.split(".")[0] in problem["detail"]
    assert await desk.box.events() == before


# --- one's own ---


async def own(desk: Desk, role: Any, **fields: Any) -> tuple[str, str]:
    """A user's id and a personal access token of theirs."""
    user = await desk.made("/users", {"name": f"{role} {len(fields)}", "role": role})
    return user["id"], await desk.credential(f"token-{role}", role, user=user["id"], **fields)


async def test_everybody_makes_and_ends_tokens_of_their_own(desk: Desk) -> None:
    for role in ROLES:
        await makes_and_ends_tokens(desk, role)


async def makes_and_ends_tokens(desk: Desk, role: Role) -> None:
    user, key = await own(desk, role)
    made = await desk.made("/me/keys", {"name": f"laptop-{role}"}, key=key)
    assert made["user"] == user
    assert made["role"] == ("auditor" if role == "auditor" else "member")
    _, listed = await desk.ask("GET", "/me/keys", key=made["key"])
    assert {entry["name"] for entry in listed["data"]} == {f"token-{role}", f"laptop-{role}"}
    rotated = (await desk.ask("POST", f"/me/keys/laptop-{role}/rotate", {"overlap": "0s"}, key=key))[1]["data"]
    assert rotated["user"] == user
    assert (await desk.ask("GET", f"/me/keys/laptop-{role}", key=key))[1]["data"]["id"] == rotated["id"]
    assert (await desk.ask("DELETE", f"/me/keys/laptop-{role}", key=rotated["key"]))[0] == 200
    assert (await desk.ask("GET", "/me", key=rotated["key"]))[0] == 401
    # What is somebody else's is not there, whatever one's role is.
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rotate")):
        body = {} if method == "POST" else None
        assert (await desk.ask(method, f"/me/keys/box-member{path}", body, key=key))[0] == 404


async def test_a_lesser_token_does_not_end_a_greater_one(desk: Desk) -> None:
    user, key = await own(desk, "operator")
    weak = await desk.made("/me/keys", {"name": "weak", "role": "member"}, key=key)
    for method, path, body in (
        ("DELETE", "/me/keys/token-operator", None),
        ("POST", "/me/keys/token-operator/rotate", {}),
    ):
        status, found = await desk.ask(method, path, body, key=weak["key"])
        assert (status, found["param"]) == (403, "role")
    assert (await desk.ask("GET", "/me", key=key))[1]["data"]["user"] == user
    assert (await desk.ask("DELETE", "/me/keys/weak", key=weak["key"]))[0] == 200


async def test_only_people_have_tokens(desk: Desk) -> None:
    status, found = await desk.ask("POST", "/me/keys", {"name": "x"}, key=desk.keys["member"])
    assert (status, "only people" in found["detail"]) == (400, True)
    assert (await desk.ask("GET", "/me/keys", key=desk.keys["member"]))[1]["data"] == []
    for field, value in (("user", "box"), ("service_account", "bot"), ("organization", "acme")):
        status, found = await desk.ask("POST", "/me/keys", {"name": "x", field: value}, key=desk.keys["member"])
        assert (status, found["param"]) == (400, field)


async def test_a_token_for_a_team_makes_tokens_for_that_team_only(desk: Desk) -> None:
    user = await desk.made("/users", {"name": "Ada", "role": "member"})
    teams = [await desk.made("/teams", {"name": name}) for name in ("lab", "shop", "far")]
    for team in teams[:2]:
        await desk.ask("PUT", f"/teams/{team['id']}/members/{user['id']}")
    key = await desk.credential("bound", "member", user=user["id"], team="lab")
    assert (await desk.made("/me/keys", {"name": "one"}, key=key))["team"] == teams[0]["id"]
    status, found = await desk.ask("POST", "/me/keys", {"name": "two", "team": "shop"}, key=key)
    assert (status, found["param"]) == (403, "team")
    free = await desk.credential("free", "member", user=user["id"])
    assert (await desk.made("/me/keys", {"name": "two", "team": "shop"}, key=free))["team"] == teams[1]["id"]
    status, found = await desk.ask("POST", "/me/keys", {"name": "three", "team": "far"}, key=free)
    assert (status, found["param"]) == (400, "team")


async def test_a_token_that_ends_cannot_prolong_itself(desk: Desk) -> None:
    desk.box.as_of(1000.0)
    user = await desk.made("/users", {"name": "Ada", "role": "member"})
    key = await desk.credential("brief", "member", user=user["id"], expires_at=2000.0)
    desk.box.as_of(1900.0)
    status, found = await desk.ask("POST", "/me/keys/brief/rotate", {"expires_in": "2h"}, key=key)
    assert (status, found["param"]) == (403, "expires_in")
    rotated = (await desk.ask("POST", "/me/keys/brief/rotate", {}, key=key))[1]["data"]
    assert rotated["expires_at"] == 2000.0
    desk.box.as_of(2000.0)
    status, found = await desk.ask("GET", "/me", key=rotated["key"])
    assert (status, "expired at" in found["detail"]) == (401, True)


# --- the ledger ---


async def test_changes_are_on_the_ledger_with_who_and_what(desk: Desk) -> None:
    count = len(await desk.box.events())
    _, me = await desk.ask("GET", "/me", key=desk.keys["admin"])
    actor = {"key": me["data"]["key_id"], "role": "admin", "organization": "org_default"}
    team = await desk.made("/teams", {"name": "lab"}, key=desk.keys["admin"])
    await desk.ask("PATCH", "/teams/lab", {"name": "shop"}, key=desk.keys["admin"])
    made = await desk.made("/keys", {"name": "ci", "team": "shop"}, key=desk.keys["admin"])
    await desk.ask("DELETE", "/keys/ci", key=desk.keys["admin"])
    # What is refused or read leaves nothing.
    await desk.ask("POST", "/teams", {"name": "no"}, key=desk.keys["member"])
    await desk.ask("POST", "/keys", {"name": "no", "role": "owner"}, key=desk.keys["admin"])
    await desk.ask("GET", "/teams", key=desk.keys["admin"])
    found = (await desk.box.events())[count:]
    assert [kind for kind, _ in found] == [
        "admin.team.create", "admin.team.change", "admin.key.create", "admin.key.revoke",
    ]  # fmt: skip
    assert all(body["actor"] == actor for _, body in found)
    assert [body["object"] for _, body in found] == [team["id"], team["id"], made["id"], made["id"]]
    assert (found[1][1]["before"]["name"], found[1][1]["after"]["name"]) == ("lab", "shop")
    assert "revoked_at_us" in found[3][1]["after"]
    assert made["key"] not in str(found)
    assert made["prefix"] not in str(found)
