"""What stands in a reasoning item's `encrypted_content`, and in the canonical form for it.

OpenAI's is bound to the id of its item, so both travel together, packed into one text, through whatever dialect the
client speaks. Another maker's signature or block travels the other way, marked, so that it finds its way back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from appliance.dialects.responses.items import ReasoningItem
from appliance.dialects.thoughts import CARRIED_DATA as _DATA
from appliance.dialects.thoughts import CARRIED_SIGNATURE as _SIGNED
from appliance.dialects.thoughts import RESPONSES as PACKED


def pack(id: str, content: str) -> str:
    """A reasoning item of a target that speaks Responses, as the data of a block of reasoning."""
    return f"{PACKED}{id}:{content}"


def unpack(data: str) -> tuple[str, str] | None:
    """(id, encrypted_content) of what `pack` made; None for another maker's data."""
    if not data.startswith(PACKED):
        return None
    id, _, content = data[len(PACKED) :].partition(":")
    return (id, content) if id and content else None


def of_signature(signature: str) -> str:
    """An encrypted_content that carries the signature of the item's text."""
    return _SIGNED + signature


def of_data(data: str) -> str:
    """An encrypted_content that carries another maker's block."""
    return _DATA + data


def carried(encrypted: str) -> tuple[str, str]:
    """(signature, data) of another maker that an encrypted_content carries; both empty for a target's own."""
    if encrypted.startswith(_SIGNED):
        return encrypted[len(_SIGNED) :], ""
    return "", encrypted[len(_DATA) :] if encrypted.startswith(_DATA) else ""


def is_ours(encrypted: str) -> bool:
    """Whether it was made here, so that no target that speaks Responses can read it."""
    return encrypted.startswith((_SIGNED, _DATA))


def details_of(item: ReasoningItem) -> list[dict[str, Any]]:
    """The canonical blocks of a reasoning item (`reasoning_details`)."""
    encrypted = item.encrypted_content or ""
    found: list[dict[str, Any]] = []
    texts = "".join([part.text for part in item.content or ()])
    summary = "\n\n".join([part.text for part in item.summary])
    if encrypted.startswith(_SIGNED):
        # What was signed is the text, whichever of both forms the client had asked for.
        signature = encrypted[len(_SIGNED) :]
        return [{"type": "reasoning.text", "text": texts or summary, "signature": signature}]
    if texts:
        found.append({"type": "reasoning.text", "text": texts})
    elif summary:
        found.append({"type": "reasoning.summary", "summary": summary})
    if encrypted.startswith(_DATA):
        found.append({"type": "reasoning.encrypted", "data": encrypted[len(_DATA) :]})
    elif encrypted and item.id:
        found.append({"type": "reasoning.encrypted", "data": pack(item.id, encrypted)})
    return found


def text_of(details: Iterable[dict[str, Any]]) -> str:
    """What can be read of it."""
    return "\n\n".join([text for each in details if (text := each.get("text") or each.get("summary"))])
