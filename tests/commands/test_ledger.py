"""`outpost ledger`, on the database alone and through a gateway's door."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from appliance.commands import database as commands_database
from appliance.commands import ledger, ledger_work
from appliance.commands.control import NotRunning
from appliance.data_dir import hold
from appliance.door.admin_ledger import LedgerDesk, operations
from appliance.door.operation import perform
from appliance.errors import BadRequest
from appliance.identity.principal import Principal
from appliance.records.checkpoints import Checkpointer
from appliance.records.database import Database
from appliance.records.ledger_export import verify_export
from appliance.records.notes import Checkpoint, PublicKey, Signer
from appliance.records.recorder import Recorder
from tests.records.test_verify import full

RECORDS = 12
ACTOR = Principal(key_id="key_1", key_name="k", role="auditor")


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(ledger.app, [str(a) for a in args])


async def write(folder: Path, first: int, last: int, sign: Callable[[int], bool]) -> None:
    database = await Database.open(folder / "outpost.db")
    recorder = Recorder(database)
    await recorder.start()
    checkpointer = await Checkpointer.open(recorder, database, folder)
    for number in range(first, last + 1):
        if number % 3 == 0:
            await recorder.write(lambda tx: tx.append("admin.key.create", {"object": "key_1"}))
        else:
            await recorder.submit(full(number))
        if sign(number):
            await checkpointer.make()
    await recorder.close()
    await database.close()


@pytest.fixture
def box(tmp_path: Path) -> Path:
    asyncio.run(write(tmp_path, 1, RECORDS, lambda number: number % 5 == 0))
    return tmp_path


def change(folder: Path, sql: str) -> None:
    connection = sqlite3.connect(folder / "outpost.db")
    connection.execute(sql)
    connection.commit()
    connection.close()


def test_a_sound_ledger_and_one_that_is_not(box: Path) -> None:
    result = run("verify", "--data-dir", box)
    assert result.exit_code == 0, result.output
    assert (
        "The ledger is sound: 12 records (1 to 12), 2 signed checkpoints, the last one of record 10." in result.stdout
    )
    assert "2 records behind the last checkpoint" in result.stdout

    change(box, "UPDATE exchanges SET cost_nanousd = 0 WHERE seq = 7")
    result = run("verify", "--data-dir", box)
    assert result.exit_code == 1
    assert "record 7: record 7 (exchange) is not what was written: its hash differs" in result.stdout
    assert "The first bad record is 7." in result.stdout
    report = json.loads(run("verify", "--json", "--data-dir", box).stdout)
    assert report["ok"] is False
    assert [problem["seq"] for problem in report["problems"]] == [7]


def test_an_export_is_verified_without_the_box(box: Path, tmp_path: Path) -> None:
    key, out = tmp_path / "ledger.pub", tmp_path / "ledger.jsonl"
    key.write_text(run("key", "--data-dir", box).stdout)
    assert PublicKey.parse(key.read_text()).text + "\n" == key.read_text()
    assert run("export", "--to", out, "--data-dir", box).exit_code == 0
    assert out.stat().st_mode & 0o777 == 0o600
    again = run("export", "--data-dir", box).stdout_bytes
    assert again.startswith(out.read_bytes())
    assert json.loads(again.removeprefix(out.read_bytes()))["kind"] == "admin.ledger.export"
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines[0] == {"anchor": {"seq": 0, "hash": "0" * 64}}
    assert [line["seq"] for line in lines if "seq" in line] == list(range(1, RECORDS + 2))
    assert sum("checkpoint" in line for line in lines) == 2
    for record in (line for line in lines if "seq" in line):
        assert record["body"]["seq"] == record["seq"]
        made = "exchange" if record["seq"] % 3 else "admin.key.create"
        assert record["kind"] == (made if record["seq"] <= RECORDS else "admin.ledger.export")
    said = lines[-1]["body"]
    assert (said["object"], said["after"]["after"], said["actor"]["key"]) == ("ledger", 0, "command-line")

    elsewhere = ("--from", out, "--public-key", key)
    assert "sound: 13 records" in run("verify", *elsewhere).stdout
    whole = out.read_text()

    def altered(text: str) -> str:
        out.write_text(text)
        result = run("verify", *elsewhere)
        assert result.exit_code == 1, result.output
        return result.stdout + result.stderr

    assert "first bad record is 4" in altered(whole.replace('"id":"req_4"', '"id":"req_x"'))
    assert "first bad record is 2" in altered("".join(line for line in lines_of(whole) if '"seq":2,' not in line[:9]))
    assert "first bad record is 9" in altered("".join(lines_of(whole)[:10] + lines_of(whole)[-1:]))
    assert "first bad record is 11" in altered(whole.replace("\\n10\\n", "\\n11\\n"))
    assert "line 3 is not a line of an export" in altered(whole.replace('"seq":2,"kind"', '"seq":2,"kin'))
    assert "does not begin with a line" in altered(whole[whole.index("\n") + 1 :])
    assert "line 1 is not a line" in altered("")
    other = Signer(bytes(32)).public.text
    key.write_text(other)
    assert "not genuine" in altered(whole)
    key.write_text("nonsense")
    assert "--public-key: a public key is one line" in altered(whole)


def lines_of(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def test_a_part_of_the_ledger_can_be_exported_and_verified(box: Path, tmp_path: Path) -> None:
    out = tmp_path / "part.jsonl"
    assert run("export", "--after", "6", "--to", out, "--data-dir", box).exit_code == 0
    result = run("verify", "--from", out, "--data-dir", box)
    assert result.exit_code == 0, result.output
    assert "7 records (7 to 13)" in result.stdout
    assert "It begins after record 6." in result.stdout
    result = run("export", "--after", "99", "--data-dir", box)
    assert result.exit_code == 1
    assert "after: there is no record 99" in result.stderr


def test_a_checkpoint_kept_elsewhere_finds_out_a_set_back_box(box: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (box / "outpost.db", box / "ledger" / "checkpoints.txt")}
    asyncio.run(write(box, RECORDS + 1, RECORDS + 4, lambda _: False))
    made = run("checkpoint", "--data-dir", box)
    assert made.exit_code == 0, made.output
    kept = tmp_path / "kept.txt"
    kept.write_text(made.stdout)
    assert run("verify", "--checkpoint", kept, "--data-dir", box).exit_code == 0
    for path, data in before.items():
        path.write_bytes(data)
    for suffix in ("-wal", "-shm"):
        (box / f"outpost.db{suffix}").unlink(missing_ok=True)
    assert run("verify", "--data-dir", box).exit_code == 0
    result = run("verify", "--checkpoint", kept, "--data-dir", box)
    assert result.exit_code == 1
    assert "The first bad record is 13." in result.stdout
    assert "the checkpoint that was given has a checkpoint of record 16" in result.stdout


@pytest.mark.parametrize("apart", ["", "\n", "\n\n\n"])
def test_checkpoints_that_were_kept_one_behind_the_other_are_all_compared(
    apart: str, box: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text(run("checkpoint", "--data-dir", box).stdout)
    asyncio.run(write(box, RECORDS + 1, RECORDS + 2, lambda _: False))
    with kept.open("a") as file:
        file.write(apart + run("checkpoint", "--data-dir", box).stdout)
    assert len(ledger_work.checkpoints_of(kept)) == 2
    result = run("verify", "--checkpoint", kept, "--data-dir", box)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no checkpoint"),
        ("\n", "no checkpoint"),
        ("# A page\n\nof something else\n", "no checkpoint"),
        (Signer(bytes(32)).public.text + "\n", "no checkpoint"),
        (Signer(bytes(32)).sign(Checkpoint(1, bytes(32))) + "\nrubbish\n", "something that is no checkpoint"),
    ],
)
def test_a_file_without_a_checkpoint_says_nothing_of_the_ledger(
    box: Path, tmp_path: Path, text: str, what: str
) -> None:
    """An empty one is what an `outpost ledger checkpoint > FILE` leaves that failed."""
    kept = tmp_path / "kept.txt"
    kept.write_text(text)
    result = run("verify", "--checkpoint", kept, "--data-dir", box)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"kept.txt holds {what}; `" in result.stderr
    assert "ledger checkpoint` prints one" in result.stderr


def test_checkpoint_signs_once_and_needs_the_box_for_itself(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands_database, "PATIENCE_S", 0.0)
    first = json.loads(run("checkpoint", "--json", "--data-dir", box).stdout)["data"]
    assert first["seq"] == RECORDS
    assert PublicKey.parse(first["key"]).checkpoint(first["note"]).hash.hex() == first["hash"]
    assert json.loads(run("checkpoint", "--json", "--data-dir", box).stdout)["data"] == first
    with hold(box):
        result = run("checkpoint", "--data-dir", box)
        assert result.exit_code == 1
        assert "is at work" in result.stderr


@pytest.mark.parametrize("args", [("verify",), ("export",), ("checkpoint",), ("key",)])
def test_where_nothing_is_nothing_is_made(tmp_path: Path, args: tuple[str, ...]) -> None:
    result = run(*args, "--data-dir", tmp_path / "none")
    assert result.exit_code == 1
    assert result.stderr.startswith("outpost: there is no")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_a_file_that_is_not_there_is_named(box: Path, tmp_path: Path) -> None:
    for args in (("verify", "--from", tmp_path / "no"), ("verify", "--checkpoint", tmp_path / "no")):
        result = run(*args, "--data-dir", box)
        assert result.exit_code == 1
        assert "cannot be read" in result.stderr


def test_through_a_gateway(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    class Control:
        def __init__(self, path: Path) -> None:
            assert path == box / "run" / "control.sock"

        def call(self, method: str, target: str) -> list[dict[str, Any]]:
            asked.append((method, target))
            return [{"seq": 1, "hash": "", "note": "a note\n", "key": ""}]

    monkeypatch.setattr(ledger_work, "Control", Control)
    assert run("checkpoint", "--data-dir", box).stdout == "a note\n"
    assert asked == [("GET", "/admin/v1/ledger/checkpoint")]
    assert NotRunning.code == "not_running"


# --- the operator's API ---


async def test_the_operators_api(tmp_path: Path) -> None:
    await write(tmp_path, 1, RECORDS, lambda number: number == 5)
    database = await Database.open(tmp_path / "outpost.db")
    recorder = Recorder(database)
    await recorder.start()
    checkpointer = await Checkpointer.open(recorder, database, tmp_path)
    await checkpointer.start()
    table = operations(LedgerDesk(database, checkpointer, tmp_path))

    async def ask(path: str, **query: str) -> Any:
        return json.loads(await perform(table, ACTOR, "GET", f"/admin/v1/ledger{path}", query))["data"]

    assert {operation.permission for operation in table} == {"ledger.read"}
    newest = await ask("", limit="3")
    assert [row["seq"] for row in newest] == [10, 11, 12]
    assert newest[0]["body"]["id"] == "req_10"
    assert len(newest[0]["hash"]) == 64
    assert [row["seq"] for row in await ask("", after_seq="4", limit="3")] == [5, 6, 7]
    assert [row["seq"] for row in await ask("", kind="admin.key.create", limit="2")] == [9, 12]
    assert [row["seq"] for row in await ask("", kind="exchange", after_seq="2", limit="2")] == [4, 5]
    assert await ask("", kind="nothing") == []
    made = await ask("/checkpoint")
    assert made["seq"] == RECORDS
    assert PublicKey.parse(made["key"]).checkpoint(made["note"]).seq == RECORDS
    report = await ask("/verify")
    assert (report["ok"], report["records"], report["signed_through"]) == (True, RECORDS, RECORDS)
    for query in ({"after_seq": "-1"}, {"kind": "é"}, {"limit": "0"}, {"since": "1"}):
        with pytest.raises(BadRequest):
            await ask("", **query)
    await checkpointer.close()
    await recorder.close()
    await database.close()


def test_an_export_with_stray_lines_is_refused() -> None:
    key = Signer(bytes(32)).public
    anchor = b'{"anchor":{"seq":0,"hash":"' + b"0" * 64 + b'"}}\n'
    for line in (b"{}", b'{"seq":1}', b"[]", b'{"seq":1,"kind":"x","more":1}', b"\xff"):
        with pytest.raises(BadRequest, match="line 2"):
            verify_export([anchor, line], key, named="it")
