"""The items of a response as they are kept and listed: inputs with ids, outputs as they were given. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from appliance.dialects.responses.items import Item, kind_of
from appliance.dialects.responses.request import ResponsesRequest
from appliance.dialects.responses.resource import Response
from appliance.errors import BadRequest

_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
    "compaction": "cmp",
}
"""What ids begin with, by the type of an item."""

MOST = 100
"""Items of one page."""


def items_of(native: ResponsesRequest, id: str) -> list[Item]:
    """The input as items in their full form, each with an id. `id` is the response's: the ids are made of it, and are
    the same whenever this is asked."""
    own = id.partition("_")[2] or id
    return [_normal(item, own, i) for i, item in enumerate(native.items())]


_CALLS = ("function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output")
_WITH_STATUS = ("message", *_CALLS)


def _normal(item: Item, own: str, i: int) -> Item:
    kind = kind_of(item) or "item"
    if kind == "item_reference":
        return {**item, "type": kind}
    made: Item = {**item, "type": kind}
    made["id"] = item.get("id") or f"{_PREFIXES.get(kind, 'item')}_{own}_in{i}"
    if kind == "message":
        made["content"] = _content(item)
    if kind in _WITH_STATUS:
        made["status"] = item.get("status") or "completed"
    elif kind == "reasoning":
        made["summary"] = item.get("summary") or []
        for name in ("content", "encrypted_content", "status"):
            if made.get(name) is None:
                made.pop(name, None)
    return made


def _content(item: Item) -> list[dict[str, Any]]:
    content, assistant = item.get("content"), item.get("role") == "assistant"
    if isinstance(content, str):
        content = [{"type": "output_text" if assistant else "input_text", "text": content}]
    return [_part(part) for part in content or ()]


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part.get("type") == "output_text":
        return {**part, "annotations": part.get("annotations") or [], "logprobs": part.get("logprobs") or []}
    if part.get("type") == "input_image":
        return {**part, "detail": part.get("detail") or "auto"}
    return part


def output_items(response: Response) -> list[Item]:
    """What a response adds to the conversation that goes on from it."""
    return [item for item in response.get("output") or () if isinstance(item, dict)]


def page(
    items: Sequence[Item], *, after: str | None = None, limit: int = 20, order: Literal["asc", "desc"] = "desc"
) -> dict[str, Any]:
    """A page of `items`, which are in the order of the conversation, as OpenAI's list. Raises BadRequest naming
    `after` or `limit`."""
    if not 1 <= limit <= MOST:
        raise BadRequest(f"limit must lie between 1 and {MOST}.", param="limit")
    listed = list(items) if order == "asc" else list(reversed(items))
    start = 0
    if after is not None:
        places = [i for i, item in enumerate(listed) if item.get("id") == after]
        if not places:
            raise BadRequest("after: the response has no input item with this id.", param="after")
        start = places[0] + 1
    data = listed[start : start + limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0].get("id") if data else None,
        "last_id": data[-1].get("id") if data else None,
        "has_more": start + limit < len(listed),
    }
