"""Records that somebody has damaged: the export says so and goes on."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from appliance.records.database import Database
from appliance.records.export.forms import FORMATS, forms
from appliance.records.export.source import RecordedEvent, Source
from appliance.records.recorder import Recorder
from appliance.records.rows import ExchangeRow
from tests.fakes.syslog_server import SyslogServer, parse_frames
from tests.records.test_export_syslog import Box

DAMAGE = [
    "UPDATE exchanges SET attempts = '[{' WHERE seq = 2",
    "UPDATE exchanges SET charges = '7' WHERE seq = 2",
    "UPDATE exchanges SET started_at = 'soon' WHERE seq = 2",
    "UPDATE exchanges SET started_at = 1e300 WHERE seq = 2",
    "UPDATE events SET at_us = 9000000000000000000 WHERE seq = 3",
    "UPDATE events SET at_us = 'never' WHERE seq = 3",
    "UPDATE events SET body = 'x' WHERE seq = 3",
]


async def recorded(path: Path, damage: str) -> tuple[Database, Recorder]:
    database = await Database.open(path)
    recorder = Recorder(database)
    await recorder.start()
    for number in (1, 2):
        await recorder.submit(ExchangeRow(id=f"req_{number}", kind="chat", started_at=float(number)))
    await recorder.write(lambda tx: tx.append("admin.key.create", {"object": "key_x"}))
    await recorder.submit(ExchangeRow(id="req_4", kind="chat", started_at=4.0))
    with sqlite3.connect(path) as connection:
        assert connection.execute(damage).rowcount == 1
    connection.close()
    return database, recorder


@pytest.mark.parametrize("damage", DAMAGE)
async def test_every_form_tells_of_all_records(tmp_path: Path, damage: str) -> None:
    database, recorder = await recorded(tmp_path / "outpost.db", damage)
    records = await Source(database).batch(0)
    assert [record.seq for record in records] == [1, 2, 3, 4]
    for name in FORMATS:
        lines = [forms("1")[name].line(record) for record in records]
        assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)
    damaged = next(record for record in records if "SET" in damage and f"seq = {record.seq}" in damage)
    assert isinstance(damaged, RecordedEvent)
    await recorder.close()
    await database.close()


@pytest.mark.parametrize("damage", DAMAGE)
async def test_the_task_goes_on(tmp_path: Path, damage: str) -> None:
    database, recorder = await recorded(tmp_path / "outpost.db", damage)
    box = Box(database, recorder)
    with SyslogServer() as server:
        forwarder = box.forwarder(server.port, poll_s=0.01)
        task = asyncio.create_task(forwarder.run())
        async with asyncio.timeout(5):
            while await box.delivered() < 4 and not task.done():
                await asyncio.sleep(0.01)
        assert not task.done()
        assert len(parse_frames(server.received.get(timeout=5))[0]) == 4
        task.cancel()
        await asyncio.wait([task])
    await recorder.close()
    await database.close()


async def test_a_defect_is_told_and_outlived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database, recorder = await recorded(tmp_path / "outpost.db", DAMAGE[0])
    box = Box(database, recorder)
    slept = asyncio.Semaphore(0)

    async def sleep(seconds: float) -> None:
        slept.release()
        await asyncio.sleep(0.001)

    with SyslogServer() as server:
        forwarder = box.forwarder(server.port, sleep=sleep)
        frame_of, broken = forwarder._frame, [True]

        def frame(record: Any) -> bytes:
            if broken[0]:
                raise RuntimeError("a defect")
            return frame_of(record)

        monkeypatch.setattr(forwarder, "_frame", frame)
        task = asyncio.create_task(forwarder.run())
        await asyncio.wait_for(slept.acquire(), 5)
        assert forwarder.progress.trouble is not None
        broken[0] = False
        async with asyncio.timeout(5):
            while await box.delivered() < 4:
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
    await recorder.close()
    await database.close()
