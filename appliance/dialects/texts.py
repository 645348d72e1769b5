"""The texts of a request, whatever its form: what the model will read, for counting and for whoever judges texts."""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.dialects.chat import ChatRequest
from appliance.dialects.completions import CompletionRequest
from appliance.dialects.kinds import Request
from appliance.dialects.wire import encode


class Reading(msgspec.Struct, frozen=True):
    """What a model is given to read. Images and other files are counted, not shown."""

    texts: list[str]
    messages: int = 0
    """0: no chat, so that no template goes around the texts."""
    files: int = 0
    tokens: int = 0
    """Token ids that were given instead of texts."""


def reading(request: Request) -> Reading:
    """All of a request that becomes part of the prompt."""
    if isinstance(request, ChatRequest):
        return _chat(request)
    inputs = request.prompts() if isinstance(request, CompletionRequest) else request.inputs()
    texts = [each for each in inputs if isinstance(each, str)]
    return Reading(texts, tokens=sum(len(each) for each in inputs if not isinstance(each, str)))


def _chat(request: ChatRequest) -> Reading:
    texts: list[str] = []
    files = 0
    for message in request.messages:
        if message.name:
            texts.append(message.name)
        files += _content(getattr(message, "content", None), texts)
        refusal = getattr(message, "refusal", None)
        if refusal:
            texts.append(refusal)
        thought = getattr(message, "reasoning_content", None)
        if thought:
            texts.append(thought)
        for call in getattr(message, "tool_calls", None) or ():
            texts += (call.function.name, call.function.arguments)
    if request.tools:
        texts.append(encode(request.tools).decode())
    if request.response_format is not None:
        texts.append(encode(request.response_format).decode())
    return Reading(texts, len(request.messages), files)


def _content(content: Any, texts: list[str]) -> int:
    """Put the texts of a message's content into `texts`; gives the number of its other parts."""
    if isinstance(content, str):
        texts.append(content)
        return 0
    files = 0
    for part in content or ():
        text = getattr(part, "text", None) or getattr(part, "refusal", None)
        if isinstance(text, str):
            texts.append(text)
        else:
            files += 1
    return files
