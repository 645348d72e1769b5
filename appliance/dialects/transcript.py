"""The conversation for dialects with other rules for it than OpenAI's: who is speaking stands in the text, and results
of tools follow their calls. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.dialects.chat import AssistantMessage, Message, TextPart, ToolMessage


def named(messages: list[Message]) -> list[Message]:
    """The messages without names of participants: each stands before its text instead, as `name: text`. The very list
    where there are none.

    One name that all messages of the assistant have tells it nothing, and before each of them it would begin its
    answers so too; it goes without a word. So does a tool's, which the call has.
    """
    if not any(message.name for message in messages):
        return messages
    answers = {message.name for message in messages if isinstance(message, AssistantMessage) and message.content}
    return [_named(message, answers) if message.name else message for message in messages]


def told(messages: list[Message]) -> list[tuple[int, Message]]:
    """The messages without names, with their places in the request. A result that comes after another message stands
    before that, with those of the calls that were made together: some targets take it nowhere else."""
    found: list[tuple[int, Message]] = []
    place = 0
    for i, message in enumerate(named(messages)):
        if isinstance(message, ToolMessage):
            found.insert(place, (i, message))
            place += 1
        else:
            found.append((i, message))
            if isinstance(message, AssistantMessage):
                place = len(found)
    return found


def _named(message: Message, answers: set[str | None]) -> Message:
    silent = isinstance(message, AssistantMessage) and (len(answers) == 1 or not message.content)
    if silent or isinstance(message, ToolMessage):
        return msgspec.structs.replace(message, name=None)
    return msgspec.structs.replace(message, name=None, content=_behind(f"{message.name}: ", message.content))


def _behind(name: str, content: Any) -> Any:
    if isinstance(content, str):
        return name + content if content.strip() else content
    for k, part in enumerate(content):
        if isinstance(part, TextPart) and part.text.strip():
            return [*content[:k], msgspec.structs.replace(part, text=name + part.text), *content[k + 1 :]]
    # At the end, so that the others keep their places, which errors name.
    return [*content, TextPart(text=name.rstrip())]
