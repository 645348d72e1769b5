"""A ledger whose signing key is gone: nothing is signed with another one, which nothing could put right afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import delete

from appliance.records.checkpoint_file import CheckpointFile
from appliance.records.checkpoints import Checkpointer
from appliance.records.database import Database
from appliance.records.ledger_key import LedgerError, key_path, load_signer
from appliance.records.ledger_store import LedgerStore, verify_database
from appliance.records.recorder import Recorder
from appliance.records.tables import checkpoints
from tests.records.test_recorder import row


async def run(database: Database, folder: Path, number: int) -> None:
    """A gateway's run, which records one request and signs it at its end."""
    recorder = Recorder(database)
    await recorder.start()
    try:
        checkpointer = await Checkpointer.open(recorder, database, folder)
        await checkpointer.start()
        await recorder.submit(row(number))
        await checkpointer.close()
    finally:
        await recorder.close()


@pytest.mark.parametrize("left", ["both", "the database's checkpoints", "the file"])
async def test_a_ledger_whose_key_is_missing_is_not_gone_on_with(database: Database, tmp_path: Path, left: str) -> None:
    await run(database, tmp_path, 1)
    if left == "the file":
        with database.writer_engine().begin() as connection:
            connection.execute(delete(checkpoints))
    elif left != "both":
        CheckpointFile(tmp_path).path.unlink()
    kept = key_path(tmp_path).rename(tmp_path / "kept")
    with pytest.raises(LedgerError, match=r"ledger\.key is missing, .* Restore it from the backup .* another data_dir"):
        await run(database, tmp_path, 2)
    assert not key_path(tmp_path).exists()
    assert await LedgerStore(database).newest() == 1

    kept.rename(key_path(tmp_path))
    await run(database, tmp_path, 3)
    signer = load_signer(tmp_path, make=False)
    assert signer is not None
    if left == "both":
        assert (await verify_database(database, tmp_path, signer.public)).problems == []


async def test_a_ledger_without_checkpoints_gets_a_key(database: Database, tmp_path: Path) -> None:
    """What commands have recorded before the first start, and a file of checkpoints that nothing was written to."""
    recorder = Recorder(database)
    await recorder.start()
    await recorder.submit(row(1))
    await recorder.close()
    file = CheckpointFile(tmp_path).path
    file.parent.mkdir()
    file.touch()
    await run(database, tmp_path, 2)
    assert key_path(tmp_path).exists()
