"""The texts of a long stream are put together while others go on."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from appliance.dialects import assemble
from tests.exchange.test_keeping_texts import SlowContents
from tests.fakes.house import House
from tests.fakes.upstream import Reply, chat_events


@pytest.mark.parametrize("words", [10, 5000])
async def test_a_long_stream_is_put_together_elsewhere(
    house: House, monkeypatch: pytest.MonkeyPatch, words: int
) -> None:
    where: set[bool] = set()
    take = assemble._take

    def noted(*parts: Any) -> None:
        where.add(threading.current_thread() is threading.main_thread())
        take(*parts)

    monkeypatch.setattr(assemble, "_take", noted)
    house.gateway.contents = kept = SlowContents()
    kept.free.set()
    said = [f"w{number} " for number in range(words)]
    house.upstream.behave("long", lambda seen: Reply(events=chat_events(said), slices=400))
    house.route("long", "long")
    async with asyncio.timeout(20):
        assert (await house.chat("long", stream=True)).status == 200
    [(_, answer)] = kept.kept
    assert json.loads(answer)["choices"][0]["message"]["content"] == "".join(said)
    assert where == {words == 10}
