"""Every route of both listeners, as the running appliance has them, × every role × every writable field."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.door.endpoint import Endpoint
from appliance.identity.permissions import BOX_WIDE, PERMISSIONS
from appliance.identity.permissions import ROLES as RIGHTS
from tests.door.desk import ROLES
from tests.door.test_openapi import judge
from tests.door.whole_desk import Text, Whole, open_whole

PARTS = (
    "organizations", "teams", "users", "service-accounts", "keys", "me", "limits", "ledger", "usage", "requests",
    "routes", "erase", "export", "session", "status", "reload", "openapi.json",
)  # fmt: skip
PROBES = {("GET", "/healthz"), ("GET", "/readyz")}
PAGES = {("GET", "/login"), ("GET", "/login/callback")}
ANYONE = PROBES | PAGES
"""What asks for nothing at all, and gives nothing away."""
SESSION = {("POST", "/logout"), ("GET", "/admin/v1/session")}
"""What only a browser's session opens, whatever key comes along."""
PUBLIC = {
    ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/v1/embeddings"),
    ("GET", "/v1/models"), ("GET", "/v1/models/{id}"),
    ("POST", "/v1/messages"), ("POST", "/v1/messages/count_tokens"),
    ("POST", "/v1/responses"), ("POST", "/v1/responses/compact"), ("POST", "/v1/responses/{id}/cancel"),
    ("POST", "/v1/responses/{id}"),
    ("GET", "/v1/responses/{id}"), ("GET", "/v1/responses/{id}/input_items"), ("DELETE", "/v1/responses/{id}"),
}  # fmt: skip
ANSWERED = {200, 201, 400, 404}
"""What somebody gets who may ask: things with the id `x` are not there, and empty bodies lack fields."""
NOT_LISTED = ("id", "created_at", "digest", "secret_id", "organization_id", "created_by", "permissions", "is_admin")
FREE = {
    "name", "disabled", "overlap", "scope", "match", "requests", "input_tokens", "output_tokens", "tokens", "usd",
    "window", "timezone", "in_flight", "message", "request", "dialect", "tags", "session",
}  # fmt: skip
"""Fields whose value gives nobody more than they have; a limit only takes, and only from its own organisation, and a
plan changes nothing."""
PROBED = {
    "role", "organization", "team", "user", "service_account", "restrictions", "expires_at", "expires_in", "subject",
    "key",
}  # fmt: skip
"""Fields whose value would: tests in test_permissions.py, test_admin_routes.py, and below."""


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[Whole]:
    async with open_whole(tmp_path) as opened:
        yield opened


def id_of(endpoint: Endpoint) -> tuple[str, str]:
    return endpoint.method, endpoint.path


def guarded(whole: Whole) -> list[Endpoint]:
    return [each for each in whole.operators if id_of(each) not in ANYONE | SESSION]


def path_of(endpoint: Endpoint) -> str:
    return re.sub(r"{\w+}", "x", endpoint.path)


async def test_the_table_is_whole_and_says_everything(whole: Whole) -> None:
    table = whole.operators
    for endpoint in guarded(whole):
        assert endpoint.permission in PERMISSIONS, endpoint.path
        assert not endpoint.identifies, endpoint.path
        assert endpoint.path.startswith("/admin/v1/") or endpoint.path == "/metrics"
    for endpoint in table:
        assert endpoint.summary or id_of(endpoint) in ANYONE, endpoint.path
    assert len({id_of(each) for each in table}) == len(table)
    paths = {each.path.removeprefix("/admin/v1/").partition("/")[0] for each in table}
    assert set(PARTS) <= paths
    assert ("GET", "/metrics") in {id_of(each) for each in table}
    assert {id_of(each) for each in table if each.permission == "anyone"} == ANYONE | SESSION
    bodiless = {
        id_of(each)
        for each in table
        if each.takes is None and each.method in ("POST", "PATCH") and id_of(each) not in SESSION
    }
    assert bodiless == {("POST", "/admin/v1/reload")}


async def test_every_route_with_every_role(whole: Whole) -> None:
    for endpoint in guarded(whole):
        body: Any = {} if endpoint.takes is not None else None
        permission: Any = endpoint.permission
        for keys, overseer in ((whole.keys, True), (whole.theirs, False)):
            for role in ROLES:
                status, found = await whole.ask(endpoint.method, path_of(endpoint), body, key=keys[role])
                what = (endpoint.method, endpoint.path, role, overseer, found)
                if permission in RIGHTS[role] and (overseer or permission not in BOX_WIDE):
                    assert status in ANSWERED, what
                else:
                    assert (status, found["code"]) == (403, "permission_denied"), what
        for key in ("", "op-wrong", whole.keys["owner"] + "x", whole.keys["owner"][:-1]):
            assert (await whole.ask(endpoint.method, path_of(endpoint), body, key=key))[0] == 401, endpoint.path


