"""What the catalogue refuses, and how to put it right."""

from __future__ import annotations


class CatalogueError(Exception):
    """Root. `message` names the model or file and what is wrong with it, `cure` says what to do."""

    def __init__(self, message: str, cure: str = "") -> None:
        super().__init__(f"{message} {cure}" if cure else message)
        self.message = message
        self.cure = cure


class UnknownModel(CatalogueError):
    """No manifest has this id."""


class NotImported(CatalogueError):
    """The manifest is there, its files are not (yet) in the store."""


class ManifestError(CatalogueError):
    """A manifest that cannot be read, breaks the schema, or clashes with another one."""


class FormatError(CatalogueError):
    """A model file whose own structure is wrong, or that asks for more than its size can hold."""


class UnsafeModel(CatalogueError):
    """A file that could run code, or a path that leaves its folder. Refused before anything opens it."""


class HashMismatch(CatalogueError):
    """The bytes are not the ones that the manifest promises."""


class StoreError(CatalogueError):
    """The store cannot take or give a file: no room, changed since import, gone."""


class FetchError(CatalogueError):
    """A package that holds a model could not be had."""
