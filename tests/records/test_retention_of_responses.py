"""Stored responses are dropped as texts are: by age, and by the quota, the oldest of both first."""

from __future__ import annotations

import random

import pytest
from sqlalchemy import select

from appliance.records.database import Database
from appliance.records.disk import Usage, measure
from appliance.records.retention import drop_content, drop_responses
from appliance.records.tables import responses
from appliance.responses.store import Owner, ResponseStore, Stored
from appliance.settings.recording import DAY, Records
from tests.records.ledger_walk import walk
from tests.records.test_retention import NOW, Box, opened, usage

__all__ = ["opened"]


async def test_old_responses_go_and_it_is_told(any_box: Box) -> None:
    store = ResponseStore(any_box.database, any_box.recorder, any_box.keeper.keys, kept_s=DAY, clock=lambda: NOW)
    for age in (31, 29, 100):
        stored = Stored(f"resp_{age}", Owner("user_a", "org_a"), "chat", created_at=NOW - age * DAY)
        await (await store.add(stored, b"[]", random.Random(age).randbytes(50_000).hex().encode()))
    full = await measure(any_box.database)
    state = await any_box.retention.sweep()
    async with any_box.database.read() as connection:
        assert list(await connection.scalars(select(responses.c.id))) == ["resp_29"]
    assert (state.responses_dropped, state.contents_dropped, state.stuck) == (2, 0, None)
    assert [body["responses"] for body in await any_box.dropped()] == [2]
    assert (await measure(any_box.database)).live < full.live - 50_000
    await walk(any_box.database)
    any_box.retention.records = Records.model_validate({"max_disk": 16 << 20, "retention": {"responses": "28d"}})
    assert (await any_box.retention.sweep()).responses_dropped == 3


async def test_a_quota_takes_texts_and_responses_by_their_age(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ResponseStore(box.database, box.recorder, box.keeper.keys, kept_s=DAY, clock=lambda: NOW)
    for age in (8, 6, 4):
        stored = Stored(f"resp_{age}", Owner("user_a", "org_a"), "chat", created_at=NOW - age * DAY)
        await (await store.add(stored, b"[]", b"{}"))
        await box.record(f"req_{age}", age - 1, text=b"x")

    async def left() -> list[str]:
        async with box.database.read() as connection:
            return [*await box.texts(), *await connection.scalars(select(responses.c.id).order_by(responses.c.id))]

    async def said(_: Database, __: int) -> Usage:
        return usage(int((16 << 20) * (0.61 + 0.06 * len(await left()))))

    box.retention._measure = said
    monkeypatch.setattr("appliance.records.retention.drop_content", lambda before: drop_content(before, 1))
    monkeypatch.setattr("appliance.records.retention.drop_responses", lambda before: drop_responses(before, 1))
    state = await box.retention.sweep()
    assert await left() == ["req_4", "req_6", "resp_4"]
    assert (state.contents_dropped, state.responses_dropped) == (1, 2)
