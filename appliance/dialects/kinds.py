"""The operations that a client may ask for: one entry each, in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from appliance.dialects import chat, completions, embeddings

Request = chat.ChatRequest | completions.CompletionRequest | embeddings.EmbeddingRequest


class Kind(msgspec.Struct, frozen=True):
    """An operation. `parse` raises BadRequest; `needs` yields (feature, field, droppable); `verb` is for messages."""

    name: str
    verb: str
    id_prefix: str
    parse: Callable[[bytes, int], Request]
    needs: Callable[..., Iterable[tuple[str, str, bool]]]


CHAT = Kind("chat.completions", "chat", "chatcmpl-", chat.parse, chat.needs)
COMPLETIONS = Kind("completions", "complete text", "cmpl-", completions.parse, completions.needs)
EMBEDDINGS = Kind("embeddings", "embed text", "embd-", embeddings.parse, embeddings.needs)

KINDS: dict[str, Kind] = {kind.name: kind for kind in (CHAT, COMPLETIONS, EMBEDDINGS)}
