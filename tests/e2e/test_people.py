"""People, teams, service accounts and their keys on a running gateway: made, limited, ended, kept apart."""

from __future__ import annotations

import json
import random
import sqlite3
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.clients import Client, chat
from tests.e2e.people import Office, open_office
from tests.identity.test_key_ring import dump, payloads

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    with open_office(tmp_path_factory.mktemp("people")) as opened:
        yield opened


def test_everybody_is_made_and_asks(office: Office) -> None:
    """Half over the API, half by command; what each asks is on record under all of its names."""
    lab = office.data("POST", "/organizations", {"name": "lab"})
    (team,) = office.cli("teams", "create", "vision", "--organization", "lab")
    user = office.data("POST", "/users", {"name": "Ada", "role": "operator", "organization": "lab"})
    office.cli("teams", "add", team["id"], user["id"])
    (account,) = office.cli("service-accounts", "create", "nightly", "--organization", "lab", "--team", "vision")
    (token,) = office.cli("keys", "create", "ada-laptop", "--organization", "lab", "--user", "Ada", "--team", "vision")
    batch = office.data("POST", "/keys", {"name": "nightly-1", "organization": "lab", "service_account": "nightly"})
    assert {user["organization"], account["organization"], token["organization"], batch["organization"]} == {lab["id"]}
    assert [member["name"] for member in office.data("GET", f"/teams/{team['id']}/members")] == ["Ada"]

    row = office.row(office.chat(token["key"]))
    assert (row["organization_id"], row["team_id"], row["user_id"]) == (lab["id"], team["id"], user["id"])
    assert (row["service_account_id"], row["key_name"], row["outcome"]) == (None, "ada-laptop", "completed")
    row = office.row(office.chat(batch["key"]))
    assert (row["organization_id"], row["team_id"], row["user_id"]) == (lab["id"], team["id"], None)
    assert (row["service_account_id"], row["key_id"]) == (account["id"], batch["id"])

    # A personal access token, which its owner makes; no key is shown a second time, anywhere.
    own = office.data("POST", "/me/keys", {"name": "ada-phone"}, key=token["key"])
    assert own["user"] == user["id"]
    assert office.row(office.chat(own["key"]))["user_id"] == user["id"]
    for listed in (office.data("GET", "/keys"), office.cli("keys", "list")):
        assert {"ada-laptop", "nightly-1", "ada-phone"} <= {key["name"] for key in listed}
        assert not any("key" in key or "digest" in key for key in listed)
    told = json.dumps(office.data("GET", "/ledger", limit=1000))
    for key in (token, batch, own):
        assert key["key"] not in told

    # Who did it is on the ledger: the key over the API, the command by its socket.
    made = {event["object"]: event for event in office.events("admin.user.create")}
    assert made[user["id"]]["actor"] == {"key": "fixed:contract-admin", "role": "admin", "organization": "org_default"}
    assert made[user["id"]]["after"]["role"] == "operator"
    made = {event["object"]: event for event in office.events("admin.team.create")}
    assert made[team["id"]]["actor"]["key"] == "control-socket"


def until_refused(office: Office, key: str, *, by: float) -> float:
    """When a key that works is refused first, in unix seconds."""
    while True:
        asked = time.time()
        answer = office.chat(key)
        if answer.status_code == 401:
            assert "expired" in answer.json()["error"]["message"]
            return asked
        assert answer.status_code == 200, answer.text
        assert asked < by, "the key goes on after its end"


def test_a_key_expires(office: Office) -> None:
    made = office.data("POST", "/keys", {"name": "brief", "expires_in": "1s"})
    refused = until_refused(office, made["key"], by=made["expires_at"] + 0.5)
    assert refused >= made["expires_at"] - 0.05
    assert office.ask("GET", "/me", key=made["key"]).status_code == 401


def test_rotation_with_overlap(office: Office) -> None:
    old = office.data("POST", "/keys", {"name": "turning", "role": "operator", "restrictions": {"routes": ["ok"]}})
    new = office.data("POST", "/keys/turning/rotate", {"overlap": "1s"})
    assert (new["name"], new["role"], new["restrictions"]) == ("turning", "operator", {"routes": ["ok"]})
    assert office.chat(new["key"]).status_code == 200
    began = time.time()
    until_refused(office, old["key"], by=began + 1.5)
    assert office.chat(new["key"]).status_code == 200
    # Without any overlap, by command.
    (last,) = office.cli("keys", "rotate", "turning", "--overlap", "0s")
    assert office.chat(new["key"]).status_code == 401
    assert office.chat(last["key"]).status_code == 200


