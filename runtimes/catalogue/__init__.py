"""The catalogue: which models this box knows, which of them it has, and whether they are what they claim.

For example: `Catalogue([], data_dir / "models")`, then `import_(id)` once and `resolve(id).main` at each start.
"""

from runtimes.catalogue.catalogue import Catalogue, Entry, ModelFiles, bundled_manifests
from runtimes.catalogue.errors import (
    CatalogueError,
    FetchError,
    FormatError,
    HashMismatch,
    ManifestError,
    NotImported,
    StoreError,
    UnknownModel,
    UnsafeModel,
)
from runtimes.catalogue.facts import Facts
from runtimes.catalogue.manifest import Manifest
from runtimes.catalogue.progress import Progress, Quiet

__all__ = [
    "Catalogue",
    "CatalogueError",
    "Entry",
    "Facts",
    "FetchError",
    "FormatError",
    "HashMismatch",
    "Manifest",
    "ManifestError",
    "ModelFiles",
    "NotImported",
    "Progress",
    "Quiet",
    "StoreError",
    "UnknownModel",
    "UnsafeModel",
    "bundled_manifests",
]
