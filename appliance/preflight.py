"""What settings must agree with beyond themselves: the catalogue's models, and the fields that a request may have.

`outpost config check`, the start and a reload ask the same questions here, so that none of them takes what another
one refuses.
"""

from __future__ import annotations

from pathlib import Path

from appliance.routing.build import override_findings
from appliance.settings import Finding, ModelFacts, Settings, check_against_catalogue
from runtimes.catalogue import Catalogue, CatalogueError

Place = tuple[str | int, ...]
"""A key of the settings, as `Finding.path`."""


def catalogue_of(settings: Settings, data_dir: Path) -> Catalogue:
    return Catalogue(list(settings.catalogue.paths), data_dir / "models")


def check(settings: Settings, catalogue: Catalogue) -> list[Finding]:
    """Models that are unknown or cannot do what is asked of them, overrides that no request could carry, manifests
    that cannot be used. Raises OSError where a folder of the catalogue cannot be read."""
    try:
        models = {
            entry.manifest.id: ModelFacts(entry.manifest.task, entry.manifest.context_length)
            for entry in catalogue.list()
        }
    except CatalogueError as error:
        found = [finding(_folder_of(error, settings, catalogue.store.root), error)]
    else:
        found = check_against_catalogue(settings, models)
    return found + override_findings(settings.routes)


def missing(settings: Settings, catalogue: Catalogue) -> list[Finding]:
    """Models whose files are not here, or not as they were imported: nothing can start with them yet.

    Only for settings in which `check` has found nothing. Raises OSError.
    """
    return [
        Finding(
            ("deployments", index, "model"),
            f"{entry.reason.rstrip('.') or f'{deployment.model} is not imported yet'} (deployment {deployment.name})",
            f"run: outpost models import {deployment.model}",
        )
        for index, deployment in enumerate(settings.deployments)
        if (entry := catalogue.entry(deployment.model)).state != "ready"
    ]


def finding(place: Place, error: CatalogueError, about: str = "") -> Finding:
    """An error of the catalogue as one of the settings file, at the key that leads to it."""
    message = error.message.rstrip(".") + (f" ({about})" if about else "")
    cure = error.cure.rstrip(".") or "correct the file, or remove it"
    return Finding(place, message, cure[:1].lower() + cure[1:])


def unreadable(error: OSError) -> Finding:
    """A folder or file of the catalogue that the disk does not give."""
    message = f"the catalogue cannot be read ({error.filename}: {(error.strerror or 'unreadable').lower()})"
    return Finding((), message, "correct the permissions, catalogue.paths or data_dir")


def _folder_of(error: CatalogueError, settings: Settings, store: Path) -> Place:
    """The key whose folder holds the file that an error begins with."""
    for index, folder in enumerate(settings.catalogue.paths):
        if error.message.startswith(f"{folder}/"):
            return ("catalogue", "paths", index)
    return ("data_dir",) if error.message.startswith(f"{store}/") else ()
