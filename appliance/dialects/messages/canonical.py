"""A Messages request in the canonical form, and what of it only targets that speak the dialect can honour. Pure.

Whatever of a native request has no canonical notion is in the canonical one as text where it has text, so that whoever
counts or judges texts reads it too; `native_needs` keeps it from targets that would get no more than that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

import msgspec

from appliance.dialects import chat
from appliance.dialects.asked import Asked
from appliance.dialects.messages import betas
from appliance.dialects.messages import body as m
from appliance.dialects.parameters import is_address
from appliance.dialects.wire import encode

NATIVE_FEATURES = frozenset(
    {"anthropic_tools", "anthropic_content", "citations", "file_ids", "file_addresses", *betas.FEATURES}
)
"""Features that `native_needs` may name beside those of `chat.needs`."""

UNMISSED = "clear_thinking_"
"""The type of an edit of the conversation that changes nothing of what is meant: how many earlier thoughts are kept.
Claude Code asks for it with every request; where no target can be told, that is left to the target."""
EDITS = (UNMISSED, "clear_tool_uses_")
"""Beginnings of the types of edits that are known."""

_NAMES = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "user": "metadata.user_id",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
    "reasoning.effort": "output_config.effort",
    "reasoning.max_tokens": "thinking.budget_tokens",
    "reasoning": "thinking",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
}
_WHOLE = ("output_config.format", "thinking")
"""Fields whose insides have other names there."""
_TOOL = re.compile(r"(tools\[\d+\])\.function(?:\.(parameters|name|description|strict))?(?![a-z_])")
_FIELD = re.compile(r"[a-z_]+(?:\.[a-z_]+)?")


def field_name(path: str) -> str:
    """A canonical field path as this dialect calls it."""
    if path.startswith("messages["):
        return "messages"  # what is a message there may be part of one, or the system prompt
    if (tool := _TOOL.match(path)) is not None:
        inner = "input_schema" if tool[2] == "parameters" else tool[2]
        return (f"{tool[1]}.{inner}" if inner else tool[1]) + path[tool.end() :]
    for top in (found[0], found[0].partition(".")[0]) if (found := _FIELD.match(path)) else ():
        if (name := _NAMES.get(top)) is not None:
            return name if name in _WHOLE else name + path[len(top) :]
    return path


def is_custom(tool: dict[str, Any]) -> bool:
    """Whether a tool is the client's own, not one of Anthropic's."""
    return tool.get("type") in (None, "custom")


def to_chat(native: m.CountRequest, tools: list[m.CustomTool] | None = None) -> chat.ChatRequest:
    """The canonical request. `tools` are the client's own ones, where they have been read already."""
    if tools is None:
        tools = [msgspec.convert(tool, m.CustomTool) for tool in native.tools or () if is_custom(tool)]
    options: dict[str, Any] = {}
    if isinstance(native, m.MessagesRequest):
        options = {
            "stream": native.stream,
            "max_completion_tokens": native.max_tokens,
            "temperature": native.temperature,
            "top_p": native.top_p,
            "top_k": native.top_k,
            "stop": native.stop_sequences or None,
            "user": native.metadata.user_id if native.metadata else None,
        }
    choice, parallel = _choice(native.tool_choice, tools)
    effort, reasoning = _reasoning(native)
    form = native.output_config.format if native.output_config else None
    return chat.ChatRequest(
        model=native.model,
        messages=_messages(native),
        tools=[_tool(tool) for tool in tools] or None,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        response_format=None if form is None else _response_format(form.schema),
        reasoning_effort=effort,
        reasoning=reasoning,
        **options,
    )


def _tool(tool: m.CustomTool) -> chat.Tool:
    function = chat.Function(tool.name, tool.description, tool.input_schema, tool.strict)
    return chat.Tool(function, "function", _mark(tool.cache_control))


def _mark(mark: m.CacheMark | None) -> chat.CacheControl | None:
    return None if mark is None else msgspec.to_builtins(mark)


def _choice(choice: m.Choice | None, tools: list[m.CustomTool]) -> tuple[Any, bool | None]:
    """tool_choice and parallel_tool_calls."""
    if choice is None or not tools:
        return None, None
    if isinstance(choice, m.NoChoice):
        return "none", None
    off = choice.disable_parallel_tool_use
    parallel = None if off is None else not off
    if isinstance(choice, m.AutoChoice):
        return "auto", parallel
    if isinstance(choice, m.AnyChoice):
        return "required", parallel
    if any(tool.name == choice.name for tool in tools):
        return chat.ToolChoice(chat.ChosenFunction(choice.name), "function"), parallel
    return None, parallel


def _response_format(schema: dict[str, Any]) -> chat.JsonSchemaFormat:
    return chat.JsonSchemaFormat(chat.NamedSchema("answer", schema, strict=True if _closed(schema) else None))


def _closed(schema: Any) -> bool:
    """Whether OpenAI takes a schema as strict: no object in it is open or has fields that may be missing."""
    if isinstance(schema, list):
        return all(map(_closed, schema))
    if not isinstance(schema, dict):
        return True
    fields = schema.get("properties")
    if isinstance(fields, dict) and (
        schema.get("additionalProperties") is not False or set(schema.get("required") or ()) != set(fields)
    ):
        return False
    return all(map(_closed, schema.values()))


