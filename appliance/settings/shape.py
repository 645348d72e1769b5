"""The schema as a tree of keys, made by looking at the models.

`explain`, the reference page, the JSON Schema's texts, messages and `diff` all read this one tree,
so that none of them can know a key that the others do not.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from appliance.settings.document import Path
from appliance.settings.routing import ON_BOX_TAG, PROVIDER_TAG, ROUTE_TAG
from appliance.settings.schema import Settings
from appliance.settings.values import TEXT, Form

_TAGS = (ON_BOX_TAG, PROVIDER_TAG, ROUTE_TAG)
_BOUNDS = (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than"))


@dataclass(frozen=True)
class Shape:
    """One key, with what lies below it. A list's entries are written `[]` in `key`."""

    key: str
    help: str
    form: Form
    children: dict[str, Shape] = field(default_factory=dict)
    """A section's keys. A section with alternatives (targets) has the keys of all of them."""
    item: Shape | None = None
    """What a list holds."""
    default: str | None = None
    """As it is written in the file; None = required."""
    optional: bool = False
    """May be left out with a meaning of its own (null)."""
    choices: tuple[str, ...] = ()
    bounds: str = ""
    unit: str | None = None
    restart: bool = False
    model: type[BaseModel] | None = None
    """The class of a section that has exactly one."""

    @property
    def is_section(self) -> bool:
        return bool(self.children)

    @property
    def is_leaf(self) -> bool:
        """A key with a value of its own, a list of plain values included."""
        return not self.is_section and (self.item is None or not self.item.is_section)

    @property
    def required(self) -> bool:
        return self.default is None and not self.optional

    def walk(self) -> Iterator[Shape]:
        """This key and every key below it, in the order of the schema."""
        if self.key:
            yield self
        inner = self.item if self.item is not None and self.item.is_section else self
        for child in inner.children.values():
            yield from child.walk()


@cache
def root() -> Shape:
    """The tree of `Settings`."""
    return Shape("", "All settings.", _section_form(), _children(Settings, ""), model=Settings)


def leaves() -> tuple[Shape, ...]:
    """Every key that holds a value."""
    return tuple(shape for shape in root().walk() if shape.is_leaf)


def find(key: str) -> Shape | None:
    """Look up `routes[].deadlines.idle`; indexes and `[]` may be left out or be numbers."""
    at = root()
    for part in key.replace("[", ".").replace("]", "").split("."):
        if part == "" or part.isdecimal():
            continue
        inner = at.item if at.item is not None else at
        if part not in inner.children:
            return None
        at = inner.children[part]
    return at if at.key else None


def at_path(path: Path) -> Shape | None:
    """The shape of a place in a document: ("routes", 0, "model")."""
    at: Shape | None = root()
    for part in path:
        if at is None:
            return None
        at = at.item if isinstance(part, int) else at.children.get(part)
    return at


def clean(location: Path) -> Path:
    """A place as pydantic tells it, without the marks of alternatives."""
    return tuple(part for part in location if part not in _TAGS)


def dotted(path: Path) -> str:
    """("routes", 0, "model") → `routes[0].model`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _section_form() -> Form:
    return Form("a section (keys with values below it)", "{key: value}")


def _children(model: type[BaseModel], key: str) -> dict[str, Shape]:
    prefix = f"{key}." if key else ""
    return {name: _of_field(info, prefix + name) for name, info in model.model_fields.items()}


def _of_field(info: FieldInfo, key: str) -> Shape:
    annotation = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    parts = _unpack(annotation)
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    unit = extra.get("unit")
    choices = _choices(parts)
    form = _form(parts, choices)
    help_text = info.description or ""
    restart = bool(extra.get("restart"))
    item = next((part for part in parts if get_origin(part) is tuple), None)
    sections = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
    children: dict[str, Shape] = {}
    entry: Shape | None = None
    if item is not None:
        entry = _of_item(get_args(item)[0], f"{key}[]", help_text)
        plural = "a list" if entry.is_section else f"a list; each entry is {entry.form.expected}"
        form = Form(plural, f"[{entry.form.example}]", render=_render_list(entry.form))
    elif sections:
        form, children = _section_form(), _children(sections[0], key)
    if info.examples:
        form = replace(form, example=_as_flow(info.examples[0]))
    return Shape(
        key=key,
        help=help_text,
        form=form,
        children=children,
        item=entry,
        default=_default(info, form),
        optional=type(None) in parts,
        choices=choices,
        bounds=_bounds(info, form),
        unit=unit if isinstance(unit, str) else form.unit,
        restart=restart,
        model=sections[0] if sections and item is None else None,
    )


def _of_item(annotation: Any, key: str, help_text: str) -> Shape:
    parts = _unpack(annotation)
    sections = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
    if sections:
        children: dict[str, Shape] = {}
        for section in sections:
            children |= _children(section, key)
        return Shape(key, help_text, _section_form(), children, model=sections[0] if len(sections) == 1 else None)
    choices = _choices(parts)
    return Shape(key, help_text, _form(parts, choices), default="", choices=choices)


def _choices(parts: list[Any]) -> tuple[str, ...]:
    return next((get_args(part) for part in parts if get_origin(part) is Literal), ())


def _form(parts: list[Any], choices: tuple[str, ...]) -> Form:
    form = next((part for part in parts if isinstance(part, Form)), None)
    if form is None:
        form = Form(f"one of {', '.join(choices)}", choices[0]) if choices else TEXT
    return form


def _unpack(annotation: Any) -> list[Any]:
    """The types and metadata in `Annotated` and unions, the innermost first; lists are not entered."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *metadata = get_args(annotation)
        return [*_unpack(inner), *metadata]
    if origin in (Union, types.UnionType):
        return [part for member in get_args(annotation) for part in _unpack(member)]
    return [annotation]


def _as_flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_as_flow(member)}" for name, member in value.items()) + "}"
    return "[" + ", ".join(map(_as_flow, value)) + "]" if isinstance(value, list) else str(value)


def _render_list(form: Form) -> Any:
    return lambda value: "[" + ", ".join(form.render(each) for each in value) + "]"


def _default(info: FieldInfo, form: Form) -> str | None:
    if info.is_required() or info.default is None:
        return None
    if info.default is PydanticUndefined:  # a factory: a section, or a list that the help speaks about
        return ""
    return form.render(info.default)


def _bounds(info: FieldInfo, form: Form) -> str:
    found = []
    for name, words in _BOUNDS:
        for part in info.metadata:
            limit = getattr(part, name, None)
            if limit is not None:
                found.append(f"{words} {form.render(limit)}")
    return ", ".join(found)
