"""Tools and tool choices of a Responses request. Functions are translated; what a target runs by itself is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import msgspec

from appliance.dialects import chat
from appliance.dialects import parameters as p
from appliance.dialects.responses.items import at
from appliance.errors import BadRequest, UnsupportedParameter
from appliance.redact import shown


class FunctionTool(msgspec.Struct, frozen=True, tag_field="type", tag="function", forbid_unknown_fields=True):
    name: chat.ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None


class ChosenFunction(msgspec.Struct, frozen=True, tag_field="type", tag="function", forbid_unknown_fields=True):
    name: chat.ToolName


class AllowedTools(msgspec.Struct, frozen=True, tag_field="type", tag="allowed_tools", forbid_unknown_fields=True):
    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]]


NATIVE_TOOLS = frozenset(
    (
        "apply_patch",
        "code_interpreter",
        "computer",
        "computer_use",
        "computer_use_preview",
        "custom",
        "file_search",
        "image_generation",
        "local_shell",
        "mcp",
        "namespace",
        "shell",
        "tool_search",
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
    )
)
"""Types of tools that only a target which speaks this dialect can have. They go on as they are."""

Choice = Literal["none", "auto", "required"]


class Chosen(msgspec.Struct, frozen=True):
    """What the model may call, in the canonical form."""

    tools: list[chat.Tool] | None = None
    choice: Choice | chat.ToolChoice | None = None
    native: Sequence[str] = ()
    """The fields that ask for what no canonical request can say."""


def read_tools(tools: list[dict[str, Any]] | None) -> tuple[list[chat.Tool], list[str]]:
    """The functions, and the paths of the other tools. Raises BadRequest or UnsupportedParameter."""
    functions: list[chat.Tool] = []
    native: list[str] = []
    names: set[str] = set()
    for i, tool in enumerate(tools or ()):
        path = f"tools[{i}]"
        kind = _kind(tool)
        if kind in NATIVE_TOOLS:
            native.append(path)
            continue
        if kind != "function":
            if kind is None:
                raise BadRequest(
                    f"{path}.type is required. Use function.", param=f"{path}.type", code="missing_required_parameter"
                )
            raise UnsupportedParameter(
                f"{path}.type: {shown(str(kind), 80)} is not a known type of tool; use function.", param=f"{path}.type"
            )
        if "function" in tool:
            raise UnsupportedParameter(
                f"{path}.function is not supported: name, description and parameters stand in the tool itself here.",
                param=f"{path}.function",
            )
        try:
            function = msgspec.convert(tool, FunctionTool)
        except msgspec.ValidationError as error:
            raise at(error, path, {}) from None
        _check_function(function, path, names)
        functions.append(as_chat(function))
    return functions, native


def _kind(shape: dict[str, Any]) -> str | None:
    """Its type; what is none at all is quoted as it stands."""
    kind = shape.get("type")
    return kind if kind is None or isinstance(kind, str) else repr(kind)


def as_chat(tool: FunctionTool) -> chat.Tool:
    return chat.Tool(chat.Function(tool.name, tool.description, tool.parameters, tool.strict), "function")


def _check_function(function: FunctionTool, path: str, names: set[str]) -> None:
    if function.name in names:
        raise BadRequest(f"{path}.name: {function.name} is used twice; names must differ.", param=f"{path}.name")
    names.add(function.name)
    if function.parameters:
        p.check_schema(function.parameters, f"{path}.parameters")
        if function.parameters.get("type", "object") != "object":
            where = f"{path}.parameters.type"
            raise BadRequest(f"{where} must be object: arguments are always an object.", param=where)


def choose(tools: list[dict[str, Any]] | None, choice: str | dict[str, Any] | None) -> Chosen:
    """Tools and the choice among them. Raises BadRequest or UnsupportedParameter."""
    functions, native = read_tools(tools)
    named = {tool.function.name for tool in functions}
    if choice is None or isinstance(choice, str):
        return Chosen(functions or None, _plain(choice, bool(tools), bool(functions)), native)
    kind = _kind(choice)
    if kind == "function":
        name = _convert(choice, ChosenFunction).name
        _check_named(name, named, "tool_choice.name")
        return Chosen(functions or None, chat.ToolChoice(chat.ChosenFunction(name), "function"), native)
    if kind == "allowed_tools":
        return _allowed(_convert(choice, AllowedTools), functions, named, native)
    if kind in NATIVE_TOOLS:
        return Chosen(functions or None, None, [*native, "tool_choice"])
    where = "tool_choice.type"
    if kind is None:
        raise BadRequest(f"{where} is required. Use function.", param=where, code="missing_required_parameter")
    raise UnsupportedParameter(
        f"{where}: {shown(str(kind), 80)} is not known; use function or allowed_tools.", param=where
    )


def _plain(choice: str | None, tools: bool, functions: bool) -> Choice | None:
    if choice is None:
        return None
    if choice in ("auto", "none"):
        return cast(Choice, choice) if functions else None  # without tools it asks for nothing
    if choice != "required":
        raise BadRequest(
            f"tool_choice cannot be {shown(choice, 80)}. Use none, auto, required or {{type: function, name}}.",
            param="tool_choice",
        )
    if not tools:
        raise BadRequest("tool_choice needs tools.", param="tool_choice")
    return "required" if functions else None


def _convert(choice: dict[str, Any], struct: Any) -> Any:
    try:
        return msgspec.convert(choice, struct)
    except msgspec.ValidationError as error:
        raise at(error, "tool_choice", {"mode": "Use auto or required."}) from None


def _check_named(name: str, named: set[str], where: str) -> None:
    if name not in named:
        there = f"there is {', '.join(sorted(named))}." if named else "there are no functions."
        raise BadRequest(f"{where}: there is no function {name}; {there}", param=where)


def _allowed(choice: AllowedTools, functions: list[chat.Tool], named: set[str], native: list[str]) -> Chosen:
    """Only some of the tools may be called: the others are left out, which says the same."""
    wanted: set[str] = set()
    others = False
    for k, each in enumerate(choice.tools):
        if each.get("type") == "function":
            name = each.get("name")
            if not isinstance(name, str):
                where = f"tool_choice.tools[{k}].name"
                raise BadRequest(f"{where} is required.", param=where, code="missing_required_parameter")
            _check_named(name, named, f"tool_choice.tools[{k}].name")
            wanted.add(name)
        else:
            others = True
    if not choice.tools:
        raise BadRequest("tool_choice.tools must hold at least 1 item(s).", param="tool_choice.tools")
    kept = [tool for tool in functions if tool.function.name in wanted]
    return Chosen(kept or None, choice.mode if kept else None, [*native, "tool_choice"] if others else native)
