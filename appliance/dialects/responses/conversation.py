"""Items of a conversation as canonical messages. Pure.

A turn of the assistant is several items here – reasoning, text, one for each call – and one message there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from appliance.dialects import chat
from appliance.dialects.custom_tools import arguments_of
from appliance.dialects.responses.items import (
    CustomCallItem,
    FunctionCallItem,
    FunctionOutputItem,
    InputAudio,
    InputFile,
    InputImage,
    InputText,
    Item,
    MessageItem,
    NativeItem,
    OutputText,
    ReasoningItem,
    Refusal,
    TypedItem,
    kind_of,
)
from appliance.dialects.responses.names import flat
from appliance.dialects.responses.reasoning import details_of, text_of
from appliance.errors import BadRequest

SUMMARY = "What was said before, in short:\n\n"
"""Goes before the text of a compacted conversation. The assistant says it: a summary of what others wrote must not
weigh more than what they wrote."""

INSTRUCTIONS = -1
"""The source of the message that the instructions have become."""


class Sourced(msgspec.Struct, frozen=True):
    """A message, and the places of the items that it was made of."""

    message: chat.Message
    sources: tuple[int, ...]


def uncompacted(item: Item, opened: Callable[[str], str | None]) -> Item:
    """A compacted conversation as a message with its summary, if it is one of ours; any other item as it is."""
    if kind_of(item) != "compaction":
        return item
    encrypted = item.get("encrypted_content")
    text = opened(encrypted) if isinstance(encrypted, str) else None
    if text is None:
        return item
    return {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": SUMMARY + text, "annotations": []}],
    }


def check_calls(items: Sequence[TypedItem]) -> None:
    """Every output answers a call. Raises BadRequest."""
    called: set[str] = set()
    for i, item in enumerate(items):
        if isinstance(item, FunctionCallItem | CustomCallItem):
            called.add(item.call_id)
        elif isinstance(item, NativeItem):
            # Calls of a target's own tools may be answered like those of functions: Codex does so with its shell.
            if item.type.endswith("_call") and isinstance(id := item.item.get("call_id"), str):
                called.add(id)
        elif isinstance(item, FunctionOutputItem) and item.call_id not in called:
            raise BadRequest(
                f"input[{i}].call_id: no function_call with this call_id comes before it.", param=f"input[{i}].call_id"
            )


def messages(instructions: str | None, items: Sequence[TypedItem]) -> list[Sourced]:
    """The canonical messages. Items that only their maker understands are left out: `native_needs` asks for it."""
    made: list[Sourced] = []
    if instructions:
        made.append(Sourced(chat.SystemMessage(instructions), (INSTRUCTIONS,)))
    turn = _Turn()
    for i, item in enumerate(items):
        if isinstance(item, ReasoningItem):
            turn.think(i, item, made)
        elif isinstance(item, FunctionCallItem | CustomCallItem):
            turn.call(i, item)
        elif isinstance(item, MessageItem) and item.role == "assistant":
            turn.say(i, item, made)
        elif isinstance(item, MessageItem):
            turn.end(made)
            made.append(Sourced(_message(item), (i,)))
        elif isinstance(item, FunctionOutputItem):
            turn.end(made)
            made.append(Sourced(chat.ToolMessage(_output(item), item.call_id), (i,)))
    turn.end(made)
    return made


class _Turn:
    """The assistant's turn that is being put together."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._sources: list[int] = []
        self._details: list[dict[str, Any]] = []
        self._parts: list[chat.TextPart | chat.RefusalPart] | None = None
        self._calls: list[chat.ToolCall] = []

    def think(self, i: int, item: ReasoningItem, made: list[Sourced]) -> None:
        # Between calls that run in parallel it stays in their message, whose outputs have to follow it at once.
        if self._parts is not None and not self._calls:
            self.end(made)
        self._sources.append(i)
        self._details += details_of(item)

    def say(self, i: int, item: MessageItem, made: list[Sourced]) -> None:
        if self._parts is not None and not self._calls:
            self.end(made)
        self._sources.append(i)
        self._parts = (self._parts or []) + _said(item)

    def call(self, i: int, item: FunctionCallItem | CustomCallItem) -> None:
        self._sources.append(i)
        arguments = arguments_of(item.input) if isinstance(item, CustomCallItem) else item.arguments
        function = chat.FunctionCall(flat(item.namespace, item.name), arguments)
        self._calls.append(chat.ToolCall(item.call_id, function, "function"))

    def end(self, made: list[Sourced]) -> None:
        """Put the message together. What was thought without a word or a call after it belongs to no message."""
        if self._parts is not None or self._calls:
            made.append(Sourced(self._message(), tuple(self._sources)))
        self._clear()

    def _message(self) -> chat.AssistantMessage:
        parts = self._parts
        content: str | list[chat.TextPart | chat.RefusalPart] | None = parts
        if parts is not None and len(parts) <= 1:
            lone = parts[0] if parts else chat.TextPart("")
            content = lone.text if isinstance(lone, chat.TextPart) else parts
        return chat.AssistantMessage(
            content=content,
            tool_calls=self._calls or None,
            reasoning_content=text_of(self._details) or None,
            reasoning_details=self._details or None,
        )


