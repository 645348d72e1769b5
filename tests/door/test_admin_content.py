"""Reading contents, erasing, exporting: who may, what the ledger says, and how a broken export looks."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import aiohttp
import pytest
from sqlalchemy import insert

from appliance.door.admin_content import ContentDesk, endpoints
from appliance.door.door import Door
from appliance.door.listen import Listener
from appliance.door.render import problem
from appliance.door.terms import Terms
from appliance.errors import RecordsUnavailable
from appliance.identity.authenticator import Authenticator
from appliance.identity.people_work import ORGANIZATION, SERVICE_ACCOUNT, USER
from appliance.identity.permissions import Role
from appliance.ids import new_id
from appliance.records.content import Keeper
from appliance.records.export.source import Source
from appliance.records.rows import ExchangeRow
from appliance.records.tables import events
from tests.identity.conftest import OWNER, Box, open_box

NOW = 2_000_000_000.0
ROLES: tuple[Role, ...] = get_args(Role)


class Clock:
    wall = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


@dataclass
class Contents:
    """keys: role → a key of the organisation that runs the box; theirs: of another one, `acme`."""

    box: Box
    keeper: Keeper
    session: aiohttp.ClientSession
    url: str
    keys: dict[str, str]
    theirs: dict[str, str]
    acme: str

    async def ask(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {key or self.keys['owner']}"}
        async with self.session.request(method, self.url + "/admin/v1" + path, headers=headers, json=body) as response:
            return response.status, await response.text()

    async def keep(self, exchange: str, subject: str, text: bytes, organization: str = "org_default") -> None:
        kept = await self.keeper.keep(subject, exchange, "full", {"request": text})
        assert kept is not None
        written = self.box.recorder.write(self.keeper.insert_content(kept))
        await self.box.recorder.submit(
            ExchangeRow(
                id=exchange,
                kind="chat",
                started_at=NOW,
                user_id=subject,
                organization_id=organization,
                content_digest=kept.digest,
            )
        )
        await written

    async def events(self, kind: str) -> list[dict[str, Any]]:
        return [body for found, body in await self.box.events(kind)]


@pytest.fixture
async def contents(tmp_path: Path) -> AsyncIterator[Contents]:
    async with open_box(tmp_path) as box, aiohttp.ClientSession() as session:
        acme = (await box.directory.create(OWNER, ORGANIZATION, {"name": "acme"})).id
        keys = {role: (await box.key(f"box-{role}", role))[1] for role in ROLES}
        theirs = {role: (await box.key(f"acme-{role}", role, organization=acme))[1] for role in ("admin", "auditor")}
        keeper, terms = Keeper(box.database, bytes(32)), Terms()
        door = Door(
            endpoints(ContentDesk(box.database, box.recorder, keeper, "0.0", lambda: NOW), terms),
            authenticator=Authenticator(box.ring, box.directory, clock=time.time),
            render=problem,
            clock=Clock(),
            new_id=new_id,
            terms=terms,
        )
        listener = Listener(door, terms)
        port = await listener.tcp("127.0.0.1", 0)
        yield Contents(box, keeper, session, f"http://127.0.0.1:{port}", keys, theirs, acme)
        await listener.close(0.2)


async def test_reading_is_for_few_and_is_on_the_ledger(contents: Contents) -> None:
    await contents.keep("req_1", "user_a", "what was ‘asked’".encode())
    for role in ROLES:
        status, text = await contents.ask("GET", "/requests/req_1/content", key=contents.keys[role])
        assert status == (200 if role in ("owner", "auditor") else 403)
        assert ("asked" in text) == (status == 200)
    found = json.loads((await contents.ask("GET", "/requests/req_1/content"))[1])["data"]
    assert [(part["part"], part["policy"], part["text"]) for part in found["parts"]] == [
        ("request", "full", "what was ‘asked’")
    ]
    assert (found["subject_erased"], len(found["digest"])) == (False, 64)
    said = await contents.events("admin.content.read")
    assert [(event["actor"]["role"], event["object"]) for event in said] == [
        ("owner", "req_1"),
        ("auditor", "req_1"),
        ("owner", "req_1"),
    ]


async def test_what_does_not_exist_and_what_is_another_organisations_look_the_same(contents: Contents) -> None:
    await contents.keep("req_1", "user_a", b"secret")
    await contents.keep("req_2", "user_b", b"theirs", contents.acme)
    theirs = contents.theirs["auditor"]
    missing = await contents.ask("GET", "/requests/req_9/content", key=theirs)
    hidden = await contents.ask("GET", "/requests/req_1/content", key=theirs)
    assert missing[0] == hidden[0] == 404
    assert json.loads(missing[1])["detail"] == json.loads(hidden[1])["detail"]
    assert (await contents.ask("GET", "/requests/req_2/content", key=theirs))[0] == 200
    assert len(await contents.events("admin.content.read")) == 1


async def test_the_id_of_an_answer_is_understood(contents: Contents) -> None:
    await contents.keep("01H", "user_a", b"secret")
    for path in ("/requests/01H/content", "/requests/chatcmpl-01H/content", "/requests/cmpl-01H/content"):
        status, text = await contents.ask("GET", path)
        assert (status, json.loads(text)["data"]["id"]) == (200, "01H")
    assert {event["object"] for event in await contents.events("admin.content.read")} == {"01H"}
    status, text = await contents.ask("GET", "/requests/chatcmpl-02H/content")
    assert status == 404
    assert "x-request-id" in json.loads(text)["detail"]


async def test_erasing_over_the_api(contents: Contents) -> None:
    await contents.keep("req_1", "user_a", b"secret")
    for role in ("auditor", "operator", "member"):
        assert (await contents.ask("POST", "/erase", {"subject": "user_a"}, key=contents.keys[role]))[0] == 403
    assert (await contents.ask("POST", "/erase", {"subject": "user_a"}, key=contents.theirs["admin"]))[0] == 404
    status, text = await contents.ask("POST", "/erase", {"subject": "user_a"}, key=contents.keys["admin"])
    assert status == 200
    assert json.loads(text)["data"]["contents"] == 1
    found = json.loads((await contents.ask("GET", "/requests/req_1/content"))[1])["data"]
    assert (found["parts"], found["subject_erased"]) == ([], True)
    status, text = await contents.ask("POST", "/erase", {"subject": "user_a"})
    assert status == 404


async def test_an_admin_does_not_erase_an_owner(contents: Contents) -> None:
    """Nor what an owner's key or program asked; whom an admin may disable, an admin may erase."""
    directory = contents.box.directory
    owners = [
        (await directory.create(OWNER, USER, {"name": "Boss", "role": "owner"})).id,
        (await directory.create(OWNER, SERVICE_ACCOUNT, {"name": "root", "role": "owner"})).id,
        (await contents.box.key("bare", "owner"))[0].id,
    ]
    others = [(await directory.create(OWNER, USER, {"name": role, "role": role})).id for role in ROLES[1:]]
    for number, subject in enumerate([*owners, *others]):
        await contents.keep(f"req_{number}", subject, b"secret")
    for subject in owners:
        status, text = await contents.ask("POST", "/erase", {"subject": subject}, key=contents.keys["admin"])
        refusal = json.loads(text)
        assert (status, refusal["code"], refusal["param"]) == (403, "permission_denied", "subject"), text
        assert "an owner may erase it" in refusal["detail"]
        # Where another organisation's admin is told that there is no such subject, that stays so.
        assert (await contents.ask("POST", "/erase", {"subject": subject}, key=contents.theirs["admin"]))[0] == 404
    assert await contents.events("admin.content.erase") == []
    for subject in others:
        assert (await contents.ask("POST", "/erase", {"subject": subject}, key=contents.keys["admin"]))[0] == 200
    for subject in owners:
        assert (await contents.ask("POST", "/erase", {"subject": subject}))[0] == 200


