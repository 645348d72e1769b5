"""POST /v1/messages and /v1/messages/count_tokens: bytes to the canonical request and the native one. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from appliance.dialects import parameters as p
from appliance.dialects.asked import Asked
from appliance.dialects.messages import betas
from appliance.dialects.messages.body import (
    AssistantTurn,
    AutoChoice,
    CountRequest,
    CustomTool,
    MessagesRequest,
    NoChoice,
    OutputConfig,
    ServerToolUseBlock,
    ThinkingEnabled,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
    UserTurn,
)
from appliance.dialects.messages.canonical import EDITS, is_custom, to_chat
from appliance.dialects.wire import Wire, explain
from appliance.errors import BadRequest, UnsupportedParameter
from appliance.redact import shown

NativeT = TypeVar("NativeT", bound=CountRequest)

_MOST_QUOTED = 80

_HEADER = f"it belongs into the header {betas.HEADER}."

REFUSED = {
    "compaction": "send the conversation as it is to be read.",
    "fallbacks": "the route decides which models answer.",
    "inference_geo": "the route decides where a request may go.",
    "speed": "leave it out.",
    "diagnostics": "leave it out.",
    "user_profile_id": "leave it out.",
    "workspace_id": "leave it out.",
    "anthropic_beta": _HEADER,
    "thread": "send the whole conversation in messages.",
    "prompt": "the Messages API takes messages.",
    "max_tokens_to_sample": "use max_tokens.",
    "stop": "use stop_sequences.",
    "n": "a message has one answer.",
    "max_completion_tokens": "use max_tokens.",
    "response_format": "use output_config: {format: {type: json_schema, schema}}.",
    "functions": "use tools.",
    "reasoning_effort": "use thinking or output_config.effort.",
    "parallel_tool_calls": "use tool_choice.disable_parallel_tool_use.",
}

_BLOCKS = (
    "Use text, image, document, search_result or tool_result in a user message, and text, thinking, redacted_thinking "
    "or tool_use in an assistant message."
)

HINTS = {
    **p.HINTS,
    "max_tokens": "Say how long the answer may be.",
    "messages[].role": "Use user or assistant; instructions belong into system.",
    "messages[].content[].type": _BLOCKS,
    "messages[].content[].source.type": "Use base64, or url where the model takes addresses.",
    "system[].type": "Use text.",
    "tool_choice.type": "Use auto, any, tool or none.",
    "thinking.type": "Use enabled, adaptive or disabled.",
    "output_config.format.type": "Use json_schema.",
    "output_config.effort": "Use low, medium, high, xhigh or max.",
    "output_format.type": "Use json_schema.",
    "service_tier": "Use auto or standard_only.",
}

_COUNT_REFUSED = {
    **REFUSED,
    "container": "a count runs nothing.",
    "max_tokens": "a count has no answer.",
    "stream": "a count is one number.",
    "metadata": "a count has no use for it.",
    "stop_sequences": "a count has no answer.",
    "temperature": "a count has no answer.",
    "top_p": "a count has no answer.",
    "top_k": "a count has no answer.",
    "service_tier": "a count is not served by tiers.",
}

WIRE = Wire(MessagesRequest, refused=REFUSED, hints=HINTS)
COUNT_WIRE = Wire(CountRequest, refused=_COUNT_REFUSED, hints=HINTS)

_THEIRS = re.compile(
    r"(bash|text_editor|computer|computer_toolset|browser_toolset|memory|web_search|web_fetch|code_execution"
    r"|tool_search_tool_bm25|tool_search_tool_regex|mcp_toolset)(_20[0-9]{6})?\Z"
)
"""Types of Anthropic's own tools."""


def parse(body: bytes, max_depth: int = 64, header: str | None = None) -> Asked:
    """The request in `body`, fully checked: (canonical `ChatRequest`, `MessagesRequest`). `header`: what the client
    says in `anthropic-beta`. Raises BadRequest or UnsupportedParameter."""
    native: MessagesRequest = WIRE.read(body, max_depth)
    wanted = betas.read(header)
    _check_budget(native, wanted)
    return _asked(native, wanted)


def parse_count(body: bytes, max_depth: int = 64) -> Asked:
    """The prompt in `body`: (canonical `ChatRequest`, `CountRequest`). Raises BadRequest or UnsupportedParameter."""
    return _asked(COUNT_WIRE.read(body, max_depth))


def _check_budget(native: MessagesRequest, wanted: Sequence[str]) -> None:
    """That a budget for thinking leaves room for an answer, which counts against the same limit."""
    thinking = native.thinking
    if not isinstance(thinking, ThinkingEnabled) or thinking.budget_tokens < native.max_tokens:
        return
    if not betas.interleaved(wanted):
        raise BadRequest(
            "thinking.budget_tokens must be less than max_tokens, which counts thinking and answer together; "
            "lower it, or raise max_tokens.",
            param="thinking.budget_tokens",
        )


def _asked(native: Any, wanted: tuple[str, ...] = ()) -> Asked:
    if native.betas is not None:
        raise UnsupportedParameter(f"betas is not supported: {_HEADER}", param="betas")
    native = _tidy(native)
    if wanted:
        native = msgspec.structs.replace(native, betas=wanted)
    tools = _check_tools(native)
    _check_turns(native)
    return Asked(to_chat(native, tools), native)


