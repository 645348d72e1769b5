"""What every section of the settings file has in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_origin

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A frozen mapping of known keys. A section or list that is left empty counts as left out."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, validate_default=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, data: Any) -> Any:
        # Whoever comments out all keys below a heading leaves `server:` behind, which YAML reads as null.
        if not isinstance(data, Mapping):
            return data
        return {name: value for name, value in data.items() if value is not None or not cls._is_group(name)}

    @classmethod
    def _is_group(cls, name: str) -> bool:
        field = cls.model_fields.get(name)
        if field is None:
            return False
        kind = field.annotation
        return get_origin(kind) in (tuple, dict) or (isinstance(kind, type) and issubclass(kind, BaseModel))
