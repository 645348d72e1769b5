"""`outpost limits`, in the database and through a gateway's socket."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from appliance import data_dir
from appliance.commands import database as commands_database
from appliance.commands import limits
from appliance.door.admin_limits import operations
from appliance.door.door import Door
from appliance.door.listen import Listener
from appliance.door.operation import endpoint
from appliance.door.render import problem
from appliance.door.serve import CONTROL
from appliance.door.terms import Terms
from appliance.identity.authenticator import Authenticator
from appliance.ids import new_id
from appliance.limits.book import Book, Reservation
from appliance.limits.clock import Now
from appliance.limits.keeper import LimitKeeper
from appliance.limits.rules import Context, Demand
from appliance.records.database import Database
from appliance.records.recorder import Recorder
from appliance.settings import Settings


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(limits.app, [str(a) for a in args])


def data(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["data"]
    assert isinstance(found, list)
    return found


def test_a_limit_from_its_making_to_its_end(folder: Path) -> None:
    made = run(
        "create", "budget", "--scope", "team", "--match", "team=a", "--match", "team=b", "--match", "route=chat",
        "--usd", "200/month", "--usd", "20/day", "--requests", "600/minute", "--in-flight", "32", "--data-dir", folder,
    )  # fmt: skip
    # With --data-dir alone no settings are read, so that there is no route to name.
    assert made.exit_code == 1
    assert "match.route: there is no route 'chat'" in made.stderr
    made = run(
        "create", "budget", "--scope", "team", "--match", "team=a", "--match", "team=b",
        "--usd", "200/month", "--usd", "20/day", "--requests", "600/minute", "--in-flight", "32", "--data-dir", folder,
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    assert "Limit budget (limit_" in made.stdout
    assert "no gateway is running" in made.stdout
    (shown,) = data(run("list", "--json", "--data-dir", folder))
    assert (shown["usd"], shown["match"], shown["in_flight"]) == (["200/month", "20/day"], {"team": ["a", "b"]}, 32)
    line = run("list", "--data-dir", folder).stdout.splitlines()[1]
    assert "team a or b" in line
    assert "600 requests/minute, 200 usd/month, 20 usd/day, 32 in flight" in line
    one = run("show", "budget", "--data-dir", folder)
    assert "for each team of team a or b" in one.stdout
    assert "only known while a gateway runs" in one.stderr
    assert "is deleted" in run("delete", "budget", "--data-dir", folder).stdout
    assert data(run("list", "--json", "--data-dir", folder)) == []
    gone = run("delete", "budget", "--data-dir", folder)
    assert gone.exit_code == 1
    assert "There is no limit with the id or name 'budget'" in gone.stderr


@pytest.mark.parametrize(
    ("scope", "match", "says"),
    [
        ("box", [], "for the whole box: 5 requests/day"),
        ("box", ["--match", "team=a"], "for all requests of team a together: 5 requests/day"),
        ("service_account", [], "for each service account: 5 requests/day"),
        ("key", ["--match", "team=a"], "for each key of team a: 5 requests/day"),
    ],
)
def test_what_shares_a_counter_is_told(folder: Path, scope: str, match: list[str], says: str) -> None:
    run("create", "mine", "--scope", scope, *match, "--requests", "5/day", "--data-dir", folder)
    assert says in run("show", "mine", "--data-dir", folder).stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--requests", "5/fortnight"], "'fortnight' is not a period"),
        (["--match", "colour=red", "--requests", "5/day"], "write WHAT=NAME with one of organization, team"),
        (["--match", "team", "--requests", "5/day"], "write WHAT=NAME"),
        ([], "limits nothing"),
    ],
)
def test_bad_wishes_are_told(folder: Path, args: list[str], says: str) -> None:
    result = run("create", "--scope", "team", *args, "--data-dir", folder)
    assert result.exit_code == 1
    assert says in result.stderr


def test_the_files_limits_are_shown_and_kept(tmp_path: Path) -> None:
    config = tmp_path / "outpost.yaml"
    config.write_text(f"data_dir: {tmp_path / 'data'}\nlimits: [{{scope: box, requests: 9/day}}]\n")
    assert [(each["name"], each["source"]) for each in data(run("list", "--json", "-c", config))] == [
        ("box", "settings")
    ]
    for word in ("show", "delete"):
        refused = run(word, "box", "-c", config)
        assert (refused.exit_code, "there is no gateway's data" in refused.stderr) == (1, True)
    assert not (tmp_path / "data").exists()


def test_nothing_is_changed_beside_a_process_that_holds_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands_database, "PATIENCE_S", 0.0)
    with data_dir.hold(folder):
        result = run("create", "--scope", "box", "--requests", "5/day", "--data-dir", folder)
    assert result.exit_code == 1
    assert "is at work" in result.stderr


class Nobody:
    def identify(self, presented: str, address: str | None = None) -> None:
        return None


class Clock:
    wall = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


@contextmanager
def served(folder: Path) -> Iterator[LimitKeeper]:
    """A gateway's control socket with these operations, on a loop of its own."""
    ready, done = threading.Event(), threading.Event()
    keepers: list[LimitKeeper] = []

    async def serve() -> None:
        now = Now(1_700_000_000.0, 5.0)
        database = await Database.open(folder / "outpost.db")
        recorder = Recorder(database)
        await recorder.start()
        keeper = LimitKeeper(database, recorder, Book([], now), lambda: now)
        await keeper.load(Settings())
        terms = Terms()
        door = Door(
            [endpoint(each, terms) for each in operations(keeper)],
            authenticator=Authenticator(Nobody(), None, clock=time.time),  # type: ignore[arg-type]  # the socket is trusted
            render=problem,
            clock=Clock(),
            new_id=new_id,
            terms=terms,
            trusted=CONTROL,
        )
        listener = Listener(door, terms)
        (folder / "run").mkdir()
        await listener.unix(folder / "run" / "control.sock")
        keepers.append(keeper)
        ready.set()
        await asyncio.to_thread(done.wait, 60)
        await listener.close(0.2)
        await recorder.close()
        await database.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(30)
        yield keepers[0]
    finally:
        done.set()
        thread.join(30)


def test_through_a_running_gateway_it_bites_at_once_and_usage_is_shown(folder: Path) -> None:
    with served(folder) as keeper:
        made = run("create", "--scope", "team", "--usd", "1.5/day", "--in-flight", "3", "--data-dir", folder)
        assert "where a gateway is running" in made.stdout, made.output
        held = keeper.book.reserve(Context(team="t1"), Demand(1, 1, 1_250_000_000), Now(1_700_000_000.0, 5.0))
        assert isinstance(held, Reservation)
        shown = run("show", "team", "--data-dir", folder)
        lines = [line.split() for line in shown.stdout.splitlines()]
        assert lines[-2][:5] == ["t1", "usd/day", "0", "1.25", "0.25"]
        assert lines[-2][5:] == ["1", "h", "47", "min"]
        assert lines[-1][:5] == ["t1", "in_flight", "0", "1", "2"]
        (as_json,) = data(run("show", "team", "--json", "--data-dir", folder))
        assert as_json["usage"][0]["remaining"] == "0.25"
        refused = run("create", "--scope", "team", "--usd", "1/day", "--data-dir", folder)
        assert "there is a limit named 'team' already" in refused.stderr
        assert "is deleted" in run("delete", "team", "--data-dir", folder).stdout
        assert keeper.book.rules == ()
