"""What bounds stored responses: places in the background, conversations that are whole, the time of the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.dialects.asked import Asked
from appliance.dialects.responses import compact, listing, request
from appliance.errors import (
    NotFound,
    RateLimited,
)
from appliance.responses import background, conversation
from tests.responses.keeper_box import ANN, ANNS_OTHER_KEY, ANYWHERE, BOB, Box, open_box, refused


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    async with open_box(tmp_path) as opened:
        yield opened


async def test_one_owner_leaves_places_to_the_others(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "MOST_OF_ONE", 2)
    body = {"input": "Hi", "background": True}
    under_way = []
    for who in (ANN, ANNS_OTHER_KEY):
        told, exchange, let_go = box.in_background(await box.begin(body, who))
        under_way.append((exchange, let_go))
        await told
    with pytest.raises(RateLimited, match="2 responses of yours") as caught:
        await box.responses.admitted(await box.begin(body), "chat", ANYWHERE)
    assert (caught.value.status, caught.value.param, caught.value.retry_after_s) == (429, "background", 5.0)
    await box.responses.admitted(await box.begin({"input": "Hi"}), "chat", ANYWHERE)
    told, exchange, let_go = box.in_background(await box.begin(body, BOB))
    under_way.append((exchange, let_go))
    await told
    under_way[0][1].set()
    await under_way[0][0]
    told, exchange, let_go = box.in_background(await box.begin(body))
    under_way.append((exchange, let_go))
    await told
    for exchange, let_go in under_way:
        let_go.set()
        await exchange
    await asyncio.sleep(0)
    places = box.responses._places
    assert (places._running, places._running_of) == ({}, {})


async def test_items_are_all_or_none(box: Box) -> None:
    first = await box.ask("One")
    second = await box.ask({"input": "Two", "previous_response_id": first})
    third = await box.ask({"input": "Three", "previous_response_id": second})
    assert len((await box.items(third))["data"]) == 5
    await box.responses.delete(ANN, first)
    for id in (second, third):
        with pytest.raises(NotFound, match=first) as caught:
            await box.items(id)
        assert refused(caught) == (404, "previous_response_not_found", "id")


@pytest.mark.parametrize("length", [3, conversation.FEW_ITEMS + 1])
async def test_long_conversations_are_read_off_the_event_loop(
    box: Box, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    where: dict[str, set[int]] = {}

    def watch(module: Any, name: str) -> None:
        real = getattr(module, name)

        def watched(*args: Any, **named: Any) -> Any:
            where.setdefault(name, set()).add(threading.get_ident())
            return real(*args, **named)

        monkeypatch.setattr(module, name, watched)

    for module, names in (
        (request, ("resolve", "canonical")),
        (listing, ("items_of", "page", "output_items")),
        (compact, ("compact_request",)),
    ):
        for name in names:
            watch(module, name)
    said = [{"role": "user", "content": "word " * 60} for _ in range(length)]
    first = await box.ask({"input": said})
    second = await box.ask({"input": said, "previous_response_id": first})
    assert len((await box.items(second, limit=100))["data"]) == min(100, 2 * length + 1)
    for body in ({"input": said}, {"previous_response_id": first}):
        native = compact.parse_compact(msgspec.json.encode({"model": "chat", **body}))
        await box.responses.begin(ANN, Asked(None, native), "compact00001")
    here = threading.get_ident()
    assert set(where) == {"resolve", "canonical", "items_of", "page", "output_items", "compact_request"}
    assert {name: here in threads for name, threads in where.items()} == dict.fromkeys(where, length == 3)
