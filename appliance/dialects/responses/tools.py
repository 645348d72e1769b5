"""Tools and tool choices of a Responses request. Functions and custom tools, also those of a namespace, are translated;
what a target runs by itself is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from appliance.dialects import chat
from appliance.dialects import parameters as p
from appliance.dialects import tools as t
from appliance.dialects.responses.items import at
from appliance.dialects.responses.names import flat
from appliance.errors import BadRequest, UnsupportedParameter
from appliance.redact import shown


class FunctionTool(msgspec.Struct, frozen=True, tag_field="type", tag="function", forbid_unknown_fields=True):
    name: chat.ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: bool | None = None
    """Also below: whether a target may look for it later. Who cannot gets it at once."""
    output_schema: dict[str, Any] | None = None
    allowed_callers: list[str] | None = None


class GrammarFormat(msgspec.Struct, frozen=True, tag="grammar", forbid_unknown_fields=True):
    syntax: Literal["lark", "regex"]
    definition: str


class CustomTool(msgspec.Struct, frozen=True, tag_field="type", tag="custom", forbid_unknown_fields=True):
    name: chat.ToolName
    description: str | None = None
    format: t.AnyText | GrammarFormat | None = None
    defer_loading: bool | None = None
    allowed_callers: list[str] | None = None


class Namespace(msgspec.Struct, frozen=True, tag_field="type", tag="namespace", forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    tools: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=128)]
    description: str | None = None


class ChosenCustom(msgspec.Struct, frozen=True, tag_field="type", tag="custom", forbid_unknown_fields=True):
    name: chat.ToolName


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
        "file_search",
        "image_generation",
        "local_shell",
        "mcp",
        "programmatic_tool_calling",
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
    droppable: bool = True
    """Whether a model that lacks those may answer with what is left."""


_TRANSLATED: dict[str, type[msgspec.Struct]] = {"function": FunctionTool, "custom": CustomTool, "namespace": Namespace}
_HINTS = {
    "format.type": "Use text or grammar.",
    "format.syntax": "Use lark or regex.",
    "mode": "Use auto or required.",
}


class _Offered:
    """The tools of a request, read one by one."""

    def __init__(self) -> None:
        self.tools: list[chat.Tool] = []
        self.native: list[str] = []
        """Paths of what is not translated."""
        self.names: set[str] = set()

    def read(self, tool: dict[str, Any], path: str) -> None:
        """Raises BadRequest or UnsupportedParameter."""
        kind = _kind(tool)
        if kind in NATIVE_TOOLS:
            self.native.append(path)
            return
        if kind not in _TRANSLATED:
            raise _not_known(kind, path, "type of tool; use function or custom")
        if kind == "namespace":
            space: Namespace = _convert(tool, Namespace, path)
            for k, inner in enumerate(space.tools):
                self._callable(inner, f"{path}.tools[{k}]", space.name, space.description if k == 0 else None)
        else:
            self._callable(tool, path, None, None)

    def _callable(self, tool: dict[str, Any], path: str, namespace: str | None, told: str | None) -> None:
        """One that can be called. told: of its namespace, what is to be said once."""
        kind = _kind(tool)
        if kind not in ("function", "custom"):
            raise _not_known(kind, path, "type of tool here; use function or custom")
        if kind in tool:
            raise UnsupportedParameter(
                f"{path}.{kind} is not supported: what it holds stands in the tool itself here.", param=f"{path}.{kind}"
            )
        shape = _convert(tool, _TRANSLATED[kind], path)
        made = as_chat(shape) if isinstance(shape, FunctionTool) else _as_custom(shape)
        name = flat(namespace, made.function.name)
        if name in self.names:
            raise BadRequest(
                f"{path}.name: {made.function.name} is used twice; names must differ.", param=f"{path}.name"
            )
        self.names.add(name)
        if isinstance(shape, FunctionTool) and shape.parameters:
            _check_parameters(shape.parameters, f"{path}.parameters")
        self.tools.append(_renamed(made, name, f"About {namespace}: {told}" if told else None))


def _renamed(tool: chat.Tool, name: str, told: str | None) -> chat.Tool:
    function, custom = tool.function, tool.custom
    if name == function.name and told is None:
        return tool
    description = "\n\n".join([text for text in (function.description, told) if text]) or None
    function = msgspec.structs.replace(function, name=name, description=description)
    if custom is not None:
        custom = msgspec.structs.replace(custom, name=name)
    return msgspec.structs.replace(tool, function=function, custom=custom)


def read_tools(tools: list[dict[str, Any]] | None) -> tuple[list[chat.Tool], list[str]]:
    """What is translated, and the paths of the other tools. Raises BadRequest or UnsupportedParameter."""
    offered = _Offered()
    for i, tool in enumerate(tools or ()):
        offered.read(tool, f"tools[{i}]")
    return offered.tools, offered.native


def _kind(shape: dict[str, Any]) -> str | None:
    """Its type; what is none at all is quoted as it stands."""
    kind = shape.get("type")
    return kind if kind is None or isinstance(kind, str) else repr(kind)


def _not_known(kind: str | None, path: str, what: str) -> BadRequest:
    where = f"{path}.type"
    if kind is None:
        return BadRequest(f"{where} is required. Use function.", param=where, code="missing_required_parameter")
    return UnsupportedParameter(f"{where}: {shown(kind, 80)} is not a known {what}.", param=where)


def as_chat(tool: FunctionTool) -> chat.Tool:
    return chat.Tool(chat.Function(tool.name, tool.description, tool.parameters, tool.strict), "function")


def _as_custom(tool: CustomTool) -> chat.Tool:
    form: Any = tool.format
    if isinstance(form, GrammarFormat):
        form = t.GrammarFormat(t.Grammar(form.definition, form.syntax))
    return t.custom_tool(chat.CustomTool(tool.name, tool.description, form))


def _check_parameters(parameters: dict[str, Any], path: str) -> None:
    p.check_schema(parameters, path)
    if parameters.get("type", "object") != "object":
        raise BadRequest(f"{path}.type must be object: arguments are always an object.", param=f"{path}.type")


def choose(tools: list[dict[str, Any]] | None, choice: str | dict[str, Any] | None) -> Chosen:
    """Tools and the choice among them. Raises BadRequest or UnsupportedParameter."""
    offered, native = read_tools(tools)
    named = {tool.function.name for tool in offered}
    if choice is None or isinstance(choice, str):
        return Chosen(
            offered or None, _plain(choice, bool(tools), bool(offered)), native, bool(offered) or choice != "required"
        )
    kind = _kind(choice)
    if kind in ("function", "custom"):
        name = _convert(choice, ChosenFunction if kind == "function" else ChosenCustom, "tool_choice").name
        _check_named(name, named, "tool_choice.name")
        return Chosen(offered or None, chat.ToolChoice(chat.ChosenFunction(name), "function"), native)
    if kind == "allowed_tools":
        return _allowed(_convert(choice, AllowedTools, "tool_choice"), offered, named, native)
    if kind in NATIVE_TOOLS:
        return Chosen(offered or None, None, [*native, "tool_choice"], droppable=False)
    if kind is None:
        raise _not_known(kind, "tool_choice", "")
    where = "tool_choice.type"
    raise UnsupportedParameter(
        f"{where}: {shown(str(kind), 80)} is not known; use function, custom or allowed_tools.", param=where
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


def _convert(shape: dict[str, Any], struct: Any, path: str) -> Any:
    try:
        return msgspec.convert(shape, struct)
    except msgspec.ValidationError as error:
        raise at(error, path, _HINTS) from None


def _check_named(name: str, named: set[str], where: str) -> None:
    if name not in named:
        there = f"there is {', '.join(sorted(named))}." if named else "there are no functions."
        raise BadRequest(f"{where}: there is no function {name}; {there}", param=where)


def _allowed(choice: AllowedTools, offered: list[chat.Tool], named: set[str], native: list[str]) -> Chosen:
    """Only some of the tools may be called: the others are left out, which says the same."""
    wanted: set[str] = set()
    others = False
    for k, each in enumerate(choice.tools):
        if each.get("type") in ("function", "custom"):
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
    kept = [tool for tool in offered if tool.function.name in wanted]
    return Chosen(
        kept or None,
        choice.mode if kept else None,
        [*native, "tool_choice"] if others else native,
        bool(kept) or choice.mode == "auto",
    )
