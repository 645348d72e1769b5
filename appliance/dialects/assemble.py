"""What a streamed answer said, as one whole answer: for the record, after the stream has passed. Sans-I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from appliance.dialects import sse
from appliance.dialects.wire import encode

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_GLUED = ("content", "refusal", "reasoning", "reasoning_content")
"""Texts of a delta that come in pieces."""


def assemble(pieces: Iterable[bytes]) -> bytes:
    """The chat or text completion (JSON) that a stream of OpenAI's events adds up to.

    Takes the stream's bytes as they passed, however they are cut. What is not sound is left out: a record of a stream
    that broke is what had come. b"" when nothing had.
    """
    framer = sse.Framer()
    whole: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        for data in framer.feed(piece)[0]:
            _take(data, whole, choices)
    for data in framer.end():
        _take(data, whole, choices)
    if not whole:
        return b""
    return encode({**whole, "choices": [_choice(choices[index]) for index in sorted(choices)]})


def _take(data: bytes, whole: dict[str, Any], choices: dict[int, dict[str, Any]]) -> None:
    try:
        chunk = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    for name in ("id", "created", "model"):
        if name in chunk:
            whole.setdefault(name, chunk[name])
    if isinstance(chunk.get("object"), str):
        whole.setdefault("object", chunk["object"].removesuffix(".chunk"))
    for name in ("usage", "error"):
        if chunk.get(name) is not None:
            whole[name] = chunk[name]
    pieces = chunk.get("choices")
    for piece in pieces if isinstance(pieces, list) else ():
        if isinstance(piece, dict) and isinstance(piece.get("index", 0), int):
            _add(choices.setdefault(piece.get("index", 0), {"index": piece.get("index", 0)}), piece)


def _add(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    if piece.get("finish_reason") is not None:
        choice["finish_reason"] = piece["finish_reason"]
    if isinstance(piece.get("text"), str):
        choice.setdefault("text", []).append(piece["text"])
    delta = piece.get("delta")
    if not isinstance(delta, dict):
        return
    message = choice.setdefault("message", {"role": "assistant"})
    for name in _GLUED:
        if isinstance(delta.get(name), str):
            message.setdefault(name, []).append(delta[name])
    calls = delta.get("tool_calls")
    for part in calls if isinstance(calls, list) else ():
        if isinstance(part, dict):
            _add_call(message.setdefault("tool_calls", {}), part)


def _add_call(calls: dict[int, dict[str, Any]], part: dict[str, Any]) -> None:
    index = part.get("index")
    place = index if isinstance(index, int) else len(calls)
    call = calls.setdefault(place, {"id": "", "kind": "function", "name": "", "said": []})
    if isinstance(part.get("id"), str):
        call["id"] = call["id"] or part["id"]
    for kind, field in _SAID.items():
        called = part.get(kind)
        if isinstance(called, dict):
            call["kind"] = kind
            if isinstance(called.get("name"), str):
                call["name"] = call["name"] or called["name"]
            if isinstance(called.get(field), str):
                call["said"].append(called[field])


_SAID = {"function": "arguments", "custom": "input"}
"""Kinds of tool calls, and the field that comes in pieces."""


def _call(call: dict[str, Any]) -> dict[str, Any]:
    kind = call["kind"]
    return {"id": call["id"], "type": kind, kind: {"name": call["name"], _SAID[kind]: "".join(call["said"])}}


def _choice(choice: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {name: "".join(value) if name == "text" else value for name, value in choice.items()}
    if "message" in made:
        message: dict[str, Any] = {
            name: "".join(value) if name in _GLUED else value for name, value in made["message"].items()
        }
        if "tool_calls" in message:
            calls = message["tool_calls"]
            message["tool_calls"] = [_call(calls[index]) for index in sorted(calls)]
        made["message"] = message
    return made
