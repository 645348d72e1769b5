"""A model that is able enough for outside judges: it calls tools, keeps to schemas, looks at images, and answers.

It is deterministic and understands nothing. What it says is taken from the question and from the schemas in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tests.fakes.talk import Call, Question, Said, Tool, words

_FACTS = (
    ("capital of france", "The capital of France is Paris."),
    ("what is my name", "Alice"),
    ("count from 1 to 5", "1, 2, 3, 4, 5"),
    ("what's 3 * 3", "3 * 3 is 9."),
)
_FORMATS = {
    "date": "2026-03-14",
    "date-time": "2026-03-14T15:09:26Z",
    "time": "15:09:26Z",
    "email": "someone@example.com",
    "uri": "https://example.com/page",
    "uuid": "6f1c2b3a-4d5e-4f60-8a7b-9c0d1e2f3a4b",
    "ipv4": "192.0.2.1",
}
_DEEPEST = 12


def think(question: Question) -> Said:
    """The answer of the able model."""
    said = _say(question)
    said.prompt = 3 + sum(len(turn.text.split()) + 85 * turn.media + 4 for turn in question.turns)
    if question.think:
        said.thought = words("Let me look at this: it is asked " + _short(question.asked, 40) + " and I know it.")
    return _cut(said, question)


def _say(question: Question) -> Said:
    calls = _calls(question)
    if calls:
        return Said(calls=calls, finish="tool_calls")
    schema = question.schema or _schema_told(question) if not question.results else question.schema
    if schema is not None:
        filled = fill(schema, question.asked)
        return Said(pieces=re.findall(r".{1,6}", json.dumps(filled, ensure_ascii=False), re.DOTALL))
    return Said(pieces=words(_text(question)))


def _schema_told(question: Question) -> dict[str, Any] | None:
    """A schema that stands in the texts; without one, for whoever wants some JSON, the words in quotes are its keys."""
    for turn in question.turns:
        for found in re.finditer(r"\{", turn.text):
            try:
                read, _ = json.JSONDecoder().raw_decode(turn.text, found.start())
            except ValueError:
                continue
            if "properties" in read:
                schema: dict[str, Any] = read
                return schema
    if question.schema is None:
        return None
    keys = re.findall(r"['\"`](\w+)['\"`]", question.asked)
    return {"type": "object", "properties": {key: {"type": "string"} for key in keys}}


def _text(question: Question) -> str:
    if question.results:
        return "The tool says: " + "; ".join(result or "nothing" for result in question.results)
    if question.last.media:
        return f"I see {question.last.media} of what you sent: a red square with the words hello world."
    asked = question.asked.lower()
    for about, fact in _FACTS:
        if about in asked:
            return fact
    return "You said: " + _short(question.asked or "nothing", 80) + " – and this is my answer to it."


def _short(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


def _cut(said: Said, question: Question) -> Said:
    """The answer up to the first stop sequence, and to the most tokens."""
    text = said.text
    found = [(text.index(stop), stop) for stop in question.stop if stop and stop in text]
    if found:
        at, said.stop_sequence = min(found)
        said.pieces = words(text[:at])
    most = question.most
    if most is not None and len(said.thought) + len(said.pieces) > most:
        said.pieces = said.pieces[: max(0, most - len(said.thought))]
        said.thought = said.thought[:most]
        said.finish, said.stop_sequence = "length", None
    return said


# --- tools ----------------------------------------------------------------------------------------


def _calls(question: Question) -> list[Call]:
    tools, choice = question.tools, question.choice
    if not tools or choice == "none":
        return []
    named = [tool for tool in tools if tool.name == choice]
    if not named and question.results:
        return []
    if named:
        chosen = named[:1]
    elif choice == "required":
        chosen = [max(tools, key=lambda tool: _nearness(tool, question.asked))]
    else:
        chosen = [tool for tool in tools if _nearness(tool, question.asked) > 0]
        chosen.sort(key=lambda tool: -_nearness(tool, question.asked))
        if not question.parallel or not re.search(r"\b(both|and also|each)\b", question.asked.lower()):
            chosen = chosen[:1]
    start = sum(len(turn.calls) for turn in question.turns)
    return [
        Call(f"call_{start + i:04d}", tool.name, fill(tool.schema, question.asked)) for i, tool in enumerate(chosen)
    ]


_COMMON = frozenset(
    re.findall(
        r"\w+",
        "a an and are be by can do for from get has have how i if in is it me my of on or please that the this to tool "
        "use was what which will with you your",
    )
)


def _tokens(text: str) -> set[str]:
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", text).lower()
    return set(re.findall(r"[a-z0-9]{3,}", spaced.replace("_", " "))) - _COMMON


def _nearness(tool: Tool, asked: str) -> int:
    """How much a tool is what is asked for."""
    if tool.name.lower() in asked.lower():
        return 100 + len(tool.name)
    found = _tokens(asked)
    return 3 * len(_tokens(tool.name) & found) + len(_tokens(tool.description) & found)


# --- schemas --------------------------------------------------------------------------------------


def fill(schema: Mapping[str, Any], hint: str = "", name: str = "") -> Any:
    """A value that a JSON schema takes, with what `hint` offers for it."""
    return _fill(schema, schema, hint, name, 0)


def _fill(schema: Any, root: Mapping[str, Any], hint: str, name: str, depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return None
    if "$ref" in schema:
        return _fill(_resolve(schema["$ref"], root), root, hint, name, depth + 1)
    for fixed in ("const", "default"):
        if fixed in schema and (fixed == "const" or schema.get("default") is None):
            return schema[fixed]
    if "enum" in schema:
        return next((value for value in schema["enum"] if str(value).lower() in hint.lower()), schema["enum"][0])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            options = [option for option in schema[several] if option.get("type") != "null"]
            return _fill(options[0] if options else {}, root, hint, name, depth + 1)
    if "allOf" in schema:
        merged: dict[str, Any] = {}
        for part in schema["allOf"]:
            merged.update(_resolve(part["$ref"], root) if "$ref" in part else part)
        return _fill(merged, root, hint, name, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    return _KINDS.get(kind, _nothing)(schema, root, hint, name, depth)


def _resolve(ref: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    for part in ref.removeprefix("#").strip("/").split("/") if ref != "#" else ():
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


def _object(schema: Mapping[str, Any], root: Mapping[str, Any], hint: str, name: str, depth: int) -> Any:
    required = schema.get("required", ())
    return {
        key: _fill(part, root, hint, key, depth + 1)
        for key, part in schema.get("properties", {}).items()
        if key in required or depth < _DEEPEST // 2
    }


def _array(schema: Mapping[str, Any], root: Mapping[str, Any], hint: str, name: str, depth: int) -> Any:
    count = max(schema.get("minItems", 0), 1 if schema.get("maxItems", 1) and depth < _DEEPEST // 2 else 0)
    return [_fill(schema.get("items", {"type": "string"}), root, hint, name, depth + 1) for _ in range(count)]


def _string(schema: Mapping[str, Any], root: Mapping[str, Any], hint: str, name: str, depth: int) -> Any:
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]]
    text = _quoted(hint) or _place(hint) or _short(hint, 40) or name or "text"
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    text = text.ljust(least, "x")
    return text if most is None else text[:most]


def _quoted(hint: str) -> str:
    found = re.search(r"[\"'`“«]([^\"'`”»]{1,60})[\"'`”»]", hint) or re.search(r"(?:called|named) ([\w-]+)", hint)
    return found.group(1) if found else ""


def _place(hint: str) -> str:
    found = re.search(r"\b(?:in|for|at|of|to) ((?:[A-Z][\w.-]+)(?: [A-Z][\w.-]+)*)", hint)
    return found.group(1).rstrip(".") if found else ""


def _number(schema: Mapping[str, Any], root: Mapping[str, Any], hint: str, name: str, depth: int) -> Any:
    whole = schema.get("type") == "integer"
    least = schema.get("minimum", schema.get("exclusiveMinimum", -1e9) + (1 if "exclusiveMinimum" in schema else 0))
    most = schema.get("maximum", schema.get("exclusiveMaximum", 1e9) - (1 if "exclusiveMaximum" in schema else 0))
    for text in re.findall(r"-?\d+(?:\.\d+)?", hint):
        value = float(text)
        if least <= value <= most and (not whole or value.is_integer()):
            return int(value) if value.is_integer() else value
    return int(min(max(least, 1), most))


def _boolean(schema: Mapping[str, Any], root: Mapping[str, Any], hint: str, name: str, depth: int) -> Any:
    return True


def _nothing(schema: Mapping[str, Any], root: Mapping[str, Any], hint: str, name: str, depth: int) -> Any:
    return None


_KINDS = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _number,
    "number": _number,
    "boolean": _boolean,
    "null": _nothing,
}
