"""Asking a target in the Responses dialect: the canonical request as a Responses body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from appliance.dialects import chat
from appliance.dialects.answer import Ask
from appliance.dialects.custom_tools import input_of
from appliance.dialects.responses.names import Name, Names
from appliance.dialects.responses.reader import ResponsesReader, read_events
from appliance.dialects.responses.reasoning import unpack
from appliance.dialects.tools import GrammarFormat, customs
from appliance.dialects.transcript import named
from appliance.dialects.translating import effort_of, refuse, thinking_budget
from appliance.dialects.wire import encode
from appliance.errors import UnsupportedParameter
from runtimes.engine import Event

FEATURES = frozenset(
    (
        "tools",
        "json_object",
        "json_schema",
        "logprobs",
        "images",
        "files",
        "reasoning",
        "verbosity",
        "tool_images",
        "service_tiers",
    )
)
"""What the dialect has a notion for, of the features of a canonical request."""

NATIVE_FEATURES = FEATURES | {"responses_tools", "responses_items", "truncation"}
"""What OpenAI's own endpoint takes of a client that speaks the dialect itself. Not among them is what would let a
caller name files of the provider's account (`file_ids`) or have addresses fetched (`file_addresses`)."""

_UNKNOWN = {
    "n": "it gives one answer at a time.",
    "stop": "leave it out.",
    "seed": "leave it out.",
    "logit_bias": "leave it out.",
    "top_k": "use top_p.",
    "min_p": "use top_p.",
    "repetition_penalty": "leave it out.",
    "presence_penalty": "leave it out.",
    "frequency_penalty": "leave it out.",
}
"""Fields of a canonical request that the dialect has no notion for, and the cure."""

_SAME = (
    "temperature",
    "top_p",
    "parallel_tool_calls",
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "service_tier",
)

_ENCRYPTED = "reasoning.encrypted_content"


class ResponsesOutbound:
    """See dialects.answer.Outbound."""

    name = "responses"

    def __init__(self, *, reasoning_text: bool = False, drop: frozenset[str] = frozenset()) -> None:
        """reasoning_text: the target takes back what was thought as plain text; OpenAI's refuses an item of reasoning
        that it cannot decrypt. drop: fields of the body that the target refuses, and whose loss changes no answer."""
        self._reasoning_text = reasoning_text
        self._drop = drop

    def unknown(self, model: str) -> frozenset[str]:
        """Fields that the model has no notion for, and without which it answers all the same."""
        return frozenset(_UNKNOWN)

    def ask(self, request: chat.ChatRequest, model: str, *, stream: bool) -> Ask:
        check(request)
        body = ask_body(request, model, stream=stream, reasoning_text=self._reasoning_text)
        for field in self._drop:
            body.pop(field, None)
        return Ask("responses", encode(body))

    def reader(self, target: str, request: chat.ChatRequest) -> ResponsesReader:
        return ResponsesReader(target)

    def read_whole(self, body: bytes, target: str, request: chat.ChatRequest) -> list[Event]:
        return read_events(body, target)


def check(request: chat.ChatRequest) -> None:
    """What the dialect has no notion for is refused by name. Raises UnsupportedParameter."""
    refuse(request, _UNKNOWN)
    for i, message in enumerate(request.messages):
        content = getattr(message, "content", None)
        for k, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, chat.AudioPart):
                raise _unsupported(f"messages[{i}].content[{k}]", "this target takes no audio.")


def _unsupported(path: str, why: str) -> UnsupportedParameter:
    return UnsupportedParameter(f"{path} is not supported: {why}", param=path)


def ask_body(request: chat.ChatRequest, model: str, *, stream: bool, reasoning_text: bool = False) -> dict[str, Any]:
    """The body. Nothing is stored at the target: who wants to go on sends the conversation again."""
    names = {name: Name(name, custom=True) for name in customs(request.tools)}
    body: dict[str, Any] = {
        "model": model,
        "input": items_of(named(request.messages), names, reasoning_text=reasoning_text),
        "store": False,
    }
    for field in _SAME:
        value = getattr(request, field)
        if value is not None:
            body[field] = value
    if request.token_limit is not None:
        body["max_output_tokens"] = request.token_limit
    if stream:
        body["stream"] = True
    if request.tools:
        body["tools"] = [tool_of(tool) for tool in request.tools]
    if request.tool_choice is not None and request.tools:
        body["tool_choice"] = chosen_of(request.tool_choice, names)
    if text := text_of(request):
        body["text"] = text
    include: list[str] = []
    reasoning = reasoning_of(request)
    if reasoning:
        body["reasoning"] = reasoning
        if reasoning.get("effort") != "none":
            include.append(_ENCRYPTED)
    if request.logprobs:
        include.append("message.output_text.logprobs")
        if request.top_logprobs:
            body["top_logprobs"] = request.top_logprobs
    if include:
        body["include"] = include
    return body


def tool_of(tool: chat.Tool) -> dict[str, Any]:
    function = tool.function
    if tool.custom is not None:
        return _custom_of(tool.custom)
    made: dict[str, Any] = {"type": "function", "name": function.name}
    if function.description is not None:
        made["description"] = function.description
    made["parameters"] = function.parameters
    made["strict"] = bool(function.strict)  # here not saying it means strict, which changes what schemas are allowed
    return made


def _custom_of(custom: chat.CustomTool) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "custom", "name": custom.name}
    if custom.description is not None:
        made["description"] = custom.description
    if isinstance(custom.format, GrammarFormat):
        made["format"] = {"type": "grammar", **msgspec.to_builtins(custom.format.grammar)}
    return made


