from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.engine import InvalidRequest
from runtimes.llamacpp import schema as schema_module
from runtimes.llamacpp.schema import MAX_BYTES, MAX_DEPTH, MAX_ENUM, MAX_PROPERTIES, check_schema

PARAM = "response_format.json_schema.schema"


def refusal(schema: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        check_schema(schema, param=PARAM)
    assert caught.value.param == PARAM
    assert len(caught.value.message) < 300
    return caught.value.message


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth - 1):
        schema = {"type": "array", "items": schema}
    return schema


def test_notes_are_dropped_and_objects_closed() -> None:
    assert check_schema(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "T",
            "x": 1,
            "type": "object",
            "properties": {"title": {"type": "string", "description": "d", "default": "x"}, "any": True},
            "required": ["title"],
        },
        param=PARAM,
        lenient=True,
    ) == {
        "type": "object",
        "properties": {"title": {"type": "string"}, "any": True},
        "required": ["title"],
        "additionalProperties": False,
    }


def test_objects_stay_open_where_closing_would_change_the_meaning() -> None:
    open_by_wish = {"type": "object", "properties": {"a": {}}, "additionalProperties": True}
    assert check_schema(open_by_wish, param=PARAM) == open_by_wish
    parts = {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}
    assert check_schema(parts, param=PARAM) == parts
    free = {"type": "object"}
    assert check_schema(free, param=PARAM) == free


@pytest.mark.parametrize(
    "keyword",
    [
        "not",
        "if",
        "dependentRequired",
        "uniqueItems",
        "contains",
        "propertyNames",
        "unevaluatedProperties",
        "x-guidance",
    ],
)
def test_a_keyword_that_cannot_be_enforced_is_named(keyword: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", keyword: {}}}}
    assert f"`{keyword}`" in refusal(schema)
    assert keyword not in str(check_schema(schema, param=PARAM, lenient=True))


@pytest.mark.parametrize(
    "reference", ["http://example.com/s.json", "file:///etc/passwd", "other.json#/a", "//host/x", 5]
)
def test_references_outside_the_schema_are_refused(reference: Any) -> None:
    assert "`$ref`" in refusal({"properties": {"a": {"$ref": reference}}})


def test_references_inside_are_kept_and_must_point_to_something() -> None:
    schema = {"$defs": {"a/b": {"type": "string"}}, "type": "array", "items": {"$ref": "#/$defs/a~1b"}}
    assert check_schema(schema, param=PARAM) == schema
    assert "points to nothing" in refusal({"$ref": "#/$defs/missing"})
    assert check_schema({"type": "object", "properties": {"next": {"$ref": "#"}}}, param=PARAM)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ([], "must be an object"),
        ("string", "must be an object"),
        ({"description": "x" * MAX_BYTES}, "bytes"),
        (nested(MAX_DEPTH + 1), "nested deeper"),
        (nested(5000), "nested deeper"),
        ({"const": nested(40)}, "nested deeper"),
        ({"properties": {f"p{i}": {} for i in range(MAX_PROPERTIES + 1)}}, "properties"),
        ({"patternProperties": {f"^{i}": {} for i in range(17)}}, "patternProperties"),
        ({"enum": list(range(MAX_ENUM + 1))}, "enum"),
        ({"enum": []}, "enum"),
        ({"enum": ["x" * 2001]}, "longer than"),
        ({"const": "x" * 2001}, "longer than"),
        ({"properties": {"x" * 2001: {}}}, "longer than"),
        ({"pattern": "a" * 2001}, "pattern"),
        ({"pattern": 5}, "pattern"),
        ({"multipleOf": 1_000_003}, "multipleOf"),
        ({"multipleOf": 0}, "multipleOf"),
        ({"multipleOf": 1e-9}, "multipleOf"),
        ({"type": "text"}, "`type`"),
        ({"type": ["string", 5]}, "`type`"),
        ({"format": "credit-card"}, "format"),
        ({"format": []}, "`format` is []"),
        ({"format": {}}, "`format` is {}"),
        ({"properties": {"a": {"format": None}}}, "`format` is null"),
        ({"y" * 5000: 1}, "keyword"),
        ({"anyOf": []}, "anyOf"),
        ({"anyOf": {"type": "string"}}, "anyOf"),
        ({"items": 5}, "sub-schema"),
        ({"properties": []}, "properties"),
    ],
)
def test_what_is_refused(schema: Any, words: str) -> None:
    assert words in refusal(schema)


def test_the_deepest_and_the_largest_that_are_allowed() -> None:
    assert check_schema(nested(MAX_DEPTH), param=PARAM) == nested(MAX_DEPTH)
    names = {f"p{i}": {"type": "null"} for i in range(MAX_PROPERTIES)}
    assert len(check_schema({"properties": names}, param=PARAM)["properties"]) == MAX_PROPERTIES


def test_lone_surrogates_are_refused() -> None:
    assert "Unicode" in refusal({"const": "\ud800"})


@pytest.mark.parametrize("value", [[], {}, 5, None])
def test_a_format_that_is_no_text_is_refused_in_schemas_that_were_promised_nothing_too(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="`format`"):
        check_schema({"format": value}, param=PARAM, lenient=True)
    assert check_schema({"format": "credit-card"}, param=PARAM, lenient=True) == {}


def test_null_may_be_the_constant() -> None:
    schema = {"anyOf": [{"type": "string"}, {"const": None}]}
    assert check_schema(schema, param=PARAM) == schema


KEYWORDS = sorted(
    schema_module._SCHEMA
    | schema_module._SCHEMA_LISTS
    | schema_module._SCHEMA_MAPS
    | schema_module._VALUES
    | schema_module._NOTES
    | {"not", "x-guidance", ""}
)
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["#", "#/", "#/items", "#/properties/a", "#/anyOf/0", "#x", "#/~0~1", "object", "date", "uuid"])
)  # fmt: skip
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYWORDS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(KEYWORDS), values, max_size=4) | values, st.booleans())
def test_whatever_a_caller_sends_is_a_schema_or_refused(schema: Any, lenient: bool) -> None:
    try:
        checked = check_schema(schema, param=PARAM, lenient=lenient)
    except InvalidRequest as error:
        assert error.param == PARAM
        assert len(error.message) < 300
    else:
        json.dumps(checked)


@pytest.mark.parametrize("lenient", [True, False])
@pytest.mark.parametrize("keyword", KEYWORDS)
def test_whatever_a_keyword_says_is_taken_or_refused(keyword: str, lenient: bool) -> None:
    odd: list[Any] = [None, True, 0, -5, 1.5, 10**30, "", "x", [], {}, [[]], [{}], [None], {"a": []}, {"": {}}]
    for value in odd:
        try:
            check_schema({"properties": {"a": {keyword: value}}}, param=PARAM, lenient=lenient)
        except InvalidRequest as error:
            assert error.param == PARAM
            assert len(error.message) < 300
