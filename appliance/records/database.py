"""The database of the box, opened the same way by everybody: a SQLite file or a database of a PostgreSQL server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from appliance.errors import OutpostError
from appliance.records.engine_sqlite import SqliteEngines
from appliance.records.failures import DatabaseError, DatabaseInUse, unavailable
from appliance.records.migrate import check_readable
from appliance.records.postgres_server import PostgresServer, read_passfile
from appliance.settings import SecretMissing, resolve
from appliance.settings import schema as settings
from appliance.settings.database_url import SQLITE, is_postgres, parse_postgres

__all__ = ["Database", "DatabaseError", "DatabaseInUse", "Where", "database_path", "locate", "unavailable"]

BUSY_TIMEOUT_S = 2.0

Where = Path | PostgresServer
"""A SQLite file, or a database of a server."""


class _Engines(Protocol):
    """What depends on the kind of database."""

    def reading(self) -> AsyncEngine: ...

    def writing(self) -> Engine: ...

    def prepare(self, clock: Callable[[], float]) -> None:
        """Make what is missing and migrate; blocks."""
        ...

    def refused(self, error: BaseException) -> OutpostError:
        """The error of ours for one that opening met."""
        ...

    def bare(self) -> dict[str, Any]:
        """Execution options of a connection without transactions."""
        ...

    async def version(self, connection: AsyncConnection) -> object:
        """Something that differs, on one bare connection, after anything was committed."""
        ...


def locate(database: settings.Database, data_dir: Path, env: Mapping[str, str]) -> Where:
    """What the section `database` means. Raises DatabaseError for a password that cannot be had."""
    url = database.url
    if not is_postgres(url):
        return data_dir / "outpost.db" if url == "sqlite" else Path(url.removeprefix(SQLITE))
    parsed = parse_postgres(url)
    try:
        password = None if database.password is None else resolve(database.password, env)
    except SecretMissing as missing:
        raise DatabaseError(f"database.password: {missing.message}; {missing.cure}") from missing
    return PostgresServer(
        url=parsed,
        password=read_passfile(parsed) if password is None else password,
        backups=data_dir / "backups",
        external_backup=database.backup == "external",
    )


def database_path(url: str, data_dir: Path) -> Path:
    """The file that an address of a SQLite database means."""
    where = locate(settings.Database(url=url), data_dir, {})
    if not isinstance(where, Path):
        raise DatabaseError("database.url: this command takes a SQLite database only")
    return where


class Database:
    """Connections to one database. Reading is for the event loop; what writes, the recorder, has its own engine.

    busy_timeout_s: longest wait for a lock of somebody else's.
    """

    def __init__(self, where: Where, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.where = where
        self.busy_timeout_s = busy_timeout_s
        self._engines = _engines(where, busy_timeout_s)
        self.engine: AsyncEngine = self._engines.reading()
        self._watching: AsyncConnection | None = None
        self._watched = 0
        self._asking = asyncio.Lock()

    @classmethod
    async def open(
        cls, where: Where, *, busy_timeout_s: float = BUSY_TIMEOUT_S, clock: Callable[[], float] = time.time
    ) -> Database:
        """Make the file if there is none (a server's database must be there) and migrate it.

        `clock` gives unix seconds, for the copy's name. Raises DatabaseError, SchemaError,
        RecordsUnavailable.
        """
        engines = _engines(where, busy_timeout_s)
        try:
            await asyncio.to_thread(engines.prepare, clock)
        except (DBAPIError, OSError) as error:
            raise engines.refused(error) from error
        return cls(where, busy_timeout_s=busy_timeout_s)

    @classmethod
    async def open_to_read(cls, where: Where, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Database:
        """Open a database as it is: nothing is made and nothing is migrated, whoever writes it meanwhile.

        Raises DatabaseError, SchemaError for one that a start would change, RecordsUnavailable.
        """
        if isinstance(where, Path) and not (where.exists() and where.stat().st_size):
            # Connecting would make the file.
            raise DatabaseError(f"{where} is not there or empty; a gateway makes it at its first start")
        database = cls(where, busy_timeout_s=busy_timeout_s)
        try:
            async with database.read() as connection:
                await connection.run_sync(check_readable, str(where))
        except BaseException:
            await database.close()
            raise
        return database

    @property
    def path(self) -> Path:
        """The file; only SQLite has one."""
        if not isinstance(self.where, Path):
            raise DatabaseError(f"{self.where} is not a file")
        return self.where

    def writer_engine(self) -> Engine:
        """A synchronous engine for a thread of its own; each connect opens the database anew. On a server each
        connection is the database's one writer while it lives, and connecting may raise DatabaseInUse."""
        return self._engines.writing()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection in a read transaction: one consistent view. Raises RecordsUnavailable."""
        connection = await self._connect()
        try:
            async with connection.begin():
                yield connection
        except DBAPIError as error:
            # Files that failed are opened anew: a descriptor may remember its error, or forget it.
            await self.engine.dispose()
            raise unavailable(error) from error
        finally:
            await connection.close()

    async def bare(self) -> AsyncConnection:
        """A connection to keep, without transactions: each statement sees the newest state. The caller closes it.
        Raises RecordsUnavailable."""
        return await self._connect(**self._engines.bare())

    async def changed_since(self, token: object) -> object | None:
        """None if nothing was committed since `token` was given; else the token of now.

        None as `token` always gets one. Whoever reads after this call sees at least what the token stands for. It
        costs one small statement on a connection of its own. Raises RecordsUnavailable; what has changed meanwhile is
        told by the next call.
        """
        async with self._asking:
            if self._watching is None:
                self._watching = await self.bare()
                self._watched += 1
            try:
                now = (self._watched, await self._engines.version(self._watching))
            except BaseException as error:
                await self._forget_watching()
                if isinstance(error, DBAPIError):
                    raise unavailable(error) from error
                raise
        return None if now == token else now

    async def close(self) -> None:
        await self._forget_watching()
        await self.engine.dispose()

    async def _connect(self, **options: Any) -> AsyncConnection:
        try:
            connection = await self.engine.connect()
        except (DBAPIError, OSError, PoolTimeout) as error:
            raise self._unreachable(error) from error
        return await connection.execution_options(**options) if options else connection

    def _unreachable(self, error: Exception) -> OutpostError:
        return unavailable(error) if isinstance(self.where, Path) else self._engines.refused(error)

    async def _forget_watching(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            await watching.close()


def _engines(where: Where, busy_timeout_s: float) -> _Engines:
    if isinstance(where, Path):
        return SqliteEngines(where, busy_timeout_s)
    # Its drivers load only where they are used.
    from appliance.records.engine_postgres import PostgresEngines

    return PostgresEngines(where, busy_timeout_s)
