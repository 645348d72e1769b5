"""JSON schemas for targets that hold their answers to a part of JSON Schema only. Pure.

Anthropic's models, at Anthropic and on Bedrock, take objects that are closed and know nothing of bounds. What such a
schema cannot say of an answer goes into its description, which the model reads: so Anthropic's own SDKs do it. A schema
that would mean something else without it is refused by name.
"""

from __future__ import annotations

from typing import Any

from appliance.dialects.wire import encode
from appliance.errors import UnsupportedParameter

Schema = dict[str, Any]

_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"),
)
_MANY = ("$defs", "definitions")
_SILENT = frozenset({"$schema", "$id", "$comment", "$anchor"})
"""They say nothing of an answer."""
_TYPES = frozenset(("object", "array", "string", "integer", "number", "boolean", "null"))
_SCALARS = (str, int, float, bool, type(None))


def narrowed(schema: Schema, path: str) -> Schema:
    """The schema as such targets take it; whatever fits it fits `schema`, but for what only its descriptions say.

    `path` is its field, for refusals. Raises UnsupportedParameter.
    """
    _check_references(schema, path)
    return _narrow(schema, path)


def arguments(parameters: Schema | None, path: str, *, narrow: bool) -> Schema:
    """The schema of a tool's arguments, which are always an object. `narrow`: the model is held to it."""
    schema: Schema = {"type": "object", **(parameters or {"properties": {}})}
    if not narrow:
        return schema
    return narrowed(schema if schema.get("properties") else {**schema, "additionalProperties": False}, path)


def _narrow(schema: Any, path: str) -> Schema:
    if not isinstance(schema, dict):
        raise _unsupported(path, "say of what type it is")
    left = {name: value for name, value in schema.items() if name not in _SILENT}
    made: Schema = {}
    for name in _MANY:
        if isinstance(left.get(name), dict):
            made[name] = {key: _narrow(each, f"{path}.{name}.{key}") for key, each in left.pop(name).items()}
    if (reference := left.pop("$ref", None)) is not None:
        return {**made, "$ref": reference}  # nothing else may stand beside it
    kind = left.pop("type", None)
    if isinstance(kind, list):
        return made | _any_of_types(schema, kind, path)
    told: Schema = {name: left.pop(name) for name in ("title", "description") if isinstance(left.get(name), str)}
    if (values := _values(left)) is not None:
        made |= values
        for name in values:
            del left[name]
    elif (choices := _choices(left, path)) is not None:
        made |= choices
        left |= {} if kind is None else {"type": kind}
    elif kind in _TYPES:
        made |= {"type": kind, **_TAKE.get(kind, _nothing)(left, path)}
    else:
        raise _unsupported(path, "say of what type it is")
    made |= told
    if left:
        rest = f"It must also fit {encode(left).decode()}"
        made["description"] = f"{told['description']}\n\n{rest}" if told.get("description") else rest
    return made


def _any_of_types(schema: Schema, kinds: list[str], path: str) -> Schema:
    told: Schema = {name: schema[name] for name in ("title", "description") if name in schema}
    apart = {name: value for name, value in schema.items() if name not in (*told, *_MANY, "type")}
    if (values := _values(apart)) is not None and len(values) == len(apart):
        return values | told
    return {"anyOf": [_narrow({"type": kind, **_of_type(apart, kind)}, path) for kind in kinds], **told}


_BELONGS = {
    "object": {"properties", "required", "additionalProperties", "minProperties", "maxProperties", "patternProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"},
    "string": {"format", "minLength", "maxLength", "pattern"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}
_BELONGS["integer"] = _BELONGS["number"]
_OTHERS: frozenset[str] = frozenset().union(*_BELONGS.values())


def _of_type(schema: Schema, kind: str) -> Schema:
    """What of a schema for several types says something of one of them."""
    mine = _BELONGS.get(kind, set())
    return {name: value for name, value in schema.items() if name in mine or name not in _OTHERS}


def _values(left: Schema) -> Schema | None:
    """The values that it allows, where they are plain ones."""
    values = left.get("enum")
    if isinstance(values, list) and values and all(isinstance(each, _SCALARS) for each in values):
        return {"enum": values}
    if "const" in left and isinstance(left["const"], _SCALARS):
        return {"const": left["const"]}
    return None


def _choices(left: Schema, path: str) -> Schema | None:
    for name, becomes in (("anyOf", "anyOf"), ("oneOf", "anyOf"), ("allOf", "allOf")):
        if isinstance(left.get(name), list):
            return {becomes: [_narrow(each, f"{path}.{name}[{k}]") for k, each in enumerate(left.pop(name))]}
    return None


def _object(left: Schema, path: str) -> Schema:
    """Closed: what it may have beside is not made then, which is what it may."""
    fields = left.pop("properties", None) or {}
    open = left.pop("additionalProperties", None)
    if isinstance(open, dict) or left.get("patternProperties") or (not fields and open is not False):
        raise _unsupported(path, "name the fields of its objects in properties")
    made: Schema = {
        "properties": {name: _narrow(each, f"{path}.properties.{name}") for name, each in fields.items()},
        "additionalProperties": False,
    }
    if isinstance(left.get("required"), list):
        required = left.pop("required")
        if missing := [name for name in required if name not in fields]:
            raise _unsupported(path, f"name {missing[0]}, which is required, in properties")
        made["required"] = required
    return made


def _array(left: Schema, path: str) -> Schema:
    if "items" not in left:
        raise _unsupported(path, "say what its items are")
    made: Schema = {"items": _narrow(left.pop("items"), f"{path}.items")}
    if left.get("minItems") in (0, 1):
        made["minItems"] = left.pop("minItems")
    return made


def _string(left: Schema, path: str) -> Schema:
    return {"format": left.pop("format")} if left.get("format") in _FORMATS else {}


def _nothing(left: Schema, path: str) -> Schema:
    return {}


_TAKE = {"object": _object, "array": _array, "string": _string}


def _unsupported(path: str, cure: str) -> UnsupportedParameter:
    return UnsupportedParameter(f"{path}: this target is not held to such a schema; {cure}.", param=path)


# --- references -------------------------------------------------------------------------------------


def _check_references(schema: Schema, path: str) -> None:
    """Raises UnsupportedParameter for what lies elsewhere, and for schemas within themselves."""
    defined = {
        f"#/{name}/{key}": each
        for name in _MANY
        if isinstance(schema.get(name), dict)
        for key, each in schema[name].items()
    }
    uses = {name: _references(each) for name, each in defined.items()}
    for name in _references({key: value for key, value in schema.items() if key not in _MANY}).union(*uses.values()):
        if name not in defined:
            raise _unsupported(path, f"$ref can only name what stands in $defs, which {name[:100]} does not")
    done: set[str] = set()
    for name in defined:
        _walk(name, uses, (), done, path)


def _walk(name: str, uses: dict[str, set[str]], above: tuple[str, ...], done: set[str], path: str) -> None:
    if name in above:
        raise _unsupported(path, f"{name[:100]} is part of itself, which cannot be said here")
    if name in done:
        return
    for other in uses[name]:
        _walk(other, uses, (*above, name), done, path)
    done.add(name)


def _references(schema: Any) -> set[str]:
    found: set[str] = set()
    stack = [schema]
    while stack:
        each = stack.pop()
        if isinstance(each, dict):
            if isinstance(each.get("$ref"), str):
                found.add(each["$ref"])
            stack.extend(each.values())
        elif isinstance(each, list):
            stack.extend(each)
    return found
