"""The operator's listener and the control socket: who may do what, and the shapes of the answers."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from appliance.door.admin import endpoints as admin_endpoints
from appliance.door.door import Door
from appliance.door.endpoint import Endpoint, Visit
from appliance.door.listen import Listener, check_http_stack
from appliance.door.render import problem, respond
from appliance.door.serve import build_operator, build_public
from appliance.door.terms import Terms
from appliance.errors import BadRequest
from appliance.identity.principal import Principal
from tests.fakes.house import ADMIN_KEY, USER_KEY, Clock, House, open_house


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        yield opened


async def ask(house: House, method: str, path: str, *, key: str | None = ADMIN_KEY, **how: Any) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with house.session.request(method, house.operator_url + path, headers=headers, **how) as response:
        return response.status, await response.json(content_type=None)


async def test_every_public_path_has_a_permission_and_none_is_the_operators(house: House) -> None:
    for endpoint in build_public(house.gateway, Terms()).endpoints:
        assert endpoint.permission == ("anyone" if endpoint.path in ("/healthz", "/readyz") else "models.use")
        assert not endpoint.path.startswith("/admin")
    assert not any(e.path.startswith("/v1") for e in admin_endpoints(house.doors.operator, Terms()))


async def test_status(house: House) -> None:
    status, body = await ask(house, "GET", "/admin/v1/status")
    assert status == 200
    data = body["data"]
    assert (data["ready"], data["running"], data["recording"], data["replicas"]) == (True, 0, True, [])
    assert data["routes"][0]["targets"] == [{"name": "local", "ready": True, "reason": ""}]


async def test_whoever_is_refused_is_told_of_by_code_address_and_path(house: House) -> None:
    told: list[tuple[str, str, str]] = []
    door = build_operator(house.doors.operator, Terms(), refused=lambda *refusal: told.append(refusal))
    listening = Listener(door, Terms())
    port = await listening.tcp("127.0.0.1", 0)
    for key, status in ((USER_KEY, 403), ("op-nobody", 401), (ADMIN_KEY, 200)):
        headers = {"Authorization": f"Bearer {key}"}
        for path in ("status", "requests/x"):
            async with house.session.get(f"http://127.0.0.1:{port}/admin/v1/{path}", headers=headers) as response:
                assert response.status == (404 if status == 200 and path != "status" else status)
    await listening.close(0.2)
    assert told == [
        (code, "127.0.0.1", f"/admin/v1/{path}")
        for code in ("permission_denied", "invalid_api_key")
        for path in ("status", "requests/{id}")
    ]


async def test_paths_with_parameters(house: House) -> None:
    """What says more of a path goes first; the rest of a path is for whoever ends in a parameter."""
    seen: list[tuple[str, dict[str, str]]] = []

    def endpoint(method: Any, path: str) -> Endpoint:
        async def handler(visit: Visit) -> web.StreamResponse:
            seen.append((f"{method} {path}", dict(visit.parameters)))
            return respond(b"{}", visit.id)

        return Endpoint(method, path, "anyone", handler)

    table = [
        endpoint("GET", "/t/{id}"),
        endpoint("DELETE", "/t/{id}"),
        endpoint("GET", "/t/{id}/members"),
        endpoint("PUT", "/t/{id}/members/{user}"),
        endpoint("GET", "/t/fixed"),
    ]
    door = Door(
        table,
        authenticator=house.gateway.authenticator,
        render=problem,
        clock=Clock(),
        new_id=lambda: "x",
        terms=Terms(),
    )
    listening = Listener(door, Terms())
    port = await listening.tcp("127.0.0.1", 0)
    cases: list[tuple[str, str, Any]] = [
        ("GET", "/t/a", ("GET /t/{id}", {"id": "a"})),
        ("HEAD", "/t/a", ("GET /t/{id}", {"id": "a"})),
        ("GET", "/t/a/b/c", ("GET /t/{id}", {"id": "a/b/c"})),
        ("GET", "/t/a/members", ("GET /t/{id}/members", {"id": "a"})),
        ("GET", "/t/a%2Fb%20c/members", ("GET /t/{id}/members", {"id": "a/b c"})),
        ("PUT", "/t/a/members/%C3%A9?x=1", ("PUT /t/{id}/members/{user}", {"id": "a", "user": "é"})),
        ("GET", "/t/fixed", ("GET /t/fixed", {})),
        ("DELETE", "/t/fixed", {"GET"}),
        ("DELETE", "/t/a/members", {"GET"}),
        ("POST", "/t/a", {"GET", "DELETE"}),
        ("GET", "/t/", None),
        ("GET", "/u/a", None),
    ]
    for method, path, wanted in cases:
        seen.clear()
        url = URL(f"http://127.0.0.1:{port}{path}", encoded=True)
        async with house.session.request(method, url) as response:
            if isinstance(wanted, tuple):
                assert seen == [wanted]
            elif wanted is None:
                assert response.status == 404
            else:
                assert response.status == 405
                assert set(response.headers["Allow"].split(", ")) == wanted
    await listening.close(0.2)


async def test_requests_of_another_organization_are_not_there(house: House) -> None:
    for _ in range(2):
        await house.chat("local")
    house.recorder.rows[1].organization_id = "org_acme"
    theirs = Principal("k-acme", "acme", "auditor", "org_acme")
    house.keys.known["op-acme-key-0123456789"] = theirs
    mine, other = house.recorder.rows[1].id, house.recorder.rows[0].id
    _, body = await ask(house, "GET", "/admin/v1/requests?after_seq=0", key="op-acme-key-0123456789")
    assert [row["id"] for row in body["data"]] == [mine]
    assert (await ask(house, "GET", f"/admin/v1/requests/{mine}", key="op-acme-key-0123456789"))[0] == 200
    assert (await ask(house, "GET", f"/admin/v1/requests/{other}", key="op-acme-key-0123456789"))[0] == 404


async def test_requests(house: House) -> None:
    for _ in range(3):
        await house.chat("local")
    _, body = await ask(house, "GET", "/admin/v1/requests?after_seq=1&limit=1")
    assert [row["id"] for row in body["data"]] == [house.recorder.rows[1].id]
    one = house.recorder.rows[2].id
    assert (await ask(house, "GET", f"/admin/v1/requests/{one}"))[1]["data"]["outcome"] == "completed"
    assert (await ask(house, "GET", "/admin/v1/requests/nope"))[0] == 404
    for query in ("after_seq=x", "limit=0", "limit=1001", "after_seq=-1", "limit=١"):
        status, found = await ask(house, "GET", f"/admin/v1/requests?{query}")
        assert (status, found["param"]) == (400, query.split("=")[0])


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
