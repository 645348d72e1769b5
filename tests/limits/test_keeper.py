"""Limits of the database beside those of the file: over a real database, as operators change them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select

from appliance.door.admin_limits import operations
from appliance.door.operation import perform
from appliance.errors import BadRequest, NotFound, OutpostError, PermissionDenied
from appliance.identity.principal import Principal
from appliance.limits.book import Book, Reservation
from appliance.limits.clock import Now
from appliance.limits.keeper import LimitKeeper
from appliance.limits.refusal import Refusal
from appliance.limits.rules import Context, Demand, Used
from appliance.records.database import Database
from appliance.records.recorder import Recorder
from appliance.records.tables import events, limits, organizations, teams, users
from appliance.settings import Settings
from tests.limits.book_samples import standings
from tests.records.altering import altering

NOW = Now(1_700_000_000.0, 5.0)
OWNER = Principal("key_root", "root", "owner")
ACME = Principal("key_acme", "acme", "admin", organization="org_acme")
PATH = "/admin/v1/limits"
SETTINGS = Settings.model_validate(
    {
        "providers": [{"name": "lab", "zone": "on_prem", "base_url": "http://127.0.0.1:1/v1"}],
        "routes": [{"model": "chat", "targets": [{"provider": "lab", "model": "x"}]}],
        "limits": [{"scope": "team", "name": "declared", "requests": "100/minute", "in_flight": 7}],
    }
)
CTX = Context(organization="org_default", team="t", user="ann", key="k", route="chat", model="lab/x", provider="lab")
THEIRS = Context(organization="org_acme", team="a", user="bob", key="k2", route="chat", model="lab/x", provider="lab")


class Desk:
    def __init__(self, keeper: LimitKeeper, database: Database) -> None:
        self.keeper = keeper
        self.database = database

    async def ask(
        self, method: str, path: str = "", body: Any = None, *, actor: Principal = OWNER, **query: str
    ) -> Any:
        data = b"" if body is None else json.dumps(body).encode()
        answer = await perform(operations(self.keeper), actor, method, PATH + path, query, data)
        return json.loads(answer)["data"]

    async def refused(self, method: str, path: str = "", body: Any = None, *, actor: Principal = OWNER) -> OutpostError:
        with pytest.raises(OutpostError) as caught:
            await self.ask(method, path, body, actor=actor)
        return caught.value

    async def events(self) -> list[tuple[str, dict[str, Any]]]:
        async with self.database.read() as connection:
            rows = (await connection.execute(select(events.c.kind, events.c.body).order_by(events.c.seq))).all()
        bodies = [(kind, json.loads(body)) for kind, body in rows]
        return [(kind, body.get("body", body)) for kind, body in bodies]


@asynccontextmanager
async def open_desk(folder: Path) -> AsyncIterator[Desk]:
    database = await Database.open(folder / "outpost.db")
    recorder = Recorder(database)
    await recorder.start()
    try:
        keeper = LimitKeeper(database, recorder, Book([], NOW), lambda: NOW, wall=lambda: NOW.wall)
        await keeper.load(SETTINGS)
        yield Desk(keeper, database)
    finally:
        await recorder.close()
        await database.close()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path) as opened:
        async with altering(opened.database) as connection:
            await connection.execute(insert(organizations).values(id="org_acme", name="acme", created_at=1.0))
        yield opened


def left(desk: Desk, context: Context = CTX) -> dict[str, int]:
    return {each.limit: each.remaining for each in standings(desk.keeper.book, context, NOW)}


async def test_a_limit_is_made_changed_and_deleted_and_bites_at_once(desk: Desk, tmp_path: Path) -> None:
    wish = {"name": "budget", "scope": "team", "match": {"team": "t"}, "usd": "1.5/month", "in_flight": 2}
    made = await desk.ask("POST", body=wish)
    assert made["id"].startswith("limit_")
    assert {key: made[key] for key in wish} == wish
    assert (made["source"], made["organization"]) == ("database", "org_default")
    held = desk.keeper.book.reserve(CTX, Demand(10, 10, 1_000_000_000), NOW)
    assert isinstance(held, Reservation)
    assert isinstance(desk.keeper.book.reserve(CTX, Demand(10, 10, 600_000_000), NOW), Refusal)
    changed = await desk.ask("PATCH", "/budget", {"usd": ["3/month", "2.5/day"], "in_flight": None})
    assert (changed["usd"], changed.get("in_flight"), changed["name"]) == (["3/month", "2.5/day"], None, "budget")
    assert left(desk)["budget"] == 2_500_000_000
    usage = await desk.ask("GET", "/usage", limit="budget")
    assert usage[0]["used"] == "0"
    assert (usage[0]["reserved"], usage[0]["remaining"], usage[0]["amount"]) == ("1", "2", "3")
    del changed["remarks"]  # there is no such team, which the next test is about
    assert await desk.ask("GET", "/budget") == changed
    assert await desk.ask("GET", f"/{made['id']}") == changed
    async with open_desk(tmp_path) as again:
        assert await again.ask("GET", "/budget") == changed
    assert (await desk.ask("DELETE", "/budget"))["id"] == made["id"]
    assert isinstance(await desk.refused("GET", "/budget"), NotFound)
    assert "budget" not in left(desk)
    kinds = await desk.events()
    assert [kind for kind, _ in kinds] == ["admin.limit.create", "admin.limit.change", "admin.limit.delete"]
    create, change, delete = [body for _, body in kinds]
    assert create["actor"] == {"key": "key_root", "role": "owner", "organization": "org_default"}
    assert (create["object"], "before" in create, create["after"]["usd"]) == (made["id"], False, "1.5/month")
    assert (change["before"]["usd"], change["after"]["usd"]) == ("1.5/month", ["3/month", "2.5/day"])
    assert "after" not in delete


async def test_what_was_used_stays_when_the_amount_changes(desk: Desk) -> None:
    await desk.ask("POST", body={"scope": "user", "tokens": "100/day"})
    held = desk.keeper.book.reserve(CTX, Demand(60), NOW)
    assert isinstance(held, Reservation)
    desk.keeper.book.settle(held, Used(60), NOW)
    assert (await desk.ask("PATCH", "/user", {"tokens": "150/day"}))["name"] == "user"
    assert left(desk)["user"] == 90
    assert (await desk.ask("PATCH", "/user", {"match": {"team": ["t", "u"]}}))["name"] == "user"
    assert left(desk)["user"] == 90
    desk.keeper.apply(Settings.model_validate({"limits": []}))
    assert left(desk) == {"user": 90}


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"scope": "team"}, None, "limits nothing"),
        ({"scope": "team", "requests": "5/fortnight"}, "requests", "'fortnight' is not a period; write second"),
        ({"scope": "team", "usd": "0.12345678912/day"}, "usd", "more than nine decimals"),
        ({"scope": "teams", "requests": "5/day"}, "scope", "cannot be 'teams'"),
        ({"scope": "team", "requests": 5}, "requests", "must be a string"),
        ({"scope": "team", "requests": "5/day", "in_flight": 0}, "in_flight", "at least 1"),
        ({"scope": "team", "requests": "5/day", "timezone": "Nowhere/X"}, "timezone", "knows no time zone"),
        ({"scope": "team", "requests": "5/5m", "window": "calendar"}, None, "no period of 5m"),
        ({"scope": "team", "requests": "5/day", "match": {"route": "chatt"}}, "match.route", "did you mean chat?"),
        ({"scope": "team", "requests": "5/day", "match": {"colour": "red"}}, "match.colour", "not a known parameter"),
        ({"scope": "team", "requests": "5/day", "name": "a b"}, "name", "expected a name"),
        ({"scope": "team", "requests": "5/day", "name": "declared"}, "name", "the settings file declares"),
        ({"scope": "team", "requests": "5/day", "organization": "none"}, "organization", "there is none"),
        ({"scope": "team", "requests": "5/day", "id": "limit_x"}, "id", "not a known parameter"),
    ],
)
async def test_bad_wishes_are_refused_by_name(desk: Desk, body: Any, param: str | None, says: str) -> None:
    error = await desk.refused("POST", body=body)
    assert isinstance(error, BadRequest)
    assert error.param == param
    assert says in error.message
    assert await desk.events() == []


async def test_names_that_nobody_has_are_told(desk: Desk) -> None:
    wish = {"scope": "team", "match": {"team": ["typo", "t_real"], "organization": "acme"}, "requests": "1/day"}
    async with altering(desk.database) as connection:
        row = {"id": "team_1", "organization_id": "org_acme", "name": "t_real", "created_at": 1.0}
        await connection.execute(insert(teams).values(**row))
        row = {"id": "user_1", "organization_id": "org_default", "name": "ann", "role": "member", "created_at": 1.0}
        await connection.execute(insert(users).values(**row))
    made = await desk.ask("POST", body=wish)
    assert made["remarks"] == ["match.team: there is no team with the id or name 'typo' yet"]
    assert "remarks" not in await desk.ask("GET", f"/{made['id']}"), "it may be there by now"
    changed = await desk.ask("PATCH", f"/{made['id']}", {"match": {"key": "nobody's"}})
    assert changed["remarks"] == ["""match.key: there is no key with the id or name "nobody's" yet"""]
    theirs = await desk.ask("POST", body={**wish, "name": "x", "match": {"user": "ann"}}, actor=ACME)
    assert theirs["remarks"] == ["match.user: there is no user with the id or name 'ann' yet"]
    issuer = {"name": "corp", "issuer": "https://login.example.com", "audience": "outpost"}
    desk.keeper.apply(Settings.model_validate({"identity": {"oidc": [issuer]}}))
    tokens = await desk.ask("POST", body={**wish, "name": "y", "match": {"key": ["jwt:corp", "jwt:crop"]}})
    assert tokens["remarks"] == ["match.key: there is no key with the id or name 'jwt:crop' yet"]
    assert not any("remarks" in str(body) for _, body in await desk.events())


async def test_names_are_given_once(desk: Desk) -> None:
    await desk.ask("POST", body={"scope": "team", "requests": "5/day"})
    assert (await desk.refused("POST", body={"scope": "team", "tokens": "5/day"})).param == "name"
    told = await desk.refused("POST", body={"scope": "team", "tokens": "5/day"}, actor=ACME)
    assert told.param == "name"
    assert "another organization's" in told.message
    assert (await desk.ask("POST", body={"scope": "team", "tokens": "5/day", "name": "acme-team"}, actor=ACME))["id"]
    await desk.ask("POST", body={"scope": "team", "tokens": "5/day", "name": "other"})
    assert (await desk.refused("PATCH", "/other", {"name": "team"})).param == "name"
    assert (await desk.refused("PATCH", "/other", {"name": "declared"})).param == "name"
    assert isinstance(await desk.refused("PATCH", "/other", {}), BadRequest)
    assert "settings file" in (await desk.refused("PATCH", "/declared", {"requests": "1/day"})).message
    assert "settings file" in (await desk.refused("DELETE", "/declared")).message


async def test_another_organization_sets_limits_for_itself_only(desk: Desk) -> None:
    ours = await desk.ask("POST", body={"scope": "box", "requests": "9/minute", "name": "all"})
    theirs = await desk.ask("POST", body={"scope": "box", "requests": "3/minute", "name": "acme"}, actor=ACME)
    assert theirs["organization"] == "org_acme"
    assert left(desk) == {"declared": 100, "all": 9}
    assert left(desk, THEIRS) == {"declared": 100, "all": 9, "acme": 3}
    assert await desk.ask("GET", actor=ACME) == [theirs]
    assert [each["name"] for each in await desk.ask("GET")] == ["declared", "all", "acme"]
    for context in (CTX, THEIRS):
        assert isinstance(desk.keeper.book.reserve(context, Demand(), NOW), Reservation)
    assert {each["name"] for each in await desk.ask("GET", "/usage", actor=ACME)} == {"acme"}
    assert {(each["name"], each["measure"]) for each in await desk.ask("GET", "/usage")} == {
        ("declared", "requests"),
        ("declared", "in_flight"),
        ("all", "requests"),
        ("acme", "requests"),
    }
    for path in ("/all", "/declared", f"/{ours['id']}"):
        assert isinstance(await desk.refused("DELETE", path, actor=ACME), NotFound)
        assert isinstance(await desk.refused("PATCH", path, {"requests": "1/day"}, actor=ACME), NotFound)
    for other in ("org_default", "default", "nowhere"):
        wish = {"scope": "box", "requests": "1/day", "name": "x", "organization": other}
        assert isinstance(await desk.refused("POST", body=wish, actor=ACME), PermissionDenied)
    wish = {"scope": "team", "requests": "1/day", "name": "x", "organization": "acme"}
    assert (await desk.ask("POST", body=wish))["organization"] == "org_acme"
    # Whatever the limit itself says, it reaches nobody else.
    grasp = {"match": {"organization": "org_default"}}
    await desk.ask("PATCH", "/acme", grasp, actor=ACME)
    assert "acme" not in left(desk)


async def test_a_limit_that_cannot_be_read_does_not_keep_the_others_out(desk: Desk, tmp_path: Path) -> None:
    await desk.ask("POST", body={"scope": "team", "requests": "5/day"})
    async with altering(desk.database) as connection:
        row = {
            "id": "limit_x",
            "organization_id": "org_default",
            "name": "x",
            "rule": '{"scope": 1}',
            "created_at": 1.0,
        }
        await connection.execute(insert(limits).values(**row))
    async with open_desk(tmp_path) as again:
        assert [each["name"] for each in await again.ask("GET")] == ["declared", "team"]