async def test_a_parameter_that_a_route_does_not_know_is_refused(whole: Whole) -> None:
    """A mistyped one must not be taken for none: a report over everything is not what was asked for."""
    key = whole.keys["owner"]
    asked = [each for each in guarded(whole) if each.method == "GET" and each.path.startswith("/admin/")]
    for endpoint in asked:
        path = path_of(endpoint)
        status, found = await whole.ask("GET", f"{path}?nonsense=1", key=key)
        assert (status, found["param"]) == (400, "nonsense"), path
        for query in endpoint.query:
            status, found = await whole.ask("GET", f"{path}?{query.name}=1&{query.name}=2", key=key)
            assert (status, found["param"]) == (400, query.name), path
            assert "twice" in found["detail"]
            assert query.name in (await whole.ask("GET", f"{path}?nonsense=1", key=key))[1]["detail"]
    assert (await whole.ask("GET", "/metrics?nonsense=1", key=key))[0] == 200
    assert (await whole.ask("POST", "/admin/v1/reload?nonsense=1", key=key))[0] == 400


async def test_what_asks_for_no_permission_gives_nothing_away(whole: Whole) -> None:
    for method, path in SESSION:
        for key in ("", whole.keys["owner"], whole.theirs["member"]):
            assert (await whole.ask(method, path, key=key))[0] in (401, 404), path
    for method, path in PAGES:
        assert (await whole.ask(method, path, key=""))[0] == 404
    for method, path in PROBES:
        assert (await whole.ask(method, path, key=""))[0] == 200


async def test_the_public_door_with_every_role(whole: Whole) -> None:
    found = {id_of(each): each.permission for each in whole.public}
    assert {id_ for id_, permission in found.items() if permission == "anyone"} == {
        ("GET", "/healthz"),
        ("GET", "/readyz"),
    }
    assert {id_ for id_, permission in found.items() if permission == "models.use"} == PUBLIC
    assert len(found) == len(PUBLIC) + 2
    for method, path in PUBLIC:
        body: Any = {} if method == "POST" else None
        for keys in (whole.keys, whole.theirs):
            for role in ROLES:
                status, said = await whole.ask(method, path_of_text(path), body, key=keys[role], public=True)
                if "models.use" in RIGHTS[role]:
                    assert status in ANSWERED, (path, role, said)
                else:
                    # Anthropic's errors have no code.
                    error = said["error"].get("code", said["error"]["type"])
                    wanted = "permission_error" if path.startswith("/v1/messages") else "permission_denied"
                    assert (status, error) == (403, wanted), (path, role)
        for key in ("", "op-wrong", whole.keys["owner"] + "x"):
            assert (await whole.ask(method, path_of_text(path), body, key=key, public=True))[0] == 401
    assert (await whole.ask("GET", "/admin/v1/status", public=True))[0] == 404


def path_of_text(path: str) -> str:
    return re.sub(r"{\w+}", "x", path)


# --- bodies ---


async def test_every_writable_field_is_free_or_probed(whole: Whole) -> None:
    """A new field without a test of what it may be set to fails here."""
    for endpoint in whole.operators:
        if endpoint.takes is not None:
            assert set(endpoint.takes.__struct_fields__) <= FREE | PROBED, endpoint.path
            assert endpoint.takes.__struct_config__.forbid_unknown_fields, endpoint.path


async def test_no_body_takes_a_field_that_is_not_listed(whole: Whole) -> None:
    for endpoint in whole.operators:
        if endpoint.takes is None:
            continue
        for name in NOT_LISTED:
            if name not in endpoint.takes.__struct_fields__:
                body = {**least(endpoint), name: "x"}
                status, found = await whole.ask(endpoint.method, path_of(endpoint), body)
                assert (status, found["param"]) == (400, name), (endpoint.path, name)


def least(endpoint: Endpoint) -> dict[str, Any]:
    """A body that lacks nothing."""
    assert endpoint.takes is not None
    return {
        field.name: "key" if field.name == "scope" else "x"
        for field in msgspec.structs.fields(endpoint.takes)
        if field.required
    }


async def test_the_field_organization_of_every_route(whole: Whole) -> None:
    """An admin of one organisation writes nothing into another, by id, by name, or to one that is not there."""
    other = (await whole.made("/organizations", {"name": "other"}))["id"]
    count = 0
    for endpoint in whole.operators:
        if endpoint.takes is None or "organization" not in endpoint.takes.__struct_fields__:
            continue
        assert endpoint.method == "POST", endpoint.path
        extra = {"requests": "5/minute"} if "scope" in endpoint.takes.__struct_fields__ else {}
        for place in ("other", other, "default", "org_default", "nowhere", "' OR 1=1 --"):
            body = {**least(endpoint), **extra, "organization": place}
            status, found = await whole.ask("POST", path_of(endpoint), body, key=whole.theirs["admin"])
            assert (status, found["param"]) == (403, "organization"), (endpoint.path, place, found)
        for place in ("acme", whole.acme):
            count += 1
            body = {**least(endpoint), **extra, "name": f"n{count}", "organization": place}
            status, found = await whole.ask("POST", path_of(endpoint), body, key=whole.theirs["admin"])
            assert (status, found["data"]["organization"]) == (201, whole.acme), (endpoint.path, found)
    assert count >= 10


