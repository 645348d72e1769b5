"""From the schema that a file has to the one this version needs, with a copy of the file made first.

Runs at every start, in a thread. A file that is already right costs one small query.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from appliance.errors import OutpostError
from appliance.records.tables import SCHEMA

MIGRATIONS = Path(__file__).parent / "migrations"


class SchemaError(OutpostError):
    """The file's schema is not one that this version can bring up to date."""

    code = "database_schema"


def migrate(engine: Engine, path: Path, *, clock: Callable[[], float] = time.time) -> Path | None:
    """Bring the file at `path` to `SCHEMA`; answer the backup's path, or None where none was needed.

    All steps are one transaction: after a failure the file is as before. Two processes that start
    together take turns. Raises SchemaError for a file of a newer version.
    """
    with engine.connect() as connection:
        found = current(connection)
    if found == SCHEMA:
        return None
    # Alembic takes longer to load than everything else here, so only a start that needs it pays.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaError(
            f"{path} has schema {found}, which this version of Outpost does not know: it was written by a newer one. "
            "Start that version, or restore the copy that it made in the folder `backups` beside the file."
        )
    saved = None if found is None else backup(path, found, clock())
    with engine.connect() as connection:
        connection = connection.execution_options(write=True)
        with connection.begin():
            if current(connection) != SCHEMA:
                config.attributes["connection"] = connection
                command.upgrade(config, SCHEMA)
    return saved


def current(connection: Connection) -> str | None:
    """The schema that the file says it has; None for an empty file. Raises SchemaError for somebody else's file."""
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


def backup(path: Path, schema: str, now: float) -> Path:
    """Copy the database, WAL included, to `backups/` beside it (mode 0600, synced); `now` is unix seconds."""
    folder = path.parent / "backups"
    folder.mkdir(mode=0o700, exist_ok=True)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    target = folder / f"{path.stem}-schema-{schema}-{stamp}.db"
    descriptor = os.open(target, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        source = sqlite3.connect(path)
        copy = sqlite3.connect(target)
        try:
            source.backup(copy)
        finally:
            copy.close()
            source.close()
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return target
