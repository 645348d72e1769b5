"""Texts that are kept delay the record, but whatever becomes of them and of the client, the work is on record."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from appliance.errors import OutpostError, RecordsUnavailable
from appliance.identity.principal import Principal
from appliance.limits.rules import rule_of
from appliance.records.rows import ExchangeRow
from appliance.settings.limiting import Limit
from appliance.settings.recording import Content
from tests.exchange.test_limits_in_the_exchange import PATH, SAY, nothing_is_left, standing
from tests.fakes.house import House, now


@dataclass
class SlowContents:
    """Keeps everything, when `free` is set; `error` instead, if there is one."""

    most: int = 1 << 20
    free: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    error: Exception | None = None
    written: BaseException | None = None
    """What becomes of the write."""
    kept: list[tuple[bytes, bytes]] = field(default_factory=list)

    def policy(self, principal: Principal, route: str) -> Content:
        return "full"

    async def keep(
        self, principal: Principal, row: ExchangeRow, policy: Content, request: bytes, answer: bytes
    ) -> asyncio.Future[int] | None:
        self.begun.release()
        await self.free.wait()
        if self.error is not None:
            raise self.error
        self.kept.append((request, answer))
        row.content_digest = "00" * 32
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if self.written is not None:
            future.set_exception(self.written)
        else:
            future.set_result(1)
        return future


@pytest.fixture
def contents(house: House) -> SlowContents:
    house.gateway.contents = kept = SlowContents()
    house.gateway.limits.book.change(
        [rule_of(Limit.model_validate({"scope": "key", "tokens": "1000/hour", "in_flight": 5}))], now()
    )
    return kept


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_while_its_texts_are_kept(
    house: House, contents: SlowContents, stream: bool
) -> None:
    task = asyncio.create_task(house.post(PATH, {**SAY, "stream": stream}))
    await asyncio.wait_for(contents.begun.acquire(), 5)
    task.cancel()
    while len(house.gateway.running):
        await asyncio.sleep(0.001)
    contents.free.set()
    row = await house.recorder.wait_for(1)
    assert (row.outcome, row.completion_tokens, row.content_digest) == ("completed", 6, "00" * 32)
    assert sum(charge.amount for charge in row.charges) == 13
    assert len(contents.kept) == 1
    await house.post(PATH, SAY)
    nothing_is_left(house)
    store = house.gateway.limits.store
    assert (store.allowed, store.recorded) == (2, 2)  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [RecordsUnavailable("locked"), OutpostError("key"), ValueError("a defect")])
@pytest.mark.parametrize("stream", [False, True])
async def test_texts_that_cannot_be_kept(house: House, contents: SlowContents, error: Exception, stream: bool) -> None:
    contents.error = error
    contents.free.set()
    body = await _all_of(house, stream)
    assert b"[DONE]" not in body
    row = await house.recorder.wait_for(1)
    assert (row.completion_tokens, row.content_digest) == (6, None)
    assert row.error_code == getattr(error, "code", "internal_error")
    assert row.outcome != "completed"
    assert standing(house)["k-user:tokens"].used == 13
    nothing_is_left(house)
    assert house.gateway.limits.store.recorded == 1  # type: ignore[attr-defined]


async def _all_of(house: House, stream: bool) -> bytes:
    """Whatever is sent, down to a cut."""
    import aiohttp

    async with house.session.post(
        house.url + PATH, json={**SAY, "stream": stream}, headers={"Authorization": "Bearer op-user-key-0123456789"}
    ) as response:
        assert response.status == 200 if stream else response.status >= 500
        got = b""
        try:
            while piece := await response.content.readany():
                got += piece
        except aiohttp.ClientError:
            pass
        return got


async def test_texts_that_were_sealed_and_not_written(house: House, contents: SlowContents) -> None:
    contents.written = RecordsUnavailable("The disk is full.", retry_after_s=1.0)
    contents.free.set()
    answer = await house.post(PATH, SAY)
    assert answer.status == 503
    assert standing(house)["k-user:tokens"].used == 13
    nothing_is_left(house)
