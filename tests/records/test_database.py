"""The file, its settings on every connection, and its migrations."""

from __future__ import annotations

import re
import sqlite3
import stat
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, event, insert, select, text
from sqlalchemy.exc import IntegrityError

from appliance.errors import RecordsUnavailable
from appliance.records.database import Database, DatabaseError, database_path
from appliance.records.migrate import MIGRATIONS, SchemaError
from appliance.records.tables import SCHEMA, counters, exchanges, metadata

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
    async with database.write() as connection:
        await connection.execute(insert(counters).values(name="x", value=1))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data").iterdir()}
    await database.close()
    assert modes == {"outpost.db": 0o600, "outpost.db-wal": 0o600, "outpost.db-shm": 0o600}
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


async def test_write_commits_or_leaves_no_trace(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "outpost.db")

    async def fail() -> None:
        async with database.write() as connection:
            await connection.execute(insert(counters).values(name="a", value=1))
            await connection.execute(insert(counters).values(name="a", value=2))

    with pytest.raises(IntegrityError):
        await fail()
    async with database.read() as connection:
        assert (await connection.execute(select(counters))).all() == []
    async with database.write() as connection:
        await connection.execute(insert(counters).values(name="a", value=1))
    async with database.read() as connection:
        assert (await connection.execute(select(counters))).all() == [("a", 1)]
    await database.close()


async def test_a_lock_becomes_records_unavailable(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "outpost.db", busy_timeout_s=0.05)
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(RecordsUnavailable, match="locked"):
        async with database.write():
            pass
    other.execute("ROLLBACK")
    other.close()
    async with database.write():
        pass
    await database.close()


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("sqlite", "data/outpost.db"),
        ("sqlite+aiosqlite:////srv/o.db", "/srv/o.db"),
        ("sqlite+aiosqlite:///o.db", "o.db"),
    ],
)
def test_database_path(url: str, wanted: str) -> None:
    assert database_path(url, Path("data")) == Path(wanted)


@pytest.mark.parametrize(
    "url", ["postgresql+asyncpg://u:hidden@h/d", "sqlite+aiosqlite://", "nonsense", "sqlite:///:memory:"]
)
def test_database_path_refuses(url: str) -> None:
    with pytest.raises(DatabaseError, match=r"database\.url") as caught:
        database_path(url, Path("data"))
    assert "hidden" not in caught.value.message


# --- migrations ---


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config


def test_schema_is_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_current_head() == SCHEMA


async def test_migrations_lead_to_the_declared_tables(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "outpost.db")
    engine = database.writer_engine()
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        migrated = shape(connection.connection.driver_connection)
    await database.close()

    fresh = sqlite3.connect(tmp_path / "declared.db")
    declared = Database(tmp_path / "declared.db").writer_engine()
    metadata.create_all(declared)
    assert shape(fresh) == migrated
    fresh.close()


def shape(connection: sqlite3.Connection | object) -> dict[str, object]:
    """What compare_metadata does not look at too: constraints' conditions, partial indices, AUTOINCREMENT."""
    assert isinstance(connection, sqlite3.Connection)
    found: dict[str, object] = {}
    for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"):
        if name in ("alembic_version", "sqlite_sequence"):
            continue
        head, _, rest = sql.replace('"', "").partition("(")
        # A column that was added later stands on the last line, and where its default stands is a matter of taste.
        parts = re.split(r",(?![^()]*\))", rest.strip().removesuffix(")"))
        found[f"{kind} {name}"] = [head.split(), sorted(sorted(part.split()) for part in parts if part.strip())]
    return found


async def test_an_older_file_is_copied_then_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "outpost.db"
    older(path, "0001")
    database = await Database.open(path, clock=lambda: 1_000_000_000.0)
    async with database.read() as connection:
        assert (await connection.execute(select(counters))).all() == [("kept", 5)]
        assert (await connection.execute(select(exchanges))).all() == []
    await database.close()

    copy = tmp_path / "backups" / "outpost-schema-0001-20010909T014640Z.db"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    saved = sqlite3.connect(copy)
    assert saved.execute("SELECT * FROM counters").fetchall() == [("kept", 5)]
    assert saved.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
    assert saved.execute("SELECT count(*) FROM sqlite_master WHERE name = 'exchanges'").fetchone() == (0,)
    assert saved.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    saved.close()


async def test_nothing_is_copied_where_nothing_is_migrated(tmp_path: Path) -> None:
    for _ in range(2):
        await (await Database.open(tmp_path / "outpost.db")).close()
    assert not (tmp_path / "backups").exists()


async def test_a_newer_file_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "outpost.db"
    await (await Database.open(path)).close()
    raw = sqlite3.connect(path)
    raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.commit()
    raw.close()
    before = path.read_bytes()
    with pytest.raises(SchemaError, match="schema 9999"):
        await Database.open(path)
    assert path.read_bytes() == before


async def test_somebody_elses_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE songs (title TEXT)")
    raw.close()
    with pytest.raises(SchemaError, match="songs"):
        await Database.open(path)


async def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "outpost.db"
    older(path, "0001")

    def sabotage(engine: Engine) -> None:
        def refuse(connection, cursor, statement, parameters, context, many):  # type: ignore[no-untyped-def]
            if "ix_exchanges_id" in statement:
                raise RuntimeError("power cut")

        event.listen(engine, "before_cursor_execute", refuse)

    from appliance.records import database as module

    configure = module._configure
    with monkeypatch.context() as patch:
        patch.setattr(module, "_configure", lambda engine, busy: (configure(engine, busy), sabotage(engine)))
        with pytest.raises(RuntimeError, match="power cut"):
            await Database.open(path)
    raw = sqlite3.connect(path)
    assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
    assert raw.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE '%exchanges%'").fetchone() == (0,)
    raw.close()
    await (await Database.open(path)).close()


def older(path: Path, schema: str) -> None:
    """A file as the version with `schema` left it, with a value in it."""
    database = Database(path)
    engine = database.writer_engine()
    config = alembic_config()
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, schema)
        connection.execute(text("INSERT INTO counters VALUES ('kept', 5)"))
    engine.dispose()
