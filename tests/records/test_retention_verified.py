"""Retention beside the ledger's own judge: what it drops leaves a ledger that verifies, and nothing else would."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import select, update

from appliance.records.checkpoint_file import CheckpointFile
from appliance.records.checkpoints import Checkpointer
from appliance.records.content import Keeper
from appliance.records.database import Database
from appliance.records.erase import erase
from appliance.records.ledger_store import verify_database
from appliance.records.recorder import Recorder
from appliance.records.retention import Retention
from appliance.records.rows import ExchangeRow
from appliance.records.tables import anchors, events
from appliance.settings.recording import Records
from tests.records.altering import altering

DAY = 86400.0
NOW = 1_000 * DAY


async def no_other_beginning(database: Database, folder: Path, checkpointer: Checkpointer) -> None:
    """Every other signed place that somebody may move the beginning to is found out; all is undone again."""
    file = CheckpointFile(folder)
    notes = [(seq or 0, note) for seq, note in file.notes(file.size)]
    async with database.read() as connection:
        true = (await connection.execute(select(anchors))).one()._mapping
    others = [(seq, note) for seq, note in notes if seq != true["seq"]]
    assert others[0][0] < true["seq"] < others[-1][0], "earlier ones and later ones"
    for seq, note in others:
        async with altering(database) as connection:
            moved = {"seq": seq, "hash": checkpointer.public.checkpoint(note).hash}
            await connection.execute(update(anchors).values(moved))
        report = await verify_database(database, folder, checkpointer.public)
        assert any(f"the ledger begins after {seq}, and no record says" in problem.what for problem in report.problems)
    async with altering(database) as connection:
        await connection.execute(update(anchors).values(**true))


async def test_the_ledgers_own_judge_finds_nothing_wrong_after_erasing_and_dropping(tmp_path: Path) -> None:
    """With real checkpoints, over a restart, and beside their file, which still has those from before."""
    now = [NOW]
    database = await Database.open(tmp_path / "outpost.db")
    keeper = Keeper(database, bytes(32), clock=lambda: now[0])
    public = None
    for round_ in range(3):
        recorder = Recorder(database, wall=lambda: now[0])
        await recorder.start()
        checkpointer = await Checkpointer.open(recorder, database, tmp_path)
        await checkpointer.start()
        public = checkpointer.public
        for number in range(20):
            kept = await keeper.keep(f"user_{number % 3}", f"req_{round_}_{number}", "full", {"request": b"x"})
            assert kept is not None
            written = recorder.write(keeper.insert_content(kept), durable=False)
            await recorder.submit(ExchangeRow(id=f"req_{round_}_{number}", kind="chat", started_at=now[0]))
            await written
            if number % 5 == 4:
                await checkpointer.make()
        actor = {"key": "key_1", "role": "admin", "organization": "org_default"}
        await erase(recorder, database, keeper.keys, "user_1", actor)
        now[0] += 250 * DAY
        retention = Retention(database, recorder, Records(), clock=lambda: now[0])
        await retention.sweep()
        await checkpointer.make()
        report = await verify_database(database, tmp_path, public)
        assert (report.problems, report.ok) == ([], True)
        if report.begins_after:
            await no_other_beginning(database, tmp_path, checkpointer)
        await checkpointer.close()
        await recorder.close()
    # The first round's records are 750 days old, the second's 500.
    assert report.begins_after > 40
    assert report.begins_after + report.records == report.last
    async with database.read() as connection:
        assert "ledger.altered" not in set(await connection.scalars(select(events.c.kind)))
        assert "ledger.tail_missing" not in set(await connection.scalars(select(events.c.kind)))
    await database.close()
