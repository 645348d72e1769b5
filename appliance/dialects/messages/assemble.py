"""What a streamed message said, as one whole message: for the record, after the stream has passed. Sans-I/O."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from appliance.dialects.messages.events import BAD_JSON
from appliance.dialects.sse import NamedFramer
from appliance.dialects.wire import encode

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_decode_any = msgspec.json.Decoder().decode

_GLUED = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
"""Type of a delta → its field that comes in pieces."""


def assemble(pieces: Iterable[bytes]) -> bytes:
    """The message (JSON) that a stream of Anthropic's events adds up to.

    Takes the stream's bytes as they passed, however they are cut. What is not sound is left out: a record of a stream
    that broke is what had come. b"" when nothing had.
    """
    framer = NamedFramer()
    whole: dict[str, Any] = {}
    blocks: dict[int, dict[str, Any]] = {}
    texts: dict[tuple[int, str], list[str]] = {}
    for piece in pieces:
        for data in framer.feed(piece)[0]:
            _take(data, whole, blocks, texts)
    for data in framer.end():
        _take(data, whole, blocks, texts)
    if not whole:
        return b""
    for (index, field), found in texts.items():
        _glue(blocks[index], field, "".join(found))
    if blocks or "content" in whole:
        whole["content"] = [blocks[index] for index in sorted(blocks)]
    return encode(whole)


def _take(
    data: bytes, whole: dict[str, Any], blocks: dict[int, dict[str, Any]], texts: dict[tuple[int, str], list[str]]
) -> None:
    try:
        item = _decode(data)
    except BAD_JSON:
        return
    kind, index = item.get("type"), item.get("index")
    found = item.get("delta")
    delta: dict[str, Any] = found if isinstance(found, dict) else {}
    if kind == "message_start" and isinstance(item.get("message"), dict):
        for name, value in item["message"].items():
            whole.setdefault(name, value)
    elif kind == "content_block_start" and isinstance(index, int) and isinstance(item.get("content_block"), dict):
        whole.setdefault("type", "message")
        blocks.setdefault(index, item["content_block"])
    elif kind == "content_block_delta" and isinstance(index, int) and index in blocks:
        _add(index, delta, blocks[index], texts)
    elif kind == "message_delta":
        whole.setdefault("type", "message")
        whole.update({name: value for name, value in delta.items() if value is not None or name not in whole})
        _use(whole, item.get("usage"))
    elif kind == "error":
        whole["error"] = item.get("error")


def _add(index: int, delta: dict[str, Any], block: dict[str, Any], texts: dict[tuple[int, str], list[str]]) -> None:
    field = _GLUED.get(str(delta.get("type")))
    if field is not None and isinstance(delta.get(field), str):
        texts.setdefault((index, field), []).append(delta[field])
    elif isinstance(delta.get("signature"), str):
        block["signature"] = delta["signature"]
    elif isinstance(delta.get("citation"), dict):
        block["citations"] = [*(block.get("citations") or ()), delta["citation"]]


def _glue(block: dict[str, Any], field: str, text: str) -> None:
    if field != "partial_json":
        before = block.get(field)
        block[field] = (before if isinstance(before, str) else "") + text
        return
    try:
        block["input"] = _decode_any(text.encode()) if text else {}
    except BAD_JSON:
        # Cut off: what had come is kept as it is.
        block["input"] = text


def _use(whole: dict[str, Any], usage: Any) -> None:
    if isinstance(usage, dict):
        before = whole.get("usage")
        known = before if isinstance(before, dict) else {}
        whole["usage"] = {**known, **{name: value for name, value in usage.items() if value is not None}}