async def test_no_browser_keeps_what_was_read(contents: Contents) -> None:
    await contents.keep("req_1", "user_a", b"secret")
    headers = {"Authorization": f"Bearer {contents.keys['owner']}"}
    async with contents.session.get(contents.url + "/admin/v1/requests/req_1/content", headers=headers) as response:
        assert "secret" in await response.text()
        assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("body", "param"), [({}, "subject"), ({"subject": 5}, "subject"), ({"subject": ""}, "subject"), ({"x": 1}, "x")]
)
async def test_a_wrong_body_is_refused_by_name(contents: Contents, body: Any, param: str) -> None:
    status, text = await contents.ask("POST", "/erase", body)
    assert status == 400
    assert json.loads(text)["param"] == param


async def test_an_export_is_streamed_whole_and_on_the_ledger(contents: Contents) -> None:
    rows = [ExchangeRow(id=f"req_{n}", kind="chat", started_at=NOW - 100 + n, key_name="=x") for n in range(600)]
    first = await contents.box.recorder.submit(rows[0])
    for row in rows[1:]:
        future = contents.box.recorder.submit(row)
    await future
    status, text = await contents.ask("GET", f"/export?after={first - 1}", key=contents.keys["auditor"])
    lines = [json.loads(line) for line in text.splitlines()]
    assert status == 200
    assert [line["id"] for line in lines if line["type"] == "exchange"] == [row.id for row in rows]
    assert lines[-1]["kind"] == "admin.ledger.export", "who exports is on the ledger first, and so in the export"
    status, text = await contents.ask("GET", f"/export?format=csv&since={NOW}&until={NOW + 10}")
    table = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["id"] for row in table] == [f"req_{n}" for n in range(100, 110)]
    assert table[0]["key_name"] == "'=x"
    for form in ("cef", "ocsf"):
        assert (await contents.ask("GET", f"/export?format={form}"))[0] == 200
    said = await contents.events("admin.ledger.export")
    assert [event["object"] for event in said] == ["jsonl", "csv", "cef", "ocsf"]
    assert said[1]["after"]["since_us"] == int(NOW * 1e6)


