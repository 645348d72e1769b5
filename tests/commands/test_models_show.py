"""`outpost models show`: what a request gets that leaves something open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from appliance.commands.models import app
from runtimes.catalogue.manifest import parse_manifest

MANIFEST: dict[str, Any] = {
    "id": "tiny", "title": "Tiny", "task": "generate", "format": "gguf", "architecture": "llama",
    "licence": "MIT", "attribution": "nobody", "context_length": 1024, "capabilities": ["chat"],
    "memory": {"weights_bytes": 1, "kv_bytes_per_token": 0}, "defaults": {"context": 512},
    "files": [{"path": "tiny.gguf", "sha256": "0" * 64, "size": 1}],
}  # fmt: skip


def shown(folder: Path, model: str = "tiny", **defaults: Any) -> dict[str, str]:
    """The first column → the rest of its line."""
    manifest = {**MANIFEST, "defaults": {"context": 512, **defaults}}
    parse_manifest(yaml.safe_dump(manifest).encode(), "tiny")
    (folder / "models").mkdir(exist_ok=True)
    (folder / "models" / "tiny.yaml").write_text(yaml.safe_dump(manifest))
    config = folder / "outpost.yaml"
    config.write_text(f"data_dir: {folder}/data\ncatalogue: {{paths: [{folder}/models]}}\n")
    result = CliRunner().invoke(app, ["show", model, "--config", str(config)])
    assert result.exit_code == 0, result.output
    width = len("system prompt")
    return {line[:width].strip(): line[width:].strip() for line in result.stdout.splitlines()}


def test_the_defaults_of_the_manifest(tmp_path: Path) -> None:
    found = shown(tmp_path, temperature=0.2, top_p=0.9, system_prompt="Be brief.")
    assert found["temperature"] == "0.2 for requests that name none"
    assert found["top_p"] == "0.9 for requests that name neither temperature nor top_p"
    assert found["system prompt"] == "Be brief. (for conversations that have no system message)"


def test_what_counts_without_defaults(tmp_path: Path) -> None:
    found = shown(tmp_path)
    assert (found["temperature"][:2], found["top_p"][:2]) == ("1 ", "1 ")
    assert found["system prompt"].startswith("none ")
    assert shown(tmp_path, temperature=0)["temperature"].endswith("which is greedy")


def test_an_embedder_has_none(tmp_path: Path) -> None:
    assert not {"temperature", "top_p", "system prompt"} & set(shown(tmp_path, "all-minilm-l6-v2"))


def test_hashes_and_paths_stay_on_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    found = shown(tmp_path, system_prompt="word " * 30)
    assert f"sha256 {'0' * 64}" in found["file"]
    assert found["manifest"] == f"{tmp_path}/models/tiny.yaml"
