"""Settings and their schema as text: for `outpost config show|schema|explain`."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic.json_schema import GenerateJsonSchema

from appliance.settings.problems import suggest
from appliance.settings.schema import Settings
from appliance.settings.shape import Shape, find, root
from appliance.settings.values import DURATION, LISTEN, PATH, SIZE

_WRITTEN_AS_TEXT = (DURATION, SIZE, LISTEN, PATH)


def as_plain(settings: Settings) -> dict[str, Any]:
    """Every key with its effective value in the form of the file. Secrets stay references."""
    plain: dict[str, Any] = settings.model_dump(mode="json")
    return plain


def as_yaml(settings: Settings) -> str:
    """The settings as a file that loads to the same settings."""
    plain = _without_nulls(as_plain(settings))
    # Escaped, because YAML takes some characters beyond ASCII for line breaks and would lose them.
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=False, width=100, default_flow_style=False)


def _without_nulls(value: Any) -> Any:
    # A reference has one of env and file; the null of the other would only confuse a reader.
    if isinstance(value, dict):
        return {
            name: _without_nulls(member)
            for name, member in value.items()
            if not (member is None and set(value) == {"env", "file"})
        }
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def explain(key: str) -> str | None:
    """What a key means, in a few lines of text; None when there is no such key."""
    shape = find(key)
    if shape is None:
        return None
    rows = []
    if shape.is_leaf:
        rows = [(label, text) for label, text in _facts(shape) if text]
    lines = [shape.key, f"  {shape.help}"]
    lines += [f"  {label + ':':<10}{text}" for label, text in rows]
    inner = shape.item if shape.item is not None and shape.item.is_section else shape
    if inner.children:
        if shape.item is not None:
            lines.append("  A list; each entry has these keys:")
        width = max(len(name) for name in inner.children)
        lines += [f"    {name:<{width}}  {child.help}" for name, child in inner.children.items()]
    return "\n".join(lines)


def did_you_mean(key: str) -> str | None:
    """The key nearest to one that does not exist."""
    return suggest(key.replace("[]", ""), {shape.key.replace("[]", "") for shape in root().walk()})


def default_text(shape: Shape) -> str:
    """`required`, `none`, or the default as it is written in the file."""
    if shape.required:
        return "required"
    return shape.default or "none"


def change_text(shape: Shape) -> str:
    """When a changed value takes effect."""
    return "needs a restart" if shape.restart else "applied by a reload"


def _facts(shape: Shape) -> list[tuple[str, str]]:
    return [
        ("Form", f"{shape.form.expected}, e.g. {shape.form.example}"),
        ("Unit", shape.unit or ""),
        ("Default", default_text(shape)),
        ("Allowed", shape.bounds),
        ("Change", change_text(shape)),
    ]


class _Generator(GenerateJsonSchema):
    """Without the titles that only repeat the names of the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the file, for editors and pipelines. Defaults are in the file's form."""
    schema: dict[str, Any] = Settings.model_json_schema(schema_generator=_Generator)
    definitions = schema.get("$defs", {})
    for shape in (root(), *root().walk()):
        for section in (shape, shape.item):
            if section is None or section.model is None:
                continue
            target = schema if section.model is Settings else definitions[section.model.__name__]
            for name, child in section.children.items():
                _finish(target["properties"][name], child)
    return {"$schema": GenerateJsonSchema.schema_dialect, **schema, "title": "outpost.yaml"}


def _finish(target: dict[str, Any], shape: Shape) -> None:
    """Say the default as it is written in the file, and let a section or list be empty, as the loader does."""
    if shape.form in _WRITTEN_AS_TEXT and shape.default:
        target["default"] = shape.default
    if not shape.is_leaf and not shape.optional and not shape.required:
        description = target.pop("description", shape.help)
        inner = dict(target)
        target.clear()
        target.update({"anyOf": [inner, {"type": "null"}], "description": description})
