"""From the schema that a database has to the one this version needs, with a copy made first.

Runs at every start, in a thread. A database that is already right costs one small query. Whoever only reads asks
`check_readable` instead.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text

from appliance.errors import OutpostError
from appliance.records.failures import cause, misfit
from appliance.records.postgres_server import PostgresServer
from appliance.records.tables import SCHEMA, metadata

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parent / "migrations"
POSTGRES_COMMANDS = Path("/usr/lib/postgresql")
"""Where Debian keeps the commands of each version, most of them not on PATH."""


class SchemaError(OutpostError):
    """The database's schema is not one that this version can bring up to date."""

    code = "database_schema"


def migrate(engine: Engine, place: str, save: Callable[[str], Path | None]) -> Path | None:
    """Bring the database to `SCHEMA`; answer the copy's path, or None where none was made.

    place: what messages call it. save: copies the database, given the name of its schema, and may refuse with a
    SchemaError. All steps are one transaction: after a failure the database is as before. Two processes that start
    together take turns. Raises SchemaError for one of a newer version and for a step that fails.
    """
    with engine.connect() as connection:
        found = current(connection)
        if _is_right(connection, found, place):
            return None
    # Alembic takes longer to load than everything else here, so only a start that needs it pays.
    from alembic import command

    config = _known(found, place)
    saved = None if found is None else save(found)
    with engine.connect() as connection:
        connection = connection.execution_options(write=True)
        transaction = connection.begin()
        try:
            if current(connection) != SCHEMA:
                config.attributes["connection"] = connection
                command.upgrade(config, SCHEMA)
            transaction.commit()
        except Exception as error:
            transaction.close()
            raise _failed(error, place, found, saved) from error
    return saved


def check_readable(connection: Connection, place: str) -> None:
    """For whoever only reads, and so changes nothing. Raises SchemaError, with the cure, for another schema than this
    version's."""
    found = current(connection)
    if _is_right(connection, found, place):
        return
    _known(found, place)
    raise SchemaError(
        f"{place} has schema {found or '(empty)'}, and this version of Outpost reads {SCHEMA}. Start its gateway once: "
        "a start makes a copy and brings the database up to date."
    )


def _is_right(connection: Connection, found: str | None, place: str) -> bool:
    """Whether the schema is this version's. Raises SchemaError where it only says so."""
    if found == SCHEMA and (lacking := _lacking(connection)):
        raise SchemaError(misfit(place, f"it lacks {lacking}"))
    return found == SCHEMA


def _known(found: str | None, place: str) -> Config:
    """What runs the migrations. Raises SchemaError for a schema that is none of theirs."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaError(
            f"{place} has schema {found}, which this version of Outpost does not know: it was written by a newer one. "
            "Start that version, or go back to the copy that it made in the folder `backups`."
        )
    return config


def current(connection: Connection) -> str | None:
    """The schema that the database says it has; None for an empty one. Raises SchemaError for somebody else's."""
    tables = inspect(connection).get_table_names()
    if "alembic_version" in tables:
        versions = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
        return str(versions[0]) if versions else None
    if tables:
        raise SchemaError(
            f"The database has tables ({', '.join(sorted(tables)[:3])}) but was not made by Outpost. "
            "Give `data_dir` or `database.url` another place."
        )
    return None


def _lacking(connection: Connection) -> str:
    """Tables and columns that this version needs and an SQLite database has not, some of them; empty where all are
    there. A schema that changed before it was released has the same name as now."""
    if connection.dialect.name != "sqlite":
        return ""
    query = "SELECT m.name, c.name FROM sqlite_master AS m JOIN pragma_table_info(m.name) AS c WHERE m.type = 'table'"
    there: dict[str, set[str]] = {}
    for table, column in connection.exec_driver_sql(query).all():
        there.setdefault(str(table), set()).add(str(column))
    missing = [f"the table {name}" for name in sorted(metadata.tables) if name not in there]
    missing += [
        f"{name}.{column.name}"
        for name, table in sorted(metadata.tables.items())
        for column in table.columns
        if name in there and column.name not in there[name]
    ]
    return ", ".join(missing[:3])


def _failed(error: Exception, place: str, found: str | None, saved: Path | None) -> SchemaError:
    way_back = (
        "Start again once the cause is gone."
        if found is None
        else "Start again once the cause is gone, or start the version of Outpost that ran before."
    )
    copy = "" if saved is None else f" A copy from before is {saved}."
    return SchemaError(
        f"Bringing {place} from schema {found or '(empty)'} to {SCHEMA} failed ({cause(error)}). "
        f"Nothing was changed. {way_back}{copy}"
    )


