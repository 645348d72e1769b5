"""What a key's end is worth when its asker leaves, and what strangers learn of keys that are not theirs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from appliance.errors import NotFound
from appliance.identity.directory import Writer
from appliance.identity.keys import FixedKey
from appliance.identity.people_work import ORGANIZATION
from appliance.identity.principal import Principal
from tests.identity.conftest import OWNER, Box


class Slow:
    """The recorder, with an event when a work has been handed in, and a gate before it goes on."""

    def __init__(self, recorder: Any) -> None:
        self._recorder = recorder
        self.asked, self.gate = asyncio.Event(), asyncio.Event()

    def write(self, work: Any, *, durable: bool = True) -> asyncio.Future[Any]:
        async def later() -> Any:
            await self.gate.wait()
            return await self._recorder.write(work, durable=durable)

        self.asked.set()
        return asyncio.ensure_future(later())


async def test_a_key_ends_also_when_whoever_ended_it_has_gone(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    info, key = await box.key("app")
    slow = Slow(box.recorder)
    writer: Writer = slow
    monkeypatch.setattr(box.directory, "_recorder", writer)
    asking = asyncio.create_task(box.ring.revoke(OWNER, "app"))
    await slow.asked.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    slow.gate.set()
    monkeypatch.setattr(box.directory, "_recorder", box.recorder)
    await box.key("next")  # changes go one after the other
    assert (await box.ring.show(OWNER, info.id)).revoked_at is not None
    assert box.ring.identify(key) is None
    assert await box.directory.changed_elsewhere() is False


@pytest.mark.parametrize("role", ["admin", "member"])
async def test_keys_of_the_settings_are_not_there_for_others(box: Box, role: Any) -> None:
    acme = await box.directory.create(OWNER, ORGANIZATION, {"name": "acme"})
    await box.ring.reload([FixedKey("secret-project", "x" * 30, "member")])
    stranger = Principal("key_1", "one", role, acme.id, user="user_1")
    for name in ("secret-project", "fixed:secret-project", "nobody"):
        for own in (True, False):
            for asked in (
                box.ring.show(stranger, name, own=own),
                box.ring.revoke(stranger, name, own=own),
                box.ring.rotate(stranger, name, own=own),
            ):
                with pytest.raises(NotFound):
                    await asked
