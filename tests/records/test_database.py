"""The file, the settings of every connection, and what a database of either kind promises."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from sqlalchemy import insert

from appliance.records.database import Database, DatabaseError, Where, locate
from appliance.records.postgres_server import PostgresServer
from appliance.records.tables import counters
from appliance.settings import Database as Section
from appliance.settings import SecretRef
from tests.records.altering import altering

PRAGMAS = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 2000}


async def test_every_connection_is_durable(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "outpost.db")
    for _ in range(2):
        async with database.read() as one, database.read() as two:
            for connection in (one, two):
                for name, wanted in PRAGMAS.items():
                    assert (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one() == wanted
        await database.engine.dispose()
    engine = database.writer_engine()
    for _ in range(2):
        raw = engine.raw_connection()
        cursor = raw.cursor()
        for name, wanted in PRAGMAS.items():
            cursor.execute(f"PRAGMA {name}")
            assert cursor.fetchone()[0] == wanted
        raw.close()
    await database.close()


async def test_a_file_that_cannot_be_durable_is_refused(tmp_path: Path) -> None:
    # SQLite keeps a database in memory out of WAL without an error, as it does on some network disks.
    database = Database(Path(":memory:"))
    with pytest.raises(DatabaseError, match="journal_mode is memory, not wal"):
        async with database.read():
            pass
    await database.close()


async def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "data" / "outpost.db")
    async with altering(database) as connection:
        await connection.execute(insert(counters).values(name="x", value=1))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data").iterdir()}
    await database.close()
    assert modes == {"outpost.db": 0o600, "outpost.db-wal": 0o600, "outpost.db-shm": 0o600}
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("sqlite", "data/outpost.db"),
        ("sqlite+aiosqlite:////srv/o.db", "/srv/o.db"),
        ("sqlite+aiosqlite:///o.db", "o.db"),
    ],
)
def test_a_file_is_located(url: str, wanted: str) -> None:
    assert locate(Section(url=url), Path("data"), {}) == Path(wanted)


def test_a_server_is_located(tmp_path: Path) -> None:
    section = Section(url="postgresql://u@h/d", password=SecretRef(env="PW"), backup="external")
    found = locate(section, Path("data"), {"PW": "hidden"})
    assert isinstance(found, PostgresServer)
    assert (found.url.host, found.password, found.backups) == ("h", "hidden", Path("data/backups"))
    assert found.external_backup
    assert "hidden" not in f"{found} {found!r}"
    with pytest.raises(DatabaseError, match=r"database\.password: .*PW is not set"):
        locate(section, Path("data"), {})


async def test_what_changed_is_told_once(database: Database, where: Where) -> None:
    elsewhere = Database(where)
    token = await database.changed_since(None)
    assert token is not None
    assert await database.changed_since(token) is None
    async with altering(elsewhere) as connection:
        assert await database.changed_since(token) is None
        await connection.execute(insert(counters).values(name="a", value=1))
    newer = await database.changed_since(token)
    assert newer not in (None, token)
    assert await database.changed_since(newer) is None
    await elsewhere.close()


async def test_a_lost_watch_counts_as_a_change(database: Database) -> None:
    token = await database.changed_since(None)
    await database.close()
    assert await database.changed_since(token) is not None
