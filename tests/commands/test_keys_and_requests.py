"""`outpost keys` and `outpost requests`, on the database alone and through a gateway's socket."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from appliance.commands import asking, keys, requests
from appliance.commands.control import Control, ControlError, NotRunning
from appliance.commands.place import Place
from appliance.commands.terminal import moment, seconds, table, visible
from appliance.errors import OutpostError
from appliance.records.database import Database
from appliance.records.rows import ExchangeRow
from appliance.records.writer import RowWriter
from tests.fakes.keys import is_key


def run(app: Any, *args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args])


def data(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["data"]
    assert isinstance(found, list)
    return found


# --- without a gateway ---


def test_a_key_from_its_making_to_its_end(tmp_path: Path) -> None:
    made = run(keys.app, "create", "app", "--role", "admin", "--new", "--data-dir", tmp_path)
    assert made.exit_code == 0
    assert is_key(made.stdout.strip())
    assert "not shown again" in made.stderr
    (again,) = data(run(keys.app, "create", "two", "--json", "--data-dir", tmp_path))
    assert (again["name"], again["role"], again["prefix"]) == ("two", "member", again["key"][:7])

    shown = data(run(keys.app, "list", "--json", "--data-dir", tmp_path))
    assert [(k["name"], k["role"], k["revoked_at"]) for k in shown] == [("app", "admin", None), ("two", "member", None)]
    assert not any("key" in k for k in shown)

    ended = run(keys.app, "revoke", "app", "--data-dir", tmp_path)
    assert "is revoked" in ended.stdout
    table = run(keys.app, "list", "--data-dir", tmp_path).stdout
    assert "app" in table
    assert made.stdout.strip() not in table


@pytest.mark.parametrize("count", [4, 5])
def test_a_list_is_whole_however_many_pages_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    names = [f"key-{number}" for number in range(count)]
    for name in names:
        assert run(keys.app, "create", name, "--new", "--data-dir", tmp_path).exit_code == 0
    monkeypatch.setattr(asking, "PAGE", 2)
    assert [each["name"] for each in data(run(keys.app, "list", "--json", "--data-dir", tmp_path))] == names


def test_mistakes_are_one_line_and_status_1(tmp_path: Path) -> None:
    run(keys.app, "create", "app", "--new", "--data-dir", tmp_path)
    for args in (
        ("create", "app"),
        ("create", "b d"),
        ("revoke", "nobody"),
        ("rotate", "nobody"),
        ("rotate", "app", "--overlap", "soon"),
        # What a script's unset variables make of an option.
        *(("create", "b", option, "") for option in ("--expires-in", "--user", "--team", "--organization", "--route")),
        ("rotate", "app", "--expires-in", ""),
    ):
        result = run(keys.app, *args, "--data-dir", tmp_path)
        assert result.exit_code == 1
        assert result.stderr.startswith("outpost: ")
        assert result.stderr.count("\n") == 1
        assert "Traceback" not in result.output


def test_looking_at_a_box_that_never_ran_makes_nothing(tmp_path: Path) -> None:
    assert data(run(keys.app, "list", "--json", "--data-dir", tmp_path / "x")) == []
    refused = run(requests.app, "tail", "--data-dir", tmp_path / "x")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "there is no gateway's data in" in refused.stderr
    assert not (tmp_path / "x").exists()


def test_declared_keys_are_shown_and_protected(tmp_path: Path) -> None:
    config = tmp_path / "outpost.yaml"
    config.write_text(
        f"data_dir: {tmp_path / 'data'}\nidentity: {{keys: [{{name: ci, key: {{env: NOT_SET_HERE}}, role: admin}}]}}\n"
    )
    (shown,) = data(run(keys.app, "list", "--json", "--config", config))
    assert (shown["name"], shown["source"], shown["role"]) == ("ci", "settings", "admin")
    assert run(keys.app, "create", "app", "--new", "--config", config).exit_code == 0
    for args in (("create", "ci"), ("revoke", "ci"), ("revoke", "fixed:ci"), ("rotate", "ci")):
        result = run(keys.app, *args, "--config", config)
        assert result.exit_code == 1
        assert "settings file" in result.stderr
    both = data(run(keys.app, "list", "--json", "--config", config))
    assert [key["name"] for key in both] == ["ci", "app"]
    assert (tmp_path / "data" / "outpost.db").exists()


def test_no_data_folder_is_made_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key in a folder that no gateway uses is a key that the running one answers with 401."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OUTPOST_CONFIG", raising=False)
    monkeypatch.delenv("OUTPOST_DATA_DIR", raising=False)
    for args in (("create", "app"), ("revoke", "app"), ("create", "app", "--data-dir", tmp_path / "typo")):
        result = run(keys.app, *args)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert "there is no gateway's data in" in result.stderr
        assert str(tmp_path / ("typo" if "typo" in str(args[-1]) else "outpost-data")) in result.stderr
        assert "--data-dir" in result.stderr
        assert ("--new" in result.stderr) == (args[0] == "create")
        assert list(tmp_path.iterdir()) == []
    made = run(keys.app, "create", "app", "--new")
    assert is_key(made.stdout.strip())
    assert f"made in {tmp_path}/outpost-data, where no gateway is running" in made.stderr
    assert run(keys.app, "create", "two").exit_code == 0


def test_ids_can_be_copied_from_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(keys.app, "create", "n" * 64, "--new", "--data-dir", tmp_path)
    run(keys.app, "create", "short", "--data-dir", tmp_path)
    monkeypatch.setenv("COLUMNS", "40")
    listed = run(keys.app, "list", "--data-dir", tmp_path).stdout
    assert len(listed.splitlines()) == 3
    assert "n" * 64 in listed
    for key in data(run(keys.app, "list", "--json", "--data-dir", tmp_path)):
        (line,) = [line for line in listed.splitlines() if key["name"] in line]
        assert line.startswith(f"{key['id']} ")
        assert run(keys.app, "revoke", line.split()[0], "--data-dir", tmp_path).exit_code == 0


def test_a_key_with_everything(tmp_path: Path) -> None:
    limits = ("--route", "chat", "--route", "embed", "--model", "small", "--zone", "on_box", "--priority", "batch")
    args = ("--expires-in", "30d", "--address", "10.0.0.0/8", *limits)
    (made,) = data(run(keys.app, "create", "app", *args, "--json", "--new", "--data-dir", tmp_path))
    assert made["restrictions"] == {
        "routes": ["chat", "embed"],
        "models": ["small"],
        "zones": ["on_box"],
        "addresses": ["10.0.0.0/8"],
        "priority": "batch",
    }
    assert 29 * 86400 < made["expires_at"] - made["created_at"] <= 30 * 86400
    for wrong, field in (
        (("--zone", "moon"), "zones"),
        (("--address", "10.0.0.1/8"), "addresses"),
        (("--expires-in", "soon"), "expires_in"),
        (("--team", "nobody"), "team"),
        (("--user", "nobody"), "user"),
        (("--service-account", "nobody"), "service_account"),
        (("--organization", "nobody"), "organization"),
    ):
        refused = run(keys.app, "create", "two", *wrong, "--data-dir", tmp_path)
        assert refused.exit_code == 1
        assert field in refused.stderr


def test_rotation(tmp_path: Path) -> None:
    (old,) = data(run(keys.app, "create", "app", "--role", "operator", "--json", "--new", "--data-dir", tmp_path))
    rotated = run(keys.app, "rotate", "app", "--overlap", "1h", "--data-dir", tmp_path)
    assert is_key(rotated.stdout.strip())
    assert rotated.stdout.strip() != old["key"]
    assert f"follows {old['id']}, which ends in 1h" in rotated.stderr
    first, second = data(run(keys.app, "list", "--json", "--data-dir", tmp_path))
    assert (second["name"], second["role"], second["replaces"]) == ("app", "operator", old["id"])
    assert first["id"] == old["id"]
    assert 3500 < first["expires_at"] - second["created_at"] <= 3600
    table = run(keys.app, "list", "--data-dir", tmp_path).stdout
    assert "valid until" in table
    (third,) = data(run(keys.app, "rotate", "app", "--overlap", "0s", "--json", "--data-dir", tmp_path))
    states = {key["id"]: key["revoked_at"] for key in data(run(keys.app, "list", "--json", "--data-dir", tmp_path))}
    assert states[second["id"]] is not None
    assert states[third["id"]] is None


def test_keys_of_a_lost_secret_can_be_revoked(tmp_path: Path) -> None:
    (old,) = data(run(keys.app, "create", "app", "--json", "--new", "--data-dir", tmp_path))
    (tmp_path / "secrets" / "master.key").unlink()
    refused = run(keys.app, "create", "two", "--data-dir", tmp_path)
    assert "master.key is missing" in refused.stderr
    assert run(keys.app, "revoke", old["id"], "--data-dir", tmp_path).exit_code == 0
    assert run(keys.app, "create", "two", "--data-dir", tmp_path).exit_code == 0


async def record(folder: Path, rows: list[ExchangeRow]) -> None:
    database = await Database.open(folder / "outpost.db")
    writer = RowWriter(database.writer_engine())
    writer.write(rows)
    writer.close()
    await database.close()


def test_tail_reads_the_database(tmp_path: Path) -> None:
    evil = "m\x1b[31m\nforged\u2028line"
    rows = [
        ExchangeRow(id="req_1", kind="embeddings", started_at=0.0),
        ExchangeRow(id="req_2", kind="chat.completions", started_at=0.0, route=evil, stream=True, status=404),
    ]
    asyncio.run(record(tmp_path, rows))
    lines = run(requests.app, "tail", "--data-dir", tmp_path).stdout.splitlines()
    assert [line.rsplit(maxsplit=1)[-1] for line in lines] == ["req_1", "req_2"]
    assert "\\x1b[31m\\nforged\\u2028line" in lines[1]
    assert "chat.completions+stream" in lines[1]
    (last,) = run(requests.app, "tail", "-n", "1", "--json", "--data-dir", tmp_path).stdout.splitlines()
    assert json.loads(last)["route"] == evil
    assert json.loads(last)["seq"] == 2


def test_follow_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int | None, int]] = []
    answers = [[2, 3], [], [4]]

    def fetch(place: Place, after_seq: int | None, limit: int) -> list[dict[str, Any]]:
        asked.append((after_seq, limit))
        if not answers:
            raise KeyboardInterrupt
        return [{"seq": seq} for seq in answers.pop(0)]

    monkeypatch.setattr(requests, "fetch", fetch)
    monkeypatch.setattr(requests, "POLL_S", 0.0)
    result = run(requests.app, "tail", "-f", "-n", "2", "--json", "--data-dir", tmp_path)
    assert result.exit_code == 0
    assert [json.loads(line)["seq"] for line in result.stdout.splitlines()] == [2, 3, 4]
    assert asked == [(None, 2), (3, 1000), (3, 1000), (4, 1000)]


# --- through a gateway ---


class Gateway(ThreadingUnixStreamServer):
    """Answers every request with `status` and `body`, and notes what was asked."""

    daemon_threads = True
    status = 200
    body = b'{"data": []}'

    def __init__(self, path: str) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        super().__init__(path, Handler)


class Handler(BaseHTTPRequestHandler):
    server: Gateway

    def handle_one(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.asked.append((self.command, self.path, body))
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = handle_one

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *args: Any) -> None:
        """Quiet: a test's output is its assertions."""


