"""From every schema that was ever released to the one of now, on both kinds of database, with data in it."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, select, text

from appliance.records.database import Database, DatabaseError, DatabaseInUse, Where
from appliance.records.engine_postgres import PostgresEngines
from appliance.records.ledger_store import LedgerStore
from appliance.records.migrate import MIGRATIONS, SchemaError, find_pg_dump
from appliance.records.postgres_server import PostgresServer
from appliance.records.store import ExchangeStore
from appliance.records.tables import SCHEMA, api_keys, counters, metadata, organizations
from tests.postgres import Cluster

EARLIER = ("0001", "0002", "0003")
KEYS = [("key_a", "boss", "admin", None), ("key_u", "app", "user", None), ("key_x", "boss", "admin", 5.0)]
"""id, name, role, revoked_at. Two of one name: of a revoked key only the row stays."""
TODAY = {"admin": "owner", "user": "member"}
"""What roles are called from 0003 on."""


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Where]:
    """A database without anything in it."""
    if request.param == "sqlite":
        yield tmp_path / "outpost.db"
        return
    cluster: Cluster = request.getfixturevalue("postgres")
    name = cluster.new_database()
    yield cluster.server(name, backups=tmp_path / "backups")
    cluster.drop(name)


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config


def engine_of(where: Where) -> Engine:
    return Database(where).writer_engine()


def older(where: Where, schema: str) -> None:
    """A database as the version with `schema` left it, with keys and, where there is a table for it, an exchange."""
    engine = engine_of(where)
    config = alembic_config()
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, schema)
        connection.execute(text("INSERT INTO counters VALUES ('kept', 5)"))
        for number, (key, name, role, revoked) in enumerate(KEYS):
            connection.execute(
                text(
                    "INSERT INTO api_keys (id, name, role, prefix, digest, secret_id, created_at, revoked_at) "
                    "VALUES (:id, :name, :role, 'op-abcd', :digest, 's', 1.5, :revoked)"
                ),
                {
                    "id": key,
                    "name": name,
                    "role": TODAY[role] if schema >= "0003" else role,
                    "digest": bytes([number]) * 32,
                    "revoked": revoked,
                },
            )
        if schema >= "0002":
            connection.execute(
                text(
                    "INSERT INTO exchanges (seq, id, kind, started_at, key_id, stream, status, outcome, "
                    "finish_reasons, attempts, prompt_tokens, cached_tokens, completion_tokens, usage_source, "
                    "duration_s, client) VALUES (7, 'req_1', 'chat.completions', 2.5, 'key_u', true, 200, "
                    "'completed', '[\"stop\"]', '[]', 3, 0, 4, 'reported', 0.25, '127.0.0.1')"
                )
            )
    engine.dispose()


def state(where: Where) -> object:
    """The schema's name, the tables and the keys' roles: what a failure must not change."""
    engine = engine_of(where)
    with engine.connect() as connection:
        found = (
            connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all(),
            sorted(inspect(connection).get_table_names()),
            connection.execute(text("SELECT id, role FROM api_keys ORDER BY id")).all(),
            [column["name"] for column in inspect(connection).get_columns("api_keys")],
        )
    engine.dispose()
    return found


def test_schema_is_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_current_head() == SCHEMA


async def test_migrations_lead_to_the_declared_tables(empty: Where) -> None:
    await (await Database.open(empty)).close()
    engine = engine_of(empty)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        migrated = shape(connection)
        # The whole schema once more, made from the declarations.
        connection.rollback()
        with connection.begin():
            metadata.drop_all(connection)
            metadata.create_all(connection)
        assert shape(connection) == migrated
    engine.dispose()


def shape(connection: Connection) -> dict[str, object]:
    """What compare_metadata does not look at too: constraints' conditions, partial indices, counting."""
    return _sqlite_shape(connection) if connection.dialect.name == "sqlite" else _postgres_shape(connection)


def _sqlite_shape(connection: Connection) -> dict[str, object]:
    found: dict[str, object] = {}
    for kind, name, sql in connection.execute(text("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")):
        if name in ("alembic_version", "sqlite_sequence"):
            continue
        head, _, rest = sql.replace('"', "").partition("(")
        # A column that was added later stands on the last line, and where its default stands is a matter of taste.
        parts = re.split(r",(?![^()]*\))", rest.strip().removesuffix(")"))
        found[f"{kind} {name}"] = [head.split(), sorted(sorted(part.split()) for part in parts if part.strip())]
    return found


def _postgres_shape(connection: Connection) -> dict[str, object]:
    constraints = text(
        "SELECT conrelid::regclass || ' ' || conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE connamespace = 'public'::regnamespace AND conrelid <> 'alembic_version'::regclass ORDER BY 1"
    )
    indices = text(
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
    )
    columns = text(
        "SELECT table_name || '.' || column_name, column_default, is_nullable, udt_name, character_maximum_length "
        "FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'"
    )
    return {
        str(row[0]): tuple(row[1:]) for query in (constraints, indices, columns) for row in connection.execute(query)
    }


