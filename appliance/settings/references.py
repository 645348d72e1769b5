"""Every reference to a secret in the settings, wherever it stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from appliance.settings.document import Path
from appliance.settings.secrets import SecretRef


def references(section: BaseModel) -> Iterator[tuple[Path, SecretRef]]:
    """Place and reference, in the order of the schema; keys that are added later are found too."""
    yield from _walk((), section)


def _walk(path: Path, value: Any) -> Iterator[tuple[Path, SecretRef]]:
    if isinstance(value, SecretRef):
        yield path, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _walk((*path, name), getattr(value, name))
    elif isinstance(value, Mapping):
        for name, member in value.items():
            yield from _walk((*path, name), member)
    elif isinstance(value, (list, tuple)) and not isinstance(value, str):
        for index, item in enumerate(value):
            yield from _walk((*path, index), item)