def _said(item: MessageItem) -> list[chat.TextPart | chat.RefusalPart]:
    if isinstance(item.content, str):
        return [chat.TextPart(item.content)]
    said: list[chat.TextPart | chat.RefusalPart] = []
    for part in item.content:
        if isinstance(part, Refusal):
            said.append(chat.RefusalPart(part.refusal))
        elif isinstance(part, OutputText | InputText):
            said.append(chat.TextPart(part.text))
    return said


def _message(item: MessageItem) -> chat.Message:
    content = item.content
    if item.role == "user":
        return chat.UserMessage(content if isinstance(content, str) else _lone([_part(part) for part in content]))
    texts = content if isinstance(content, str) else _lone([chat.TextPart(_text(part)) for part in content])
    return (chat.SystemMessage if item.role == "system" else chat.DeveloperMessage)(texts)


def _lone(parts: list[Any]) -> Any:
    """One text is just that: many templates know nothing else."""
    return parts[0].text if len(parts) == 1 and isinstance(parts[0], chat.TextPart) else parts


def _text(part: Any) -> str:
    return part.text if isinstance(part, InputText) else ""


def _part(part: Any) -> chat.TextPart | chat.ImagePart | chat.AudioPart | chat.FilePart:
    if isinstance(part, InputImage):
        return _image(part)
    if isinstance(part, InputFile):
        named = {"filename": part.filename, "file_data": part.file_data, "file_id": part.file_id}
        return chat.FilePart({name: value for name, value in named.items() if value is not None})
    if isinstance(part, InputAudio):
        return chat.AudioPart(chat.InputAudio(part.input_audio.data, part.input_audio.format))
    return chat.TextPart(_text(part))


def _image(part: InputImage) -> chat.ImagePart | chat.FilePart:
    if not part.image_url:
        return chat.FilePart({"file_id": part.file_id})
    return chat.ImagePart(_address(part))


def _address(part: InputImage) -> chat.ImageUrl:
    return chat.ImageUrl(part.image_url or "", part.detail)


def _output(item: FunctionOutputItem) -> str | list[chat.TextPart | chat.ImagePart | chat.FilePart]:
    if isinstance(item.output, str):
        return item.output
    parts: list[chat.TextPart | chat.ImagePart | chat.FilePart] = []
    for part in item.output:
        if isinstance(part, InputText):
            parts.append(chat.TextPart(part.text))
        elif isinstance(part, InputImage) and part.image_url:
            parts.append(chat.ImagePart(_address(part)))
        elif isinstance(part, InputFile) and part.file_data:
            named = {"filename": part.filename, "file_data": part.file_data}
            parts.append(chat.FilePart({name: value for name, value in named.items() if value is not None}))
    return _lone(parts) if parts else ""