@pytest.mark.parametrize("schema", EARLIER)
async def test_an_older_database_is_copied_then_brought_up_to_date(empty: Where, schema: str, tmp_path: Path) -> None:
    older(empty, schema)
    database = await Database.open(empty, clock=lambda: 1_000_000_000.0)
    async with database.read() as connection:
        assert (await connection.execute(select(counters))).all() == [("kept", 5)]
        found = (await connection.execute(select(api_keys).order_by(api_keys.c.id))).mappings().all()
        (home,) = (await connection.execute(select(organizations))).mappings().all()
    assert [(key["id"], key["role"]) for key in found] == [("key_a", "owner"), ("key_u", "member"), ("key_x", "owner")]
    assert [(key["name"], key["digest"], key["created_at"], key["revoked_at"]) for key in found] == [
        (name, bytes([number]) * 32, 1.5, revoked) for number, (_, name, _, revoked) in enumerate(KEYS)
    ]
    assert {(key["organization_id"], key["restrictions"], key["expires_at"]) for key in found} == {
        ("org_default", "{}", None)
    }
    assert (home["id"], home["name"], home["disabled_at"]) == ("org_default", "default", None)
    rows = await ExchangeStore(database).tail()
    assert [(row.seq, row.id, row.key_id, row.prompt_tokens, row.cost_nanousd, row.tags) for row in rows] == (
        [(7, "req_1", "key_u", 3, 0, [])] if schema >= "0002" else []
    )
    await database.close()

    (copy,) = (tmp_path / "backups").iterdir()
    assert re.fullmatch(rf"(outpost|box_\d+)-schema-{schema}-20010909T014640Z\.(db|dump)", copy.name)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700


async def test_what_was_recorded_before_the_ledger_is_shown(empty: Where) -> None:
    older(empty, "0002")
    engine = engine_of(empty)
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        # A clock's own number, and attempts in seconds, as they were written then.
        attempt = '[{"target":"small","started_s":0.1234567,"duration_s":1.5,"outcome":"completed"}]'
        change = text(
            "UPDATE exchanges SET started_at = 1795529228.1234567, duration_s = 0.1234567, attempts = :attempts"
        )
        connection.execute(change, {"attempts": attempt})
    engine.dispose()
    database = await Database.open(empty)
    (record,) = await LedgerStore(database).tail(1)
    await database.close()
    assert (record.seq, record.hash, record.fault) == (7, None, None)
    assert json.loads(record.body)["id"] == "req_1"


def test_the_copy_of_a_file_is_whole(tmp_path: Path) -> None:
    older(tmp_path / "outpost.db", "0001")
    prepare(tmp_path / "outpost.db")
    (copy,) = (tmp_path / "backups").iterdir()
    saved = sqlite3.connect(copy)
    assert saved.execute("SELECT * FROM counters").fetchall() == [("kept", 5)]
    assert saved.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
    assert saved.execute("SELECT count(*) FROM sqlite_master WHERE name = 'exchanges'").fetchone() == (0,)
    assert saved.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    saved.close()


