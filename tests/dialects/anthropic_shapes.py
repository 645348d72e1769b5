"""Whether a value is what Anthropic's own description of its API allows."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

import jsonschema  # type: ignore[import-untyped]


@cache
def _validator(name: str) -> jsonschema.Draft202012Validator:
    described = json.loads((files("llm_comply") / "specs" / "anthropic.json").read_text())
    schema = {"$ref": f"#/components/schemas/{name}", "components": described["components"]}
    return jsonschema.Draft202012Validator(schema)


def complaints(name: str, value: Any) -> list[str]:
    """What is wrong with `value` as a `name` (CreateMessageParams, Message, MessageStreamEvent, ErrorResponse …)."""
    return [f"{error.json_path}: {error.message[:300]}" for error in _validator(name).iter_errors(value)]
