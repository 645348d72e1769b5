"""The items of OpenAI's Responses API: what a conversation is made of, in both directions.

An item is kept as the plain dict that JSON has, so that what goes on to a target of the same dialect is what came in;
the structs here are the allow-list that it is checked against, and what translation reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from appliance.dialects import parameters as p
from appliance.dialects.wire import explain
from appliance.errors import BadRequest, UnsupportedParameter
from appliance.redact import shown

Item = dict[str, Any]

Status = Literal["in_progress", "completed", "incomplete"]
Id = Annotated[str, Meta(max_length=512)]
CallId = Annotated[str, Meta(min_length=1, max_length=256)]
FunctionName = Annotated[str, Meta(min_length=1, max_length=64)]


class InputText(msgspec.Struct, frozen=True, tag="input_text", forbid_unknown_fields=True):
    text: str
    prompt_cache_breakpoint: p.CacheBreakpoint | None = None


class InputImage(msgspec.Struct, frozen=True, tag="input_image", forbid_unknown_fields=True):
    image_url: str | None = None
    file_id: str | None = None
    detail: Literal["auto", "low", "high", "original"] | None = None
    prompt_cache_breakpoint: p.CacheBreakpoint | None = None


class InputFile(msgspec.Struct, frozen=True, tag="input_file", forbid_unknown_fields=True):
    filename: str | None = None
    file_data: str | None = None
    file_id: str | None = None
    file_url: str | None = None
    detail: Literal["auto", "low", "high"] | None = None
    prompt_cache_breakpoint: p.CacheBreakpoint | None = None


class Audio(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    data: str
    format: Literal["wav", "mp3"]


class InputAudio(msgspec.Struct, frozen=True, tag="input_audio", forbid_unknown_fields=True):
    input_audio: Audio


class OutputText(msgspec.Struct, frozen=True, tag="output_text", forbid_unknown_fields=True):
    text: str
    annotations: list[dict[str, Any]] | None = None
    logprobs: list[dict[str, Any]] | None = None


class Refusal(msgspec.Struct, frozen=True, tag="refusal", forbid_unknown_fields=True):
    refusal: str


class SummaryText(msgspec.Struct, frozen=True, tag="summary_text", forbid_unknown_fields=True):
    text: str


class ReasoningText(msgspec.Struct, frozen=True, tag="reasoning_text", forbid_unknown_fields=True):
    text: str


Part = InputText | InputImage | InputFile | InputAudio | OutputText | Refusal
ToolPart = InputText | InputImage | InputFile


class MessageItem(msgspec.Struct, frozen=True, tag_field="type", tag="message", forbid_unknown_fields=True):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part]
    id: Id | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCallItem(msgspec.Struct, frozen=True, tag_field="type", tag="function_call", forbid_unknown_fields=True):
    call_id: CallId
    name: FunctionName
    arguments: str
    id: Id | None = None
    status: Status | None = None
    namespace: str | None = None
    caller: dict[str, Any] | None = None
    created_by: str | None = None


class CustomCallItem(msgspec.Struct, frozen=True, tag_field="type", tag="custom_tool_call", forbid_unknown_fields=True):
    call_id: CallId
    name: FunctionName
    input: str
    id: Id | None = None
    status: Status | None = None
    namespace: str | None = None
    caller: dict[str, Any] | None = None
    created_by: str | None = None


class FunctionOutputItem(
    msgspec.Struct, frozen=True, tag_field="type", tag="function_call_output", forbid_unknown_fields=True
):
    call_id: CallId
    output: str | list[ToolPart]
    id: Id | None = None
    status: Status | None = None
    name: str | None = None
    caller: dict[str, Any] | None = None
    created_by: str | None = None


class CustomOutputItem(FunctionOutputItem, frozen=True, tag="custom_tool_call_output"):
    pass


class ReasoningItem(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning", forbid_unknown_fields=True):
    summary: list[SummaryText] = []
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None
    id: Id | None = None
    status: Status | None = None


class CompactionItem(msgspec.Struct, frozen=True, tag_field="type", tag="compaction", forbid_unknown_fields=True):
    encrypted_content: str
    id: Id | None = None
    created_by: str | None = None


class ReferenceItem(msgspec.Struct, frozen=True, tag_field="type", tag="item_reference", forbid_unknown_fields=True):
    id: Annotated[str, Meta(min_length=1, max_length=512)]


class NativeItem(msgspec.Struct, frozen=True):
    """An item of which only its maker knows the meaning: it goes on as it is, or the request is refused."""

    type: str
    item: Item


TypedItem = (
    MessageItem
    | FunctionCallItem
    | CustomCallItem
    | FunctionOutputItem
    | ReasoningItem
    | CompactionItem
    | ReferenceItem
    | NativeItem
)

_TYPED: dict[str, type[msgspec.Struct]] = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionOutputItem,
    "custom_tool_call": CustomCallItem,
    "custom_tool_call_output": CustomOutputItem,
    "reasoning": ReasoningItem,
    "compaction": CompactionItem,
    "item_reference": ReferenceItem,
}

NATIVE_ITEMS = frozenset(
    (
        "apply_patch_call",
        "apply_patch_call_output",
        "code_interpreter_call",
        "computer_call",
        "computer_call_output",
        "file_search_call",
        "image_generation_call",
        "local_shell_call",
        "local_shell_call_output",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "mcp_list_tools",
        "shell_call",
        "shell_call_output",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    )
)
"""Types of items that belong to tools which a target runs by itself, or that only its models know."""

_LEFT_OVER: Mapping[str, str] = {"function_call": "parsed_arguments"}
"""What an SDK's parsed answer has beside the item's own fields, by the type of the item."""

_HINTS = {
    "role": "Use user, assistant, system or developer.",
    "content[].type": "Use input_text, input_image or input_file; output_text or refusal for what an assistant said.",
    "output[].type": "Use input_text, input_image or input_file.",
    "phase": "Use commentary or final_answer.",
}

_INDEX = re.compile(r"\[\d+\]")
_INPUT_ONLY = (InputImage, InputFile, InputAudio)
_OUTPUT_ONLY = (OutputText, Refusal)


def tidy(item: Any) -> Any:
    """The item without what SDKs leave in it: they send an answer back as they parsed it."""
    if not isinstance(item, dict):
        return item
    left = _LEFT_OVER.get(kind_of(item) or "")
    if left is not None and left in item:
        item = {name: value for name, value in item.items() if name != left}
    content = item.get("content")
    if isinstance(content, list) and any(isinstance(part, dict) and "parsed" in part for part in content):
        parts = [
            {name: value for name, value in part.items() if name != "parsed"} if isinstance(part, dict) else part
            for part in content
        ]
        item = {**item, "content": parts}
    return item


def kind_of(item: Item) -> str | None:
    """The type of an item; a message and a reference may leave it out."""
    kind = item.get("type")
    if kind is None:
        return "item_reference" if "role" not in item and "id" in item else "message"
    return kind if isinstance(kind, str) else None


def read_item(item: Any, path: str) -> TypedItem:
    """The item, checked. `path` is where it stands (`input[3]`). Raises BadRequest or UnsupportedParameter."""
    if not isinstance(item, dict):
        raise BadRequest(f"{path} must be an object.", param=path, code="invalid_type")
    kind = kind_of(item)
    if kind in NATIVE_ITEMS:
        return NativeItem(kind, item)
    struct = _TYPED.get(kind or "")
    if struct is None:
        named = shown(str(item.get("type")), 80)
        raise UnsupportedParameter(f"{path}.type: {named} is not a known type of item.", param=f"{path}.type")
    if "type" in item and item["type"] is None:
        item = {name: value for name, value in item.items() if name != "type"}
    try:
        typed: Any = msgspec.convert(item, struct)
    except msgspec.ValidationError as error:
        raise at(error, path, _HINTS) from None
    if isinstance(typed, MessageItem):
        _check_parts(typed, path)
    elif isinstance(typed, FunctionOutputItem) and isinstance(typed.output, list):
        _check_media(typed.output, f"{path}.output")
    return cast(TypedItem, typed)


def at(error: msgspec.ValidationError, path: str, hints: Mapping[str, str]) -> BadRequest:
    """A decoder's complaint about a part of the request, said of where that part stands."""
    text = str(error)
    text = text.replace("`$", f"`$.{path}", 1) if " - at `$" in text else f"{text} - at `$.{path}`"
    return explain(text, {}, {f"{_INDEX.sub('[]', path)}.{name}": hint for name, hint in hints.items()})


