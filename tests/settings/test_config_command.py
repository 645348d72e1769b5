"""`outpost config` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from appliance.commands.config import app

RUN = CliRunner()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("OUTPOST_CONFIG", "OUTPOST_DATA_DIR", "LAB_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_check_without_a_file() -> None:
    result = RUN.invoke(app, ["check"])
    assert (result.exit_code, result.stdout) == (0, "(built-in defaults): ok (2 deployments, 0 providers, 2 routes)\n")


def test_check_finds_the_file_here_and_warns(folder: Path) -> None:
    (folder / "outpost.yaml").write_text("server:\n  listen: 0.0.0.0:8080\ndeployments: [{name: a, model: m}]\n")
    result = RUN.invoke(app, ["check"])
    assert result.exit_code == 0
    assert result.stdout.endswith("outpost.yaml: ok (1 deployment, 0 providers, 1 route)\n")
    assert result.stderr.startswith("warning: ")
    assert "outpost.yaml:2: server.listen: keys and texts cross the network unencrypted" in result.stderr


def test_check_tells_all_problems_and_fails(folder: Path) -> None:
    path = folder / "bad.yaml"
    path.write_text("server: {max_body: 20M}\nofline: true\n")
    result = RUN.invoke(app, ["check", "--config", str(path)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        f"{path}:1: server.max_body: '20M' is not a size"
        " – write a number and a unit: B, KiB, MiB, GiB, TiB (or kB, MB, GB, TB), e.g. 20MiB",
        f"{path}:2: ofline: unknown key – did you mean offline?",
    ]


def test_check_follows_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "elsewhere.yaml"
    path.write_text("providers: [{name: lab, base_url: 'https://lab/v1', zone: on_prem, api_key: {env: LAB_KEY}}]\n")
    monkeypatch.setenv("OUTPOST_CONFIG", str(path))
    result = RUN.invoke(app, ["check"])
    assert result.exit_code == 1
    assert "LAB_KEY is not set" in result.stderr
    monkeypatch.setenv("LAB_KEY", "hunter2")
    assert RUN.invoke(app, ["check"]).exit_code == 0


@pytest.mark.parametrize("flag", [[], ["--json"]])
def test_show_prints_every_value_but_no_secret(folder: Path, monkeypatch: pytest.MonkeyPatch, flag: list[str]) -> None:
    path = folder / "o.yaml"
    (folder / "key").write_text("hunter3")
    path.write_text(
        "providers: [{name: lab, base_url: 'https://lab/v1', zone: on_prem, api_key: {env: LAB_KEY}}]\n"
        f"identity: {{keys: [{{name: ci, key: {{file: {folder}/key}}}}]}}\n"
    )
    monkeypatch.setenv("LAB_KEY", "hunter2")
    result = RUN.invoke(app, ["show", "-c", str(path), *flag])
    assert result.exit_code == 0, result.stderr
    assert "hunter" not in result.output
    shown = json.loads(result.stdout) if flag else yaml.safe_load(result.stdout)
    assert shown["providers"][0]["api_key"]["env"] == "LAB_KEY"
    assert shown["server"]["max_body"] == "20MiB"
    assert shown["routes"][0]["deadlines"]["total"] == "10m"


def test_show_needs_no_secrets_but_a_valid_file(folder: Path) -> None:
    (folder / "outpost.yaml").write_text("identity: {keys: [{name: ci, key: {env: LAB_KEY}}]}\n")
    assert RUN.invoke(app, ["show"]).exit_code == 0
    (folder / "outpost.yaml").write_text("x: 1\n")
    assert RUN.invoke(app, ["show"]).exit_code == 1


def test_schema_is_json() -> None:
    result = RUN.invoke(app, ["schema"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["title"] == "outpost.yaml"


def test_explain() -> None:
    result = RUN.invoke(app, ["explain", "server.listen"])
    assert result.exit_code == 0
    assert result.stdout.startswith("server.listen\n  Address of the public API")
    wrong = RUN.invoke(app, ["explain", "server.lisen"])
    assert (wrong.exit_code, wrong.stderr) == (1, "there is no key 'server.lisen' – did you mean server.listen?\n")
