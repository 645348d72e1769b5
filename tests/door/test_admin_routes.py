"""/admin/v1/routes: how targets fare, and what a route would do with a request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import func, select

from appliance.door import admin_routes
from appliance.door.admin_routes import DIALECTS, RouteDesk, TryRoute, explained, operations
from appliance.errors import PermissionDenied
from appliance.identity.key_store import KeyInfo
from appliance.identity.permissions import PERMISSIONS, ROLES
from appliance.identity.principal import Principal, Restrictions
from appliance.records.tables import responses
from appliance.routing.conditions import Condition
from appliance.routing.health import Health
from appliance.routing.hedging import Hedging
from appliance.routing.routes import Nested, Route, Router, Shadow, Target
from tests.door.test_operator_door import ask
from tests.door.whole_desk import OWNER, open_whole
from tests.fakes.house import House, open_house
from tests.routing.test_plan import Stub


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path) as opened:
        yield opened


def target(name: str, **options: Any) -> Target:
    return Target(Stub(name), **options)


KEYS = {
    "ci": KeyInfo("key_1", "ci", "member", team="team_9", user="user_3", restrictions=Restrictions(zones=("on_prem",))),
    "gone": KeyInfo(
        "key_2",
        "gone",
        "member",
        revoked_at=5.0,
        restrictions=Restrictions(routes=("other",), addresses=("10.0.0.0/8",)),
    ),
}
ROUTER = Router(
    [
        Route(
            "chat",
            (
                target("p/vip", zone="on_prem", when=Condition(teams=("team_9",), tags=("vip",))),
                target("cloudy/m", zone="cloud"),
                target("p/m", zone="on_prem"),
            ),
            aliases=("gpt",),
        ),
        Route("other", (target("small"),)),
    ]
)


def desk(health: Health | None = None) -> RouteDesk:
    async def find_key(actor: Principal, key: str) -> KeyInfo:
        return KEYS[key]

    return RouteDesk(lambda: ROUTER, health, find_key, lambda request: 7, lambda: 1_700_000_000.0)


async def order(model: str = "chat", **wish: Any) -> list[str]:
    found = await explained(desk(Health()), OWNER, model, TryRoute(**wish))
    return [each.target for each in found.considered if each.place is not None]


async def test_as_whom_it_is_asked_decides() -> None:
    assert await order() == ["cloudy/m", "p/m"]
    assert await order(key="ci") == ["p/m"]
    assert await order(key="ci", tags=["vip"]) == ["p/vip", "p/m"]
    assert await order(tags=["vip"]) == ["cloudy/m", "p/m"]
    assert await order("other", key="gone") == ["small"]


async def test_the_facts_say_as_whom() -> None:
    found = await explained(desk(Health()), OWNER, "gpt", TryRoute())
    assert (found.route, found.request["asked by"], found.remarks) == ("chat", "nobody in particular", ())
    assert "session" not in found.request
    found = await explained(desk(Health()), OWNER, "gpt", TryRoute(key="ci"))
    assert (found.request["asked by"], found.request["session"]) == ("the key ci", "key_1/user_3")
    found = await explained(desk(), OWNER, "gpt", TryRoute(key="ci", session="s"))
    assert (found.request["session"], found.remarks) == ("s", (admin_routes.NO_GATEWAY,))
    found = await explained(desk(Health()), OWNER, "other", TryRoute(key="gone"))
    assert [remark.split(":")[0] for remark in found.remarks] == [
        "The key gone has ended", "The key gone may only be used from 10.0.0.0/8.",
    ]  # fmt: skip


async def test_the_same_session_stays_where_it_is() -> None:
    weighted = Router([Route("w", tuple(target(f"t{at}") for at in range(8)), strategy="weighted", sticky=True)])
    one = desk(Health())
    one.router = lambda: weighted
    firsts = set()
    for session in ("a", "b", "c", "d", "e", "f"):
        found = [(await explained(one, OWNER, "w", TryRoute(session=session))).considered[0].target for _ in range(4)]
        assert len(set(found)) == 1
        firsts |= set(found)
    assert len(firsts) > 1


def test_whoever_may_test_routes_may_read_keys() -> None:
    """Else a plan would tell of keys to somebody who may not see them."""
    assert {role for role, held in ROLES.items() if "status.read" in held} == {
        role for role, held in ROLES.items() if {"status.read", "keys.read"} <= held
    }
    assert {each.permission for each in operations(desk())} == {"status.read"}
    assert "keys.read" in PERMISSIONS


async def test_a_key_is_not_told_of_to_those_who_may_not_see_keys() -> None:
    with pytest.raises(PermissionDenied, match=r"key: needs the permission keys\.read"):
        await explained(desk(), Principal("k", "k", "member"), "chat", TryRoute(key="ci"))


# --- over HTTP ------------------------------------------------------------------------------------


async def test_how_targets_fare(house: House) -> None:
    inner = Route("inner", (house.provider("500"),))
    nested = Nested(inner, when=Condition(tags=("x",)))
    house.gateway.router = Router(
        [
            Route("m", (house.provider("500"), house.provider("ok")), aliases=("n",), retries=3, rescue="resume"),
            Route(
                "outer",
                (nested, Target(house.provider("ok").upstream, zone="cloud", share=0.1, weight=2.0)),
                strategy="weighted",
                hedging=Hedging(),
                shadows=(Shadow(house.provider("other"), 0.5),),
                keep="on_prem",
            ),
        ]
    )
    for _ in range(8):
        assert (await house.chat("m")).status == 200
    status, found = await ask(house, "GET", "/admin/v1/routes")
    assert status == 200
    first, outer = found["data"]
    assert (first["model"], first["aliases"], first["strategy"], first["rescue"]) == ("m", ["n"], "priority", "resume")
    failing, well = first["targets"]
    health = failing["health"]
    assert (failing["name"], failing["ready"], failing["zone"]) == ("fake/500", True, "cloud")
    assert (health["phase"], health["usable"]) == ("open", False)
    assert health["wait_s"] > 0
    assert health["reason"]
    assert health["failures"] == health["requests"] > 0
    assert {each["code"] for each in health["errors"]} == {"upstream_error"}
    assert all(each["seconds_ago"] >= 0 for each in health["errors"])
    assert (well["health"]["phase"], well["health"]["usable"], well["health"]["failures"]) == ("closed", True, 0)
    assert well["health"]["ttft_s"] is not None
    assert well["health"]["in_flight"] == 0
    through, own = outer["targets"]
    assert (through["through"], through["conditional"], own["conditional"]) == (["inner"], True, False)
    assert (own["canary"], own["weight"], outer["shadows"], outer["hedged"]) == (0.1, 2.0, ["fake/other"], True)
    assert outer["residency"] == "on_prem"
    status, told = await ask(house, "POST", "/admin/v1/routes/m/test", json={})
    why = {each["target"]: (each["place"], each["why"]) for each in told["data"]["considered"]}
    assert why["fake/500"] == (None, health["reason"])
    assert why["fake/ok"][0] == 1


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
async def test_nothing_is_sent_and_nothing_is_on_record(house: House, dialect: str) -> None:
    model = "embedder" if dialect == "embeddings" else "remote"
    body = {"message": "Hello there", "dialect": dialect}
    status, found = await ask(house, "POST", f"/admin/v1/routes/{model}/test", json=body)
    assert status == 200, found
    assert found["data"]["considered"][0]["place"] == 1
    assert found["data"]["request"]["prompt_tokens"] == 64
    assert (house.recorder.rows, house.upstream.seen, house.gateway.health.board.names()) == ([], [], [])


async def test_a_whole_request_is_read_as_a_clients(house: House) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    request = {"model": "of another route", "messages": [{"role": "user", "content": "Hi"}], "tools": [tool]}
    status, found = await ask(house, "POST", "/admin/v1/routes/gpt-4o-mini/test", json={"request": request})
    assert (status, found["data"]["route"], found["data"]["request"]["features"]) == (200, "local", "tools")
    asked = {"input": "Hi", "previous_response_id": "resp_1"}
    body = {"request": asked, "dialect": "responses"}
    status, found = await ask(house, "POST", "/admin/v1/routes/local/test", json=body)
    assert (status, found["data"]["remarks"][0].startswith("The earlier conversation")) == (200, True)


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"request": {"messages": 5}}, "request.messages", "messages"),
        ({"request": {}}, "request.messages", "messages"),
        ({"request": {"input": "x"}, "message": "x"}, "message", "not both"),
        ({"tags": ["a b"]}, "tags", "tags: a tag has 1 to 64"),
        ({"session": "a b"}, "session", "session: 1 to 128"),
        ({"dialect": "latin"}, "dialect", "dialect"),
        ({"nonsense": 1}, "nonsense", "nonsense"),
        ({"message": 5}, "message", "message"),
        ({"request": {"messages": [{"role": "user", "content": "Hi"}], "stream": "yes"}}, "request.stream", "stream"),
    ],
)
async def test_what_is_wrong_is_named(house: House, body: dict[str, Any], param: str, says: str) -> None:
    status, found = await ask(house, "POST", "/admin/v1/routes/remote/test", json=body)
    assert (status, found["param"]) == (400, param), found
    assert says in found["detail"]


async def test_an_unknown_route_is_told_which_there_are(house: House) -> None:
    status, found = await ask(house, "POST", "/admin/v1/routes/nope/test", json={})
    assert (status, found["code"]) == (404, "model_not_found")
    assert "local, gpt-4o-mini, embedder, remote" in found["detail"]
    assert (await ask(house, "GET", "/admin/v1/routes/local/test"))[0] == 405


async def test_names_with_slashes(house: House) -> None:
    house.route("org/model:1", "ok")
    status, found = await ask(house, "POST", "/admin/v1/routes/org%2Fmodel%3A1/test", json={})
    assert (status, found["data"]["route"]) == (200, "org/model:1")


async def test_with_the_keys_of_the_database(tmp_path: Path) -> None:
    async with open_whole(tmp_path) as whole:
        team = await whole.made("/teams", {"name": "lab"})
        body = {"name": "ci", "team": "lab", "restrictions": {"zones": ["cloud"]}}
        made = await whole.made("/keys", body)
        path = "/admin/v1/routes/far/test"
        for key in ("ci", made["id"]):
            status, found = await whole.ask("POST", path, {"key": key}, key=whole.keys["operator"])
            assert (status, found["data"]["request"]["asked by"]) == (200, "the key ci")
            (cut,) = found["data"]["considered"]
            assert (cut["place"], "limited to targets that are cloud" in cut["why"]) == (None, True)
            assert found["data"]["remarks"]
        status, found = await whole.ask("POST", path, {"key": "nobody"})
        assert status == 404
        assert "nobody" in found["detail"]
        status, found = await whole.ask("POST", path, {"key": "acme-member"})
        assert (status, found["data"]["request"]["asked by"]) == (200, "the key acme-member")
        header = {"x-outpost-explain": "1"}
        chat = {"model": "far", "messages": [{"role": "user", "content": "Hi"}]}
        for role in ("owner", "admin", "operator"):
            asked = ("POST", "/v1/chat/completions", chat)
            status, found = await whole.ask(*asked, key=whole.keys[role], public=True, headers=header)
            assert (status, found["considered"][0]["target"]) == (200, "lab/x")
            status, found = await whole.ask(*asked, key=whole.theirs[role], public=True, headers=header)
            assert (status, "the organization that runs it" in found["error"]["message"]) == (403, True)
        rows = (await whole.ask("GET", "/admin/v1/requests"))[1]["data"]
        assert (rows, team["name"]) == ([], "lab")


async def test_a_reload_changes_what_is_explained_and_prices_count(tmp_path: Path) -> None:
    async with open_whole(tmp_path) as whole:
        path = tmp_path / "outpost.yaml"
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        targets = [{"provider": "lab", "model": name} for name in ("dear", "cheap")]
        settings["routes"].append({"model": "new", "strategy": "cost", "targets": targets})
        settings["prices"] = [{"target": "lab/dear", "input": 5}, {"target": "lab/cheap", "input": 1}]
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        assert (await whole.ask("POST", "/admin/v1/routes/new/test", {}))[0] == 404
        assert (await whole.ask("POST", "/admin/v1/reload"))[0] == 200
        _, found = await whole.ask("POST", "/admin/v1/routes/new/test", {})
        order = [(each["target"], each["why"]) for each in found["data"]["considered"]]
        assert [target for target, _ in order] == ["lab/cheap", "lab/dear"]
        assert all(why.startswith("expected to cost 0.000") for _, why in order)
        assert [each["model"] for each in (await whole.ask("GET", "/admin/v1/routes"))[1]["data"]] == ["far", "new"]


@pytest.mark.parametrize("more", [{}, {"background": True}, {"store": True, "stream": True}])
async def test_no_response_is_stored_of_what_is_only_explained(tmp_path: Path, more: dict[str, Any]) -> None:
    async with open_whole(tmp_path) as whole:
        body = {"model": "far", "input": "Hi", **more}
        header = {"x-outpost-explain": "1"}
        status, found = await whole.ask("POST", "/v1/responses", body, public=True, headers=header)
        assert (status, found["considered"][0]["place"]) == (200, 1), found
        async with whole.app._office.database.read() as connection:
            assert (await connection.execute(select(func.count()).select_from(responses))).scalar() == 0
