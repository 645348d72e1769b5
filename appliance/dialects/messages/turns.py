"""Canonical messages as Anthropic's system prompt and turns. Pure.

Instructions go into `system`, wherever they stand; consecutive messages of one role become one turn; results of tools
become blocks at the head of the user's turn.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Any

from appliance.dialects import chat
from appliance.dialects.messages.blocks import as_object
from appliance.dialects.thoughts import anthropics
from appliance.dialects.transcript import named, told
from appliance.dialects.translating import data_url, file_data
from appliance.errors import UnsupportedParameter

_IMAGES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_CALL_ID = re.compile(r"[a-zA-Z0-9_-]+\Z")
_SYSTEM = (chat.SystemMessage, chat.DeveloperMessage)

Block = dict[str, Any]


def call_id(id: str) -> str:
    """A call's id as Anthropic takes it: one with other characters gets a name that is always the same."""
    if _CALL_ID.match(id):
        return id
    return "toolu_" + hashlib.blake2s(id.encode(), digest_size=12).hexdigest()


def system_of(messages: list[chat.Message]) -> str | list[Block] | None:
    """The system prompt; None where there is none."""
    blocks: list[Block] = []
    plain: list[str] = []
    for message in named(messages):
        if isinstance(message, _SYSTEM):
            if isinstance(message.content, str):
                plain.append(message.content)
            blocks += _texts(message.content)
    if not blocks:
        return None
    return plain[0] if len(blocks) == len(plain) == 1 else blocks


def turns_of(messages: list[chat.Message]) -> list[dict[str, Any]]:
    """The conversation. Raises UnsupportedParameter for content that Anthropic has no notion of."""
    turns: list[tuple[str, list[Block]]] = []
    for i, message in told(messages):
        if isinstance(message, _SYSTEM):
            continue
        role = "assistant" if isinstance(message, chat.AssistantMessage) else "user"
        blocks = _blocks(message, i)
        if not blocks:
            continue
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, blocks))
    if not turns:
        raise UnsupportedParameter(
            "messages: the model needs a message of the user that says something, beside instructions.",
            param="messages",
        )
    if turns[-1][0] == "assistant":
        _trim(turns[-1][1])
    return [{"role": role, "content": _ordered(role, blocks)} for role, blocks in turns]


def _ordered(role: str, blocks: list[Block]) -> str | list[Block]:
    if role == "user":
        # Stable: only results of tools move, to the head.
        blocks.sort(key=lambda block: block["type"] != "tool_result")
    if len(blocks) == 1 and blocks[0].keys() == {"type", "text"}:
        return str(blocks[0]["text"])
    return blocks


def _trim(blocks: list[Block]) -> None:
    """What the answer is to go on from may not end in blanks."""
    if blocks[-1]["type"] == "text":
        blocks[-1] = {**blocks[-1], "text": blocks[-1]["text"].rstrip()}


def _blocks(message: chat.Message, i: int) -> list[Block]:
    if isinstance(message, chat.ToolMessage):
        return [_result(message, i)]
    if isinstance(message, chat.AssistantMessage):
        return _assistant(message, i)
    if isinstance(message.content, str):
        return _texts(message.content)
    return [block for k, part in enumerate(message.content) for block in _part(part, f"messages[{i}].content[{k}]")]


def _texts(content: Any) -> list[Block]:
    """Anthropic takes no texts without characters, and they say nothing."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content.strip() else []
    return [
        _marked({"type": "text", "text": part.text}, part.cache_control) for part in content or () if part.text.strip()
    ]


def _marked(block: Block, mark: dict[str, Any] | None) -> Block:
    return block if mark is None else {**block, "cache_control": mark}


def _part(part: Any, path: str) -> list[Block]:
    if isinstance(part, chat.TextPart):
        return _texts([part])
    if isinstance(part, chat.ImagePart):
        return [_marked(_image(part.image_url.url, f"{path}.image_url.url"), part.cache_control)]
    if isinstance(part, chat.FilePart):
        return [_file(part.file, f"{path}.file")]
    raise UnsupportedParameter(f"{path}: the model cannot take audio; leave it out.", param=path)


def _image(url: str, path: str) -> Block:
    if not url.lower().startswith("data:"):
        return {"type": "image", "source": {"type": "url", "url": url}}
    kind, data = data_url(url, path)
    if kind not in _IMAGES:
        raise UnsupportedParameter(f"{path}: the model takes JPEG, PNG, GIF and WebP, not {kind}.", param=path)
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}


def _file(file: dict[str, Any], path: str) -> Block:
    kind, content = file_data(file, path)
    if kind in _IMAGES:
        return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": content}}
    name = file.get("filename")
    title = {"title": name} if isinstance(name, str) and name else {}
    if kind == "application/pdf":
        return {"type": "document", "source": {"type": "base64", "media_type": kind, "data": content}, **title}
    if kind.startswith("text/"):
        return {"type": "document", "source": _text_source(content, f"{path}.file_data"), **title}
    raise UnsupportedParameter(
        f"{path}.file_data: the model takes PDF, text and images, not {kind}.", param=f"{path}.file_data"
    )


def _text_source(content: str, path: str) -> dict[str, Any]:
    try:
        text = base64.b64decode(content, validate=True).decode()
    except (binascii.Error, ValueError):
        raise UnsupportedParameter(f"{path} is not UTF-8 text in Base64.", param=path) from None
    return {"type": "text", "media_type": "text/plain", "data": text}


def _result(message: chat.ToolMessage, i: int) -> Block:
    block: Block = {"type": "tool_result", "tool_use_id": call_id(message.tool_call_id)}
    if isinstance(message.content, str):
        block["content"] = message.content
    else:
        parts = enumerate(message.content)
        block["content"] = [inner for k, part in parts for inner in _part(part, f"messages[{i}].content[{k}]")]
    if message.is_error is not None:
        block["is_error"] = message.is_error
    return block


def _assistant(message: chat.AssistantMessage, i: int) -> list[Block]:
    blocks = _thoughts(message.reasoning_details)
    if isinstance(message.content, str):
        blocks += _texts(message.content)
    else:
        for part in message.content or ():
            blocks += _texts([part]) if isinstance(part, chat.TextPart) else _texts(part.refusal)
    if message.refusal:
        blocks += _texts(message.refusal)
    for k, call in enumerate(message.tool_calls or ()):
        arguments = as_object(call.function.arguments)
        if arguments is None:
            path = f"messages[{i}].tool_calls[{k}].function.arguments"
            raise UnsupportedParameter(f"{path} must be a JSON object for this model.", param=path)
        blocks.append({"type": "tool_use", "id": call_id(call.id), "name": call.function.name, "input": arguments})
    return blocks


def _thoughts(details: list[dict[str, Any]] | None) -> list[Block]:
    """Thoughts that Anthropic has signed. It takes no others, and it does not miss those of other models."""
    return [
        {"type": "redacted_thinking", "data": each.data}
        if each.data
        else {"type": "thinking", "thinking": each.text, "signature": each.signature}
        for each in anthropics(details)
    ]
