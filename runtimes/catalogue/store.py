"""Model files on disk, named by their content, and the record of what was imported.

    blobs/sha256/ab/abcd…     the files, read-only
    imported/ID.json          which blobs a model is made of, with size and modification time
    manifests/ID.yaml         manifests that an import from a folder has made
    tmp/                      unfinished work, emptied by the next import

A file appears under its name only when it is whole, hashed and on the disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from runtimes.catalogue.errors import HashMismatch, NotImported, StoreError
from runtimes.catalogue.progress import Progress, Quiet

CHUNK = 1 << 20
MARGIN = 64 << 20
"""Bytes that an import leaves free for everybody else on the disk."""
MAX_RECORD = 1 << 20

_HASH = re.compile(r"[0-9a-f]{64}")

FreeBytes = Callable[[Path], int]


@dataclass(frozen=True, slots=True)
class Blob:
    """A file of an imported model; `mtime_ns` tells cheaply whether somebody touched it."""

    path: str
    sha256: str
    size: int
    mtime_ns: int


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


class Store:
    """The folder `root`, made at the first write. Every method may raise StoreError or OSError."""

    def __init__(self, root: Path, free: FreeBytes = free_bytes) -> None:
        self.root = root
        self.manifests = root / "manifests"
        self._imported = root / "imported"
        self._tmp = root / "tmp"
        self._free = free

    def blob(self, sha256: str) -> Path:
        return self.root / "blobs" / "sha256" / sha256[:2] / sha256

    @contextmanager
    def changing(self) -> Iterator[None]:
        """One importer at a time; what a killed one left behind is swept away."""
        self._tmp.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"{self.root}: another import, verify or remove is running."
                raise StoreError(message, "Wait until it has ended.") from None
            for left in self._tmp.iterdir():
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield

    def need(self, size: int) -> None:
        """Refuse at once what would not fit. `size` is bytes."""
        free = self._free(self.root)
        if free < size + MARGIN:
            message = f"{self.root}: {size >> 20:,} MiB are needed beside a reserve, {free >> 20:,} MiB are free."
            raise StoreError(message, "Make room, or put data_dir on a larger disk.")

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder on the store's disk that is gone afterwards."""
        with tempfile.TemporaryDirectory(dir=self._tmp) as folder:
            yield Path(folder)

    def has(self, sha256: str, size: int) -> bool:
        """Whether the blob is there and its bytes are right; a wrong one is thrown away."""
        path = self.blob(sha256)
        if not path.is_file() or path.is_symlink():
            return False
        if path.stat().st_size == size and hash_file(path) == sha256:
            return True
        path.unlink()
        return False

    def adopt(self, path: Path, sha256: str) -> None:
        """Move a finished file of a workspace to its place. The caller has hashed what it wrote."""
        target = self.blob(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.chmod(0o444)
        sync(path)
        path.replace(target)
        sync(target.parent)

    def record(self, model: str, files: list[tuple[str, str]]) -> None:
        """Write down that `model` consists of (path, sha256) blobs; only now does it count as imported."""
        blobs = []
        for path, sha256 in files:
            found = self.blob(sha256).stat()
            blobs.append(Blob(path, sha256, found.st_size, found.st_mtime_ns))
        text = json.dumps({"files": [asdict(b) for b in blobs]}, indent=1)
        self.write(self._imported / f"{model}.json", text.encode())

    def write(self, target: Path, raw: bytes) -> None:
        """Put `raw` at `target`, all of it or nothing, also across a power cut."""
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._tmp)
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        Path(name).replace(target)
        sync(target.parent)

    def recorded(self, model: str) -> list[Blob] | None:
        """What was written down about `model`; None = not imported."""
        path = self._imported / f"{model}.json"
        try:
            with path.open("rb") as file:
                entries = json.loads(file.read(MAX_RECORD))["files"]
            blobs = [Blob(e["path"], e["sha256"], e["size"], e["mtime_ns"]) for e in entries]
            if not all(_HASH.fullmatch(b.sha256) for b in blobs):
                raise ValueError
            return blobs
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise StoreError(f"{path}: is damaged.", f"Import {model} again.") from None

    def open_blob(self, model: str, blob: Blob) -> Path:
        """The path of a blob that nobody has touched since import, as far as size and time can tell."""
        path = self.blob(blob.sha256)
        try:
            found = path.lstat()
        except FileNotFoundError:
            cure = f"Import it again: outpost models import {model}"
            raise StoreError(f"{model}: {blob.path} is gone ({path}).", cure) from None
        if not stat.S_ISREG(found.st_mode):
            raise StoreError(f"{model}: {blob.path} is no plain file ({path}).", "Remove it and import again.")
        if (found.st_size, found.st_mtime_ns) != (blob.size, blob.mtime_ns):
            cure = f"Check it with: outpost models verify {model}"
            raise StoreError(f"{model}: {blob.path} has changed since it was imported ({path}).", cure)
        return path

    def verify(self, model: str, progress: Progress | None = None) -> None:
        """Hash every blob of `model` again. Raises HashMismatch, NotImported, StoreError."""
        blobs = self.recorded(model)
        if blobs is None:
            raise NotImported(f"{model}: is not imported.", f"Import it: outpost models import {model}")
        for blob in blobs:
            path = self.blob(blob.sha256)
            if not path.is_file() or path.is_symlink():
                raise StoreError(f"{model}: {blob.path} is gone ({path}).", f"Import {model} again.")
            if hash_file(path, progress, f"verify {blob.path}") != blob.sha256:
                cure = f"Import it again: outpost models import {model}"
                raise HashMismatch(f"{model}: {blob.path} is damaged or was changed ({path}).", cure)
        self.record(model, [(b.path, b.sha256) for b in blobs])

    def remove(self, model: str) -> int:
        """Forget `model` and delete the blobs that no other model uses; gives the bytes that came free."""
        blobs = self.recorded(model) or []
        others = {p.stem for p in self._imported.glob("*.json")} - {model}
        kept = {b.sha256 for other in others for b in self.recorded(other) or []}
        (self._imported / f"{model}.json").unlink(missing_ok=True)
        (self.manifests / f"{model}.yaml").unlink(missing_ok=True)
        freed = 0
        for blob in {b.sha256: b for b in blobs}.values():
            path = self.blob(blob.sha256)
            if blob.sha256 not in kept and path.exists():
                freed += path.stat().st_size
                path.unlink()
        return freed


class Hashing:
    """A file being written and hashed in one go."""

    def __init__(self, file: BinaryIO, what: str, total: int, progress: Progress) -> None:
        self.file = file
        self.what = what
        self.total = total
        self.progress = progress
        self.size = 0
        self._hash = hashlib.sha256()

    def write(self, piece: bytes) -> int:
        self._hash.update(piece)
        self.size += len(piece)
        self.progress.step(self.what, self.size, self.total)
        return self.file.write(piece)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def hash_file(path: Path, progress: Progress | None = None, what: str = "") -> str:
    """SHA-256 of a file, in hexadecimal."""
    progress = progress or Quiet()
    total = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(CHUNK)
        view = memoryview(buffer)
        done = 0
        while count := file.readinto(buffer):
            digest.update(view[:count])
            done += count
            progress.step(what or f"hash {path.name}", done, total)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Make a file or a folder's entries survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
