"""Every writable field of people and keys × every role, made from the tables that answer the requests.

Routes × roles, and the fields of other parts: test_every_route.py.
"""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from appliance.door import admin_keys, admin_people
from appliance.door.operation import Operation
from appliance.identity.permissions import ROLES as RIGHTS
from appliance.identity.permissions import may_grant
from appliance.identity.principal import Restrictions
from appliance.records.rows import ExchangeRow
from tests.door.desk import ROLES, Desk
from tests.door.test_every_route import path_of
from tests.identity.test_key_ring import dump, payloads

# --- fields ---


def operations(desk: Desk) -> tuple[Operation, ...]:
    return (*admin_people.operations(desk.box.directory), *admin_keys.operations(desk.ring))


def writers(desk: Desk, field: str, method: str | None = None) -> list[Operation]:
    return [
        each
        for each in operations(desk)
        if each.takes is not None and field in each.takes.__struct_fields__ and method in (None, each.method)
    ]


def nice(index: int) -> str:
    return f"n{index}"


async def test_the_field_role(desk: Desk) -> None:
    """Whoever may write somewhere gives a role exactly when they have all of it."""
    count = 0
    for operation in writers(desk, "role", "POST"):
        own = "/me/" in operation.path
        path = operation.path.removeprefix("/admin/v1")
        for grantor in ROLES:
            if operation.permission not in RIGHTS[grantor]:
                continue
            key = desk.keys[grantor]
            if own:
                user = await desk.made("/users", {"name": f"of {grantor}", "role": grantor})
                key = await desk.credential(f"own-{grantor}", grantor, user=user["id"])
            for role in ROLES:
                count += 1
                status, found = await desk.ask("POST", path, {"name": nice(count), "role": role}, key=key)
                what = (operation.path, grantor, role, found)
                if may_grant(grantor, role):
                    assert status == 201, what
                    assert found["data"]["role"] == role
                else:
                    assert (status, found["param"]) in ((403, "role"), (400, "role")), what
    assert count > 50


async def test_the_field_role_of_what_is_there(desk: Desk) -> None:
    for operation in writers(desk, "role", "PATCH"):
        many = operation.path.removeprefix("/admin/v1").removesuffix("/{id}")
        for grantor in ROLES:
            if operation.permission not in RIGHTS[grantor]:
                continue
            for number, role in enumerate(ROLES):
                made = await desk.made(many, {"name": f"{grantor}{number}", "role": "member"})
                status, found = await desk.ask("PATCH", f"{many}/{made['id']}", {"role": role}, key=desk.keys[grantor])
                if may_grant(grantor, role):
                    assert (status, found["data"]["role"]) == (200, role)
                else:
                    assert (status, found["param"]) == (403, "role")


async def test_the_field_organization(desk: Desk) -> None:
    other = (await desk.made("/organizations", {"name": "other"}))["id"]
    for number, operation in enumerate(writers(desk, "organization")):
        path = operation.path.removeprefix("/admin/v1")
        for place in ("other", other, "default", "org_default", "nowhere"):
            body = {"name": nice(number), "organization": place}
            status, found = await desk.ask("POST", path, body, key=desk.theirs["admin"])
            assert (status, found["param"]) == (403, "organization"), (operation.path, place)
        body = {"name": nice(number), "organization": "acme"}
        assert (await desk.ask("POST", path, body, key=desk.theirs["admin"]))[0] == 201


@pytest.mark.parametrize("field", ["team", "user", "service_account"])
async def test_fields_that_refer_to_others(desk: Desk, field: str) -> None:
    """What belongs to another organisation is not there, by id or by name."""
    many = "/" + field.replace("_", "-") + "s"
    foreign = await desk.made(many, {"name": "foreign"})
    found_any = False
    for number, operation in enumerate(writers(desk, field)):
        found_any = True
        path, body = operation.path.removeprefix("/admin/v1"), {"name": nice(number)}
        key = desk.theirs["admin"]
        if "/me/" in path:
            user = await desk.made("/users", {"name": "own", "role": "member", "organization": "acme"})
            key = await desk.credential("own", "member", user=user["id"])
        if "{id}" in path:
            made = await desk.made(path.removesuffix("/{id}"), {"name": "mine", "organization": "acme"})
            path, body = path.replace("{id}", made["id"]), {}
        for reference in (foreign["id"], "foreign", "nobody", "' OR 1=1"):
            status, found = await desk.ask(operation.method, path, {**body, field: reference}, key=key)
            assert (status, found["param"]) == (400, field), (operation.path, reference, found)
            assert "there is no" in found["detail"]
    assert found_any


async def test_the_field_restrictions(desk: Desk) -> None:
    wide, narrow = {"routes": ["a", "b"]}, {"routes": ["a"]}
    own = Restrictions(routes=("a", "c"), addresses=("127.0.0.0/8",), priority="normal")
    user = await desk.made("/users", {"name": "Ada", "role": "admin"})
    key = await desk.credential("limited", "admin", user=user["id"], restrictions=own)
    for number, operation in enumerate(writers(desk, "restrictions")):
        path = operation.path.removeprefix("/admin/v1")
        for restrictions, param in (
            (wide, "restrictions.routes"),
            ({**narrow, "addresses": ["127.0.0.1", "10.0.0.1"]}, "restrictions.addresses"),
            ({**narrow, "addresses": ["0.0.0.0/0"]}, "restrictions.addresses"),
            ({**narrow, "priority": "interactive"}, "restrictions.priority"),
        ):
            body = {"name": nice(number), "restrictions": restrictions}
            status, found = await desk.ask("POST", path, body, key=key)
            assert (status, found["param"]) == (403, param), (operation.path, restrictions)
        status, found = await desk.ask("POST", path, {"name": nice(number), "restrictions": narrow}, key=key)
        assert status == 201
        assert found["data"]["restrictions"] == {
            "routes": ["a"],
            "addresses": ["127.0.0.0/8"],
            "priority": "normal",
        }
        for nested in ({"oversees": True}, {"zones": ["moon"]}, {"routes": "a"}):
            body = {"name": "more", "restrictions": nested}
            status, found = await desk.ask("POST", path, body, key=key)
            assert status == 400
            assert found["param"].startswith("restrictions.")


