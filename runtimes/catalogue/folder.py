"""Looks through what an operator wants to import before anything opens it.

Only what can hold no code is let in: one GGUF file, and papers beside it. Everything else is refused
by name, with the reason that matters for its kind.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from runtimes.catalogue.errors import CatalogueError, FormatError, UnsafeModel

MAX_ENTRIES = 10_000
MAX_DEPTH = 8
MAX_CONFIG = 4 << 20
PICKLES = frozenset(
    {".bin", ".pt", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".dill", ".h5", ".keras", ".pb", ".nemo"}
)
CODE = frozenset(
    {".py", ".pyc", ".pyo", ".pyd", ".pyw", ".pth", ".so", ".dll", ".dylib", ".sh", ".bash", ".exe", ".bat", ".cmd",
     ".ps1", ".js", ".jar", ".whl", ".ipynb"}
)  # fmt: skip
ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"})
OTHER_WEIGHTS = frozenset({".safetensors", ".onnx", ".ggml", ".tflite", ".msgpack"})
PAPERS = frozenset({".md", ".txt", ".json", ".jinja", ".yaml", ".yml", ".png", ".jpg", ".jpeg", ".pdf"})
PAPER_NAMES = frozenset({"license", "licence", "notice", "readme", "use_policy", ".gitattributes", ".gitignore"})


def find_model(path: Path) -> Path:
    """The GGUF file that `path` is or holds. Raises UnsafeModel, FormatError, CatalogueError."""
    try:
        found = path.lstat()
    except OSError as e:
        raise CatalogueError(f"{path}: cannot be read ({e.strerror}).", "Correct the path.") from None
    if stat.S_ISLNK(found.st_mode) and path.is_dir():
        raise UnsafeModel(f"{path}: is a link to a folder.", "Give the folder itself.")
    if path.is_dir():
        return _only_model(path, _search(path))
    target = _target(path, path.name)
    _check_name(target, path.name)
    if target.suffix.lower() != ".gguf":
        raise UnsafeModel(f"{path.name}: is not a GGUF file.", "Give a .gguf file, or a folder with one.")
    if not target.is_file():
        raise UnsafeModel(f"{path.name}: is not a plain file.", "Give a .gguf file, or a folder with one.")
    return target


def _search(root: Path) -> list[Path]:
    """Every file below `root`, each one checked."""
    files: list[Path] = []
    base = root.resolve()
    for folder, folders, names in os.walk(base, followlinks=False):
        if len(Path(folder).relative_to(base).parts) > MAX_DEPTH:
            raise UnsafeModel(f"{folder}: is nested too deep.", f"Use at most {MAX_DEPTH} levels.")
        for name in folders + names:
            entry = Path(folder, name)
            shown = entry.relative_to(base).as_posix()
            if entry.is_symlink() and not _target(entry, shown).is_relative_to(base):
                raise UnsafeModel(f"{shown}: is a link that leaves the folder.", "Replace the link by the file itself.")
            if name in folders:
                if entry.is_symlink():
                    raise UnsafeModel(f"{shown}: is a link to a folder.", "Replace the link by the folder itself.")
                continue
            files.append(_checked(entry, shown))
            if len(files) > MAX_ENTRIES:
                raise UnsafeModel(f"{root}: holds more than {MAX_ENTRIES:,} files.", "Give the model's own folder.")
    return files


def _checked(entry: Path, shown: str) -> Path:
    _check_name(entry, shown)
    target = _target(entry, shown)
    if target != entry:
        _check_name(target, shown)
    if not target.is_file():
        raise UnsafeModel(f"{shown}: is not a plain file.", "Remove it from the folder.")
    if entry.suffix.lower() == ".json":
        _check_config(entry, shown)
    return entry


def _target(entry: Path, shown: str) -> Path:
    try:
        return entry.resolve()
    except (OSError, RuntimeError):
        raise UnsafeModel(f"{shown}: is a link that leads nowhere.", "Replace the link by the file itself.") from None


def _check_name(path: Path, shown: str) -> None:
    if not shown.isprintable():
        raise UnsafeModel(f"{shown!r}: has control characters in its name.", "Rename it.")
    suffix, name = path.suffix.lower(), path.name.lower()
    if suffix in CODE:
        raise UnsafeModel(f"{shown}: is program code.", "Models bring no code here: remove it, or give the .gguf.")
    if suffix in PICKLES:
        cure = "It can run code when it is opened. Use the GGUF form of the model."
        raise UnsafeModel(f"{shown}: is a pickle or another format that is not plain data.", cure)
    if suffix in ARCHIVES:
        raise UnsafeModel(f"{shown}: is an archive.", "Unpack it yourself and look at what it holds.")
    if suffix in OTHER_WEIGHTS:
        raise UnsafeModel(f"{shown}: holds weights in another format.", "Give the .gguf alone, or convert it first.")
    if suffix not in PAPERS and suffix != ".gguf" and path.stem.lower() not in PAPER_NAMES and name not in PAPER_NAMES:
        raise UnsafeModel(f"{shown}: is of a kind that a model does not need.", "Remove it, or give the .gguf alone.")


def _check_config(path: Path, shown: str) -> None:
    """`auto_map` makes other software load Python code by name; a folder that asks for it is not plain data."""
    if path.stat().st_size > MAX_CONFIG:
        if "config" in path.name.lower():
            raise UnsafeModel(f"{shown}: is larger than any configuration.", "Remove it, or give the .gguf alone.")
        return  # a vocabulary: nothing here or in an engine reads it
    try:
        asks = _asks_for_code(json.loads(path.read_bytes()))
    except (ValueError, RecursionError):
        raise FormatError(f"{shown}: is not proper JSON.", "Remove it, or give the .gguf alone.") from None
    if asks:
        cure = "Remove the key if the model works without it; models that bring code are not loaded."
        raise UnsafeModel(f"{shown}: has auto_map, which loads Python code.", cure)


def _asks_for_code(value: Any) -> bool:
    waiting = [value]
    while waiting:
        at = waiting.pop()
        if isinstance(at, dict):
            if "auto_map" in at:
                return True
            waiting += at.values()
        elif isinstance(at, list):
            waiting += at
    return False


def _only_model(root: Path, files: list[Path]) -> Path:
    models = sorted(f for f in files if f.suffix.lower() == ".gguf")
    if not models:
        raise FormatError(f"{root}: holds no .gguf file.", "Give a folder with one, or convert the model first.")
    if len(models) > 1:
        names = ", ".join(m.name for m in models[:6])
        raise FormatError(f"{root}: holds {len(models)} GGUF files ({names}).", "Give the one file that you want.")
    return models[0].resolve()
