"""Keys whose rows are damaged, reloads that meet, and watches that outlive what nobody foresaw."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import update

from appliance.errors import BadRequest
from appliance.identity.authenticator import Authenticator
from appliance.identity.directory import Directory
from appliance.identity.key_ring import KeyRing
from appliance.identity.key_store import NewKey
from appliance.identity.keys import FixedKey
from appliance.records.tables import api_keys
from tests.fakes.issuer import FakePeople
from tests.identity.conftest import OWNER, Box
from tests.identity.test_key_ring import until, watching

FIXED = FixedKey("ci", "a-key-for-the-pipeline", "admin")


@pytest.mark.parametrize("column", ["{", "null", '{"zones": ["moon"]}', '{"addresses": ["nowhere"]}', '{"more": 1}'])
async def test_a_damaged_key_lets_nobody_in_and_disturbs_no_other(
    any_box: Box, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    box = any_box
    info, key = await box.key("torn", "admin")
    _, other = await box.key("whole")
    change = update(api_keys).where(api_keys.c.id == info.id).values(restrictions=column)
    await box.recorder.write(lambda tx: tx.connection.execute(change))
    ring = await KeyRing.open(box.database, box.folder, recorder=box.recorder)
    (told,) = [record for record in caplog.records if record.message == "key_damaged"]
    assert (told.key, told.cure) == (info.id, f"outpost keys revoke {info.id}, and make another")  # type: ignore[attr-defined]
    assert ring.identify(key) is None
    assert ring.identify(other) is not None
    shown = await ring.show(OWNER, "torn")
    assert (shown.id, shown.restrictions.routes, shown.restrictions.zones) == (info.id, (), ())
    assert [each.name for each in await ring.list(OWNER)] == ["torn", "whole"]
    with pytest.raises(BadRequest, match="torn: what it is limited to cannot be read; revoke it"):
        await ring.rotate(OWNER, info.id)
    assert (await ring.revoke(OWNER, info.id)).revoked_at is not None
    caplog.clear()
    await ring.reload()
    assert not [record for record in caplog.records if record.message == "key_damaged"]


async def test_a_declared_key_that_has_gone_stays_away_when_reloads_meet(box: Box) -> None:
    await box.ring.reload([FIXED])
    # The settings are read again while the watch takes in what another process did.
    await asyncio.gather(box.ring.reload([]), box.ring.reload())
    assert box.ring.identify(FIXED.key) is None
    assert list(box.ring.declared) == []


async def test_the_watch_of_keys_outlives_what_nobody_foresaw(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, failed = Directory.changed_elsewhere, asyncio.Event()

    async def broken(self: Directory) -> bool:
        failed.set()
        monkeypatch.setattr(Directory, "changed_elsewhere", asked)
        raise ValueError("an accident")

    monkeypatch.setattr(Directory, "changed_elsewhere", broken)
    other = await KeyRing.open(box.database, box.folder, recorder=box.recorder)
    async with watching(box.ring):
        await failed.wait()
        _, key = await other.create(OWNER, NewKey("late"))
        await until(lambda: box.ring.identify(key) is not None)


class Accident:
    """The keys of a provider."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    @property
    def due_s(self) -> float:
        self.asked.set()
        raise ValueError("an accident")


async def test_the_watch_of_providers_outlives_what_nobody_foresaw(box: Box) -> None:
    broken, next_one = Accident(), Accident()

    def provider(keys: Accident) -> Any:
        return SimpleNamespace(settings=SimpleNamespace(issuer="https://id.example"), keys=keys)

    who = Authenticator(box.ring, FakePeople(), [provider(broken)], clock=lambda: 0.0)
    task = asyncio.create_task(who.watch())
    try:
        async with asyncio.timeout(10):
            await broken.asked.wait()
            who.change([provider(next_one)], ())
            await next_one.asked.wait()
        assert not task.done()
    finally:
        task.cancel()
