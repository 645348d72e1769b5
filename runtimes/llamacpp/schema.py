"""What a caller's JSON schema may be before a grammar is made of it. Pure.

Checked here: size, depth, counts that cost time in the grammar compiler, references, and keywords that the
grammar cannot enforce. What passes is still compiled under a clock (see `constraints`), since no list of
known bombs is complete.
"""

from __future__ import annotations

import json
from typing import Any

from runtimes.engine import InvalidRequest

MAX_BYTES = 64 << 10
MAX_DEPTH = 32
MAX_LITERAL = 2000
"""Characters of one property name, enum or const string. Each step of the grammar looks at all of a forced string."""
MAX_ENUM = 5000
MAX_PROPERTIES = 300
MAX_PATTERN_PROPERTIES = 16
MAX_MULTIPLE_OF = 1000

# Keywords that hold schemas.
_SCHEMA = frozenset({"items", "additionalProperties"})
_SCHEMA_LISTS = frozenset({"anyOf", "allOf", "oneOf", "prefixItems"})
_SCHEMA_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
# Keywords that hold plain values and that the grammar enforces.
_VALUES = frozenset(
    {
        "type",
        "const",
        "enum",
        "required",
        "$ref",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
    }
)
# Keywords that say nothing about which values are valid.
_NOTES = frozenset(
    {
        "$schema",
        "$id",
        "id",
        "$comment",
        "$anchor",
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "readOnly",
        "writeOnly",
        "contentEncoding",
        "contentMediaType",
    }
)
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})
_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})


def check_schema(schema: Any, *, param: str, lenient: bool = False) -> dict[str, Any]:
    """Return the schema as the grammar compiler should see it. Raises InvalidRequest naming what is at fault.

    Objects that list `properties` and say nothing about others are closed: what is left out is still
    valid, and a small model would go on inventing fields. `lenient` drops keywords that cannot be
    enforced instead of refusing them, for schemas that were never promised to hold strictly.
    """
    if not isinstance(schema, dict):
        raise InvalidRequest("a JSON schema must be an object", param=param)
    try:
        size = len(json.dumps(schema, ensure_ascii=False).encode())
    except RecursionError:
        raise InvalidRequest(f"the schema is nested deeper than {MAX_DEPTH} levels", param=param) from None
    except UnicodeEncodeError:
        raise InvalidRequest("the schema holds text that is no valid Unicode", param=param) from None
    if size > MAX_BYTES:
        raise InvalidRequest(f"the schema has {size} bytes; at most {MAX_BYTES} are allowed", param=param)
    walk = _Walk(param, lenient, closing=_may_close(schema), root=schema)
    checked: dict[str, Any] = walk.schema(schema, depth=1)
    return checked


def _may_close(schema: dict[str, Any]) -> bool:
    # Closing one part of an intersection would forbid the properties of its other part.
    text = json.dumps(schema)
    return '"allOf"' not in text