def _tidy(native: NativeT) -> NativeT:
    """The request with the older name of a field replaced."""
    _check_edits(native)
    if any(map(_scoped, native.tools or ())):
        native = msgspec.structs.replace(native, tools=[_unscoped(tool) for tool in native.tools or ()])
    older = native.output_format
    if older is None:
        return native
    config = native.output_config or OutputConfig()
    if config.format is not None and config.format != older:
        raise BadRequest("output_format and output_config.format differ; send only the latter.", param="output_format")
    return msgspec.structs.replace(
        native, output_format=None, output_config=msgspec.structs.replace(config, format=older)
    )


def _scoped(tool: dict[str, Any]) -> bool:
    mark = tool.get("cache_control")
    return isinstance(mark, dict) and "scope" in mark


def _unscoped(tool: dict[str, Any]) -> dict[str, Any]:
    """The tool without what `CacheMark` forgets."""
    if not _scoped(tool):
        return tool
    return {**tool, "cache_control": {k: value for k, value in tool["cache_control"].items() if k != "scope"}}


def _check_edits(native: CountRequest) -> None:
    """Raises UnsupportedParameter for edits of the conversation that are not known: they may take away anything."""
    managed = native.context_management
    for i, edit in enumerate((managed.edits if managed is not None else None) or ()):
        kind = edit.get("type")
        if not (isinstance(kind, str) and kind.startswith(EDITS)):
            path = f"context_management.edits[{i}].type"
            raise UnsupportedParameter(
                f"{path} cannot be {shown(str(kind), _MOST_QUOTED)!r}: send the conversation as it is to be read.",
                param=path,
            )


def _check_tools(native: CountRequest) -> list[CustomTool]:
    """The client's own tools. Raises for what is wrong with any."""
    names: set[str] = set()
    own: list[CustomTool] = []
    for i, tool in enumerate(native.tools or ()):
        path = f"tools[{i}]"
        if is_custom(tool):
            made = _custom(tool, path)
            own.append(made)
            name: Any = made.name
        else:
            name = _theirs(tool, path)
        if name in names:
            raise BadRequest(f"{path}.name: {name} is used twice; names must differ.", param=f"{path}.name")
        names.add(name)
    if native.output_config is not None and native.output_config.format is not None:
        p.check_schema(native.output_config.format.schema, "output_config.format.schema")
    choice = native.tool_choice
    if choice is None or isinstance(choice, (NoChoice, AutoChoice)):
        return own
    if not names:
        raise BadRequest("tool_choice needs tools.", param="tool_choice")
    if isinstance(choice, ToolChoice) and choice.name not in names:
        raise BadRequest(
            f"tool_choice.name: there is no tool {choice.name}; there is {', '.join(sorted(names))}.",
            param="tool_choice.name",
        )
    return own


def _custom(tool: dict[str, Any], path: str) -> CustomTool:
    try:
        made = msgspec.convert(tool, CustomTool)
    except msgspec.ValidationError as error:
        raise _placed(str(error), path) from None
    schema = f"{path}.input_schema"
    p.check_schema(made.input_schema, schema)
    if made.input_schema.get("type", "object") != "object":
        raise BadRequest(f"{schema}.type must be object: an input is always an object.", param=f"{schema}.type")
    return made


def _placed(text: str, path: str) -> BadRequest:
    """The complaint about one tool as one about the body."""
    at = " - at `$"
    text = text.replace(at, f"{at}.{path}", 1) if at in text else f"{text}{at}.{path}`"
    return explain(text, {}, HINTS)


def _theirs(tool: dict[str, Any], path: str) -> str:
    kind = tool["type"]
    if not (isinstance(kind, str) and _THEIRS.match(kind)):
        what = shown(str(kind), _MOST_QUOTED)
        raise UnsupportedParameter(
            f"{path}.type cannot be {what!r}. Use custom, or the type of one of Anthropic's own tools.",
            param=f"{path}.type",
        )
    name = tool.get("name", kind)
    if kind == "mcp_toolset":
        name = f"{kind} {tool.get('mcp_server_name')}"  # it has no name of its own
    if not isinstance(name, str):
        raise BadRequest(f"{path}.name must be a string.", param=f"{path}.name", code="invalid_type")
    return name


def _check_turns(native: CountRequest) -> None:
    """That every result answers a call."""
    called: set[str] = set()
    for i, turn in enumerate(native.messages):
        if isinstance(turn.content, str):
            continue
        if isinstance(turn, AssistantTurn):
            called.update(b.id for b in turn.content if isinstance(b, (ToolUseBlock, ServerToolUseBlock)))
        elif isinstance(turn, UserTurn):
            for k, block in enumerate(turn.content):
                if isinstance(block, ToolResultBlock) and block.tool_use_id not in called:
                    path = f"messages[{i}].content[{k}].tool_use_id"
                    raise BadRequest(f"{path}: no assistant message before it has a tool_use with this id.", param=path)
