from __future__ import annotations

import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dialects.schemas import arguments, narrowed
from appliance.errors import UnsupportedParameter

_scalars: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(lambda least: {"type": "integer", "minimum": least}, st.integers(-9, 9)),
    st.sampled_from(
        [
            {"type": "string", "maxLength": 3, "description": "Short."},
            {"type": "string", "format": "email"},
            {"type": "string", "format": "color"},
            {"type": ["string", "null"], "minLength": 1},
            {"type": ["integer", "string"], "enum": [1, "a"]},
            {"enum": ["a", None, 1]},
            {"const": 5},
            {"$ref": "#/$defs/Place"},
            {"type": "boolean", "default": True, "title": "T"},
        ]
    ),
)


def _inner(schemas: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.builds(lambda items, n: {"type": "array", "items": items, "minItems": n}, schemas, st.integers(0, 3)),
        st.builds(lambda some: {"anyOf": some}, st.lists(schemas, min_size=1, max_size=2)),
        st.builds(lambda some: {"oneOf": some}, st.lists(schemas, min_size=1, max_size=2)),
        st.builds(
            lambda fields, open: {"type": "object", "properties": fields, "required": list(fields)[:1], **open},
            st.dictionaries(st.sampled_from("abc"), schemas, min_size=1, max_size=3),
            st.sampled_from([{}, {"additionalProperties": True}, {"additionalProperties": False}]),
        ),
    )


_roots = st.recursive(_scalars, _inner, max_leaves=8).map(
    lambda schema: {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {"Place": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}},
        "type": "object",
        "properties": {"it": schema},
    }
)

_KNOWN = {"$defs", "$ref", "type", "anyOf", "allOf", "enum", "const", "title", "description"}
_OF = {
    "object": {"properties", "additionalProperties", "required"},
    "array": {"items", "minItems"},
    "string": {"format"},
}


def _check(schema: dict[str, Any]) -> None:
    """What Anthropic documents."""
    assert schema.keys() <= _KNOWN | _OF.get(schema.get("type", ""), set()), schema
    if schema.get("type") == "object":
        assert schema["additionalProperties"] is False
    assert schema.get("minItems", 0) in (0, 1)
    if "$ref" in schema:
        assert schema.keys() <= {"$ref", "$defs"}
    else:
        assert schema.keys() & {"type", "anyOf", "allOf", "enum", "const"}
    inner = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values(), *schema.get("anyOf", ())]
    for each in [*inner, *([schema["items"]] if "items" in schema else [])]:
        _check(each)


_answers = st.recursive(
    st.none() | st.booleans() | st.integers(-20, 20) | st.sampled_from(["", "a", "abcd"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c", "city"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(_roots, _answers)
def test_a_schema_becomes_one_that_is_taken_and_allows_no_other_shapes(schema: dict[str, Any], answer: Any) -> None:
    before = json.dumps(schema)
    made = narrowed(schema, "schema")
    assert json.dumps(schema) == before
    _check(made)
    jsonschema.Draft202012Validator.check_schema(made)
    if jsonschema.Draft202012Validator(made).is_valid({"it": answer}):
        # Bounds alone are a matter of descriptions.
        assert jsonschema.Draft202012Validator(_unbound(schema)).is_valid({"it": answer})


def _unbound(schema: Any) -> Any:
    if isinstance(schema, dict):
        gone = {"minimum", "maxLength", "minLength", "minItems", "format"}
        named = {"anyOf" if name == "oneOf" else name: each for name, each in schema.items() if name not in gone}
        return {name: _unbound(each) for name, each in named.items()}
    return [_unbound(each) for each in schema] if isinstance(schema, list) else schema


@given(_roots)
def test_what_is_narrow_stays(schema: dict[str, Any]) -> None:
    once = narrowed(schema, "schema")
    assert narrowed(once, "schema") == once


def test_bounds_are_told() -> None:
    made = narrowed({"type": "integer", "minimum": 1, "description": "A day."}, "s")
    assert made == {"type": "integer", "description": 'A day.\n\nIt must also fit {"minimum":1}'}
    assert narrowed({"type": "array", "items": {"type": "null"}, "minItems": 1}, "s")["minItems"] == 1


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "object"}, "s"),
        ({"type": "object", "properties": {"a": {}}}, "s.properties.a"),
        ({"type": "object", "properties": {"a": True}}, "s.properties.a"),
        ({"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}, "s"),
        ({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["b"]}, "s"),
        ({"type": "array"}, "s"),
        ({"anyOf": [{"type": "array", "items": {}}]}, "s.anyOf[0].items"),
        ({"$ref": "https://example.com/a.json"}, "s"),
        ({"$ref": "#"}, "s"),
        (
            {"$ref": "#/$defs/A", "$defs": {"A": {"type": "array", "items": {"$ref": "#/$defs/A"}}}},
            "s",
        ),
        ({"enum": [[1]]}, "s"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(schema: dict[str, Any], path: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        narrowed(schema, "s")
    assert caught.value.param == path
    assert path in caught.value.message


def test_arguments_of_tools() -> None:
    assert arguments(None, "t", narrow=False) == {"type": "object", "properties": {}}
    closed = {"type": "object", "properties": {}, "additionalProperties": False}
    assert arguments(None, "t", narrow=True) == closed
    assert arguments({"type": "object"}, "t", narrow=True) == closed
    open = {"type": "object", "properties": {"a": {}}}
    assert arguments(open, "t", narrow=False) == open
