"""GET /v1/models: the models that a key may use, with our extra fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from appliance.dialects.wire import encode


class ModelCard(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model as a client sees it. Everything after `owned_by` is ours."""

    id: str
    created: int
    owned_by: str = "outpost"
    capabilities: list[str] = []
    context_length: int | None = None
    dimensions: int | None = None
    targets: list[str] = []
    """Where it runs, in the order of preference."""
    alias_of: str | None = None


def _shape(card: ModelCard) -> dict[str, Any]:
    shape: dict[str, Any] = msgspec.to_builtins(card)
    return {"id": card.id, "object": "model", "created": card.created, "owned_by": card.owned_by, **shape}


def one(card: ModelCard) -> bytes:
    return encode(_shape(card))


def many(cards: Sequence[ModelCard]) -> bytes:
    return encode({"object": "list", "data": [_shape(card) for card in cards]})
