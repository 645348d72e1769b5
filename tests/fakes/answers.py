"""What a streamed answer holds."""

from __future__ import annotations

import json
from typing import Any

import aiohttp

from appliance.dialects.sse import Framer


async def events_of(response: aiohttp.ClientResponse) -> list[Any]:
    """The events of a stream; [DONE] as a string."""
    found = Framer().feed(await response.read())[0]
    return [data.decode() if data == b"[DONE]" else json.loads(data) for data in found]


def text_of(events: list[Any]) -> str:
    """The text of a chat's chunks."""
    choices = [c for e in events if isinstance(e, dict) for c in e.get("choices", [])]
    return "".join(choice["delta"].get("content") or "" for choice in choices)