def _check_parts(message: MessageItem, path: str) -> None:
    """Who may say what."""
    if isinstance(message.content, str):
        return
    if not message.content and message.role != "assistant":
        raise BadRequest(f"{path}.content must hold at least 1 item(s).", param=f"{path}.content")
    for k, part in enumerate(message.content):
        if isinstance(part, _OUTPUT_ONLY) and message.role != "assistant":
            allowed = "input_text, input_image or input_file" if message.role == "user" else "input_text"
        elif isinstance(part, _INPUT_ONLY) and message.role != "user":
            allowed = "output_text or refusal" if message.role == "assistant" else "input_text"
        else:
            continue
        where = f"{path}.content[{k}].type"
        raise BadRequest(f"{where}: {message.role} messages hold {allowed}.", param=where)
    _check_media(message.content, f"{path}.content")


def _check_media(parts: Sequence[Part], path: str) -> None:
    for k, part in enumerate(parts):
        if isinstance(part, InputImage) and not (part.image_url or part.file_id):
            raise BadRequest(
                f"{path}[{k}].image_url is required.",
                param=f"{path}[{k}].image_url",
                code="missing_required_parameter",
            )
        if isinstance(part, InputFile) and not (part.file_data or part.file_id or part.file_url):
            raise BadRequest(
                f"{path}[{k}].file_data is required.",
                param=f"{path}[{k}].file_data",
                code="missing_required_parameter",
            )
