"""Connections to a PostgreSQL server: asyncpg for the event loop's reads, pg8000 for threads (writer, migrations).

The ledger has one writer. Whoever writes holds an advisory lock of its session for as long as its connection lives.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pg8000  # type: ignore[import-untyped]
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool, QueuePool

from appliance.errors import OutpostError
from appliance.records.failures import DatabaseError, DatabaseInUse, sqlstate, unavailable
from appliance.records.migrate import copy_postgres, current, migrate
from appliance.records.postgres_server import PostgresServer, no_rights, refused, tls
from appliance.records.tables import SCHEMA

WRITER_LOCK = int.from_bytes(b"outpost")
"""The advisory lock of the one writer; PostgreSQL keeps such locks apart by database."""

CONNECT_S = 5.0
READ_S = 30.0
"""Longest statement of a reader. Reports read a whole month, and nobody's answer waits for them."""

_GRACE_S = 3.0
"""How much longer than the server's own timeouts a silent server is waited for."""

_WAITED = frozenset({"55P03", "57014"})
"""SQLSTATEs of a lock or statement that took too long."""


class WriterCursor(pg8000.Cursor):  # type: ignore[misc]  # it ships no types
    """A cursor that keeps statements prepared: one round trip each, where `execute` with parameters takes three."""

    def __init__(self, connection: _Connection) -> None:
        super().__init__(connection)
        self._prepare = connection.prepare
        self._prepared: dict[str, Any] = {}

    def run(self, statement: str, **values: Any) -> None:
        """Execute a statement whose parameters are `:name`."""
        prepared = self._prepared.get(statement)
        if prepared is None:
            prepared = self._prepared[statement] = self._prepare(statement)
        prepared.run(**values)


class _Connection(pg8000.Connection):  # type: ignore[misc]
    """`commit` sends nothing where no transaction is open: in autocommit SQLAlchemy calls it all the same."""

    def cursor(self) -> WriterCursor:
        return WriterCursor(self)

    def commit(self) -> None:
        if self._in_transaction:
            super().commit()

    def handle_messages(self, context: Any) -> None:
        # Of a connection that breaks while an answer is awaited, the driver lets the bare error of the socket through.
        try:
            super().handle_messages(context)
        except OSError as error:
            raise pg8000.InterfaceError("network error") from error

    def close(self) -> None:
        # Saying goodbye to a server that is gone must not hide why.
        with contextlib.suppress(pg8000.InterfaceError, OSError):
            super().close()


