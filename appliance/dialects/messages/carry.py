"""What a route has changed in the canonical request, in the client's own Messages body. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgspec

from appliance.dialects import chat
from appliance.dialects.answer import Ask
from appliance.dialects.messages import body as m
from appliance.dialects.messages.betas import HEADER, NONE, Betas, interleaved
from appliance.dialects.messages.blocks import as_object
from appliance.dialects.messages.canonical import UNMISSED, native_needs, to_chat
from appliance.dialects.messages.outbound import (
    COUNT_PATH,
    LEAST_BUDGET,
    PATH,
    choice_of,
    format_of,
    refuse_unknown,
    stops_of,
)
from appliance.dialects.messages.turns import call_id, system_of, turns_of
from appliance.dialects.thoughts import marked
from appliance.dialects.wire import encode
from appliance.errors import UnsupportedParameter

NativeT = TypeVar("NativeT", bound=m.CountRequest)

_SAME = ("model", "temperature", "top_p", "top_k", "stream")
_TOOLS = ("tool_choice", "parallel_tool_calls")
_THINKING = ("reasoning", "reasoning_effort")
_LIMITS = ("max_completion_tokens", "max_tokens")


def carry(native: NativeT, before: chat.ChatRequest, after: chat.ChatRequest) -> NativeT:
    """`native` with what differs between the canonical requests `before` and `after`, everything else untouched.

    Raises UnsupportedParameter for a change that the dialect has no notion for.
    """
    if before is after:
        return native
    changed = {
        field: getattr(after, field)
        for field in chat.ChatRequest.__struct_fields__
        if getattr(before, field) != getattr(after, field)
    }
    if not changed:
        return native
    refuse_unknown(after)
    changes: dict[str, Any] = {field: changed[field] for field in _SAME if field in changed}
    if "messages" in changed:
        native = _with_messages(native, before, after)
    if "tools" in changed:
        changes["tools"] = _tools(native, after)
    if any(field in changed for field in _TOOLS):
        choice = choice_of(after) if after.tools else None
        changes["tool_choice"] = None if choice is None else msgspec.convert(choice, m.Choice)
    if "stop" in changed:
        changes["stop_sequences"] = stops_of(after) or None
    if "user" in changed:
        changes["metadata"] = m.Metadata(after.user) if after.user else None
    if "response_format" in changed:
        config = native.output_config or m.OutputConfig()
        form = format_of(after.response_format)
        made = None if form is None else m.JsonFormat("json_schema", form["schema"])
        changes["output_config"] = _unless_empty(msgspec.structs.replace(config, format=made))
    if any(field in changed for field in _LIMITS) and isinstance(native, m.MessagesRequest):
        changes["max_tokens"] = after.token_limit or native.max_tokens
    native = msgspec.structs.replace(native, **_those_of(native, changes))
    if any(field in changed for field in _THINKING):
        native = _with_thinking(native, after)
    return native if interleaved(native.betas) else _with_room(native)


def _those_of(native: m.CountRequest, changes: dict[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in changes.items() if field in native.__struct_fields__}


def _unless_empty(config: m.OutputConfig) -> m.OutputConfig | None:
    return None if config == m.OutputConfig() else config


def _tools(native: m.CountRequest, after: chat.ChatRequest) -> list[dict[str, Any]] | None:
    """The client's tools that are left. A route can take tools away and change what they say."""
    kept = {tool.function.name: tool.function for tool in after.tools or ()}
    tools: list[dict[str, Any]] = []
    for tool in native.tools or ():
        if tool.get("type") not in (None, "custom"):
            tools.append(tool)
        elif (function := kept.pop(tool["name"], None)) is not None:
            described = {"description": function.description} if function.description != tool.get("description") else {}
            tools.append({**tool, **described, "input_schema": function.parameters or {"type": "object"}})
    for function in kept.values():
        schema = {"type": "object", **(function.parameters or {})}
        told = {"description": function.description} if function.description else {}
        tools.append({"name": function.name, **told, "input_schema": schema})
    return tools or None