async def test_an_organisation_exports_its_own(contents: Contents) -> None:
    await contents.keep("req_1", "user_a", b"x")
    await contents.keep("req_2", "user_b", b"x", contents.acme)
    _, text = await contents.ask("GET", "/export", key=contents.theirs["auditor"])
    assert [line.get("id") for line in map(json.loads, text.splitlines()) if line["type"] == "exchange"] == ["req_2"]
    assert {line["body"]["actor"]["organization"] for line in map(json.loads, text.splitlines()) if "body" in line} == {
        contents.acme
    }
    assert (await contents.ask("GET", "/export", key=contents.keys["operator"]))[0] == 403


@pytest.mark.parametrize(
    ("query", "param"), [("format=xml", "format"), ("after=-1", "after"), ("since=soon", "since"), ("until=x", "until")]
)
async def test_a_wrong_query_is_refused_by_name(contents: Contents, query: str, param: str) -> None:
    status, text = await contents.ask("GET", f"/export?{query}")
    assert status == 400
    assert json.loads(text)["param"] == param


@pytest.mark.parametrize("trouble", [RecordsUnavailable("locked"), ValueError("surprise")])
async def test_an_export_that_breaks_does_not_end_as_a_whole_one_does(
    contents: Contents, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    rows = [ExchangeRow(id=f"req_{n}", kind="chat", started_at=NOW) for n in range(300)]
    for row in rows:
        future = contents.box.recorder.submit(row)
    await future
    batch = Source.batch

    async def failing(self: Source, after: int, limit: int = 200) -> Any:
        if after >= 200:
            raise trouble
        return await batch(self, after, limit)

    monkeypatch.setattr(Source, "batch", failing)
    with pytest.raises(aiohttp.ClientError):
        await contents.ask("GET", "/export")


async def test_a_damaged_record_does_not_end_an_export(contents: Contents) -> None:
    broken = {"seq": 1000, "kind": "x", "at_us": 1, "body": "[\n", "hash": bytes(32)}
    await contents.box.recorder.write(lambda tx: tx.connection.execute(insert(events), broken))
    status, text = await contents.ask("GET", "/export?after=999")
    assert status == 200
    assert json.loads(text.splitlines()[0])["body"] == {"unreadable": "[\n"}
