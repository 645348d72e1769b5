"""`outpost organizations|teams|users|service-accounts`, in the database and through a gateway's socket."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from appliance import data_dir
from appliance.commands import database, keys, people
from tests.door.desk import Desk, open_desk

APPS = {
    "organizations": people.organizations,
    "teams": people.teams,
    "users": people.users,
    "service-accounts": people.service_accounts,
    "keys": keys.app,
}


def run(group: str, *args: str | Path) -> Result:
    return CliRunner().invoke(APPS[group], [str(a) for a in args])


def data(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["data"]
    assert isinstance(found, list)
    return found


class Served:
    """A real operator's door on a control socket, on a loop of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ready, self._done = threading.Event(), threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self.desk: Desk

    def __enter__(self) -> Served:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join(30)
        self._loop.close()

    async def _serve(self) -> None:
        from appliance.door.listen import Listener
        from appliance.door.serve import CONTROL, build_operator
        from appliance.door.terms import Terms

        async with open_desk(self._folder) as desk:
            terms = Terms()
            door = build_operator(desk.operator, terms, trusted=CONTROL)
            listener = Listener(door, terms)
            (self._folder / "run").mkdir()
            await listener.unix(self._folder / "run" / "control.sock")
            self.desk = desk
            self._ready.set()
            await asyncio.to_thread(self._done.wait)
            await listener.close(0.2)


@pytest.fixture(params=["database", "gateway"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A box, without a gateway and with one: the commands do the same."""
    if request.param == "database":
        assert run("organizations", "create", "acme", "--new", "--data-dir", tmp_path).exit_code == 0
        yield tmp_path
        return
    with Served(tmp_path):
        yield tmp_path


@pytest.mark.parametrize(
    ("group", "options"),
    [("organizations", ()), ("teams", ()), ("users", ("--role", "operator")), ("service-accounts", ())],
)
def test_a_thing_from_its_making_to_its_end(folder: Path, group: str, options: tuple[str, ...]) -> None:
    at = ("--data-dir", folder)
    said = run(group, "create", "first", *options, *at)
    assert said.exit_code == 0, said.output
    where = "a gateway is running" if (folder / "run").exists() else "no gateway is running"
    assert where in said.stdout
    (made,) = [thing for thing in data(run(group, "list", "--json", *at)) if thing["name"] == "first"]
    assert said.stdout.startswith(made["id"])
    assert data(run(group, "show", "first", "--json", *at)) == [made]
    assert run(group, "rename", "first", "zweite Größe", *at).exit_code == 0
    assert "disabled" in run(group, "disable", "zweite Größe", *at).stdout
    listed = run(group, "list", *at).stdout
    assert listed.splitlines()[0].startswith("ID ")
    assert "disabled 2" in listed
    (enabled,) = data(run(group, "enable", made["id"], "--json", *at))
    assert enabled["disabled_at"] is None
    refused = run(group, "delete", made["id"], *at)
    assert (refused.exit_code, "disable it first" in refused.stderr) == (1, True)
    run(group, "disable", made["id"], *at)
    assert "is deleted" in run(group, "delete", made["id"], *at).stdout
    gone = run(group, "show", made["id"], *at)
    assert (gone.exit_code, gone.stderr.count("\n")) == (1, 1)
    assert "Traceback" not in gone.output


def test_teams_people_and_their_keys(folder: Path) -> None:
    at = ("--json", "--data-dir", folder)
    (team,) = data(run("teams", "create", "lab", "--organization", "acme", *at))
    (user,) = data(run("users", "create", "Ada", "--role", "operator", "--organization", "acme", *at))
    (bot,) = data(run("service-accounts", "create", "bot", "--organization", "acme", "--team", "lab", *at))
    assert bot["team"] == team["id"]
    (member,) = data(run("teams", "add", "lab", "Ada", *at))
    assert (member["team"], member["user"]) == (team["id"], user["id"])
    assert [person["name"] for person in data(run("teams", "members", "lab", *at))] == ["Ada"]
    (token,) = data(run("keys", "create", "hers", "--user", "Ada", "--team", "lab", *at))
    assert (token["organization"], token["team"], token["user"]) == (team["organization"], team["id"], user["id"])
    (key,) = data(run("keys", "create", "its", "--service-account", "bot", *at))
    assert (key["service_account"], key["team"], key["role"]) == (bot["id"], team["id"], "member")
    (raised,) = data(run("users", "role", "Ada", "admin", *at))
    assert raised["role"] == "admin"
    (lowered,) = data(run("service-accounts", "role", "bot", "auditor", *at))
    assert lowered["role"] == "auditor"
    assert data(run("keys", "list", "--user", user["id"], *at))[0]["id"] == token["id"]
    assert len(data(run("teams", "list", "--organization", team["organization"], *at))) == 1
    run("teams", "remove", "lab", "Ada", *at)
    assert data(run("teams", "members", "lab", *at)) == []


def test_looking_at_a_box_that_never_ran_makes_nothing(tmp_path: Path) -> None:
    for group in ("organizations", "teams", "users", "service-accounts"):
        for words in (("list", "--json"), ("show", "name"), ("create", "name")):
            refused = run(group, *words, "--data-dir", tmp_path / "x")
            assert (refused.exit_code, refused.stdout) == (1, "")
            assert "there is no gateway's data in" in refused.stderr
    assert "there is no gateway's data" in run("teams", "members", "name", "--data-dir", tmp_path / "x").stderr
    assert not (tmp_path / "x").exists()


def test_a_gateway_that_is_about_to_start_is_not_written_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("teams", "create", "lab", "--new", "--data-dir", tmp_path)
    monkeypatch.setattr(database, "PATIENCE_S", 0.1)
    with data_dir.hold(tmp_path):
        refused = run("teams", "create", "two", "--data-dir", tmp_path)
        assert (refused.exit_code, "is at work" in refused.stderr) == (1, True)
        assert len(data(run("teams", "list", "--json", "--data-dir", tmp_path))) == 1, "looking disturbs nobody"


def test_commands_beside_each_other_take_turns(tmp_path: Path) -> None:
    run("teams", "create", "lab", "--new", "--data-dir", tmp_path)
    commands = [
        subprocess.Popen(
            [sys.executable, "-m", "appliance.cli", "teams", "create", f"t{number}", "--data-dir", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for command in commands:
        _, errors = command.communicate(timeout=60)
        assert command.returncode == 0, errors
    assert len(data(run("teams", "list", "--json", "--data-dir", tmp_path))) == 3
