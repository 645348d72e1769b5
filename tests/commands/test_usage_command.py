"""`outpost usage report` where no gateway runs: what it sums, how it prints it, and what it says to bad options."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from appliance.commands import people, usage
from appliance.records.database import Database
from appliance.records.recorder import Recorder
from appliance.records.rows import ExchangeRow
from appliance.records.usage_rows import COUNTS


def run(folder: Path, *args: str) -> Result:
    return CliRunner().invoke(usage.app, ["report", "--data-dir", str(folder), *args])


def row(number: int, **fields: object) -> ExchangeRow:
    base = {
        "kind": "chat.completions",
        "started_at": time.time(),
        "key_name": "ci",
        "route": "chat",
        "prompt_tokens": 5,
    }
    return ExchangeRow(id=f"r{number}", **{**base, **fields})  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The data of a gateway that has answered three requests, one of them long ago."""

    async def fill() -> None:
        database = await Database.open(tmp_path / "outpost.db")
        recorder = Recorder(database)
        await recorder.start()
        rows = [
            row(1, cost_nanousd=1_500_000_000, tags=["a"]),
            row(2, outcome="upstream_error", tags=["a", "b"]),
            row(3, started_at=1_700_000_000.0, key_name="old"),
        ]
        await asyncio.gather(*(recorder.submit(each) for each in rows))
        await recorder.close()
        await database.close()

    asyncio.run(fill())
    return tmp_path


def test_a_table_of_this_month(folder: Path) -> None:
    found = run(folder, "--by", "key,tag")
    assert found.exit_code == 0
    head, *lines = found.stdout.splitlines()
    assert head.split()[:4] == ["KEY", "TAG", "REQUESTS", "FAILED"]
    assert [line.split() for line in lines] == [
        ["ci", "a", "2", "1", "10", "0", "0", "0", "1.5"],
        ["ci", "b", "1", "1", "5", "0", "0", "0", "0"],
    ]


def test_a_team_is_shown_with_its_name(folder: Path) -> None:
    """Beside its id in the table; behind everything else in CSV, where scripts may count columns."""
    (made,) = json.loads(
        CliRunner().invoke(people.teams, ["create", "lab", "--json", "--data-dir", str(folder)]).stdout
    )["data"]

    async def ask() -> None:
        database = await Database.open(folder / "outpost.db")
        recorder = Recorder(database)
        await recorder.start()
        await recorder.submit(row(9, team_id=made["id"]))
        await recorder.close()
        await database.close()

    asyncio.run(ask())
    head, *lines = run(folder, "--by", "team").stdout.splitlines()
    assert head.split()[:3] == ["TEAM", "TEAM_NAME", "REQUESTS"]
    assert [line.split()[:3] for line in lines] == [["-", "-", "2"], [made["id"], "lab", "1"]]
    head, *lines = run(folder, "--by", "team", "--format", "csv").stdout.splitlines()
    assert (head[:14], head[-10:]) == ("team,requests,", ",team_name")
    assert lines[1].startswith(f"{made['id']},1,")
    assert lines[1].endswith(",lab")


def test_a_gateway_from_before_the_update_gives_no_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def __init__(self, path: Path, *, timeout_s: float) -> None: ...

        def call(self, *_: str, **__: object) -> list[dict[str, object]]:
            counts = dict.fromkeys(COUNTS, 0)
            return [{"team": "team_1", **counts}]

    monkeypatch.setattr(usage, "Control", Old)
    assert run(folder, "--by", "team").stdout.splitlines()[1].split()[:2] == ["team_1", "team_1"]
    assert run(folder, "--by", "team", "--format", "csv").stdout.splitlines()[1].endswith(",team_1")


def test_another_time(folder: Path) -> None:
    found = run(folder, "--by", "day", "--since", "2023-11-14", "--until", "2023-11-15", "--format", "json")
    (only,) = json.loads(found.stdout)["data"]
    assert (only["day"], only["requests"], only["cost_usd"]) == ("2023-11-14", 1, "0")
    assert run(folder, "--since", "2023-11-15", "--until", "2023-11-16", "--format", "jsonl").stdout == ""
    within = run(folder, "--since", "2023-11-14T22:13:20Z", "--until", "2023-11-14T22:13:21Z", "--format", "jsonl")
    assert json.loads(within.stdout)["requests"] == 1
    assert json.loads(run(folder, "--by", "key", "--since", "7d", "--format", "jsonl").stdout)["key"] == "ci"


def test_the_order_that_was_asked_for(folder: Path) -> None:
    found = run(folder, "--by", "tag,key,day", "--since", "2023-11-01")
    head, *lines = found.stdout.splitlines()
    assert head.split()[:3] == ["TAG", "KEY", "DAY"]
    assert [line.split()[:2] for line in lines] == [["-", "old"], ["a", "ci"], ["b", "ci"]]


def test_nothing_to_report(tmp_path: Path, folder: Path) -> None:
    nothing = run(folder, "--since", "2020-01-01", "--until", "2020-01-02")
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert "no requests in this time" in nothing.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--by", "teams"), "by: there is no 'teams'; choose from organization, team"),
        (("--since", "last week"), "since: expected a date, a time, unix seconds or a time ago; write e.g. 2026-11-01"),
        (("--since", "2026-02-02", "--until", "2026-02-02"), "until: must be later than since"),
    ],
)
def test_bad_options(folder: Path, options: tuple[str, ...], told: str) -> None:
    found = run(folder, *options)
    assert (found.exit_code, found.stdout) == (1, "")
    assert found.stderr.startswith(f"outpost: {told}")


def test_a_wrong_folder_is_no_empty_report(tmp_path: Path) -> None:
    """Nobody who mistypes the folder may take "nothing was used" for an answer."""
    found = run(tmp_path / "nowhere", "--format", "json")
    assert (found.exit_code, found.stdout) == (1, "")
    assert "there is no gateway's data in" in found.stderr
