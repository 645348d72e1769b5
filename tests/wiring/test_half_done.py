"""A start or a reload that fails leaves nothing half done, whoever leaves meanwhile."""

from __future__ import annotations

import asyncio
import copy
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance import app as app_module
from appliance.errors import RecordsUnavailable
from appliance.identity.key_ring import KeyRing
from appliance.office import Office
from appliance.redact import REDACTED
from tests.wiring.live_values import ENV, Doc, base
from tests.wiring.test_live_settings import Box, folder, running

__all__ = ["folder"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Somebody else writes to the database."""
    lock = sqlite3.connect(folder / "data" / "outpost.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        lock.execute("ROLLBACK")
        lock.close()


def changed(box: Box) -> Doc:
    doc = copy.deepcopy(box.doc)
    doc["identity"]["keys"] = [{"name": "b", "key": {"env": "KEY_B"}, "role": "member"}]
    doc["limits"] = [{"scope": "key", "requests": "1/day"}]
    doc["routes"] = doc["routes"][:1]
    return doc


def in_force(box: Box) -> Any:
    office = box.app._office
    return {**box.in_force(), "rules": office.limits.book.rules, "settings": box.app.settings}


async def test_a_reload_that_cannot_be_put_on_record_changes_nothing(folder: Path) -> None:
    async with running(folder) as box:
        before = in_force(box)
        with locked(folder), pytest.raises(RecordsUnavailable):
            await box.reload(changed(box))
        assert in_force(box) == before
        await box.app._office.recorder.wait_available()
        await box.reload(changed(box))
        assert in_force(box) != before


async def test_a_reload_is_done_although_who_asked_for_it_has_left(folder: Path) -> None:
    async with running(folder) as box:
        box.write(changed(box))
        recorder = box.app._office.recorder
        with locked(folder):
            task = asyncio.create_task(box.app.reload())
            async with asyncio.timeout(5):
                while not recorder.depth:
                    await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.wait([task])
        async with asyncio.timeout(5):
            while len(box.app.gateway.router.routes) != 1:
                await asyncio.sleep(0.001)
        assert [rule.scope for rule in box.app._office.limits.book.rules] == ["key"]
        assert box.app.settings.limits


async def test_secrets_are_kept_out_of_logs_before_they_are_in_force(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(folder) as box:
        told = []
        change = box.app._office.change

        async def changing(*given: Any) -> None:
            told.append(box.app._secrets.redact(f"{ENV['OTHER_OIDC']} was refused"))
            await change(*given)

        monkeypatch.setattr(box.app._office, "change", changing)
        doc = copy.deepcopy(box.doc)
        doc["identity"]["oidc"][0]["login"]["client_secret"] = {"env": "OTHER_OIDC"}
        await box.reload(doc)
        assert told == [f"{REDACTED} was refused"]


async def test_a_task_of_the_office_that_ends_by_itself_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        raise ValueError("a defect")

    office = Office(tmp_path, {}, None)  # type: ignore[arg-type]  # it is not opened
    office._run(work())
    await asyncio.sleep(0)
    await office.close()
    [record] = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert record.message == "background_task_ended"


async def test_a_start_that_fails_at_its_end_closes_the_doors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(ring: KeyRing) -> str | None:
        raise RecordsUnavailable("The disk is full.")

    monkeypatch.setattr(app_module, "ensure_first_admin", fails)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    doc = base(folder)
    doc["server"]["listen"] = f"127.0.0.1:{port}"
    with pytest.raises(RecordsUnavailable):
        await Box(folder, doc).app.start()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0, "nobody listens"
    assert not (folder / "data" / "run" / "control.sock").exists()
