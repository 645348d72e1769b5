"""The database of the box: one SQLite file, opened the same way by everybody.

Durability is set per connection, so every connection is asked what it really does: SQLite answers
"delete" to `journal_mode=WAL` on a file system that cannot do it, and goes on without a word.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from appliance.errors import OutpostError, RecordsUnavailable
from appliance.records.migrate import migrate

BUSY_TIMEOUT_S = 2.0


class DatabaseError(OutpostError):
    """The database cannot be used as it is set up; the message says what to change."""

    code = "database_setup"


def database_path(url: str, data_dir: Path) -> Path:
    """The file that the setting `database.url` means. Raises DatabaseError."""
    if url == "sqlite":
        return data_dir / "outpost.db"
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise DatabaseError("database.url is not a URL; write `sqlite` or `sqlite+aiosqlite:///FILE`") from error
    if parsed.get_backend_name() != "sqlite":
        raise DatabaseError(
            f"database.url: {parsed.get_backend_name()} is not supported by this version; "
            "write `sqlite` or `sqlite+aiosqlite:///FILE`"
        )
    if not parsed.database or parsed.database == ":memory:":
        raise DatabaseError("database.url names no file; write `sqlite+aiosqlite:///FILE`")
    return Path(parsed.database)


class Database:
    """Connections to one file. `read` and `write` are for the event loop; the recorder has its own engine."""

    def __init__(self, path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.path = path
        self.busy_timeout_s = busy_timeout_s
        self.engine: AsyncEngine = create_async_engine(URL.create("sqlite+aiosqlite", database=str(path)))
        _configure(self.engine.sync_engine, busy_timeout_s)

    @classmethod
    async def open(
        cls, path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S, clock: Callable[[], float] = time.time
    ) -> Database:
        """Make the file if there is none (folder 0700, file 0600) and migrate it.

        `clock` gives unix seconds, for the backup's name. Raises DatabaseError, SchemaError,
        RecordsUnavailable.
        """
        try:
            await asyncio.to_thread(_prepare, path, busy_timeout_s, clock)
        except OSError as error:
            raise DatabaseError(f"{path} cannot be made or opened: {error.strerror}; see `data_dir`") from error
        except DBAPIError as error:
            raise unavailable(error) from error
        return cls(path, busy_timeout_s=busy_timeout_s)

    def writer_engine(self) -> Engine:
        """A synchronous engine on the same file for a thread of its own; each connect opens the file anew."""
        engine = create_engine(URL.create("sqlite", database=str(self.path)), poolclass=NullPool)
        _configure(engine, self.busy_timeout_s)
        return engine

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a read transaction: one consistent view. Raises RecordsUnavailable."""
        try:
            async with self.engine.connect() as connection, connection.begin():
                yield connection
        except DBAPIError as error:
            await self.engine.dispose()
            raise unavailable(error) from error

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A connection that holds the write lock until the block ends, then commits.

        Raises RecordsUnavailable; a broken constraint stays an IntegrityError.
        """
        try:
            async with self.engine.connect() as connection:
                connection = await connection.execution_options(write=True)
                async with connection.begin():
                    yield connection
        except IntegrityError:
            raise
        except DBAPIError as error:
            # Files that failed are opened anew: a descriptor may remember its error, or forget it.
            await self.engine.dispose()
            raise unavailable(error) from error

    async def bare(self) -> AsyncConnection:
        """A connection to keep, without transactions: each statement sees the newest state. The caller closes it."""
        connection = await self.engine.connect()
        return await connection.execution_options(bare=True)

    async def close(self) -> None:
        await self.engine.dispose()


def unavailable(error: BaseException) -> RecordsUnavailable:
    """The driver's error in the house's words; a lock or a full disk may pass, so a retry may help."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return RecordsUnavailable(
        f"The record database cannot be used right now ({cause}). Check the disk and the file's permissions.",
        retry_after_s=1.0,
    )


def _prepare(path: Path, busy_timeout_s: float, clock: Callable[[], float]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite gives its WAL and shared-memory files the mode of the main one, so this covers all three.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    engine = create_engine(URL.create("sqlite", database=str(path)), poolclass=NullPool)
    _configure(engine, busy_timeout_s)
    try:
        migrate(engine, path, clock=clock)
    finally:
        engine.dispose()


def _configure(engine: Engine, busy_timeout_s: float) -> None:
    wanted: tuple[tuple[str, str | int, Any], ...] = (
        ("busy_timeout", int(busy_timeout_s * 1000), int(busy_timeout_s * 1000)),
        ("journal_mode", "WAL", "wal"),
        ("synchronous", "FULL", 2),
        ("foreign_keys", "ON", 1),
        ("trusted_schema", "OFF", 0),
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