def _with_thinking(native: NativeT, after: chat.ChatRequest) -> NativeT:
    asked, effort = after.reasoning or {}, after.reasoning_effort
    config = native.output_config or m.OutputConfig()
    if effort is None and asked.get("max_tokens") is None:
        effort = asked.get("effort")
    thinking: m.Thinking | None = None
    if effort == "none" or asked.get("enabled") is False:
        thinking, effort = m.ThinkingDisabled(), None
    elif asked:
        display: Any = "omitted" if asked.get("exclude") else "summarized" if asked.get("summary") else None
        budget = asked.get("max_tokens")
        thinking = (
            m.ThinkingEnabled(max(budget, LEAST_BUDGET), display)
            if isinstance(budget, int)
            else m.ThinkingAdaptive(display)
        )
    made = msgspec.structs.replace(config, effort="low" if effort == "minimal" else effort)
    return msgspec.structs.replace(native, thinking=thinking, output_config=_unless_empty(made))


def _with_room(native: NativeT) -> NativeT:
    """Less thinking where a route's limit leaves it no room, or none."""
    thinking = native.thinking
    if not isinstance(native, m.MessagesRequest) or not isinstance(thinking, m.ThinkingEnabled):
        return native
    if thinking.budget_tokens < native.max_tokens:
        return native
    tokens = max(LEAST_BUDGET, native.max_tokens * 3 // 4)
    less = msgspec.structs.replace(thinking, budget_tokens=tokens) if tokens < native.max_tokens else None
    return msgspec.structs.replace(native, thinking=less)


# --- messages -------------------------------------------------------------------------------------


def _with_messages(native: NativeT, before: chat.ChatRequest, after: chat.ChatRequest) -> NativeT:
    """`native` with other texts in the same places, or made anew where that does not give what `after` says."""
    texts = dict(_changed_texts(before.messages, after.messages))

    def other(text: str) -> str:
        return texts.get(text, text)

    made: NativeT = _mapped(native, other)
    if to_chat(made).messages == after.messages:
        return made
    for _, field, _ in native_needs(native):
        raise UnsupportedParameter(
            f"{field}: the route changes the conversation, and this cannot be kept where it does; leave it out.",
            param=field,
        )
    system = system_of(after.messages)
    anew = {"system": system, "messages": turns_of(after.messages)}
    rest = {**msgspec.to_builtins(native), **{name: value for name, value in anew.items() if value is not None}}
    if system is None:
        rest.pop("system", None)
    return msgspec.convert(rest, type(native))


def _changed_texts(before: list[chat.Message], after: list[chat.Message]) -> Iterator[tuple[str, str]]:
    """(old, new) for the texts that stand in the same places."""
    for old, new in zip(before, after, strict=False):
        yield from _changed(msgspec.to_builtins(old), msgspec.to_builtins(new))


def _changed(old: Any, new: Any) -> Iterator[tuple[str, str]]:
    if isinstance(old, str):
        if isinstance(new, str) and old != new:
            yield old, new
    elif isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() & new.keys():
            yield from _changed(old[name], new[name])
    elif isinstance(old, list) and isinstance(new, list):
        for a, b in zip(old, new, strict=False):
            yield from _changed(a, b)


def _mapped(native: NativeT, other: Callable[[str], str]) -> NativeT:
    """`native` with each of its texts given to `other`."""
    system = native.system
    return msgspec.structs.replace(
        native,
        system=None if system is None else _content(system, other),
        messages=[msgspec.structs.replace(turn, content=_content(turn.content, other)) for turn in native.messages],
    )


def _content(content: Any, other: Callable[[str], str]) -> Any:
    return other(content) if isinstance(content, str) else [_block(block, other) for block in content]


def _block(block: Any, other: Callable[[str], str]) -> Any:
    replace = msgspec.structs.replace
    if isinstance(block, m.TextBlock):
        return replace(block, text=other(block.text))
    if isinstance(block, m.ThinkingBlock):
        return replace(block, thinking=other(block.thinking))
    if isinstance(block, m.ToolResultBlock) and block.content is not None:
        return replace(block, content=_content(block.content, other))
    if isinstance(block, m.ToolUseBlock):
        old = encode(block.input).decode()
        found = as_object(new) if (new := other(old)) != old else None
        return block if found is None else replace(block, input=found)
    if isinstance(block, m.DocumentBlock) and isinstance(block.source, m.TextSource):
        return replace(block, source=replace(block.source, data=other(block.source.data)))
    if isinstance(block, m.DocumentBlock) and isinstance(block.source, m.ContentSource):
        return replace(block, source=replace(block.source, content=_content(block.source.content, other)))
    return block


def _tidy(native: NativeT) -> NativeT:
    """Without what answers of other targets have left: thoughts that Anthropic has not signed, and ids that it does not
    take. Anthropic would refuse them."""
    turns: list[m.Turn] | None = None
    for i, turn in enumerate(native.messages):
        if isinstance(turn.content, str) or not any(map(_untidy, turn.content)):
            continue
        blocks: list[Any] = [_tidied(block) for block in turn.content]
        turns = list(native.messages) if turns is None else turns
        turns[i] = msgspec.structs.replace(turn, content=[block for block in blocks if block is not None])
    if turns is None:
        return native
    # A turn that was nothing but such thoughts says nothing now.
    return msgspec.structs.replace(native, messages=[turn for turn in turns if turn.content])


def _untidy(block: Any) -> bool:
    return _tidied(block) is not block


def _tidied(block: Any) -> Any:
    if isinstance(block, m.ThinkingBlock):
        return block if block.signature and not marked(block.signature) else None
    if isinstance(block, m.RedactedThinkingBlock):
        return None if marked(block.data) else block
    if isinstance(block, m.ToolUseBlock):
        return block if (id := call_id(block.id)) == block.id else msgspec.structs.replace(block, id=id)
    if isinstance(block, m.ToolResultBlock):
        id = call_id(block.tool_use_id)
        return block if id == block.tool_use_id else msgspec.structs.replace(block, tool_use_id=id)
    return block


def _without_late_thinking(native: NativeT) -> NativeT:
    """Without thinking where it is too late for it: another target has begun the calls that are still going on. See
    claude.takes_budget."""
    if not isinstance(native.thinking, m.ThinkingEnabled) or not _calls_without_thought(native.messages):
        return native
    return msgspec.structs.replace(native, thinking=None)


def _calls_without_thought(turns: list[m.Turn]) -> bool:
    first: list[Any] | None = None
    for turn in turns:
        blocks: list[Any] = [] if isinstance(turn.content, str) else list(turn.content)
        if isinstance(turn, m.AssistantTurn):
            if not any(isinstance(block, m.ToolUseBlock) for block in blocks):
                first = None
            elif first is None:
                first = blocks
        elif not any(isinstance(block, m.ToolResultBlock) for block in blocks):
            first = None
    return first is not None and not any(
        isinstance(block, m.ThinkingBlock | m.RedactedThinkingBlock) for block in first
    )


def native_ask(native: m.CountRequest, model: str, allowed: Betas = NONE) -> Ask:
    """The client's own body under the target's name of the model, as far as the target can take it. `allowed`: the
    betas that it may be asked for."""
    native = _without_late_thinking(_tidy(native))
    if not interleaved(native.betas) or allowed.without([name for name in native.betas or () if interleaved([name])]):
        native = _with_room(native)
    native, needed = _managed(native, allowed)
    path = PATH if isinstance(native, m.MessagesRequest) else COUNT_PATH
    header = allowed.header(native.betas, needed)
    body = encode(msgspec.structs.replace(native, model=model, betas=None))
    return Ask(path, body, {HEADER: header}) if header else Ask(path, body)


def _managed(native: NativeT, allowed: Betas) -> tuple[NativeT, list[str]]:
    """Without what the target may not be asked for, and what else needs a beta (betas.FEATURES)."""
    config, managed = native.output_config, native.context_management
    needed: list[str] = []
    if config is not None and config.task_budget is not None:
        if "task_budget" in allowed.features:
            needed.append("task_budget")
        else:
            config = _unless_empty(msgspec.structs.replace(config, task_budget=None))
    if managed is not None:
        # Thoughts are managed only where there are any, says Anthropic.
        thinks = isinstance(native.thinking, m.ThinkingEnabled | m.ThinkingAdaptive)
        edits = [edit for edit in managed.edits or () if thinks or not edit["type"].startswith(UNMISSED)]
        managed = m.ContextManagement(edits) if edits and "context_management" in allowed.features else None
        needed += ["context_management"] if managed is not None else []
    if config is not native.output_config or managed is not native.context_management:
        native = msgspec.structs.replace(native, output_config=config, context_management=managed)
    return native, needed