async def test_the_fields_of_expiry(desk: Desk) -> None:
    now = 1_000_000_000.0
    desk.box.as_of(now)
    user = await desk.made("/users", {"name": "Ada", "role": "admin"})
    key = await desk.credential("brief", "admin", user=user["id"], expires_at=now + 3600)
    for field in ("expires_at", "expires_in"):
        late, soon = (now + 3601, now + 3599) if field == "expires_at" else ("61m", "59m")
        for number, operation in enumerate(writers(desk, field)):
            path, body = operation.path.removeprefix("/admin/v1"), {"name": f"{field}{number}"}
            if "{id}" in path:
                made = await desk.credential(f"old-{field}-{number}", "member", user=user["id"])
                path, body = path.replace("{id}", f"old-{field}-{number}"), {}
                assert made
            status, found = await desk.ask("POST", path, {**body, field: late}, key=key)
            assert (status, found["param"]) == (403, field), (operation.path, found)
            assert found["detail"].startswith(f"{field}: ")
            status, found = await desk.ask("POST", path, {**body, field: soon}, key=key)
            assert status == 201, found
            assert found["data"]["expires_at"] == pytest.approx(now + 3600, abs=61)
            # Who names no end gets that of the grantor.
            if "{id}" not in operation.path:
                status, found = await desk.ask("POST", path, {"name": f"same-{field}{number}"}, key=key)
                assert found["data"]["expires_at"] == now + 3600
    for bad, param in (
        ({"expires_at": now - 1}, "expires_at"),
        ({"expires_in": "0s"}, "expires_in"),
        ({"expires_in": "soon"}, "expires_in"),
        ({"expires_in": "5m", "expires_at": now + 5}, "expires_in"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": 1e12}, "expires_at"),
        ({"expires_in": "99999999d"}, "expires_in"),
    ):
        status, found = await desk.ask("POST", "/keys", {"name": "bad", **bad})
        assert (status, found["param"]) == (400, param), bad


# --- who is asking ---


async def test_who_asks_is_told_by_the_credential_alone(desk: Desk) -> None:
    """Headers that name an organisation, a user or a role are nobody's word."""
    forged = {
        "x-outpost-organization": "org_default",
        "x-organization-id": "org_default",
        "x-outpost-user": "user_root",
        "x-outpost-role": "owner",
        "x-forwarded-user": "root",
        "x-forwarded-for": "127.0.0.1",
        "x-real-ip": "127.0.0.1",
    }
    plain = await desk.ask("GET", "/me", key=desk.theirs["admin"])
    assert await desk.ask("GET", "/me", key=desk.theirs["admin"], **forged) == plain
    assert plain[1]["data"]["organization"] == desk.acme
    status, found = await desk.ask("GET", "/me?organization=org_default", key=desk.theirs["admin"])
    assert (status, found["param"]) == (400, "organization")
    far = await desk.credential("far", "member", restrictions=Restrictions(addresses=("192.0.2.0/24",)))
    assert (await desk.ask("GET", "/me", key=far, **{"x-forwarded-for": "192.0.2.1"}))[0] == 403
    near = await desk.credential("near", "member", restrictions=Restrictions(addresses=("127.0.0.1",)))
    assert (await desk.ask("GET", "/me", key=near))[0] == 200


async def test_a_thousand_injections_as_credential(desk: Desk) -> None:
    before = dump(desk.box.database.path)
    dice = random.Random(2)
    sent = 0
    for payload in payloads(1000):
        # What no header can hold is turned into something that one can; http refuses the rest before anybody looks.
        text = "".join(c if c.isprintable() and c != "\ufffd" else "%00" for c in payload).strip()
        text = text.encode("utf-8", "replace").decode()
        if not text:
            continue
        sent += 1
        key = text if dice.random() < 0.5 else desk.keys["owner"] + text
        async with desk.house.session.get(
            f"{desk.url}/admin/v1/keys", headers={"Authorization": f"Bearer {key}"}
        ) as response:
            assert response.status == 401, payload
            body = await response.text()
        assert desk.keys["owner"] not in body
        assert len(key) < 8 or key not in body
    assert sent > 950
    assert dump(desk.box.database.path) == before
    assert (await desk.ask("GET", "/keys"))[0] == 200


async def test_no_error_shows_a_credential(desk: Desk, tmp_path: Path) -> None:
    canary = "op-canary-" + "c" * 40
    for endpoint in desk.door.endpoints:
        for method, path, body in (
            (endpoint.method, path_of(endpoint), None),
            (endpoint.method, path_of(endpoint), {"key": "x"}),
            ("POST", path_of(endpoint) + "/nowhere", None),
        ):
            _, found = await desk.ask(method, path, body, key=canary)
            assert canary not in str(found)
    await desk.box.recorder.submit(ExchangeRow(id="last", kind="x", started_at=0.0))
    assert not any(canary.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    connection = sqlite3.connect(desk.box.database.path)
    assert not any(canary in line for line in connection.iterdump())
    connection.close()
