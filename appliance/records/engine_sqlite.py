"""Connections to a SQLite file.

Durability is set per connection, so every connection is asked what it really does: SQLite answers
"delete" to `journal_mode=WAL` on a file system that cannot do it, and goes on without a word.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from appliance.errors import OutpostError
from appliance.records.failures import DatabaseError, unavailable
from appliance.records.migrate import copy_sqlite, migrate

_STATEMENTS = 256
"""That a connection of the writer keeps prepared: an INSERT for each size of a batch, and the others."""


class SqliteEngines:
    def __init__(self, path: Path, timeout_s: float) -> None:
        self.path = path
        self._timeout_s = timeout_s

    def reading(self) -> AsyncEngine:
        engine = create_async_engine(URL.create("sqlite+aiosqlite", database=str(self.path)))
        _configure(engine.sync_engine, self._timeout_s)
        return engine

    def writing(self) -> Engine:
        engine = create_engine(
            URL.create("sqlite", database=str(self.path)),
            poolclass=NullPool,
            connect_args={"cached_statements": _STATEMENTS},
        )
        _configure(engine, self._timeout_s)
        return engine

    def prepare(self, clock: Callable[[], float]) -> None:
        """Make the file if there is none (folder 0700, file 0600) and migrate it."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # SQLite gives its WAL and shared-memory files the mode of the main one, so this covers all three.
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self.refused(error) from error
        try:
            # One after the other: nobody waits for a file that is being made or goes over to its log, SQLite gives up.
            with contextlib.suppress(OSError):  # a file system without locks; its database is refused below
                fcntl.flock(folder, fcntl.LOCK_EX)
            self._prepare(clock)
        finally:
            os.close(folder)

    def _prepare(self, clock: Callable[[], float]) -> None:
        try:
            if not self.path.stat().st_size:
                _begin(self.path)
        except (OSError, sqlite3.Error) as error:
            raise self.refused(error) from error
        engine = self.writing()
        try:
            migrate(engine, str(self.path), lambda schema: copy_sqlite(self.path, schema, clock()))
        finally:
            engine.dispose()

    def refused(self, error: BaseException) -> OutpostError:
        if isinstance(error, OSError):
            return DatabaseError(f"{self.path} cannot be made or opened: {error.strerror}; see `data_dir`")
        return unavailable(error, self.path)

    def bare(self) -> dict[str, Any]:
        return {"bare": True}

    async def version(self, connection: AsyncConnection) -> object:
        # Counts changes as seen from this connection and reads no page of the file.
        return (await connection.exec_driver_sql("PRAGMA data_version")).scalar_one()


def _begin(path: Path) -> None:
    """What can be said of a file only before its first table: room that has become free can be given back."""
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("VACUUM")
    finally:
        connection.close()


def _configure(engine: Engine, timeout_s: float) -> None:
    wanted: tuple[tuple[str, str | int, Any], ...] = (
        ("busy_timeout", int(timeout_s * 1000), int(timeout_s * 1000)),
        ("journal_mode", "WAL", "wal"),
        ("synchronous", "FULL", 2),
        ("foreign_keys", "ON", 1),
        ("trusted_schema", "OFF", 0),
        # What is erased must not stay in free pages.
        ("secure_delete", "ON", 1),
    )

    def on_connect(connection: Any, _: Any) -> None:
        # The driver would begin transactions late and not at all before DDL; `on_begin` says it instead.
        connection.isolation_level = None
        cursor = connection.cursor()
        try:
            for name, value, expected in wanted:
                cursor.execute(f"PRAGMA {name}={value}")
                cursor.execute(f"PRAGMA {name}")
                found = cursor.fetchone()[0]
                if found != expected:
                    raise DatabaseError(
                        f"The database's {name} is {found}, not {expected}: this disk or file system cannot keep "
                        "records safely. Put `data_dir` on a local disk."
                    )
        finally:
            cursor.close()

    def on_begin(connection: Connection) -> None:
        # A read that turns into a write can fail at once with "locked"; a declared write waits its turn.
        options = connection.get_execution_options()
        if not options.get("bare", False):
            connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("write", False) else "BEGIN")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)
