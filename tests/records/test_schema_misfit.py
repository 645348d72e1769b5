"""A database that says it has this version's schema and has not: the message gives the right cure."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from appliance.errors import RecordsUnavailable
from appliance.records.database import Database
from appliance.records.migrate import SchemaError


@pytest.mark.parametrize(
    ("done", "lacks"),
    [
        ("ALTER TABLE users DROP COLUMN vouched_at", "it lacks users.vouched_at)"),
        ("DROP TABLE contents", "it lacks the table contents)"),
    ],
)
async def test_a_start_says_what_is_missing_and_what_to_do(tmp_path: Path, done: str, lacks: str) -> None:
    await (await Database.open(tmp_path / "outpost.db")).close()
    engine = Database(tmp_path / "outpost.db").writer_engine()
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        connection.execute(text(done))
    engine.dispose()
    with pytest.raises(SchemaError) as failed:
        await Database.open(tmp_path / "outpost.db")
    assert lacks in failed.value.message
    assert f"{tmp_path / 'outpost.db'} does not fit this version of Outpost" in failed.value.message
    assert "Put back the copy from before the update" in failed.value.message


@pytest.mark.parametrize("statement", ["SELECT nowhere FROM users", "SELECT id FROM nowhere"])
async def test_a_statement_says_so_too(database: Database, statement: str) -> None:
    """On both kinds of database: a server's is not looked through at each start."""
    with pytest.raises(RecordsUnavailable) as failed:
        async with database.read() as connection:
            await connection.execute(text(statement))
    assert "does not fit this version of Outpost" in failed.value.message
    assert "nowhere" in failed.value.message
    assert "disk" not in failed.value.message