def test_a_file_that_cannot_be_copied_is_not_changed(tmp_path: Path) -> None:
    """A disk that is full in the middle of the copy, as a bound on the size of files makes one."""
    where = tmp_path / "outpost.db"
    older(where, "0002")
    with sqlite3.connect(where) as filler:
        filler.execute("INSERT INTO counters (name, value) VALUES (hex(zeroblob(200000)), 1)")
    filler.close()
    before = where.read_bytes()
    script = (
        "import asyncio, resource, sys; from pathlib import Path; from appliance.records.database import Database\n"
        "from appliance.errors import OutpostError; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: asyncio.run(Database.open(Path(sys.argv[1])))\n"
        "except OutpostError as error: print(error.code, error.message)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(where)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"database_schema {where} has schema 0002 and must be brought to {SCHEMA}, but")
    assert "Make room there and start again" in done.stdout
    assert list((tmp_path / "backups").iterdir()) == []
    assert where.read_bytes() == before


def test_the_copy_of_a_server_leads_back(postgres: Cluster, tmp_path: Path) -> None:
    name, restored = postgres.new_database(), postgres.new_database()
    server = postgres.server(name, backups=tmp_path)
    older(server, "0002")
    before = state(server)
    prepare(server)
    assert state(server) != before
    (dump,) = tmp_path.iterdir()
    done = subprocess.run(
        [postgres.binaries / "pg_restore", "-h", postgres.folder, "-p", str(postgres.port), "-U", "outpost",
         "-d", restored, "--exit-on-error", dump], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert state(postgres.server(restored, backups=tmp_path)) == before
    for each in (name, restored):
        postgres.drop(each)


def prepare(where: Where) -> None:
    asyncio.run(opened_and_closed(where))


async def opened_and_closed(where: Where) -> None:
    await (await Database.open(where)).close()


async def test_nothing_is_copied_where_nothing_is_migrated(empty: Where, tmp_path: Path) -> None:
    for _ in range(2):
        await (await Database.open(empty)).close()
    assert not (tmp_path / "backups").exists()


@pytest.mark.parametrize("schema", EARLIER)
async def test_a_step_that_fails_in_the_middle_changes_nothing(
    empty: Where, schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older(empty, schema)
    before = state(empty)
    create = Operations.create_index

    def create_index(self: Operations, name: str, *args: object, **kwargs: object) -> None:
        # The last statement of the last step: by then everything else has been done.
        if name == "ix_responses_created_at":
            raise RuntimeError("power cut")
        create(self, name, *args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Operations, "create_index", create_index)
        with pytest.raises(SchemaError) as caught:
            await Database.open(empty)
    assert state(empty) == before
    (copy,) = (tmp_path / "backups").iterdir()
    for part in (f"from schema {schema} to {SCHEMA} failed (power cut)", "Nothing was changed", str(copy)):
        assert part in caught.value.message
    assert "start the version of Outpost that ran before" in caught.value.message

    copy.unlink()
    await (await Database.open(empty)).close()
    assert state(empty) != before


async def test_a_newer_database_is_refused_untouched(empty: Where) -> None:
    await (await Database.open(empty)).close()
    set_schema(empty, "9999")
    before = state(empty)
    with pytest.raises(SchemaError, match="schema 9999"):
        await Database.open(empty)
    assert state(empty) == before


def set_schema(where: Where, name: str) -> None:
    engine = engine_of(where)
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        connection.execute(text("UPDATE alembic_version SET version_num = :name"), {"name": name})
    engine.dispose()


async def test_somebody_elses_database_is_refused(empty: Where) -> None:
    if isinstance(empty, Path):
        empty.touch()
    engine = engine_of(empty)
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        connection.execute(text("CREATE TABLE songs (title TEXT)"))
    engine.dispose()
    with pytest.raises(SchemaError, match="songs"):
        await Database.open(empty)


# --- copies of a server's database ---


@pytest.fixture
def server(postgres: Cluster, tmp_path: Path) -> Iterator[PostgresServer]:
    """A server's database of an earlier version."""
    name = postgres.new_database()
    made = postgres.server(name, backups=tmp_path / "backups")
    older(made, "0002")
    yield made
    postgres.drop(name)


@pytest.mark.parametrize("schema", [None, *EARLIER])
async def test_whoever_only_reads_changes_nothing(empty: Where, schema: str | None, tmp_path: Path) -> None:
    if schema is not None:
        older(empty, schema)
    before = None if schema is None else state(empty)
    with pytest.raises((SchemaError, DatabaseError), match="not there|Start its gateway once") as refused:
        await Database.open_to_read(empty)
    assert (schema or "empty") in refused.value.message
    if schema is None:
        assert not (tmp_path / "outpost.db").exists()
    else:
        assert state(empty) == before
    assert not (tmp_path / "backups").exists()
    await (await Database.open(empty)).close()
    reading = await Database.open_to_read(empty)
    async with reading.read() as connection:
        assert (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalars().all() == [SCHEMA]
    await reading.close()


async def test_without_pg_dump_data_is_not_changed(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("appliance.records.migrate.POSTGRES_COMMANDS", tmp_path)
    before = state(server)
    with pytest.raises(SchemaError, match=r"no pg_dump .*database\.backup: external"):
        await Database.open(server)
    assert state(server) == before
    own = PostgresServer(server.url, server.password, server.backups, external_backup=True)
    await (await Database.open(own)).close()
    assert not server.backups.exists()
    assert state(server) != before


async def test_a_copy_that_fails_stops_the_start(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "99" / "bin"
    folder.mkdir(parents=True)
    (folder / "pg_dump").write_text(
        "#!/bin/sh\necho half\necho 'pg_dump: error: server version mismatch' >&2\nexit 1\n"
    )
    (folder / "pg_dump").chmod(0o755)
    monkeypatch.setattr("appliance.records.migrate.POSTGRES_COMMANDS", tmp_path)
    before = state(server)
    with pytest.raises(SchemaError, match="server version mismatch"):
        await Database.open(server)
    assert state(server) == before
    assert list(server.backups.iterdir()) == []


def test_the_newest_pg_dump_is_taken(tmp_path: Path) -> None:
    assert find_pg_dump({"PATH": ""}, tmp_path) is None
    for version in ("9", "15", "16", "notes"):
        folder = tmp_path / version / "bin"
        folder.mkdir(parents=True)
        (folder / "pg_dump").touch(0o755)
    assert find_pg_dump({"PATH": ""}, tmp_path) == str(tmp_path / "16" / "bin" / "pg_dump")


async def test_nobody_migrates_what_somebody_writes(server: PostgresServer) -> None:
    writing = PostgresEngines(server, 2.0).writing()
    with writing.connect(), pytest.raises(DatabaseInUse, match="Another Outpost process"):
        await Database.open(server, busy_timeout_s=0.1)
    writing.dispose()
    assert state(server)[0] == ["0002"]  # type: ignore[index]
    await (await Database.open(server, busy_timeout_s=0.1)).close()


async def test_two_that_start_together_take_turns(empty: Where) -> None:
    one, two = await asyncio.gather(Database.open(empty), Database.open(empty))
    async with one.read() as connection:
        assert (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalars().all() == [SCHEMA]
    await one.close()
    await two.close()