def _reasoning(native: m.CountRequest) -> tuple[Any, dict[str, Any] | None]:
    """reasoning_effort and reasoning."""
    effort: str | None = native.output_config.effort if native.output_config else None
    thinking = native.thinking
    if thinking is None:
        return effort, None
    if isinstance(thinking, (m.ThinkingDisabled, m.ThinkingBetweenTools)):
        return "none", None
    reasoning: dict[str, Any] = {"enabled": True}
    if isinstance(thinking, m.ThinkingEnabled):
        reasoning["max_tokens"] = thinking.budget_tokens
        if effort is None:
            reasoning["effort"] = effort_for(thinking.budget_tokens)
    if thinking.display == "omitted":
        reasoning["exclude"] = True
    elif thinking.display is not None:
        reasoning["summary"] = "auto"
    return effort, reasoning


def effort_for(budget: int) -> str:
    """About how hard a model that takes no number of tokens is to think where a client could only give one."""
    return next(name for most, name in _EFFORTS if budget <= most)


_EFFORTS = ((4096, "low"), (16_384, "medium"), (1 << 31, "high"))

# --- messages -------------------------------------------------------------------------------------


def _messages(native: m.CountRequest) -> list[chat.Message]:
    found: list[chat.Message] = []
    if native.system:
        found.append(chat.SystemMessage(_texts(native.system)))
    for turn in native.messages:
        if isinstance(turn, m.SystemTurn):
            found.append(chat.SystemMessage(_texts(turn.content)))
        elif isinstance(turn, m.AssistantTurn):
            found.append(_assistant(turn))
        elif isinstance(turn.content, str):
            found.append(chat.UserMessage(turn.content))
        else:
            _user(turn.content, found)
    return found


def _texts(content: str | list[m.TextBlock]) -> Any:
    if isinstance(content, str):
        return content
    return _short([chat.TextPart(block.text, _mark(block.cache_control)) for block in content])


def _short(parts: list[Any]) -> Any:
    """One plain text as a string, which every target takes."""
    if len(parts) == 1 and isinstance(parts[0], chat.TextPart) and parts[0].cache_control is None:
        return parts[0].text
    return parts


def _user(blocks: list[Any], found: list[chat.Message]) -> None:
    """Results of tools first, each a message of its own, then the rest of the turn."""
    parts: list[Any] = []
    for block in blocks:
        if isinstance(block, m.ToolResultBlock):
            content = block.content or ""
            if not isinstance(content, str):
                content = _short([part for inner in content for part in _parts(inner, files=True)])
            found.append(chat.ToolMessage(content, block.tool_use_id, is_error=block.is_error))
        else:
            parts += _parts(block, files=True)
    if parts:
        found.append(chat.UserMessage(_short(parts)))
    elif not any(isinstance(block, m.ToolResultBlock) for block in blocks):
        found.append(chat.UserMessage(""))


def _parts(block: Any, *, files: bool) -> Iterator[Any]:
    """A block as parts of a message; nothing for what has neither a canonical form nor texts."""
    if isinstance(block, m.TextBlock):
        yield chat.TextPart(block.text, _mark(block.cache_control))
    elif isinstance(block, m.ImageBlock):
        if (url := _address(block.source)) is not None:
            yield chat.ImagePart(chat.ImageUrl(url), _mark(block.cache_control))
    elif isinstance(block, m.SearchResultBlock):
        lines = [block.title, block.source, *(each.text for each in block.content)]
        yield chat.TextPart("\n".join(lines), _mark(block.cache_control))
    elif isinstance(block, m.DocumentBlock):
        yield from _document(block, files=files)


def _address(source: Any) -> str | None:
    if isinstance(source, m.Base64Source):
        return f"data:{source.media_type};base64,{source.data}"
    return source.url if isinstance(source, m.UrlSource) else None


def _document(block: m.DocumentBlock, *, files: bool) -> Iterator[Any]:
    source = block.source
    if isinstance(source, m.Base64Source) and files:
        if block.context:
            yield chat.TextPart(block.context)
        yield chat.FilePart({"filename": block.title or "document", "file_data": _address(source)})
        return
    head = [line for line in (block.title, block.context) if line]
    content: str | list[Any] = ""
    if isinstance(source, m.TextSource):
        content = source.data
    elif isinstance(source, m.ContentSource):
        content = source.content
    if isinstance(content, str):
        if text := "\n".join([*head, content] if content else head):
            yield chat.TextPart(text, _mark(block.cache_control))
        return
    if head:
        yield chat.TextPart("\n".join(head))
    for inner in content:
        yield from _parts(inner, files=False)