def chosen_of(choice: str | chat.ToolChoice, names: Mapping[str, Name] = {}) -> str | dict[str, str]:
    if isinstance(choice, str):
        return choice
    name = names.get(choice.function.name) or Name(choice.function.name)
    return {"type": "custom" if name.custom else "function", "name": name.name}


def text_of(request: chat.ChatRequest) -> dict[str, Any]:
    text: dict[str, Any] = {}
    form = request.response_format
    if isinstance(form, chat.JsonSchemaFormat):
        named: dict[str, Any] = msgspec.to_builtins(form.json_schema)
        named.setdefault("schema", {})
        text["format"] = {"type": "json_schema", **named}
    elif isinstance(form, chat.JsonObjectFormat):
        text["format"] = {"type": "json_object"}
    if request.verbosity is not None:
        text["verbosity"] = request.verbosity
    return text


def reasoning_of(request: chat.ChatRequest) -> dict[str, Any]:
    """The reasoning that is asked for. A bound on its tokens is not known here; it becomes an effort."""
    asked = request.reasoning or {}
    made: dict[str, Any] = {}
    effort, budget = effort_of(request), thinking_budget(request)
    if effort is None and budget is not None:
        effort = next(name for most, name in _EFFORTS if budget <= most)
    if effort is not None:
        made["effort"] = effort
    if asked.get("exclude"):
        return made
    if asked.get("summary") is not None:
        made["summary"] = asked["summary"]
    elif asked.get("enabled") or budget is not None:
        made["summary"] = "auto"  # the only form in which the target shows what it thinks
    return made


_EFFORTS = ((4096, "low"), (16_384, "medium"), (1 << 31, "high"))
"""Most tokens of reasoning, and the effort that comes to about as many."""


def items_of(
    messages: Sequence[chat.Message],
    names: Mapping[str, Name] = {},
    *,
    reasoning_text: bool = False,
    called: Mapping[str, str] = {},
) -> list[dict[str, Any]]:
    """The items of a conversation. names: what is to be called otherwise. called: calls that earlier messages made, by
    their ids, and the types of their items."""
    items: list[dict[str, Any]] = []
    types = dict(called)
    for message in messages:
        if isinstance(message, chat.AssistantMessage):
            turn = _turn(message, names, reasoning_text)
            types.update((item["call_id"], item["type"]) for item in turn if "call_id" in item)
            items += turn
        elif isinstance(message, chat.ToolMessage):
            output = message.content if isinstance(message.content, str) else [_part(part) for part in message.content]
            type = types.get(message.tool_call_id, "function_call") + "_output"
            items.append({"type": type, "call_id": message.tool_call_id, "output": output})
        else:
            content = message.content if isinstance(message.content, str) else [_part(part) for part in message.content]
            role = "user" if isinstance(message, chat.UserMessage) else _role(message)
            items.append({"type": "message", "role": role, "content": content})
    return items


def _role(message: chat.SystemMessage | chat.DeveloperMessage) -> str:
    return "system" if isinstance(message, chat.SystemMessage) else "developer"


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, chat.ImagePart):
        return {"type": "input_image", "image_url": part.image_url.url, "detail": part.image_url.detail or "auto"}
    if isinstance(part, chat.FilePart):
        known = ("filename", "file_data", "file_id")
        return {"type": "input_file", **{name: part.file[name] for name in known if part.file.get(name) is not None}}
    return {"type": "input_text", "text": part.text}


def _turn(message: chat.AssistantMessage, names: Names, reasoning_text: bool) -> list[dict[str, Any]]:
    return [*thoughts_of(message, reasoning_text), *spoken_of(message, names)]


def spoken_of(message: chat.AssistantMessage, names: Mapping[str, Name] = {}) -> list[dict[str, Any]]:
    """The items of what an assistant said and called, without what it thought."""
    items: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    if isinstance(message.content, str):
        if message.content or not (message.tool_calls or message.refusal):
            parts.append(_said(message.content))
    else:
        for part in message.content or ():
            if isinstance(part, chat.TextPart):
                parts.append(_said(part.text))
            else:
                parts.append({"type": "refusal", "refusal": part.refusal})
    if message.refusal:
        parts.append({"type": "refusal", "refusal": message.refusal})
    if parts:
        items.append({"type": "message", "role": "assistant", "content": parts})
    for call in message.tool_calls or ():
        name = names.get(call.function.name) or Name(call.function.name)
        said = call.function.arguments
        kind = {"type": "custom_tool_call" if name.custom else "function_call", "call_id": call.id, **name.fields()}
        items.append({**kind, "input": input_of(said)} if name.custom else {**kind, "arguments": said})
    return items


def _said(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def thoughts_of(message: chat.AssistantMessage, reasoning_text: bool = False) -> list[dict[str, Any]]:
    """What was thought, as far as the target can use it: what it has encrypted itself, as it gave it."""
    items: list[dict[str, Any]] = []
    for each in message.reasoning_details or ():
        own = unpack(str(each.get("data") or ""))
        if own is not None:
            items.append({"type": "reasoning", "id": own[0], "summary": [], "encrypted_content": own[1]})
    if not items and reasoning_text and message.reasoning_content:
        content = [{"type": "reasoning_text", "text": message.reasoning_content}]
        items.append({"type": "reasoning", "summary": [], "content": content})
    return items
