"""The operator's listener and the control socket: who may do what, and the shapes of the answers."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from appliance.door.admin import endpoints as admin_endpoints
from appliance.door.listen import Listener, check_http_stack
from appliance.door.serve import build_operator, build_public
from appliance.door.terms import Terms
from appliance.errors import BadRequest
from appliance.identity.principal import Principal
from tests.fakes.house import ADMIN_KEY, USER_KEY, House, open_house


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        yield opened


async def ask(house: House, method: str, path: str, *, key: str | None = ADMIN_KEY, **how: Any) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with house.session.request(method, house.operator_url + path, headers=headers, **how) as response:
        return response.status, await response.json(content_type=None)


def operator_paths(house: House) -> list[tuple[str, str, str]]:
    door = build_operator(house.doors.operator, Terms())
    return [(e.method, e.path.replace("{id}", "x"), e.permission) for e in door.endpoints]


async def test_every_path_asks_for_the_admin_role(house: House) -> None:
    for method, path, permission in operator_paths(house):
        if permission == "anyone":
            assert path in ("/healthz", "/readyz")
            continue
        assert permission == "admin"
        for key, status in ((None, 401), ("op-wrong", 401), (USER_KEY, 403)):
            answer = await ask(house, method, path, key=key)
            assert answer[0] == status, (method, path)
            assert answer[1]["status"] == status


async def test_every_public_path_has_a_permission_and_none_is_the_operators(house: House) -> None:
    for endpoint in build_public(house.gateway, Terms()).endpoints:
        assert endpoint.permission in ("anyone", "key")
        assert not endpoint.path.startswith("/admin")
        assert endpoint.permission == "key" or endpoint.path in ("/healthz", "/readyz")
    assert not any(e.path.startswith("/v1") for e in admin_endpoints(house.doors.operator, Terms()))


async def test_status(house: House) -> None:
    status, body = await ask(house, "GET", "/admin/v1/status")
    assert status == 200
    data = body["data"]
    assert (data["ready"], data["running"], data["recording"], data["replicas"]) == (True, 0, True, [])
    assert data["routes"][0]["targets"] == [{"name": "local", "ready": True, "reason": ""}]


async def test_keys(house: House) -> None:
    status, body = await ask(house, "POST", "/admin/v1/keys", json={"name": "ci", "role": "member"})
    assert status == 201
    assert body["data"]["key"] == "op-fresh"
    assert (body["data"]["name"], body["data"]["role"]) == ("ci", "member")
    status, body = await ask(house, "GET", "/admin/v1/keys")
    assert [key["name"] for key in body["data"]] == ["ci"]
    assert "op-fresh" not in str(body)
    assert (await ask(house, "DELETE", "/admin/v1/keys/ci"))[1]["data"]["name"] == "ci"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": 5}, "name"),
        ({"name": "x", "role": "root"}, "role"),
        ({"name": "x", "key_id": "k"}, "key_id"),
    ],
)
async def test_wrong_keys_are_problems_that_name_the_field(house: House, body: dict[str, Any], param: str) -> None:
    url, headers = f"{house.operator_url}/admin/v1/keys", {"Authorization": f"Bearer {ADMIN_KEY}"}
    async with house.session.post(url, json=body, headers=headers) as response:
        assert response.content_type == "application/problem+json"
        problem = await response.json(content_type=None)
    assert (problem["status"], problem["title"], problem["param"]) == (400, "Bad Request", param)
    assert param in problem["detail"]
    assert house.keys.made == []


async def test_requests(house: House) -> None:
    for _ in range(3):
        await house.chat("local")
    _, body = await ask(house, "GET", "/admin/v1/requests?after_seq=1&limit=1")
    assert [row["id"] for row in body["data"]] == [house.recorder.rows[1].id]
    one = house.recorder.rows[2].id
    assert (await ask(house, "GET", f"/admin/v1/requests/{one}"))[1]["data"]["outcome"] == "completed"
    assert (await ask(house, "GET", "/admin/v1/requests/nope"))[0] == 404
    for query in ("after_seq=x", "limit=0", "limit=1001", "after_seq=-1", "limit=١"):
        status, problem = await ask(house, "GET", f"/admin/v1/requests?{query}")
        assert (status, problem["param"]) == (400, query.split("=")[0])


async def test_reload(house: House) -> None:
    house.reloads += [BadRequest("outpost.yaml:3: routes: unknown"), {"changed": ["routes"]}]
    status, body = await ask(house, "POST", "/admin/v1/reload")
    assert (status, body["detail"]) == (400, "outpost.yaml:3: routes: unknown")
    assert await ask(house, "POST", "/admin/v1/reload") == (200, {"data": {"changed": ["routes"]}})


async def test_the_control_socket_needs_no_key_and_is_private(house: House) -> None:
    assert stat.S_IMODE(house.control.stat().st_mode) == 0o600
    connector = aiohttp.UnixConnector(path=str(house.control))
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.get("http://control/admin/v1/status") as response:
            assert response.status == 200
        async with session.get("http://control/v1/models") as response:
            assert response.status == 404


def listener(house: House) -> Listener:
    nobody = Principal(key_id="x", key_name="x", role="admin")
    return Listener(build_operator(house.doors.operator, Terms(), trusted=nobody), Terms())


async def test_a_socket_that_is_in_use_is_not_taken(house: House) -> None:
    with pytest.raises(OSError, match="already running"):
        await listener(house).unix(house.control)
    connector = aiohttp.UnixConnector(path=str(house.control))
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://c/healthz") as response:
        assert response.status == 200


async def test_a_socket_file_left_behind_is_replaced_even_deep_down(house: House, tmp_path: Path) -> None:
    path = tmp_path / ("d" * 120) / "control.sock"
    for _ in range(2):
        left = listener(house)
        await left.unix(path)
        # As after a crash: the socket is closed, the file stays.
        for server in left.servers:
            server.close()
    assert path.is_socket()


def test_the_http_stack_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    check_http_stack()
    monkeypatch.setattr(aiohttp, "__version__", "3.14.3")
    with pytest.raises(RuntimeError, match=r"3\.14\.4 or newer"):
        check_http_stack()