def _assistant(turn: m.AssistantTurn) -> chat.AssistantMessage:
    if isinstance(turn.content, str):
        return chat.AssistantMessage(content=turn.content)
    parts: list[Any] = []
    calls: list[chat.ToolCall] = []
    thought: list[str] = []
    details: list[dict[str, Any]] = []
    trusted = False
    for block in turn.content:
        if isinstance(block, m.TextBlock):
            parts.append(chat.TextPart(block.text, _mark(block.cache_control)))
        elif isinstance(block, m.ThinkingBlock):
            if block.thinking:
                thought.append(block.thinking)
            signed = {"signature": block.signature} if block.signature else {}
            trusted |= bool(signed)
            details.append({"type": "reasoning.text", "text": block.thinking, **signed})
        elif isinstance(block, m.RedactedThinkingBlock):
            trusted = True
            details.append({"type": "reasoning.encrypted", "data": block.data})
        elif isinstance(block, m.ToolUseBlock):
            function = chat.FunctionCall(block.name, encode(block.input).decode())
            calls.append(chat.ToolCall(block.id, function, "function"))
        elif isinstance(block, m.ServerToolUseBlock):
            parts.append(chat.TextPart(encode(block.input).decode()))
        elif isinstance(block, m.ServerToolResult):
            parts.append(chat.TextPart(encode(block.content).decode()))
    content = _short(parts) if parts else None
    return chat.AssistantMessage(
        content="" if content is None and not calls else content,
        tool_calls=calls or None,
        reasoning_content="\n\n".join(thought) or None,
        reasoning_details=details if trusted else None,
    )


# --- what only the dialect's own targets can do -----------------------------------------------------


def needs(asked: Asked) -> Iterator[tuple[str, str, bool]]:
    """All abilities that a target must have, those of the canonical request included; see `chat.needs`."""
    yield from native_needs(asked.native)
    for feature, field, droppable in chat.needs(asked.request):
        yield feature, field_name(field), droppable


def native_needs(native: m.CountRequest) -> Iterator[tuple[str, str, bool]]:
    """Abilities that the canonical request does not show, and those of media under the names that their fields have
    here: (feature, field, whether it may be dropped)."""
    for k, edit in enumerate((native.context_management and native.context_management.edits) or ()):
        if not edit["type"].startswith(UNMISSED):
            yield "context_management", f"context_management.edits[{k}].type", True
    if native.output_config is not None and native.output_config.task_budget is not None:
        yield "task_budget", "output_config.task_budget", True
    if native.mcp_servers:
        yield "mcp_servers", "mcp_servers", False
    if isinstance(native, m.MessagesRequest) and native.container is not None:
        yield "container", "container", False
    for i, tool in enumerate(native.tools or ()):
        if not is_custom(tool):
            yield "anthropic_tools", f"tools[{i}].type", False
        else:
            for field in ("input_examples", "defer_loading", "allowed_callers"):
                if tool.get(field):
                    yield "anthropic_tools", f"tools[{i}].{field}", False
    for i, turn in enumerate(native.messages):
        if not isinstance(turn.content, str):
            for k, block in enumerate(turn.content):
                yield from _block_needs(block, f"messages[{i}].content[{k}]")


def _block_needs(block: Any, path: str) -> Iterator[tuple[str, str, bool]]:
    if isinstance(block, (m.TextBlock, m.ThinkingBlock, m.RedactedThinkingBlock, m.ToolUseBlock)):
        return
    if isinstance(block, m.ImageBlock):
        yield from _image_needs(block, path)
    elif isinstance(block, m.DocumentBlock):
        yield from _document_needs(block, path)
    elif isinstance(block, m.ToolResultBlock):
        for k, inner in enumerate(block.content if isinstance(block.content, list) else ()):
            at = f"{path}.content[{k}]"
            for need in _block_needs(inner, at):
                yield need
                if need[0] in ("images", "files"):
                    yield "tool_images", at, False
    elif isinstance(block, m.SearchResultBlock):
        yield from _citation_needs(block, path)
    else:
        yield "anthropic_content", f"{path}.type", False


def _image_needs(block: m.ImageBlock, path: str) -> Iterator[tuple[str, str, bool]]:
    yield "images", path, False
    if isinstance(block.source, m.UrlSource) and is_address(block.source.url, f"{path}.source.url"):
        yield "image_addresses", f"{path}.source.url", False
    elif isinstance(block.source, m.FileSource):
        yield "file_ids", f"{path}.source.file_id", False


def _citation_needs(block: m.DocumentBlock | m.SearchResultBlock, path: str) -> Iterator[tuple[str, str, bool]]:
    """Without the notion the text is read all the same; the answer does not say where it has something from."""
    if block.citations is not None and block.citations.enabled:
        yield "citations", f"{path}.citations", True


def _document_needs(block: m.DocumentBlock, path: str) -> Iterator[tuple[str, str, bool]]:
    source = block.source
    yield from _citation_needs(block, path)
    if isinstance(source, m.Base64Source):
        yield "files", path, False
    elif isinstance(source, m.UrlSource):
        yield "file_addresses", f"{path}.source.url", False
    elif isinstance(source, m.FileSource):
        yield "file_ids", f"{path}.source.file_id", False
    elif isinstance(source, m.ContentSource) and not isinstance(source.content, str):
        for k, inner in enumerate(cast(list[Any], source.content)):
            yield from _block_needs(inner, f"{path}.source.content[{k}]")
