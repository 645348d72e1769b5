"""Messages as Gemini's contents. Pure.

Gemini has one instruction, before everything else: all system and developer messages become that, in their order.
Marks for caches have no place there and are left out. Tool results that follow each other make one turn, since Gemini
wants as many of them in a turn as the turn before made calls.
"""

from __future__ import annotations

from typing import Any

import msgspec

from appliance.dialects import chat
from appliance.dialects.gemini import signatures
from appliance.dialects.gemini.model import Model
from appliance.dialects.transcript import told
from appliance.dialects.translating import data_url, file_data, joined
from appliance.errors import BadRequest

Part = dict[str, Any]

_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_AUDIO = {"wav": "audio/wav", "mp3": "audio/mp3"}


def contents(request: chat.ChatRequest, model: Model, *, ids: bool) -> tuple[list[Part], list[dict[str, Any]]]:
    """The parts of the instruction, and the turns. `ids`: whether calls and results are sent with their ids.

    Raises BadRequest or UnsupportedParameter.
    """
    instruction: list[Part] = []
    turns: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    results = _Results(model, ids)
    for i, message in told(request.messages):
        if isinstance(message, chat.ToolMessage):
            results.add(message, names.get(message.tool_call_id) or message.name or "", i)
            continue
        results.flush(turns)
        if isinstance(message, chat.UserMessage):
            turns.append({"role": "user", "parts": _user(message.content, i)})
        elif isinstance(message, chat.AssistantMessage):
            names.update((call.id, call.function.name) for call in message.tool_calls or ())
            if parts := _answer(message, i, model, ids):
                turns.append({"role": "model", "parts": parts})
        else:
            instruction += _texts(message.content)
    results.flush(turns)
    if not turns:
        raise BadRequest("messages: this target needs a message that is not of the system; add one.", param="messages")
    return instruction, turns


def _texts(content: Any) -> list[Part]:
    if isinstance(content, str):
        return [{"text": content}]
    return [{"text": part.refusal if isinstance(part, chat.RefusalPart) else part.text} for part in content or ()]


def _user(content: Any, i: int) -> list[Part]:
    if isinstance(content, str):
        return [{"text": content}]
    return [_user_part(part, f"messages[{i}].content[{k}]") for k, part in enumerate(content)]


def _user_part(part: Any, field: str) -> Part:
    if isinstance(part, chat.TextPart):
        return {"text": part.text}
    if isinstance(part, chat.AudioPart):
        return _inline(_AUDIO[part.input_audio.format], part.input_audio.data)
    if isinstance(part, chat.FilePart):
        return _inline(*file_data(part.file, f"{field}.file"))
    return _image(part, field)


def _image(part: chat.ImagePart, field: str) -> Part:
    return _inline(*data_url(part.image_url.url, f"{field}.image_url.url"))


def _inline(kind: str, data: str) -> Part:
    return {"inlineData": {"mimeType": kind, "data": data}}


def _answer(message: chat.AssistantMessage, i: int, model: Model, ids: bool) -> list[Part]:
    """A message of the model, with the signatures that its parts came with."""
    kept = signatures.unpack(message.reasoning_details)
    parts: list[Part] = []
    if kept.thought:
        parts.append({"thought": True, "text": message.reasoning_content or "", "thoughtSignature": kept.thought})
    texts = [part for part in _texts(message.content) if part["text"]]
    if message.refusal:
        texts.append({"text": message.refusal})
    if kept.text:
        # A stream's signature comes with an empty text; on the text that it belongs to, it is as good.
        texts = texts or [{"text": ""}]
        texts[-1]["thoughtSignature"] = kept.text
    parts += texts
    calls = message.tool_calls or []
    signed = any(call.id in kept.calls for call in calls)
    for k, call in enumerate(calls):
        part = _call(call, f"messages[{i}].tool_calls[{k}]", ids)
        # Of calls that were made at once only the first one is signed.
        signature = kept.calls.get(call.id) or (signatures.UNSIGNED if model.newest and not signed and k == 0 else "")
        if signature:
            part["thoughtSignature"] = signature
        parts.append(part)
    return parts


def _call(call: chat.ToolCall, field: str, ids: bool) -> Part:
    raw = call.function.arguments.strip() or "{}"
    try:
        _decode_object(raw)
    except (msgspec.DecodeError, RecursionError):
        field += ".function.arguments"
        raise BadRequest(f"{field} must be a JSON object: this target takes no other arguments.", param=field) from None
    shape: dict[str, Any] = {"name": call.function.name, "args": msgspec.Raw(raw.encode())}
    return {"functionCall": {"id": call.id, **shape} if ids else shape}


class _Results:
    """Tool results that follow each other."""

    __slots__ = ("_beside", "_ids", "_model", "_parts")

    def __init__(self, model: Model, ids: bool) -> None:
        self._model = model
        self._ids = ids
        self._parts: list[Part] = []
        self._beside: list[Part] = []
        """Images and files of results, for models that take none in them."""

    def add(self, message: chat.ToolMessage, name: str, i: int) -> None:
        text: Any = joined(message.content)
        shape: dict[str, Any] = {"name": name, "response": {"error" if message.is_error else "output": text}}
        if self._ids:
            shape["id"] = message.tool_call_id
        media = [
            _user_part(part, f"messages[{i}].content[{k}]")
            for k, part in enumerate(message.content)
            if isinstance(part, chat.ImagePart | chat.FilePart)
        ]
        if self._model.newest and media:
            shape["parts"] = media
        else:
            self._beside += media
        self._parts.append({"functionResponse": shape})

    def flush(self, turns: list[dict[str, Any]]) -> None:
        if self._parts:
            turns.append({"role": "user", "parts": self._parts + self._beside})
            self._parts, self._beside = [], []
