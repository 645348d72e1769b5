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
    (folder / "outpost.yaml").write_text(
        "server:\n  listen: 0.0.0.0:8080\ndeployments: [{name: a, model: all-minilm-l6-v2}]\n"
    )
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


def test_check_refuses_what_a_start_refuses(folder: Path) -> None:
    """The models of the catalogue and the fields of a request, with line and cure, in the order of the file."""
    (folder / "outpost.yaml").write_text(
        "deployments:\n"
        "  - {name: small, model: smollm2-135m-instruc}\n"
        "  - name: big\n"
        "    model: smollm2-135m-instruct\n"
        "    args:\n"
        "      context: 100_000\n"
        "providers: [{name: lab, base_url: 'http://127.0.0.1:1/v1', zone: on_box}]\n"
        "routes:\n"
        "  - {model: a, targets: [{deployment: small}, {deployment: big}]}\n"
        "  - model: chat\n"
        "    targets:\n"
        "      - provider: lab\n"
        "        model: x\n"
        "        overrides:\n"
        "          temprature: 1\n"
        "          max_tokens: many\n"
        "          top_p: 0.5\n"
        "          temperature: 5\n"
    )
    result = RUN.invoke(app, ["check"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert [line.removeprefix(f"{folder}/") for line in result.stderr.splitlines()] == [
        "outpost.yaml:2: deployments[0].model: the catalogue has no model 'smollm2-135m-instruc' (deployment small)"
        " – did you mean smollm2-135m-instruct? Otherwise see `outpost models list`, or import the model",
        "outpost.yaml:6: deployments[1].args.context: 100000 tokens are more than the 8192 that smollm2-135m-instruct"
        " was made for (deployment big) – write 8192 or less",
        "outpost.yaml:15: routes[1].targets[0].overrides.temprature: there is no such request field (route chat)"
        " – did you mean temperature?",
        "outpost.yaml:16: routes[1].targets[0].overrides.max_tokens: max_tokens must be a whole number or null,"
        " not a string (route chat) – correct the value, or remove it",
        "outpost.yaml:18: routes[1].targets[0].overrides.temperature: temperature must be at most 2.0 (route chat)"
        " – correct the value, or remove it",
    ]


def test_check_names_a_manifest_that_cannot_be_used(folder: Path) -> None:
    (folder / "models").mkdir()
    (folder / "models" / "bad.yaml").write_text("id: bad\nsize: 3\n")
    (folder / "outpost.yaml").write_text("catalogue:\n  paths:\n    - models\n")
    result = RUN.invoke(app, ["check"])
    assert result.exit_code == 1
    assert "outpost.yaml:3: catalogue.paths[0]: models/bad.yaml: title: Field required" in result.stderr
    assert result.stderr.endswith(" – correct these fields\n")


def test_check_says_what_has_to_be_imported_before_a_start(folder: Path) -> None:
    (folder / "outpost.yaml").write_text("deployments:\n  - {name: a, model: all-minilm-l6-v2}\n")
    result = RUN.invoke(app, ["check"])
    assert result.exit_code == 0
    assert result.stderr == (
        f"warning: {folder}/outpost.yaml:2: deployments[0].model: all-minilm-l6-v2 is not imported yet (deployment a)"
        " – run: outpost models import all-minilm-l6-v2\n"
    )


def test_check_goes_on_where_the_catalogue_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise PermissionError(13, "Permission denied", "data/models")

    monkeypatch.setattr("runtimes.catalogue.Catalogue.list", refuse)
    result = RUN.invoke(app, ["check"])
    assert result.exit_code == 0
    assert (
        "warning: (built-in defaults): the catalogue cannot be read (data/models: permission denied)" in result.stderr
    )


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