class _Walk:
    def __init__(self, param: str, lenient: bool, *, closing: bool, root: dict[str, Any]) -> None:
        self._param = param
        self._lenient = lenient
        self._closing = closing
        self._root = root
        self._properties = 0

    def fail(self, message: str) -> InvalidRequest:
        return InvalidRequest(message, param=self._param)

    def schema(self, value: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self.fail(f"the schema is nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, bool):
            return value
        if not isinstance(value, dict):
            raise self.fail("every sub-schema must be an object or a boolean")
        out: dict[str, Any] = {}
        for key, item in value.items():
            if key in _NOTES:
                continue
            kept = self.keyword(key, item, depth)
            if kept is not None or key == "const":  # of all values only a constant may be null
                out[key] = kept
        composed = out.keys() & {"$ref", "anyOf", "oneOf", "allOf", "patternProperties"}
        if self._closing and "properties" in out and "additionalProperties" not in out and not composed:
            out["additionalProperties"] = False
        return out

    def keyword(self, key: str, item: Any, depth: int) -> Any:
        if key in _SCHEMA:
            return self.schema(item, depth + 1)
        if key in _SCHEMA_LISTS:
            if not isinstance(item, list) or not item:
                raise self.fail(f"`{key}` must be a list of schemas with at least one entry")
            return [self.schema(entry, depth + 1) for entry in item]
        if key in _SCHEMA_MAPS:
            return self.schema_map(key, item, depth)
        if key in _VALUES:
            return self.plain(key, item, depth)
        if self._lenient:
            return None
        raise self.fail(f"the schema keyword `{key[:80]}` is not supported; remove it")

    def schema_map(self, key: str, item: Any, depth: int) -> dict[str, Any]:
        if not isinstance(item, dict):
            raise self.fail(f"`{key}` must be an object of schemas")
        if key == "patternProperties" and len(item) > MAX_PATTERN_PROPERTIES:
            raise self.fail(f"`patternProperties` has more than {MAX_PATTERN_PROPERTIES} patterns")
        if key == "properties":
            self._properties += len(item)
            if self._properties > MAX_PROPERTIES:
                raise self.fail(f"the schema has more than {MAX_PROPERTIES} properties")
        for name in item:
            self.literal(name, "a property name")
        return {name: self.schema(entry, depth + 1) for name, entry in item.items()}

    def plain(self, key: str, item: Any, depth: int) -> Any:
        if key == "$ref":
            self.reference(item)
        elif key == "type":
            kinds = item if isinstance(item, list) else [item]
            for kind in kinds:
                if not isinstance(kind, str) or kind not in _TYPES:
                    raise self.fail(f"`type` is {json.dumps(kind)[:80]}; it must be one of {', '.join(sorted(_TYPES))}")
        elif key == "enum":
            if not isinstance(item, list) or not item:
                raise self.fail("`enum` must be a list with at least one entry")
            if len(item) > MAX_ENUM:
                raise self.fail(f"`enum` has {len(item)} entries; at most {MAX_ENUM} are allowed")
            for entry in item:
                self.literal_value(entry, depth)
        elif key == "const":
            self.literal_value(item, depth)
        elif key == "format":
            if not isinstance(item, str):
                raise self.fail(f"`format` is {json.dumps(item)[:80]}; it must be a text")
            if item not in _FORMATS:
                if self._lenient:
                    return None
                raise self.fail(f"the string `format` {json.dumps(item)[:80]} is not supported; remove it")
        elif key == "multipleOf":
            # A multiple becomes an automaton with one state a remainder.
            small = isinstance(item, (int, float)) and 0 < item <= MAX_MULTIPLE_OF and item >= 1 / MAX_MULTIPLE_OF
            if not small:
                raise self.fail(f"`multipleOf` must be between {1 / MAX_MULTIPLE_OF} and {MAX_MULTIPLE_OF}")
        elif key == "pattern" and (not isinstance(item, str) or len(item) > MAX_LITERAL):
            raise self.fail(f"`pattern` must be a text of at most {MAX_LITERAL} characters")
        return item

    def reference(self, item: Any) -> None:
        if not isinstance(item, str) or not item.startswith("#"):
            raise self.fail(
                f"the `$ref` {json.dumps(item)[:80]} points outside the schema; only references from # on are followed"
            )
        here: Any = self._root
        for step in item[1:].split("/")[1:] if item != "#" else []:
            step = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(here, dict) or step not in here:
                raise self.fail(f"the `$ref` {json.dumps(item)[:80]} points to nothing in the schema")
            here = here[step]

    def literal(self, text: str, what: str) -> None:
        if len(text) > MAX_LITERAL:
            raise self.fail(f"{what} is longer than {MAX_LITERAL} characters")

    def literal_value(self, value: Any, depth: int) -> None:
        if isinstance(value, str):
            self.literal(value, "a string in `enum` or `const`")
        elif isinstance(value, (dict, list)):
            if depth >= MAX_DEPTH:
                raise self.fail(f"the schema is nested deeper than {MAX_DEPTH} levels")
            for entry in value.values() if isinstance(value, dict) else value:
                self.literal_value(entry, depth + 1)