@pytest.fixture(params=["short", "deep"])
def gateway(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    folder = tmp_path if request.param == "short" else tmp_path / ("d" * 90)
    (folder / "run").mkdir(parents=True)
    monkeypatch.setenv("OUTPOST_DATA_DIR", str(folder))
    monkeypatch.chdir(folder / "run")  # bound by its short name: the whole one may be too long to bind
    server = Gateway("control.sock")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def answer(gateway: Gateway, *entries: dict[str, Any]) -> None:
    gateway.body = json.dumps({"data": entries}).encode()


def folder() -> Path:
    return Path(os.environ["OUTPOST_DATA_DIR"])


INFO = {
    "id": "key_1",
    "name": "app",
    "role": "member",
    "prefix": "op-abcd",
    "created_at": 1.0,
    "revoked_at": None,
    "source": "database",
    "team": None,
    "user": None,
    "service_account": None,
    "expires_at": None,
}


def test_keys_go_through_the_gateway(gateway: Gateway) -> None:
    gateway.status = 201
    gateway.body = json.dumps({"data": {**INFO, "key": "op-secret"}}).encode()
    made = run(keys.app, "create", "app", "--role", "admin")
    assert made.stdout == "op-secret\n"
    assert f"made in {folder().absolute()}, where a gateway is running" in made.stderr
    gateway.body = json.dumps({"data": {**INFO, "key": "op-other", "replaces": "key_0"}}).encode()
    assert run(keys.app, "rotate", "app", "--overlap", "90m").stdout == "op-other\n"
    answer(gateway, INFO)
    assert data(run(keys.app, "list", "--json")) == [INFO]
    gateway.body = json.dumps({"data": INFO}).encode()
    assert "revoked" in run(keys.app, "revoke", "a/b c").stdout
    assert gateway.asked == [
        ("POST", "/admin/v1/keys", {"name": "app", "role": "admin"}),
        ("POST", "/admin/v1/keys/app/rotate", {"overlap": "90m"}),
        ("GET", "/admin/v1/keys?limit=1000", None),
        ("DELETE", "/admin/v1/keys/a%2Fb%20c", None),
    ]
    assert not (folder() / "outpost.db").exists()


def test_requests_go_through_the_gateway(gateway: Gateway) -> None:
    answer(gateway, {"seq": 7})
    assert run(requests.app, "tail", "--json", "-n", "3").stdout == '{"seq": 7}\n'
    requests.fetch(Place(folder()), 7, 5)
    assert [path for _, path, _ in gateway.asked] == [
        "/admin/v1/requests?limit=3",
        "/admin/v1/requests?after_seq=7&limit=5",
    ]


@pytest.mark.parametrize(
    ("status", "body", "wanted"),
    [
        (400, b'{"error": {"message": "name: in use"}}', "name: in use"),
        (404, b'{"type": "about:blank", "detail": "no such key"}', "no such key"),
        (500, b"{}", "answered 500"),
        (200, b"<html>", "not JSON"),
        (200, b"[1]", "not JSON"),
    ],
)
def test_a_gateways_refusal_is_told(gateway: Gateway, status: int, body: bytes, wanted: str) -> None:
    gateway.status, gateway.body = status, body
    result = run(keys.app, "list")
    assert result.exit_code == 1
    assert wanted in result.stderr
    assert not (folder() / "outpost.db").exists()


def test_a_gateway_that_does_not_answer_is_told(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(ControlError, match="does not answer"):
            Control(path, timeout_s=0.1).call("GET", "/admin/v1/keys")
    # The socket's file stays behind, as after a kill: nobody listens any more.
    with pytest.raises(NotRunning, match="outpost serve"):
        Control(path).call("GET", "/admin/v1/keys")


def test_a_lock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(keys.app, "create", "app", "--new", "--data-dir", tmp_path)
    other = sqlite3.connect(tmp_path / "outpost.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    result = run(keys.app, "create", "two", "--data-dir", tmp_path)
    other.close()
    assert result.exit_code == 1
    assert "locked" in result.stderr


def test_a_table_is_as_wide_as_what_it_holds() -> None:
    rows = [("日本", 5, "x" * 200), ("a\n", 12345, "")]
    assert table(("NAME", "SIZE", "LAST"), rows, right=("SIZE",)) == [
        "NAME   SIZE  LAST",
        "日本      5  " + "x" * 200,
        "a\\n   12345",
    ]


def test_what_a_terminal_gets() -> None:
    assert visible("a\x1b]0;x\x07\u202eb\n") == "a\\x1b]0;x\\x07\\u202eb\\n"
    assert visible("\ud800é") == "\\ud800é"
    assert [seconds(v) for v in (None, 0.0451, 1.234)] == ["-", "45ms", "1.23s"]
    assert moment(None) == ""
    assert len(moment(0.0)) == 19
    assert issubclass(ControlError, OutpostError)
