"""Conversations that go on: what was said earlier, in front of a request. Long ones are read off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from appliance.dialects.responses import listing, request
from appliance.dialects.responses.request import ResponsesRequest
from appliance.errors import BadRequest
from appliance.responses.reach import demanded
from appliance.responses.sealing import open_text
from appliance.responses.store import LIVE, MOST_BYTES, MOST_TURNS, Chain, Owner, ResponseStore, Turn
from appliance.routing.residency import Demand

_GOES_ON = ("completed", "incomplete")
"""The states of a response that can be gone on from."""

FEW_ITEMS = 250
"""More of a conversation are read off the event loop: a thousand take 20 ms."""
_SMALL = 64 * 1024
"""The same of bytes that are stored, of which nobody knows yet how many items they are."""

T = TypeVar("T")

Item = dict[str, Any]


async def resolved(
    store: ResponseStore, owner: Owner, native: ResponsesRequest, read: Callable[[ResponsesRequest], T]
) -> tuple[ResponsesRequest, T, Sequence[Demand]]:
    """With the earlier conversation in front, and what was compacted opened; what `read` makes of that; and what
    these demand."""
    key = await store.keys.find(owner.subject)
    earlier: list[Item] = []
    reaches: set[str | None] = set()

    def opened(sealed: str) -> str | None:
        if (found := open_text(key, sealed)) is None:
            return None
        reaches.add(found.reach)
        return found.text

    if native.previous_response_id is not None:
        turns = _going_on(await store.chain(native.previous_response_id, owner))
        reaches.update(turn.stored.reach for turn in turns)
        earlier = await read_turns(turns, lambda: items_of(turns))

    def work() -> tuple[ResponsesRequest, T]:
        whole = request.resolve(native, earlier, opened=opened)
        return whole, read(whole)

    whole, found = await read_items(len(earlier) + len(native.items()), work)
    # Sorted, so that a refusal always names the same one.
    return whole, found, [each for reach in sorted(reaches, key=str) for each in demanded(reach)]


def _going_on(chain: Chain) -> Sequence[Turn]:
    """The turns, if they can be gone on from. Raises BadRequest."""
    if chain.too_large:
        raise BadRequest(
            f"previous_response_id: the conversation has more than {MOST_TURNS} responses or {MOST_BYTES} bytes; "
            "sum it up with POST /v1/responses/compact and go on from that.",
            param="previous_response_id",
        )
    if chain.missing is not None:
        raise BadRequest(
            f"previous_response_id: there is no response {chain.missing!r}; it was never stored, or is deleted or "
            "too old by now. Send the conversation as input.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    last = chain.turns[-1].stored
    if last.status not in _GOES_ON:
        cure = "wait until it is completed" if last.status in LIVE else "go on from the one before it"
        raise BadRequest(f"previous_response_id: the response is {last.status}; {cure}.", param="previous_response_id")
    return chain.turns


def items_of(turns: Sequence[Turn], *, whole: bool = True) -> list[Item]:
    """What was said in these turns, as items of an input. whole: with the answer of the last one."""
    items: list[Item] = []
    for turn in turns:
        items += msgspec.json.decode(turn.input)
        if whole or turn is not turns[-1]:
            items += listing.output_items(msgspec.json.decode(turn.answer))
    return items


async def read_turns(turns: Sequence[Turn], work: Callable[[], T]) -> T:
    """What `work` gives, which goes through the texts of these turns."""
    return work() if sum([turn.stored.size for turn in turns]) <= _SMALL else await asyncio.to_thread(work)


async def read_items(count: int, work: Callable[[], T]) -> T:
    """What `work` gives, which goes through so many items."""
    return work() if count <= FEW_ITEMS else await asyncio.to_thread(work)
