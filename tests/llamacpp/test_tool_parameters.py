"""What the generic offer says of a tool's parameters: enough to use it, and never more than a prompt can bear."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from runtimes.engine import InvalidRequest
from runtimes.llamacpp.conversation import generic_offer, offer_text
from runtimes.llamacpp.parameters import MAX_TOTAL, kind_of, parameters_text
from runtimes.llamacpp.tools import Tool, read_tools
from tests.llamacpp.template_shapes import MULTIPLY


def tools(*parameters: Any, name: str = "tool") -> list[Tool]:
    functions = [{"name": f"{name}_{i}", "parameters": schema} for i, schema in enumerate(parameters)]
    plan = read_tools([{"type": "function", "function": function} for function in functions], "auto", True)
    assert plan is not None
    return plan.tools


def described(schema: Any) -> list[str]:
    """The lines of one tool's parameters."""
    name, *lines = parameters_text(tools(schema)).strip("\n").split("\n")
    assert name in ("tool_0:", "")
    return lines


class Place(BaseModel):
    """Where it is."""

    city: str
    zip: int | None = None


class Order(BaseModel):
    item: str = Field(description="What is\n  ordered")
    size: Literal["small", "large"] = Field("small", description="How large it is")
    count: int = Field(ge=1)
    tags: list[str] = []
    place: Place
    kind: Literal["order"] = "order"


def test_name_type_values_description_and_whether_it_is_needed() -> None:
    assert described(Order.model_json_schema()) == [
        "- item (string, required): What is ordered",
        '- size (one of "small", "large", optional): How large it is',
        "- count (integer, required)",
        "- tags (list of string, optional)",
        "- place (object with city, zip, required): Where it is.",
        '- kind ("order", optional)',
    ]


def test_it_is_part_of_the_offer() -> None:
    offered = tools(Order.model_json_schema())
    assert offer_text(offered).endswith('\n- kind ("order", optional)')
    plan = read_tools(
        [{"type": "function", "function": {"name": "f", "parameters": Order.model_json_schema()}}], "auto", True
    )
    assert plan is not None
    out = generic_offer(plan, [{"role": "user", "content": "Hi"}], after_result=False)
    assert '- size (one of "small", "large", optional): How large it is' in out[0]["content"]


@pytest.mark.parametrize(
    "schema",
    [
        None,
        {},
        {"type": "object", "properties": {}},
        {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        MULTIPLY["function"]["parameters"],
    ],
)
def test_names_that_say_it_all_are_left_alone(schema: Any) -> None:
    assert parameters_text(tools(schema)) == ""


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": ["string", "null"]}, "string or null"),
        ({"anyOf": [{"type": "integer"}, {"type": "number"}, {"type": "integer"}]}, "integer or number"),
        ({"type": "array", "items": {"$ref": "#/$defs/a"}}, 'list of one of 1, "b"'),
        ({"type": "array"}, "list"),
        ({"type": "object"}, "object"),
        ({"const": {"a": 1}}, '{"a": 1}'),
        ({"const": None}, "null"),
        ({"enum": [*range(20)]}, "one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …"),
        ({"$ref": "#/$defs/loop"}, "any"),
        ({"$ref": "#/nowhere"}, "any"),
        ({"type": "array", "items": {"$ref": "#"}}, "list of list of list of list of any"),
        (True, "any"),
        ({}, "any"),
    ],
)
def test_types_in_words(schema: Any, words: str) -> None:
    definitions = {"a": {"enum": [1, "b"]}, "loop": {"$ref": "#/$defs/loop"}}
    root = {"type": "array", "items": {"$ref": "#"}, "$defs": definitions}
    assert kind_of(schema, root) == words


def test_everything_is_cut() -> None:
    long = {"type": "string", "description": "word " * 50, "enum": ["v" * 200] * 2}
    lines = described({"type": "object", "properties": {f"p{i}": long for i in range(90)}})
    assert len(lines) == MAX_TOTAL // len(lines[0])
    assert all(len(line) < 400 and "…, required)" not in line and line.endswith("…") for line in lines)
    short = {"type": "object", "properties": {f"p{i}": {"enum": ["x"]} for i in range(90)}}
    assert len(described(short)) == 24
    text = parameters_text(tools(*[short] * 128))
    assert 0.9 * MAX_TOTAL < len(text) <= MAX_TOTAL
    assert "tool_0:" in text
    assert "tool_127" not in text
    assert "tool_127(p0, " in offer_text(tools(*[short] * 128))


_text = st.text(max_size=3)
_values = st.one_of(st.none(), st.booleans(), st.integers(), _text, st.lists(_text, max_size=2))
_keys = st.sampled_from(["type", "enum", "const", "description", "required", "$ref"])
_nested = st.sampled_from(["items", "anyOf", "oneOf", "properties", "$defs", "description"])
_schemas = st.recursive(
    st.one_of(st.booleans(), st.dictionaries(_keys, _values)),
    lambda inner: st.dictionaries(
        _nested,
        st.one_of(inner, st.lists(inner, max_size=3), st.dictionaries(_text, inner, max_size=3), _values),
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=4), _schemas, max_size=4), _values)
def test_whatever_passes_the_check_can_be_described(properties: dict[str, Any], required: Any) -> None:
    try:
        offered = tools({"type": "object", "properties": properties, "required": required})
    except InvalidRequest:
        return
    assert len(parameters_text(offered)) <= MAX_TOTAL
    assert len(parameters_text(offered).splitlines()) <= 2 + len(properties)
