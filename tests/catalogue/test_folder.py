"""A corpus of folders that somebody might offer as a model: what could run code is refused by name."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf_samples import build

from runtimes.catalogue import Catalogue, CatalogueError, FormatError, UnsafeModel
from runtimes.catalogue.folder import ARCHIVES, CODE, OTHER_WEIGHTS, PICKLES, find_model

MODEL = build()


class Bomb:
    """Opening the pickle would leave a trace."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pickle-was-opened",)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    made = tmp_path / "model"
    made.mkdir()
    (made / "model.gguf").write_bytes(MODEL)
    return made


def test_harmless(folder: Path) -> None:
    for name in ("README.md", "LICENSE", "LICENSE.txt", "USE_POLICY.md", ".gitattributes", "figure.png", "NOTICE"):
        (folder / name).write_text("text")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "nested": [{"a": 1}]}))
    (folder / "sub").mkdir()
    (folder / "sub" / "notes.txt").write_text("x")
    (folder / "README-link.md").symlink_to("README.md")
    assert find_model(folder) == folder / "model.gguf"
    assert find_model(folder / "model.gguf") == folder / "model.gguf"
    linked = folder.parent / "linked.gguf"
    linked.symlink_to(folder / "model.gguf")
    assert find_model(linked) == folder / "model.gguf"


def write(name: str, raw: bytes = b"x") -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)

    return act


def link(name: str, target: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        (folder.parent / "secret.txt").write_text("secret")
        (folder.parent / "outside").mkdir()
        (folder / name).symlink_to(target)

    return act


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "pipe.gguf")


def deep(folder: Path) -> None:
    (folder / "/".join("d" * 12)).mkdir(parents=True)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    **{f"pickle {s}": (write(f"weights{s}", pickle.dumps(Bomb())), f"weights{s}: is a pickle") for s in PICKLES},
    **{f"code {s}": (write(f"sub/modeling{s}"), f"sub/modeling{s}: is program code") for s in CODE},
    **{f"archive {s}": (write(f"more{s}"), f"more{s}: is an archive") for s in ARCHIVES},
    **{f"weights {s}": (write(f"m{s}"), f"m{s}: holds weights") for s in OTHER_WEIGHTS},
    "capitals": (write("PYTORCH_MODEL.BIN"), "PYTORCH_MODEL.BIN: is a pickle"),
    "python in capitals": (write("Modeling.PY"), "Modeling.PY: is program code"),
    "two endings": (write("model.gguf.pkl"), "model.gguf.pkl: is a pickle"),
    "no ending": (write("payload"), "payload: is of a kind"),
    "unknown ending": (write("payload.xyz"), "payload.xyz: is of a kind"),
    "hidden": (write(".bashrc"), ".bashrc: is of a kind"),
    "site hook": (write("evil.pth"), "evil.pth: is program code"),
    "auto_map": (write("config.json", b'{"auto_map": {"AutoModel": "modeling.Evil"}}'), "config.json: has auto_map"),
    "auto_map below": (write("a/tokenizer_config.json", b'{"x": [{"auto_map": {}}]}'), "config.json: has auto_map"),
    "auto_map in capitals": (write("CONFIG.JSON", b'{"auto_map": 1}'), "CONFIG.JSON: has auto_map"),
    "auto_map escaped": (write("config.json", b'{"\\u0061uto_map": 1}'), "config.json: has auto_map"),
    "deep json": (write("config.json", b"[" * 200_000), "config.json: is not proper JSON"),
    "large configuration": (write("config.json", b" " * (5 << 20)), "config.json: is larger"),
    "control in a name": (write("a\x1b[31m.md"), "control characters"),
    "newline in a name": (write("a\n.md"), "control characters"),
    "link out": (link("notes.txt", "../secret.txt"), "notes.txt: is a link that leaves the folder"),
    "absolute link": (link("notes.txt", "/etc/passwd"), "notes.txt: is a link that leaves the folder"),
    "link to a folder": (link("docs", "../outside"), "docs: is a link"),
    "link to above": (link("up", ".."), "up: is a link"),
    "dangling link": (link("lost.txt", "nowhere.txt"), "lost.txt: is not a plain file"),
    "link round": (link("round.txt", "round.txt"), "round.txt"),
    "pipe": (fifo, "pipe.gguf: is not a plain file"),
    "deep": (deep, "nested too deep"),
    "two models": (write("other.gguf"), "holds 2 GGUF files (model.gguf, other.gguf)"),
}  # fmt: skip


@pytest.mark.parametrize(("act", "what"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name(folder: Path, act: Callable[[Path], None], what: str) -> None:
    act(folder)
    catalogue = Catalogue([], folder.parent / "store")
    with pytest.raises(CatalogueError) as caught:
        catalogue.import_file(folder, "x", "MIT")
    assert isinstance(caught.value, UnsafeModel | FormatError)
    assert what in caught.value.message
    assert caught.value.cure
    assert not (folder.parent / "store").exists()
    assert not Path("pickle-was-opened").exists()


@pytest.mark.parametrize("name", ["model.bin", "model.py", "model.safetensors", "model.onnx", "model.zip", "model"])
def test_single_files(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    with pytest.raises(UnsafeModel, match=name):
        find_model(folder / name)


def test_places_that_are_no_model(folder: Path) -> None:
    with pytest.raises(CatalogueError, match="cannot be read"):
        find_model(folder / "nowhere")
    empty = folder.parent / "empty"
    empty.mkdir()
    with pytest.raises(FormatError, match=r"holds no \.gguf file"):
        find_model(empty)
    linked = folder.parent / "linked"
    linked.symlink_to(folder)
    with pytest.raises(UnsafeModel, match="link to a folder"):
        find_model(linked)
    trap = folder.parent / "trap.gguf"
    (folder / "evil.pkl").write_bytes(b"x")
    trap.symlink_to(folder / "evil.pkl")
    with pytest.raises(UnsafeModel, match="pickle"):
        find_model(trap)
    with pytest.raises(UnsafeModel, match="plain file"):
        find_model(Path("/dev/null.gguf") if Path("/dev/null.gguf").exists() else make_fifo(folder.parent / "p.gguf"))


def make_fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def test_many_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtimes.catalogue.folder.MAX_ENTRIES", 10)
    for number in range(12):
        (folder / f"{number}.md").write_text("x")
    with pytest.raises(UnsafeModel, match="more than 10 files"):
        find_model(folder)
