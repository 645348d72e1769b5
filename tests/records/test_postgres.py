"""The server as the second database: what it promises, who gets in, its one writer, and what becomes of lost ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError

from appliance.errors import RecordsUnavailable
from appliance.records.database import Database, DatabaseError, DatabaseInUse, locate
from appliance.records.engine_postgres import PostgresEngines
from appliance.records.postgres_server import password_in
from appliance.records.tables import counters, teams
from appliance.settings import Database as Section
from appliance.settings.database_url import parse_postgres
from tests.postgres import NEEDED, PASSWORD, USER, Cluster, PostgresMissing, find_binaries
from tests.records.altering import altering


@pytest.fixture
def name(postgres: Cluster) -> Iterator[str]:
    """An empty, migrated database."""
    made = postgres.new_database(postgres.template)
    yield made
    postgres.drop(made)


async def test_every_session_is_set_up(postgres: Cluster, name: str, tmp_path: Path) -> None:
    database = await Database.open(postgres.server(name, backups=tmp_path))
    async with database.read() as connection:
        assert await shown(connection, "lock_timeout") == "2s"
        assert await shown(connection, "transaction_isolation") == "repeatable read"
    with database.writer_engine().connect() as writer:
        wanted = {"lock_timeout": "2s", "statement_timeout": "3s", "synchronous_commit": "on"}
        assert {key: writer.execute(text(f"SHOW {key}")).scalar_one() for key in wanted} == wanted
    await database.close()


async def shown(connection: object, name: str) -> str:
    return (await connection.exec_driver_sql(f"SHOW {name}")).scalar_one()  # type: ignore[attr-defined]


async def test_a_read_sees_one_moment(postgres: Cluster, name: str, tmp_path: Path) -> None:
    database = await Database.open(postgres.server(name, backups=tmp_path))
    async with database.read() as connection:
        assert (await connection.execute(select(counters))).all() == []
        async with altering(database) as writer:
            await writer.execute(insert(counters).values(name="a", value=1))
        assert (await connection.execute(select(counters))).all() == []
    async with database.read() as connection:
        assert (await connection.execute(select(counters))).all() == [("a", 1)]
    await database.close()


# --- getting in ---


def addresses(postgres: Cluster, name: str) -> dict[str, str]:
    """Addresses over TCP that must work, by what they show."""
    place = f"{USER}@127.0.0.1:{postgres.port}/{name}"
    named = f"{USER}@localhost:{postgres.port}/{name}"
    return {
        "plain": f"postgresql://{place}?sslmode=disable",
        "encrypted": f"postgresql://{place}?sslmode=require",
        "authority": f"postgresql://{place}?sslmode=verify-ca&sslrootcert={postgres.ca}",
        "authority with require": f"postgresql://{place}?sslmode=require&sslrootcert={postgres.ca}",
        "authority and name": f"postgresql://{named}?sslmode=verify-full&sslrootcert={postgres.ca}",
    }


@pytest.mark.parametrize("way", ["plain", "encrypted", "authority", "authority with require", "authority and name"])
async def test_ways_in(postgres: Cluster, name: str, tmp_path: Path, way: str) -> None:
    server = postgres.server(name, backups=tmp_path, url=addresses(postgres, name)[way])
    database = await Database.open(server)
    query = text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    async with database.read() as connection:
        assert (await connection.execute(query)).scalar_one() is (way != "plain")
    with database.writer_engine().connect() as writer:
        assert writer.execute(query).scalar_one() is (way != "plain")
    await database.close()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("sslmode=verify-full&sslrootcert={ca}", "certificate"),
        ("sslmode=verify-ca&sslrootcert={folder}/other-ca.crt", "certificate"),
        ("sslmode=verify-ca", "certificate"),
        ("sslmode=verify-ca&sslrootcert={folder}/none.crt", "cannot be read"),
        ("sslmode=verify-ca&sslrootcert={folder}/server.key", "cannot be read"),
    ],
)
async def test_certificates_that_do_not_fit(
    postgres: Cluster, name: str, tmp_path: Path, query: str, message: str
) -> None:
    url = postgres.url(name, tcp=True) + "?" + query.format(ca=postgres.ca, folder=postgres.folder)
    server = postgres.server(name, backups=tmp_path, url=url)
    with pytest.raises(DatabaseError, match=message) as caught:
        await Database.open(server)
    assert caught.value.message.startswith("database.url")
    if message == "certificate":
        # The other driver sees it too.
        with pytest.raises(DatabaseError, match=message):
            async with Database(server).read():
                pass


async def test_a_server_without_tls_is_refused(tmp_path: Path, postgres: Cluster) -> None:
    async def no(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"N")
        await writer.drain()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(no, "127.0.0.1", 0) as fake:
        port = fake.sockets[0].getsockname()[1]
        url = f"postgresql://{USER}@127.0.0.1:{port}/x?sslmode=require"
        server = postgres.server("x", backups=tmp_path, url=url)
        with pytest.raises(DatabaseError, match="no TLS connection"):
            await Database.open(server)
        with pytest.raises(DatabaseError, match="no TLS connection"):
            async with Database(server).read():
                pass


@pytest.mark.parametrize("given", ["not the one", None])
async def test_a_wrong_password_is_told_and_not_shown(
    postgres: Cluster, name: str, tmp_path: Path, given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the environment happens to hold must neither help nor harm.
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    server = postgres.server(name, backups=tmp_path, url=postgres.url(name, tcp=True), password=given)
    with pytest.raises(DatabaseError, match=r"database\.password") as caught:
        await Database.open(server)
    with pytest.raises(DatabaseError, match=r"database\.password") as read:
        async with Database(server).read():
            pass
    for error in (caught.value, read.value):
        assert "not the one" not in error.message
        assert PASSWORD not in error.message


async def test_a_passfile_opens(postgres: Cluster, name: str, tmp_path: Path) -> None:
    path = tmp_path / "pass"
    escaped = PASSWORD.replace(":", "\\:")
    path.write_text(f"# ours\nelsewhere:*:*:*:wrong\n127.0.0.1:{postgres.port}:*:{USER}:{escaped}\n")
    path.chmod(0o600)
    section = Section(url=postgres.url(name, tcp=True) + f"?passfile={path}")
    database = await Database.open(locate(section, tmp_path, {}))
    async with database.read():
        pass
    await database.close()
    path.chmod(0o640)
    with pytest.raises(DatabaseError, match=f"others can read the passfile {path}"):
        locate(section, tmp_path, {})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("h:5432:d:u:p", "p"),
        ("*:*:*:*:p\\:q\\\\r", "p:q\\r"),
        ("# h:5432:d:u:p\n\nh:5432:d:other:x\nh:*:d:u:second:rest", "second"),
        ("h:5433:d:u:p", None),
        ("h:5432:d:u", None),
        ("", None),
    ],
)
def test_lines_of_a_passfile(text: str, wanted: str | None) -> None:
    assert password_in(text, parse_postgres("postgresql://u@h/d")) == wanted


async def test_what_is_not_there_is_told(postgres: Cluster, tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=rf"no database missing; make it: createdb --owner {USER} missing"):
        await Database.open(postgres.server("missing", backups=tmp_path))
    gone = f"postgresql://{USER}@/x?host={tmp_path}"
    with pytest.raises(RecordsUnavailable, match="cannot be used right now"):
        await Database.open(postgres.server("x", backups=tmp_path, url=gone))
    with pytest.raises(RecordsUnavailable, match="cannot be used right now"):
        async with Database(postgres.server("x", backups=tmp_path, url=gone)).read():
            pass


async def test_a_user_without_rights_is_told(postgres: Cluster, tmp_path: Path) -> None:
    postgres.sql("CREATE DATABASE foreign_box TEMPLATE template0")
    with pytest.raises(DatabaseError, match=f"ALTER DATABASE foreign_box OWNER TO {USER}"):
        await Database.open(postgres.server("foreign_box", backups=tmp_path))
    postgres.drop("foreign_box")


@pytest.mark.parametrize(
    ("promise", "value", "message"),
    [("fsync", "off", "fsync off"), ("full_page_writes", "off", "full_page_writes off")],
)
async def test_a_server_that_cannot_keep_what_it_takes_is_refused(
    postgres: Cluster, name: str, tmp_path: Path, promise: str, value: str, message: str
) -> None:
    set_on_server(postgres, promise, value)
    try:
        with pytest.raises(DatabaseError, match=message):
            await Database.open(postgres.server(name, backups=tmp_path))
    finally:
        set_on_server(postgres, promise, "on")
    await (await Database.open(postgres.server(name, backups=tmp_path))).close()


def set_on_server(postgres: Cluster, name: str, value: str) -> None:
    postgres.sql(f"ALTER SYSTEM SET {name} = {value}")
    postgres.sql("SELECT pg_reload_conf()")
    while postgres.sql(f"SHOW {name}") != value:
        pass


async def test_another_encoding_is_refused(postgres: Cluster, tmp_path: Path) -> None:
    postgres.sql(f"CREATE DATABASE latin OWNER {USER} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(DatabaseError, match="encoding LATIN1"):
        await Database.open(postgres.server("latin", backups=tmp_path))
    postgres.drop("latin")


def test_without_the_server_the_tests_say_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(PostgresMissing, match="apt-get install postgresql"):
        find_binaries({"PATH": str(tmp_path)}, tmp_path)
    for version in ("9.6", "15", "x"):
        folder = tmp_path / version / "bin"
        folder.mkdir(parents=True)
        for each in NEEDED:
            (folder / each).touch(0o755)
    assert find_binaries({}, tmp_path) == tmp_path / "15" / "bin"


# --- the one writer ---


async def test_a_broken_constraint_of_any_kind_is_one(postgres: Cluster, name: str, tmp_path: Path) -> None:
    engine = Database(postgres.server(name, backups=tmp_path)).writer_engine()
    for value in (
        {"id": "t1", "organization_id": "org_none", "name": "n", "created_at": 0.0},
        {"id": "t1", "organization_id": "org_default", "name": None, "created_at": 0.0},
    ):
        with engine.connect() as connection, pytest.raises(IntegrityError):
            connection.execute(insert(teams), value)


async def test_a_writer_takes_over_from_its_own_lost_session(postgres: Cluster, name: str, tmp_path: Path) -> None:
    engines = PostgresEngines(postgres.server(name, backups=tmp_path), 0.2)
    engine = engines.writing()
    lost = engine.raw_connection()
    # The network may forget a session that the server still believes in.
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
        with pytest.raises(Exception, match="terminating connection|network error"):
            lost.cursor().execute("SELECT 1")
        with pytest.raises(DatabaseInUse):
            engines.writing().connect()
    lost.invalidate()


async def test_readers_do_not_mind_the_writer(postgres: Cluster, name: str, tmp_path: Path) -> None:
    server = postgres.server(name, backups=tmp_path)
    with PostgresEngines(server, 2.0).writing().connect():
        database = await Database.open(server)
        async with database.read() as connection:
            assert (await connection.execute(select(counters))).all() == []
        await database.close()


async def test_a_lock_becomes_records_unavailable(postgres: Cluster, name: str, tmp_path: Path) -> None:
    server = postgres.server(name, backups=tmp_path)
    database = Database(server, busy_timeout_s=0.1)
    with PostgresEngines(server, 2.0).writing().begin() as holder:
        holder.execute(text("LOCK TABLE counters IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(RecordsUnavailable, match="lock timeout"):
            async with database.read() as connection:
                await connection.execute(select(counters))
    async with database.read() as connection:
        assert (await connection.execute(select(counters))).all() == []
    await database.close()
