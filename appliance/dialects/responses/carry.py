"""What a client said in this dialect on its way to a target that speaks it too: as it came, but for what was changed
on the way. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from appliance.dialects import chat
from appliance.dialects.answer import Ask
from appliance.dialects.responses import conversation, outbound
from appliance.dialects.responses import tools as t
from appliance.dialects.responses.conversation import INSTRUCTIONS, Sourced
from appliance.dialects.responses.items import Item, kind_of, read_item
from appliance.dialects.responses.names import Names, flat, names_of
from appliance.dialects.responses.reasoning import is_ours
from appliance.dialects.responses.request import Include, Reasoning, ResponsesRequest, TextConfig
from appliance.dialects.wire import encode

_ENCRYPTED = "reasoning.encrypted_content"

_LOGPROBS: Include = "message.output_text.logprobs"

_NOT_SENT = ("previous_response_id", "background")
"""What they ask for is done here."""

_SAME = (
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "parallel_tool_calls",
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "service_tier",
    "stream",
)
"""Fields that are called the same in both forms."""


def carry(native: ResponsesRequest, before: chat.ChatRequest, after: chat.ChatRequest) -> ResponsesRequest:
    """The client's body with what has changed from `before` to `after`, both canonical; all else stays as it was.

    `before` has to be the canonical form of `native`, resolved if it was pending.
    """
    changes: dict[str, Any] = {}
    for fields, change in _CHANGES:
        if any(getattr(before, field) != getattr(after, field) for field in fields):
            changes |= change(native, after)
    if before.messages != after.messages:
        changes |= _messages(native, after.messages)
    return msgspec.structs.replace(native, **changes) if changes else native


def _same(field: str) -> Callable[[ResponsesRequest, chat.ChatRequest], dict[str, Any]]:
    return lambda native, after: {field: getattr(after, field)}


def _text(native: ResponsesRequest, after: chat.ChatRequest) -> dict[str, Any]:
    made = outbound.text_of(after)
    return {"text": msgspec.convert(made, TextConfig) if made else None}


def _reasoning(native: ResponsesRequest, after: chat.ChatRequest) -> dict[str, Any]:
    made = outbound.reasoning_of(after)
    return {"reasoning": msgspec.convert(made, Reasoning) if made else None}


def _tools(native: ResponsesRequest, after: chat.ChatRequest) -> dict[str, Any]:
    """The tools as they are now: those that are unchanged as they came, and what the target has by itself."""
    left = {tool.function.name: tool for tool in after.tools or ()}
    kept = [made for tool in native.tools or () if (made := _tool(tool, left, None)) is not None]
    tools = [*kept, *(outbound.tool_of(tool) for tool in left.values())]
    choice: Any = native.tool_choice if any(tool.get("type") in t.NATIVE_TOOLS for tool in tools) else None
    if after.tool_choice is not None:
        choice = outbound.chosen_of(after.tool_choice, names_of(native.tools))
    return {"tools": tools or None, "tool_choice": choice}


def _tool(tool: dict[str, Any], left: dict[str, chat.Tool], namespace: str | None) -> dict[str, Any] | None:
    """A tool as it is to be now; None where it is no more. Takes it from what is left."""
    kind = tool.get("type")
    if kind in t.NATIVE_TOOLS:
        return tool
    if kind == "namespace":
        inner = [made for each in tool["tools"] if (made := _tool(each, left, tool["name"])) is not None]
        return {**tool, "tools": inner} if inner else None
    now = left.pop(flat(namespace, tool["name"]), None)
    if now is None:
        return None
    (was,), _ = t.read_tools([tool])
    same = (now.function.parameters, now.function.strict) == (was.function.parameters, was.function.strict)
    return tool if same else {**outbound.tool_of(now), "name": tool["name"]}


def _limit(native: ResponsesRequest, after: chat.ChatRequest) -> dict[str, Any]:
    return {"max_output_tokens": after.token_limit}


def _logprobs(native: ResponsesRequest, after: chat.ChatRequest) -> dict[str, Any]:
    left = [each for each in native.include or () if each != _LOGPROBS]
    if after.logprobs:
        left.append(_LOGPROBS)
    return {"include": left or None, "top_logprobs": after.top_logprobs if after.logprobs else None}


_CHANGES: tuple[tuple[tuple[str, ...], Callable[[ResponsesRequest, chat.ChatRequest], dict[str, Any]]], ...] = (
    *(((field,), _same(field)) for field in _SAME),
    (("max_completion_tokens", "max_tokens"), _limit),
    (("response_format", "verbosity"), _text),
    (("reasoning_effort", "reasoning"), _reasoning),
    (("tools", "tool_choice"), _tools),
    (("logprobs", "top_logprobs"), _logprobs),
)
"""Fields of the canonical request, and what a change of one of them means here."""


def _messages(native: ResponsesRequest, after: Sequence[chat.Message]) -> dict[str, Any]:
    """The conversation as it is now: items whose message is unchanged stay as they came."""
    items = native.items()
    read = [read_item(item, f"input[{i}]") for i, item in enumerate(items)]
    before = conversation.messages(native.instructions, read)
    if len(before) != len(after):
        return {"instructions": None, "input": outbound.items_of(after, names_of(native.tools))}
    names, types = names_of(native.tools), {item["call_id"]: item["type"] for item in items if _calls(item)}
    changes: dict[str, Any] = {}
    new: dict[int, list[Item]] = {}
    for was, now in zip(before, after, strict=True):
        if was.message == now:
            continue
        if was.sources == (INSTRUCTIONS,):
            changes["instructions"] = _plain(now)
            continue
        for source in was.sources:
            new[source] = []
        new[was.sources[-1]] = _again(was, now, items, names, types)
    if new:
        changes["input"] = [each for i, item in enumerate(items) for each in new.get(i, [item])]
    return changes


def _calls(item: Item) -> bool:
    return kind_of(item) in ("function_call", "custom_tool_call")


def _again(
    was: Sourced, now: chat.Message, items: Sequence[Item], names: Names, types: Mapping[str, str]
) -> list[Item]:
    """The items of a message that has changed. What was thought stays as it came, unless it has changed itself."""
    if not isinstance(now, chat.AssistantMessage) or not isinstance(was.message, chat.AssistantMessage):
        return outbound.items_of([now], names, called=types)
    thoughts = [items[i] for i in was.sources if kind_of(items[i]) == "reasoning"]
    if (was.message.reasoning_content, was.message.reasoning_details) != (
        now.reasoning_content,
        now.reasoning_details,
    ):
        thoughts = outbound.thoughts_of(now)
    return [*thoughts, *outbound.spoken_of(now, names)]


def _plain(message: chat.Message) -> str | None:
    content = message.content
    if isinstance(content, str) or content is None:
        return content
    return "\n\n".join([part.text for part in content if isinstance(part, chat.TextPart)])


def outgoing_native(
    native: ResponsesRequest, model: str, *, encrypted: bool | None = None, reasoning_text: bool = False
) -> dict[str, Any]:
    """The body for a target that speaks this dialect, for its model `model`.

    `native` has to be resolved: the target keeps nothing, and knows nothing of what was kept here. `encrypted` asks
    for reasoning in a form that can be sent back, as going on without a store needs; by default where the client asks
    for reasoning. `reasoning_text`: the target takes what was thought as plain text.
    """
    body: dict[str, Any] = msgspec.to_builtins(native)
    for field in _NOT_SENT:
        body.pop(field, None)
    body["model"] = model
    body["store"] = False
    if encrypted is None:
        encrypted = native.reasoning is not None and native.reasoning.effort not in (None, "none")
    if encrypted and _ENCRYPTED not in body.get("include", ()):
        body["include"] = [*body.get("include", ()), _ENCRYPTED]
    if isinstance(native.input, list):
        body["input"] = _readable(native.input, reasoning_text)
    return body


def native_ask(native: ResponsesRequest, model: str, _betas: object = None) -> Ask:
    """The client's own body for a model of a target that speaks the same dialect."""
    return Ask("responses", encode(outgoing_native(native, model)))


def _readable(items: list[Item], reasoning_text: bool) -> list[Item]:
    """The items without reasoning that the target cannot read: it would look for it by its id, where nothing is kept.
    The ids of the others go with it, since by them it would miss what they belong to."""
    kept = [item for item in items if kind_of(item) != "reasoning" or _keeps(item, reasoning_text)]
    if len(kept) == len(items):
        return items
    return [
        {name: value for name, value in item.items() if name != "id"} if kind_of(item) in _LOSE_ID else item
        for item in kept
    ]


_LOSE_ID = ("message", "function_call", "custom_tool_call")


def _keeps(item: Item, reasoning_text: bool) -> bool:
    encrypted = item.get("encrypted_content")
    if encrypted:
        return not is_ours(str(encrypted))
    return reasoning_text and bool(item.get("content"))