@pytest.mark.parametrize("by", ["api", "command"])
async def test_revocation_bites_at_once_on_an_open_connection(office: Office, by: str) -> None:
    made = office.data("POST", "/keys", {"name": f"leaving-{by}"})
    async with Client(office.gateway.url, made["key"]) as one, Client(office.gateway.operator_url, made["key"]) as two:
        for _ in range(2):
            await one.send("/v1/chat/completions", chat("Hi", model="ok", stream=False))
            await one.head()
            assert (await one.rest()).status == 200
        await two.send("/admin/v1/me", {}, method="GET")
        await two.head()
        await two.rest()
        if by == "api":
            office.data("DELETE", f"/keys/{made['id']}")
        else:
            office.cli("keys", "revoke", made["id"])
        await one.send("/v1/chat/completions", chat("Hi", model="ok", stream=False))
        assert (await one.head()).status == 401
        await one.rest()
        await two.send("/admin/v1/me", {}, method="GET")
        assert (await two.head()).status == 401
    assert office.data("GET", f"/keys/{made['id']}")["revoked_at"] is not None


@pytest.mark.parametrize("kind", ["users", "service-accounts", "teams", "organizations"])
def test_whoever_is_disabled_has_no_keys(office: Office, kind: str) -> None:
    place = office.data("POST", "/organizations", {"name": f"place-of-{kind}"})["id"]
    team = office.data("POST", "/teams", {"name": "crew", "organization": place})["id"]
    user = office.data("POST", "/users", {"name": "Eve", "organization": place})["id"]
    office.data("PUT", f"/teams/{team}/members/{user}")
    account = office.data("POST", "/service-accounts", {"name": "bot", "organization": place, "team": team})["id"]
    whose = {"organization": place, "team": team}
    keys = [
        office.data("POST", "/keys", {"name": f"eve-{kind}", "user": user, **whose})["key"],
        office.data("POST", "/keys", {"name": f"bot-{kind}", "service_account": account, "organization": place})["key"],
    ]
    hit = {"users": keys[:1], "service-accounts": keys[1:]}.get(kind, keys)
    id = {"users": user, "service-accounts": account, "teams": team, "organizations": place}[kind]
    for disabled in (True, False):
        office.data("PATCH", f"/{kind}/{id}", {"disabled": disabled})
        for key in keys:
            assert office.chat(key).status_code == (401 if disabled and key in hit else 200)
            assert office.ask("GET", "/me", key=key).status_code == (401 if disabled and key in hit else 200)


# --- restrictions ---


def limited(office: Office, name: str, **restrictions: Any) -> str:
    key: str = office.data("POST", "/keys", {"name": name, "restrictions": restrictions})["key"]
    return key


def test_a_key_for_one_route(office: Office) -> None:
    key = limited(office, "one-route", routes=["ok"])
    assert office.chat(key).status_code == 200
    refused = office.chat(key, "far")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    assert "both" not in refused.text
    listed = office.http.get(f"{office.gateway.url}/v1/models", headers={"Authorization": f"Bearer {key}"}).json()
    assert [model["id"] for model in listed["data"]] == ["ok"]


@pytest.mark.parametrize("restrictions", [{"models": ["far/ok"]}, {"zones": ["cloud"]}], ids=str)
def test_a_key_for_some_targets(office: Office, restrictions: dict[str, Any]) -> None:
    key = limited(office, f"targets-{next(iter(restrictions))}", **restrictions)
    assert office.chat(key, "both").headers["x-outpost-target"] == "far/ok"
    assert office.chat(office.gateway.user_key, "both").headers["x-outpost-target"] == "lab/ok"
    refused = office.chat(key, "ok")
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
    assert office.row(refused)["attempts"] == []


def test_a_key_for_some_addresses(office: Office) -> None:
    far, near = (
        limited(office, "far-away", addresses=["192.0.2.0/24"]),
        limited(office, "near", addresses=["127.0.0.1"]),
    )
    for headers in ({}, {"x_forwarded_for": "192.0.2.7"}, {"x_real_ip": "192.0.2.7"}):
        assert office.chat(far, **headers).status_code == 403
        assert office.chat(near, **headers).status_code == 200
    assert office.ask("GET", "/me", key=far).status_code == 403


def test_a_key_for_work_that_can_wait(office: Office) -> None:
    key = limited(office, "patient", priority="batch")
    for asked in ("interactive", "normal", "batch"):
        assert office.row(office.chat(key, x_outpost_priority=asked))["priority"] == "batch"
    assert office.row(office.chat(key))["priority"] == "batch"


# --- tenants ---


