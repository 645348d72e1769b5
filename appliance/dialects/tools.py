"""Tools, choices among them and calls, as a chat request has them.

Custom tools take plain text. They are functions with one string in the middle, marked with what they were
(`Tool.custom`); see custom_tools. Every other module sees functions and their calls alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from appliance.dialects import custom_tools
from appliance.dialects import parameters as p
from appliance.errors import BadRequest, UnsupportedParameter
from appliance.redact import shown

CacheControl = dict[str, Any]
"""Anthropic's mark that a prompt is worth keeping up to here; targets without the notion never see it."""
ToolName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
CalledName = Annotated[str, Meta(min_length=1, max_length=64)]
_LEFT_OUT: Any = None
"""Stands for a field that one of two forms has; `check` and `tidy` see to it that none is left."""


class FunctionCall(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    name: CalledName
    arguments: str
    parsed_arguments: Any = None
    """Left over from an SDK's parsed answer; see `tidy_call`."""


class CustomCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: CalledName
    input: str


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    id: Annotated[str, Meta(min_length=1, max_length=256)]
    function: FunctionCall = _LEFT_OUT
    type: Literal["function", "custom"] | None = None
    """`tidy_call` fills it in: a default would be left out when the call is sent on."""
    index: int | None = None
    """Left over from a stream's deltas; see `tidy_call`."""
    custom: CustomCall | None = None
    """As it came; see `tidy_call`."""


class Function(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class AnyText(msgspec.Struct, frozen=True, tag="text", forbid_unknown_fields=True):
    pass


class Grammar(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    definition: str
    syntax: Literal["lark", "regex"]


class GrammarFormat(msgspec.Struct, frozen=True, tag="grammar", forbid_unknown_fields=True):
    grammar: Grammar


class CustomTool(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    name: ToolName
    description: str | None = None
    format: AnyText | GrammarFormat | None = None

    def as_function(self) -> Function:
        """What stands for it where functions alone are known."""
        form = self.format
        grammar = (form.grammar.syntax, form.grammar.definition) if isinstance(form, GrammarFormat) else None
        told = custom_tools.description_of(self.description, grammar)
        return Function(self.name, told, custom_tools.PARAMETERS)


class Tool(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    function: Function = _LEFT_OUT
    type: Literal["function", "custom"] = _LEFT_OUT
    """After `tidy_tool` always function."""
    cache_control: CacheControl | None = None
    custom: CustomTool | None = None
    """What the function stands for; only a target that knows custom tools ever sees it."""


def custom_tool(custom: CustomTool, cache_control: CacheControl | None = None) -> Tool:
    """A custom tool in the middle's form."""
    return Tool(custom.as_function(), "function", cache_control, custom)


class ChosenFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: ToolName


class AllowedTools(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=128)]


class ToolChoice(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    function: ChosenFunction = _LEFT_OUT
    """Left out only where there is `allowed_tools`, which a target that lacks the notion never sees; see
    `only_allowed`."""
    type: Literal["function", "custom", "allowed_tools"] = _LEFT_OUT
    custom: ChosenFunction | None = None
    """As it came; see `tidy_choice`."""
    allowed_tools: AllowedTools | None = None


Choice = Literal["none", "auto", "required"] | ToolChoice


# --- what types cannot say ------------------------------------------------------------------------

_TYPE = "Use function or custom."


def _is_function(shape: Tool | ToolCall) -> bool:
    function: Any = shape.function
    return shape.type == "function" and function is not None and shape.custom is None


def _check_form(shape: Any, path: str, forms: Sequence[str], hint: str) -> None:
    """Of several forms the one that `type` names, and nothing of the others."""
    if shape.type is None:
        raise _required(f"{path}.type", hint)
    for form in forms:
        value = getattr(shape, form)
        if form == shape.type and value is None:
            raise _required(f"{path}.{form}")
        if form != shape.type and value is not None:
            where = f"{path}.{form}"
            raise UnsupportedParameter(f"{where} does not go with type: {shape.type}; remove it.", param=where)


def _required(where: str, hint: str = "") -> BadRequest:
    told = f"{where} is required.{' ' + hint if hint else ''}"
    return BadRequest(told, param=where, code="missing_required_parameter")


def check_tools(tools: Sequence[Tool] | None, choice: Choice | None) -> None:
    """Raises BadRequest or UnsupportedParameter."""
    names: set[str] = set()
    for i, tool in enumerate(tools or ()):
        if not _is_function(tool):
            _check_form(tool, f"tools[{i}]", ("function", "custom"), _TYPE)
        name = tool.function.name if tool.custom is None else tool.custom.name
        if name in names:
            where = f"tools[{i}].{tool.type}.name"
            raise BadRequest(f"{where}: {name} is used twice; names must differ.", param=where)
        names.add(name)
        if tool.custom is None and tool.function.parameters:
            _check_parameters(tool.function.parameters, f"tools[{i}].function.parameters")
    if choice is not None:
        _check_choice(choice, names)


def _check_parameters(parameters: dict[str, Any], path: str) -> None:
    p.check_schema(parameters, path)
    if parameters.get("type", "object") != "object":
        raise BadRequest(f"{path}.type must be object: arguments are always an object.", param=f"{path}.type")


def _check_choice(choice: Choice, names: set[str]) -> None:
    if isinstance(choice, ToolChoice):
        _check_form(
            choice, "tool_choice", ("function", "custom", "allowed_tools"), "Use function, custom or allowed_tools."
        )
    if not names:
        if choice == "none":
            return
        raise BadRequest("tool_choice needs tools.", param="tool_choice")
    if not isinstance(choice, ToolChoice):
        return
    if choice.allowed_tools is None:
        chosen = choice.function if choice.custom is None else choice.custom
        _check_named(chosen.name, names, f"tool_choice.{choice.type}.name")
        return
    for k, each in enumerate(choice.allowed_tools.tools):
        path = f"tool_choice.allowed_tools.tools[{k}]"
        name = _name_of(each)
        if name is None:
            raise _required(f"{path}.function.name")
        _check_named(name, names, f"{path}.{each['type']}.name")


def _check_named(name: str, names: set[str], where: str) -> None:
    if name not in names:
        raise BadRequest(
            f"{where}: there is no tool {shown(name, 80)}; there is {', '.join(sorted(names))}.", param=where
        )


def _name_of(tool: dict[str, Any]) -> str | None:
    """The name in a shape such as {type: function, function: {name}}."""
    kind = tool.get("type")
    named = tool.get(kind) if kind in ("function", "custom") else None
    name = named.get("name") if isinstance(named, dict) else None
    return name if isinstance(name, str) else None


def check_call(call: ToolCall, path: str) -> None:
    """Raises BadRequest or UnsupportedParameter. A type may be left out: it was before there were two."""
    if call.type is None and call.custom is None:
        call = msgspec.structs.replace(call, type="function")
    if not _is_function(call):
        _check_form(call, path, ("function", "custom"), _TYPE)


# --- the form of the middle -----------------------------------------------------------------------


def tidy_tools(tools: list[Tool]) -> list[Tool]:
    """All as functions; the very list where they are."""
    if all(tool.custom is None for tool in tools):
        return tools
    return [tool if tool.custom is None else custom_tool(tool.custom, tool.cache_control) for tool in tools]


def tidy_choice(choice: Choice | None) -> Choice | None:
    if isinstance(choice, ToolChoice) and choice.custom is not None:
        return ToolChoice(choice.custom, "function")
    return choice


def tidy_call(call: ToolCall) -> ToolCall:
    """The call without what answers carry and prompts do not."""
    custom = call.custom
    if custom is not None:
        made = FunctionCall(custom.name, custom_tools.arguments_of(custom.input))
    else:
        made = FunctionCall(call.function.name, call.function.arguments)
    return ToolCall(call.id, made, "function")


def only_allowed(tools: list[Tool], allowed: AllowedTools) -> tuple[list[Tool], Literal["auto", "required"]]:
    """Tools and choice for a target that knows no such choice: the others are left out, which says the same."""
    wanted = {_name_of(each) for each in allowed.tools}
    return [tool for tool in tools if tool.function.name in wanted], allowed.mode


# --- for targets that know custom tools -----------------------------------------------------------


def customs(tools: Sequence[Tool] | None) -> frozenset[str]:
    """The names of the custom tools."""
    return frozenset(tool.custom.name for tool in tools or () if tool.custom is not None)


def custom_form(tool: Tool) -> dict[str, Any]:
    return {"type": "custom", "custom": tool.custom}


def custom_call(call: ToolCall) -> ToolCall:
    """A call of a custom tool as it is called by its own name."""
    text = custom_tools.input_of(call.function.arguments)
    return ToolCall(call.id, cast(FunctionCall, None), "custom", custom=CustomCall(call.function.name, text))