# --- copies --------------------------------------------------------------------------------------


def copy_sqlite(path: Path, schema: str, now: float) -> Path:
    """Copy the database, WAL included, to `backups/` beside it (mode 0600, synced); `now` is unix seconds.

    Raises SchemaError where that fails: a database with data is not changed without a way back.
    """
    target, descriptor = _target(path.parent / "backups", f"{path.stem}-schema-{schema}", now, ".db")
    try:
        source = sqlite3.connect(path)
        copy = sqlite3.connect(target)
        try:
            source.backup(copy)
        finally:
            copy.close()
            source.close()
        os.fsync(descriptor)
    except (sqlite3.Error, OSError) as error:
        target.unlink(missing_ok=True)
        raise SchemaError(
            f"{path} has schema {schema} and must be brought to {SCHEMA}, but it could not be copied to "
            f"{target.parent} first ({cause(error)}). Nothing was changed. Make room there and start again."
        ) from error
    finally:
        os.close(descriptor)
    return target


def copy_postgres(server: PostgresServer, schema: str, now: float, env: Mapping[str, str]) -> Path | None:
    """Dump the database to the server's folder for copies (pg_dump's custom form); None where the site makes its own.

    Raises SchemaError where there is no pg_dump or it fails: a database with data is not changed without a way back.
    """
    if server.external_backup:
        return None
    cure = (
        "Install PostgreSQL's client package of the server's version; or make a copy yourself, "
        "and set database.backup: external"
    )
    command = find_pg_dump(env, POSTGRES_COMMANDS)
    if command is None:
        raise SchemaError(
            f"{server} has schema {schema} and must be brought to {SCHEMA}, but there is no pg_dump to copy it first. "
            f"{cure}."
        )
    target, descriptor = _target(server.backups, f"{_plain(server.url.database)}-schema-{schema}", now, ".dump")
    try:
        done = subprocess.run(
            [command, "--format=custom", "--no-password"],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.PIPE,
            env=_client_env(server, env),
            check=False,
        )
        os.fsync(descriptor)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise SchemaError(f"{server} could not be copied by {command} ({error.strerror}). {cure}.") from error
    finally:
        os.close(descriptor)
    if done.returncode:
        target.unlink(missing_ok=True)
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise SchemaError(
            f"{server} could not be copied before bringing it from schema {schema} to {SCHEMA}: "
            f"{' '.join(said[:2]) or f'pg_dump ended with {done.returncode}'}. {cure}."
        )
    return target


def find_pg_dump(env: Mapping[str, str], commands: Path) -> str | None:
    """The newest version's below `commands`, as an older one refuses a newer server; else the one on PATH."""
    versions = [folder for folder in commands.glob("*/bin") if folder.parent.name.isdigit()]
    for folder in sorted(versions, key=lambda folder: int(folder.parent.name), reverse=True):
        if os.access(folder / "pg_dump", os.X_OK):
            return str(folder / "pg_dump")
    return shutil.which("pg_dump", path=env.get("PATH", ""))


def _client_env(server: PostgresServer, env: Mapping[str, str]) -> dict[str, str]:
    """libpq's variables; the command line, which others can see, holds nothing of it."""
    url = server.url
    made = {name: value for name, value in env.items() if not name.startswith("PG")}
    made |= {
        "PGHOST": url.host,
        "PGPORT": str(url.port),
        "PGUSER": url.user,
        "PGDATABASE": url.database,
        "PGSSLMODE": url.sslmode,
        "PGCONNECT_TIMEOUT": "10",
    }
    if server.password is not None:
        made["PGPASSWORD"] = server.password
    if url.sslmode in ("verify-ca", "verify-full"):
        # libpq looks for a file of the user's own unless it is told to take the system's authorities (since 16).
        made["PGSSLROOTCERT"] = str(url.sslrootcert or "system")
    return made


def _target(folder: Path, stem: str, now: float, suffix: str) -> tuple[Path, int]:
    """A new file's path and open descriptor."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = folder / f"{stem}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}{suffix}"
    return target, os.open(target, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)


def _plain(name: str) -> str:
    """A database's name as part of a file's name."""
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in name)