async def test_the_field_subject(whole: Whole) -> None:
    """Nobody erases somebody of another organisation, or learns whether there is such a person."""
    ours = await whole.made("/users", {"name": "Ada"})
    theirs = await whole.made("/users", {"name": "Bob", "organization": "acme"})
    admin = whole.theirs["admin"]
    refused = []
    for subject in (ours["id"], "user_" + "a" * 16, "' OR 1=1", "x" * 256):
        status, found = await whole.ask("POST", "/admin/v1/erase", {"subject": subject}, key=admin)
        assert status == 404, found
        refused.append(found["detail"])
    assert refused[0].replace(ours["id"], "") == refused[1].replace("user_" + "a" * 16, "")
    assert (await whole.ask("POST", "/admin/v1/erase", {"subject": theirs["id"]}, key=admin))[0] == 200
    assert (await whole.ask("GET", f"/admin/v1/users/{ours['id']}"))[1]["data"]["name"] == "Ada"
    for bad in ({}, {"subject": ""}, {"subject": 5}, {"subject": "x" * 257}):
        status, found = await whole.ask("POST", "/admin/v1/erase", bad)
        assert (status, found["param"]) == (400, "subject")


async def test_limits_of_another_organization_are_not_there(whole: Whole) -> None:
    ours = await whole.made("/limits", {"scope": "organization", "name": "ours", "requests": "9/minute"})
    admin, found = whole.theirs["admin"], None
    for reference in (ours["id"], "ours"):
        for method, body in (("GET", None), ("PATCH", {"requests": "1/minute"}), ("DELETE", None)):
            status, found = await whole.ask(method, f"/admin/v1/limits/{reference}", body, key=admin)
            assert status == 404, found
    assert (await whole.ask("GET", "/admin/v1/limits", key=admin))[1]["data"] == []
    assert (await whole.ask("GET", "/admin/v1/limits/usage?limit=ours", key=admin))[0] == 404
    assert (await whole.ask("GET", "/admin/v1/limits/ours"))[1]["data"] == ours


async def test_who_reloads_the_settings_is_on_the_ledger(whole: Whole) -> None:
    status, found = await whole.ask("POST", "/admin/v1/reload", key=whole.keys["operator"])
    assert status == 200, found
    await whole.app.reload()
    _, found = await whole.ask("GET", "/admin/v1/ledger?kind=admin.settings.reload")
    actors = [record["body"]["actor"] for record in found["data"]]
    assert [actor["role"] for actor in actors] == ["operator", "owner"]
    assert actors[0]["key"].startswith("key_")
    assert actors[1]["key"] == "signal"


# --- the document ---


async def test_the_document_tells_of_every_route_and_its_answers_fit(whole: Whole) -> None:
    chat = {"model": "far", "messages": [{"role": "user", "content": "Hi"}]}
    for keys in (whole.keys, whole.theirs):
        assert (await whole.ask("POST", "/v1/chat/completions", chat, key=keys["member"], public=True))[0] == 502
    for scope in ("organization", "key"):
        await whole.made("/limits", {"scope": scope, "name": f"by-{scope}", "requests": "9/minute", "in_flight": 5})
    _, told = await whole.ask("GET", "/admin/v1/openapi.json")
    listed = {(method.upper(), path) for path, item in told["paths"].items() for method in item}
    assert listed == {id_of(each) for each in whole.operators} - PROBES
    for endpoint in whole.operators:
        if id_of(endpoint) in PROBES | PAGES:
            continue
        body: Any = {} if endpoint.takes is not None else None
        operation = told["paths"][endpoint.path][endpoint.method.lower()]
        assert ("requestBody" in operation) == (endpoint.takes is not None), endpoint.path
        for key in (whole.keys["owner"], whole.theirs["member"], "op-wrong"):
            status, found = await whole.ask(endpoint.method, path_of(endpoint), body, key=key)
            if isinstance(found, Text):
                assert found.media in operation["responses"][str(status)]["content"], (endpoint.path, status)
            else:
                judge(told, endpoint.path, endpoint.method.lower(), status, found)
    for query in ("usage?format=csv", "usage?format=jsonl", "export?format=csv", "export?format=cef"):
        status, found = await whole.ask("GET", f"/admin/v1/{query}")
        content = told["paths"]["/admin/v1/" + query.partition("?")[0]]["get"]["responses"]["200"]["content"]
        assert (status, found.media in content) == (200, True), query
    for path in ("usage", "requests", "limits", "limits/usage", "ledger", "keys"):
        for key in (whole.keys["admin"], whole.theirs["admin"]):
            status, found = await whole.ask("GET", f"/admin/v1/{path}", key=key)
            judge(told, f"/admin/v1/{path}", "get", status, found)
