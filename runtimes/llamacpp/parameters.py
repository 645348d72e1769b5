"""A tool's parameters in words, for models whose template knows no tools. Pure.

The grammar sees to it that arguments fit; what is said here is what they mean. It is kept short, since it takes its
place in every prompt: each text, each list and the whole are cut.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from runtimes.llamacpp.tools import Tool

MAX_TEXT = 160
"""Characters of one description, and of one value."""
MAX_NAMES = 12
"""Values of one enum, names of one object, branches of one choice."""
MAX_PARAMETERS = 24
"""Of one tool."""
MAX_TOTAL = 4000
"""Characters over all tools. What is beyond is offered by its name alone."""
MAX_NESTING = 3
PLAIN = frozenset({"string", "integer", "number", "boolean", "any"})


def parameters_text(tools: Sequence[Tool]) -> str:
    """Each tool's name and a line a parameter, all after line breaks; "" when the parameters' names say it all."""
    out = ""
    for tool in tools:
        lines = _lines(tool)
        for line in [f"\n{tool.name}:", *(f"\n- {line}" for line in lines)] if lines else []:
            if len(out) + len(line) > MAX_TOTAL:
                return out
            out += line
    return out


def _lines(tool: Tool) -> list[str]:
    properties = tool.parameters.get("properties")
    if not isinstance(properties, Mapping):
        return []
    required = tool.parameters.get("required")
    needed = frozenset(n for n in required if isinstance(n, str)) if isinstance(required, list) else frozenset[str]()
    names = [*properties][:MAX_PARAMETERS]
    lines = [_line(name, properties[name], name in needed, tool.parameters) for name in names]
    # A name and a plain type are nothing that a model would not guess, and a small one is led astray by every word.
    return [line for line, _ in lines] if any(telling for _, telling in lines) else []


def _line(name: str, schema: Any, required: bool, root: Mapping[str, Any]) -> tuple[str, bool]:
    kind = cut(kind_of(schema, root))
    said = _described(schema, root)
    line = f"{cut(name)} ({kind}, {'required' if required else 'optional'}){f': {said}' if said else ''}"
    return line, bool(said) or kind not in PLAIN or not required


def _described(schema: Any, root: Mapping[str, Any]) -> str:
    for place in (schema, resolved(schema, root)):
        said = place.get("description") if isinstance(place, Mapping) else None
        if isinstance(said, str) and said.strip():
            return cut(said)
    return ""


def kind_of(schema: Any, root: Mapping[str, Any], depth: int = 0) -> str:
    """What a value may be, in a few words."""
    schema = resolved(schema, root)
    if not isinstance(schema, Mapping) or depth > MAX_NESTING:
        return "any"
    if "const" in schema:
        return _value(schema["const"])
    if isinstance(values := schema.get("enum"), list):
        return "one of " + _listed([_value(value) for value in values[: MAX_NAMES + 1]])
    for key in ("anyOf", "oneOf"):
        if isinstance(branches := schema.get(key), list):
            kinds = [kind_of(branch, root, depth + 1) for branch in branches[: MAX_NAMES + 1]]
            return " or ".join(dict.fromkeys(kinds))
    kind = schema.get("type")
    if isinstance(kind, list):
        return " or ".join(map(str, kind))
    if kind == "array":
        return f"list of {kind_of(schema['items'], root, depth + 1)}" if "items" in schema else "list"
    if isinstance(properties := schema.get("properties"), Mapping) and properties:
        return "object with " + _listed([cut(name) for name in [*properties][: MAX_NAMES + 1]])
    return kind if isinstance(kind, str) else "any"


def resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """What a schema's `$ref` leads to; the schema itself where there is none, None where it leads nowhere."""
    for _ in range(MAX_NESTING):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str):
            return schema
        schema = root
        for step in reference.removeprefix("#").split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            schema = schema.get(step) if isinstance(schema, Mapping) else None
    return None


def _value(value: Any) -> str:
    return cut(json.dumps(value, ensure_ascii=False))


def _listed(words: list[str]) -> str:
    return ", ".join(words[:MAX_NAMES]) + (", …" if len(words) > MAX_NAMES else "")


def cut(text: str) -> str:
    """Text of the caller's in one line of bounded length."""
    # The first characters are enough to look at, however long it is.
    line = " ".join(text[: 4 * MAX_TEXT].split())
    return line if len(line) <= MAX_TEXT and len(text) <= 4 * MAX_TEXT else f"{line[: MAX_TEXT - 1]}…"
