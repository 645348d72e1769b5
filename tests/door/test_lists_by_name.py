"""What a list is narrowed to is named by id or name; what nobody has, or several have, is an error and not no rows."""

from __future__ import annotations

from typing import Any

from tests.door.desk import Desk

FIELDS = ("organization", "team", "user", "service_account")


async def things(desk: Desk, organization: str, mark: str) -> dict[str, Any]:
    """A team, a user and a service account with the same names in each organisation, and a key of each."""
    place = {"organization": organization}
    made = {
        "team": await desk.made("/teams", {"name": "lab", **place}),
        "user": await desk.made("/users", {"name": "Ann", **place}),
        "service_account": await desk.made("/service-accounts", {"name": "bot", **place}),
    }
    for field, thing in made.items():
        await desk.made("/keys", {"name": f"{mark}-{field}", field: thing["id"]})
    return made


async def names(desk: Desk, query: str, key: str | None = None) -> list[str]:
    status, found = await desk.ask("GET", f"/keys?{query}", key=key)
    assert status == 200, found
    return [each["name"] for each in found["data"]]


async def test_a_name_does_as_well_as_an_id(desk: Desk) -> None:
    theirs = await things(desk, "acme", "acme")
    for field in FIELDS[1:]:
        by_id = await names(desk, f"{field}={theirs[field]['id']}")
        assert by_id == [f"acme-{field}"]
        assert await names(desk, f"{field}={theirs[field]['name']}") == by_id
    assert await names(desk, "organization=acme") == await names(desk, f"organization={desk.acme}") != []
    for kind in ("teams", "users", "service-accounts"):
        (found,) = (await desk.ask("GET", f"/{kind}?organization=acme"))[1]["data"]
        assert found["organization"] == desk.acme
        assert (await desk.ask("GET", f"/{kind}?organization=default"))[1]["data"] == []
    assert len((await desk.ask("GET", "/keys?organization=acme&limit=2"))[1]["data"]) == 2


async def test_what_nobody_has_or_several_have_is_an_error_that_names_the_parameter(desk: Desk) -> None:
    await things(desk, "acme", "acme")
    ours = await things(desk, "default", "ours")
    for field in FIELDS:
        for wrong in ("nobody", "", "team_aaaaaaaaaaaaaaaa"):
            status, found = await desk.ask("GET", f"/keys?{field}={wrong}")
            assert (status, found["param"]) == (400, field)
            assert f"{field}: there is no " in found["detail"]
    status, found = await desk.ask("GET", "/users?organization=nobody")
    assert (status, found["param"]) == (400, "organization")
    for field in FIELDS[1:]:
        status, found = await desk.ask("GET", f"/keys?{field}={ours[field]['name']}")
        assert (status, found["param"]) == (400, field)
        assert "several are named" in found["detail"]
        assert "give the id" in found["detail"]
        assert await names(desk, f"{field}={ours[field]['name']}&organization=acme") == [f"acme-{field}"]
        status, found = await desk.ask("GET", f"/keys?{field}={ours[field]['id']}&organization=acme")
        assert (status, found["param"]) == (400, field)


async def test_one_organization_learns_nothing_of_the_others(desk: Desk) -> None:
    """Names and ids of others are answered like those that nobody has, and a name that others have too is one's own."""
    ours = await things(desk, "default", "ours")
    auditor = desk.theirs["auditor"]
    hidden = {"organization": ["default", "org_default", "nobody"]}
    hidden |= {field: [ours[field]["id"], ours[field]["name"], "nobody"] for field in ours}
    for field, asked in hidden.items():
        answers = []
        for wrong in asked:
            status, found = await desk.ask("GET", f"/keys?{field}={wrong}", key=auditor)
            answers.append((status, found["param"], found["detail"].replace(wrong, "")))
        assert len(set(answers)) == 1, answers
        assert answers[0][0] == (403 if field == "organization" else 400)
    theirs = await things(desk, "acme", "acme")
    for field in FIELDS[1:]:
        assert await names(desk, f"{field}={theirs[field]['name']}", auditor) == [f"acme-{field}"]
    for place in ("acme", desk.acme):
        everything = await names(desk, "", auditor)
        assert await names(desk, f"organization={place}", auditor) == everything
        assert not any(name.startswith(("ours", "box")) for name in everything)
