"""`outpost erase`, `outpost content` and `outpost export` on a data folder without a gateway."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import stat
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from appliance import data_dir
from appliance.commands import content, database, leaving
from appliance.commands.control import ControlError
from appliance.commands.export import export
from appliance.identity.keys import hkdf
from appliance.identity.secret import load_secret
from appliance.records.content import Keeper
from appliance.records.database import Database
from appliance.records.recorder import Recorder
from appliance.records.rows import ExchangeRow
from appliance.records.subject_keys import WRAPPING_PURPOSE
from tests.records.ledger_walk import walk

RUN = CliRunner()
app = typer.Typer()
app.command("export")(export)
app.command("erase")(content.erase_subject)
app.add_typer(content.app, name="content")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three exchanges of two subjects, with contents."""
    asyncio.run(_fill(tmp_path / "data"))
    return tmp_path / "data"


async def _fill(folder: Path) -> None:
    database = await Database.open(folder / "outpost.db")
    recorder = Recorder(database)
    await recorder.start()
    keeper = Keeper(database, hkdf(load_secret(folder), WRAPPING_PURPOSE))
    for number, subject in enumerate(("key_a", "key_b", "key_a"), 1):
        kept = await keeper.keep(subject, f"req_{number}", "full", {"request": b"hello"})
        assert kept is not None
        await recorder.write(keeper.insert_content(kept))
        await recorder.submit(
            ExchangeRow(id=f"req_{number}", kind="chat", started_at=1_700_000_000.0 + number, key_id=subject)
        )
    await recorder.close()
    await database.close()


async def _left(folder: Path) -> list[int]:
    database = await Database.open(folder / "outpost.db")
    keeper = Keeper(database, hkdf(load_secret(folder), WRAPPING_PURPOSE))
    counts = [len(await keeper.read(f"req_{number}")) for number in (1, 2, 3)]
    await walk(database)
    await database.close()
    return counts


def test_erase_asks_first(folder: Path) -> None:
    result = RUN.invoke(app, ["erase", "--subject", "key_a", "--data-dir", str(folder)], input="n\n")
    assert result.exit_code == 1
    assert asyncio.run(_left(folder)) == [1, 1, 1]
    result = RUN.invoke(app, ["erase", "--subject", "key_a", "--data-dir", str(folder)], input="y\n")
    assert result.exit_code == 0
    assert "key_a is erased: 2 texts, their key. It stands on the ledger as record 4." in result.stdout
    assert asyncio.run(_left(folder)) == [0, 1, 0]


def test_erase_as_json(folder: Path) -> None:
    result = RUN.invoke(app, ["erase", "--subject", "key_b", "--yes", "--json", "--data-dir", str(folder)])
    assert json.loads(result.stdout)["data"] == {
        "subject": "key_b", "contents": 1, "key": True, "person": False, "seq": 4, "remarks": [], "responses": 0,
    }  # fmt: skip


def test_erase_of_nobody_and_of_nothing(folder: Path, tmp_path: Path) -> None:
    result = RUN.invoke(app, ["erase", "--subject", "user_x", "--yes", "--data-dir", str(folder)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Nothing is kept of a subject 'user_x'" in result.stderr
    assert "No name is taken" in result.stderr
    result = RUN.invoke(app, ["erase", "--subject", "user_x", "--yes", "--data-dir", str(tmp_path / "none")])
    assert "there is no gateway's data in" in result.stderr


def test_erase_keeps_out_of_a_folder_that_a_gateway_holds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "PATIENCE_S", 0.0)
    with data_dir.hold(folder):
        result = RUN.invoke(app, ["erase", "--subject", "key_a", "--yes", "--data-dir", str(folder)])
    assert result.exit_code == 1
    assert f"another process ({os.getpid()}) is at work in {folder}" in result.stderr
    assert asyncio.run(_left(folder)) == [1, 1, 1]


def test_content_needs_the_gateway(folder: Path) -> None:
    result = RUN.invoke(app, ["content", "show", "req_1", "--data-dir", str(folder)])
    assert result.exit_code == 1
    assert "No gateway listens" in result.stderr


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], [1, 2, 3, 4]),
        (["--after", "1"], [2, 3, 4]),
        (["--since", "1700000002"], [2, 3, 4]),
        (["--since", "2023-11-14T22:13:22Z", "--until", "1700000003"], [2]),
        (["--since", "1h"], [4]),
    ],
)
def test_export_to_the_standard_output(folder: Path, options: list[str], wanted: list[int]) -> None:
    """Record 4 says that there was an export."""
    result = RUN.invoke(app, ["export", *options, "--data-dir", str(folder)])
    assert result.exit_code == 0
    assert [json.loads(line)["seq"] for line in result.stdout.splitlines()] == wanted


def test_export_to_a_file(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "ledger.csv"
    path.write_text("old")
    result = RUN.invoke(app, ["export", "--format", "csv", "--to", str(path), "--data-dir", str(folder)])
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "up to record 4. Go on later with --after 4." in result.stderr
    assert [row["id"] for row in csv.DictReader(io.StringIO(path.read_text()))] == ["req_1", "req_2", "req_3", ""]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {each.name for each in tmp_path.iterdir()} == {"data", "ledger.csv"}


def test_who_exports_is_on_the_ledger_first(folder: Path) -> None:
    options = ["--format", "jsonl", "--after", "3", "--since", "2023-11-14", "--until", "2100-01-01"]
    result = RUN.invoke(app, ["export", *options, "--data-dir", str(folder)])
    (event,) = [json.loads(line) for line in result.stdout.splitlines()]
    assert (event["seq"], event["kind"]) == (4, "admin.ledger.export")
    assert event["body"] == {
        "actor": {"key": "command-line", "role": "owner", "organization": "org_default"},
        "object": "jsonl",
        "after": {"after": 3, "since_us": 1_699_920_000_000_000, "until_us": 4_102_444_800_000_000},
    }
    assert asyncio.run(_left(folder)) == [1, 1, 1], "and the chain holds"


def test_what_cannot_be_put_on_the_ledger_is_exported_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "PATIENCE_S", 0.0)
    with data_dir.hold(folder):
        result = RUN.invoke(app, ["export", "--data-dir", str(folder)])
    assert result.exit_code == 0
    assert [json.loads(line)["seq"] for line in result.stdout.splitlines()] == [1, 2, 3]
    assert result.stderr.startswith("Note: that records leave could not be put on the ledger: another process")


def test_beside_a_gateway_nothing_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the one writer. What it refuses to say, as in a moment of overload, does not make this command another."""
    asked: list[tuple[str, str]] = []

    class Control:
        def __init__(self, path: Path) -> None: ...

        def call(self, method: str, target: str) -> None:
            asked.append((method, target))
            raise ControlError("busy")

    monkeypatch.setattr(leaving, "Control", Control)
    result = RUN.invoke(app, ["export", "--data-dir", str(folder)])
    assert [json.loads(line)["seq"] for line in result.stdout.splitlines()] == [1, 2, 3]
    assert (result.stderr, asked) == ("", [("GET", "/admin/v1/status")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--since", "soon"], "--since: expected a date"),
        (["--to", "/nowhere/at/all"], "cannot be written: No such file"),
    ],
)
def test_export_says_what_is_wrong(folder: Path, options: list[str], message: str) -> None:
    result = RUN.invoke(app, ["export", *options, "--data-dir", str(folder)])
    assert result.exit_code == 1
    assert message in result.stderr