def test_an_admin_sees_only_their_organization(office: Office) -> None:
    acme = office.data("POST", "/organizations", {"name": "acme"})["id"]
    admin = office.data("POST", "/keys", {"name": "acme-admin", "role": "admin", "organization": "acme"})["key"]
    office.data("POST", "/teams", {"name": "red", "organization": "acme"})
    theirs = [office.chat(admin).headers["x-request-id"]]
    ours = [office.chat(office.gateway.user_key).headers["x-request-id"] for _ in range(30)]
    theirs += [office.chat(admin).headers["x-request-id"] for _ in range(2)]

    # A page is full although others asked in between.
    assert [row["id"] for row in office.data("GET", "/requests", key=admin, limit=3)] == theirs
    assert [row["id"] for row in office.data("GET", "/requests", key=admin, after_seq=0, limit=3)] == theirs
    assert office.ask("GET", f"/requests/{ours[0]}", key=admin).status_code == 404
    assert office.data("GET", f"/requests/{theirs[0]}", key=admin)["organization_id"] == acme
    assert {row["id"] for row in office.data("GET", "/requests", limit=1000)} >= {*ours, *theirs}
    rows = office.data("GET", "/usage", key=admin, by="organization,key")
    assert [(row["organization"], row["requests"]) for row in rows] == [(acme, 3)]
    assert {key["organization"] for key in office.data("GET", "/keys", key=admin)} == {acme}
    assert [team["name"] for team in office.data("GET", "/teams", key=admin)] == ["red"]
    assert [place["id"] for place in office.data("GET", "/organizations", key=admin)] == [acme]
    exported = office.ask("GET", "/export", key=admin)
    assert exported.status_code == 200
    assert {line["id"] for line in map(json.loads, exported.text.splitlines()) if "id" in line} & {*ours} == set()
    assert theirs[0] in exported.text
    for path in ("/ledger", "/ledger/verify", "/ledger/checkpoint", "/status"):
        assert office.ask("GET", path, key=admin).status_code == 403
    assert office.ask("POST", "/reload", key=admin).status_code == 403
    metrics = office.http.get(f"{office.gateway.operator_url}/metrics", headers={"Authorization": f"Bearer {admin}"})
    assert metrics.status_code == 403


# --- nonsense as keys ---


def database_of(office: Office) -> Path:
    return office.gateway.data_dir / "outpost.db"


def test_a_thousand_injections_as_keys(office: Office) -> None:
    made = office.data("POST", "/keys", {"name": "target", "role": "owner"}, key=owner(office))
    before = set(dump(database_of(office)))
    dice, wrong = random.Random(3), "op-" + "q" * 43
    taken: dict[str, list[float]] = {"injection": [], "wrong": []}
    paths = (f"{office.gateway.url}/v1/models", f"{office.gateway.operator_url}/admin/v1/keys")
    sent = 0
    for payload in payloads(1000):
        # What no header can hold is turned into something that one can; HTTP refuses the rest before anybody looks.
        text = "".join(c if c.isprintable() and c != "\ufffd" else "%00" for c in payload).strip() or "'"
        for kind, key in (("injection", text if dice.random() < 0.5 else made["key"] + text), ("wrong", wrong)):
            url, value = dice.choice(paths), f"Bearer {key}".encode("utf-8", "replace")
            begun = time.perf_counter()
            answer = office.http.get(url, headers={b"Authorization": value})
            taken[kind].append(time.perf_counter() - begun)
            assert answer.status_code == 401, payload
            assert made["key"] not in answer.text
        sent += 1
    assert sent == 1000
    after = set(dump(database_of(office)))
    assert before - after == set(), "something has changed"
    added = [line for line in after - before if "'refusal'" not in line and 'INTO "checkpoints"' not in line]
    assert added == []
    assert office.chat(made["key"]).status_code == 200
    odd, usual = (statistics.median(taken[kind]) for kind in ("injection", "wrong"))
    told = f"an injection {odd * 1e3:.2f} ms, a wrong key {usual * 1e3:.2f} ms"
    assert abs(odd - usual) < 0.25 * usual + 0.0005, told


def owner(office: Office) -> str:
    """The text of an owner's key, which only the command can make."""
    return str(office.cli("keys", "create", f"root-{time.time_ns()}", "--role", "owner")[0]["key"])


def test_keys_with_equal_beginnings(office: Office) -> None:
    """A key is all of its characters: no beginning, no ending, no other case of it counts."""
    made = office.data("POST", "/keys", {"name": "whole"})["key"]
    for wrong in (made[:-1], made + "A", made[:-1] + ("A" if made[-1] != "A" else "B"), made.swapcase(), made[:7]):
        assert office.chat(wrong).status_code == 401, wrong[:7]
    assert office.chat(made).status_code == 200


def test_the_ledger_of_all_this_is_sound(office: Office) -> None:
    report = office.data("GET", "/ledger/verify")
    assert (report["ok"], report["problems"]) == (True, []), report
    with closing(sqlite3.connect(database_of(office))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