class PostgresEngines:
    """timeout_s: longest wait for a lock. token: a name for one writer of this process."""

    def __init__(
        self, server: PostgresServer, timeout_s: float, *, token: Callable[[], str] = lambda: secrets.token_hex(8)
    ) -> None:
        self.server = server
        self._timeout_s = timeout_s
        # A little more, so that a wait for a lock is told as such.
        self._statement_s = 1.5 * timeout_s
        self._token = token
        self._tls = tls(server.url)

    # --- for the event loop ---

    def reading(self) -> AsyncEngine:
        url = self.server.url
        settings = self._settings(READ_S) | {"application_name": "outpost", "jit": "off"}

        async def connect(*_: Any, **__: Any) -> Any:
            # Everything is said, also what is empty: what is left out, the driver takes from the environment.
            return await asyncpg.connect(
                host=url.host,
                port=url.port,
                user=url.user,
                password=self.server.password or "",
                database=url.database,
                ssl=self._tls or False,
                timeout=CONNECT_S,
                command_timeout=READ_S + _GRACE_S,
                server_settings=settings,
            )

        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=connect,
            isolation_level="REPEATABLE READ",
            pool_pre_ping=True,
            pool_timeout=self._timeout_s,
        )
        event.listen(engine.sync_engine, "handle_error", _broken_socket)
        return engine

    def bare(self) -> dict[str, Any]:
        return {"isolation_level": "AUTOCOMMIT"}

    async def version(self, connection: AsyncConnection) -> object:
        # Which transactions this moment sees; every commit changes it.
        return (await connection.exec_driver_sql("SELECT CAST(pg_current_snapshot() AS text)")).scalar_one()

    # --- for threads ---

    def writing(self) -> Engine:
        """Each connect is a new session that becomes the one writer. Raises DatabaseInUse where another one is."""
        name = f"outpost-writer-{self._token()}"
        engine = self._engine(self._statement_s, name)
        event.listen(engine, "connect", _Claim(name))
        event.listen(engine, "handle_error", _broken_constraint)
        return engine

    def prepare(self, clock: Callable[[], float]) -> None:
        """Check what the server promises, and migrate the database as its one writer."""
        plain = self._engine(self._statement_s, "outpost")
        # The steps rewrite tables and take as long as that takes; only waiting for others stays bounded. One session
        # from the first look to the end: the lock is the session's.
        name = f"outpost-writer-{self._token()}"
        locked = self._engine(None, name, poolclass=QueuePool, pool_size=1, max_overflow=0)
        event.listen(locked, "connect", _Claim(name))
        try:
            with plain.connect() as connection:
                _check(dict(connection.execute(text(_PROMISES)).mappings().one()), self.server)
                if current(connection) == SCHEMA:
                    return
                if not connection.execute(text(_MAY_MAKE)).scalar_one():
                    raise no_rights(self.server)
            migrate(
                locked, str(self.server), lambda schema: copy_postgres(self.server, schema, clock(), dict(os.environ))
            )
        finally:
            plain.dispose()
            locked.dispose()

    def refused(self, error: BaseException) -> OutpostError:
        return refused(error, self.server)

    def _engine(self, statement_s: float | None, name: str, **pool: Any) -> Engine:
        url = self.server.url
        settings = self._settings(statement_s) | {
            "synchronous_commit": "on",
            # So that the server soon notices a writer that is gone without a word, and its lock is free.
            "tcp_keepalives_idle": "5",
            "tcp_keepalives_interval": "2",
            "tcp_keepalives_count": "3",
        }
        if url.socket:
            place = {"unix_sock": f"{url.host}/.s.PGSQL.{url.port}", "ssl_context": False}
        else:
            place = {"host": url.host, "port": url.port, "ssl_context": self._tls or False}

        def connect() -> _Connection:
            return _Connection(
                url.user,
                # Without one the driver fails in its own way where the server asks.
                password=self.server.password or "",
                database=url.database,
                timeout=None if statement_s is None else statement_s + _GRACE_S,
                application_name=name,
                startup_params=settings,
                **place,
            )

        return create_engine("postgresql+pg8000://", creator=connect, **(pool or {"poolclass": NullPool}))

    def _settings(self, statement_s: float | None) -> dict[str, str]:
        return {
            "client_encoding": "UTF8",
            "lock_timeout": f"{int(self._timeout_s * 1000)}ms",
            "statement_timeout": f"{int((statement_s or 0.0) * 1000)}ms",
        }


class _Claim:
    """Makes a new session the one writer; on the way it ends this writer's session before, should the server still
    believe in it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._again = False

    def __call__(self, connection: Any, _: Any) -> None:
        try:
            cursor = connection.cursor()
            if self._again:
                cursor.execute(_END_FORMER, (self._name,))
            cursor.execute("SELECT pg_advisory_lock(%s)", (WRITER_LOCK,))
            connection.commit()
        except Exception as error:
            connection.close()
            if sqlstate(error) in _WAITED:
                raise DatabaseInUse(
                    "Another Outpost process writes to this database. Stop it, or give this one a database of its own "
                    "(database.url).",
                    retry_after_s=1.0,
                ) from error
            raise
        self._again = True


_END_FORMER = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE application_name = %s AND datname = current_database() AND pid <> pg_backend_pid()"
)
_MAY_MAKE = "SELECT coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)"
_PROMISES = (
    "SELECT current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes, "
    "current_setting('server_encoding') AS encoding, pg_is_in_recovery() AS standby"
)


def _check(promises: dict[str, Any], server: PostgresServer) -> None:
    for name in ("fsync", "full_page_writes"):
        if promises[name] != "on":
            raise DatabaseError(
                f"The server of {server} runs with {name} off and cannot keep records safely; turn it on."
            )
    if promises["encoding"] != "UTF8":
        raise DatabaseError(
            f"database.url: {server.url.database} has the encoding {promises['encoding']}; "
            "make one with: createdb --encoding UTF8 --template template0"
        )
    if promises["standby"]:
        raise DatabaseError(
            f"database.url: the server of {server} is a standby, which takes no records; name the primary"
        )


def _broken_socket(context: ExceptionContext) -> BaseException | None:
    """A connection that breaks in the middle of a statement is an error of the socket, not of the driver."""
    if isinstance(context.original_exception, OSError) and context.sqlalchemy_exception is None:
        return unavailable(asyncpg.InterfaceError(str(context.original_exception) or "no answer"))
    return None


def _broken_constraint(context: ExceptionContext) -> BaseException | None:
    """The driver tells only a broken UNIQUE as an IntegrityError; so are the other constraints."""
    found = context.sqlalchemy_exception
    if not isinstance(found, DBAPIError) or isinstance(found, IntegrityError) or found.orig is None:
        return None
    if not (sqlstate(found) or "").startswith("23"):
        return None
    return IntegrityError(found.statement, found.params, found.orig)
