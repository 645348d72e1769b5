"""The tail of the record: one writer gives each record its number and its hash, and makes a batch durable.

Synchronous and used by one thread at a time. Everything that has to happen in the order of the records happens
here, between `BEGIN` and `COMMIT`.

Why not the event loop's engine: one commit through SQLAlchemy's asyncio layer and aiosqlite costs
several thread hops. Why one INSERT of many rows, not executemany: the driver releases and retakes
the interpreter's lock at every step, and a busy event loop may keep it for milliseconds each time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Table, func, insert, select
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.exc import DBAPIError

from appliance.records.chain import GENESIS, exchange_body, link
from appliance.records.dialect import Dialect, TailMoved, Values
from appliance.records.rows import ExchangeRow, flatten, storable
from appliance.records.tables import anchors, checkpoints, events, exchanges
from appliance.records.transaction import Failed, Tail, Transaction, Work

Item = ExchangeRow | Work


class RowWriter:
    """Owns the ledger's tail. After any error the file is closed and the next call opens it anew:
    a descriptor whose fsync failed must not be trusted again. wall: unix seconds."""

    def __init__(self, engine: Engine, *, wall: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._wall = wall
        self._dialect: Dialect = dialect_of(engine)
        self._connection: Connection | None = None
        self._cursor: DBAPICursor | None = None
        self._tail = Tail(0, GENESIS, 0)

    def write(self, rows: Sequence[ExchangeRow]) -> int:
        """Make `rows` durable as one transaction; answer the number of the first (the rest follow on).

        Raises the driver's or the binding's error; then nothing is promised about any of the rows.
        """
        try:
            return self._write(rows)
        except TailMoved:
            # Another process has written, which is rare; the tail was read anew when the file was opened again.
            return self._write(rows)

    def _write(self, rows: Sequence[ExchangeRow]) -> int:
        try:
            cursor = self._cursor or self._open()
            tail = self._tail
            flat, digest = self._flat(rows, tail)
            if not self._dialect.insert_alone(cursor, flat):
                self._dialect.begin(cursor, durable=True)
                if self._dialect.newest(cursor) > tail.seq:
                    raise TailMoved
                self._dialect.insert(cursor, flat)
                self._dialect.commit(cursor, durable=True)
        except BaseException:
            self.close()
            raise
        first = tail.seq + 1
        self._tail = _behind(tail, len(rows), digest)
        return first

    def write_mixed(self, items: Sequence[Item]) -> list[Any]:
        """Rows and works in their order as one transaction: for a row its number, for a work what it returned, or
        `Failed`. Raises like `write`."""
        durable = any(not isinstance(item, Work) or item.durable for item in items)
        results: list[Any] = []
        try:
            cursor = self._cursor or self._open()
            connection = self._connection
            assert connection is not None
            self._dialect.begin(cursor, durable=durable)
            tail = self._tail
            if self._dialect.newest(cursor) > tail.seq:
                tail = self._read_tail(cursor, connection)
            at = self._wall()
            rows: list[ExchangeRow] = []
            for item in items:
                if isinstance(item, Work):
                    tail = self._insert(cursor, rows, tail, results)
                    rows = []
                    result, tail = self._run(cursor, Transaction(connection, tail, at), item, tail)
                    results.append(result)
                else:
                    rows.append(item)
            tail = self._insert(cursor, rows, tail, results)
            self._dialect.commit(cursor, durable=durable)
            # The transaction was the driver's; this only tells SQLAlchemy that whatever it believed to be open is over.
            connection.commit()
        except BaseException:
            self.close()
            raise
        self._tail = tail
        return results

    def write_alone(self, item: Item) -> Any:
        """Write what failed in company; of a row, whatever cannot be kept is replaced."""
        if isinstance(item, Work):
            return self.write_mixed([item])[0]
        return self.write([storable(item)])

    def probe(self) -> None:
        """Commit something small: raises the driver's error while writing does not work."""
        try:
            self._dialect.probe(self._cursor or self._open())
        except BaseException:
            self.close()
            raise

    @property
    def newest(self) -> int:
        """The number of the newest record."""
        return self._tail.last

    def is_row_error(self, error: BaseException) -> bool:
        """Whether `write` failed because of a row, not of the database."""
        return self._dialect.is_row_error(error)

    def close(self) -> None:
        """Close the file; an open transaction is rolled back. May be called again."""
        connection, self._connection, self._cursor = self._connection, None, None
        if connection is None:
            return
        try:
            # A traceback may keep a cursor alive, and with it SQLite's connection and lock, however closed that is.
            with contextlib.suppress(Exception):
                connection.connection.rollback()
            connection.invalidate()
            connection.close()
        finally:
            self._engine.dispose()

    # --- the pieces of a transaction ---

    def _flat(self, rows: Sequence[ExchangeRow], tail: Tail) -> tuple[list[Values], bytes]:
        """The rows as columns with their hashes, and the hash of the last."""
        flat: list[Values] = []
        digest = tail.hash
        for seq, row in enumerate(rows, tail.seq + 1):
            values = flatten(seq, row)
            digest = link(digest, exchange_body(values))
            flat.append((*values, digest))
        return flat, digest

    def _insert(self, cursor: DBAPICursor, rows: Sequence[ExchangeRow], tail: Tail, results: list[Any]) -> Tail:
        if not rows:
            return tail
        flat, digest = self._flat(rows, tail)
        self._dialect.insert(cursor, flat)
        results += range(tail.seq + 1, tail.seq + 1 + len(rows))
        return _behind(tail, len(rows), digest)

    def _run(self, cursor: DBAPICursor, transaction: Transaction, work: Work, tail: Tail) -> tuple[Any, Tail]:
        """A work in its savepoint: its result and the tail after it, or `Failed` and the tail before it."""
        cursor.execute("SAVEPOINT work")
        try:
            result = work.run(transaction)
        except Exception as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            if cause is not None and not self._dialect.is_statement_error(cause):
                raise
            cursor.execute("ROLLBACK TO SAVEPOINT work")
            cursor.execute("RELEASE SAVEPOINT work")
            return Failed(error), tail
        cursor.execute("RELEASE SAVEPOINT work")
        return result, transaction.tail

    # --- opening ---

    def _open(self) -> DBAPICursor:
        # The transactions are begun and ended by the dialect's own statements, so SQLAlchemy must not.
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT", bare=True)
        self._connection = connection
        cursor = connection.connection.cursor()
        self._dialect.opened(cursor)
        if not self._begun(connection):
            self._anchor(cursor, connection)
        self._tail = self._read_tail(cursor, connection)
        connection.commit()
        self._cursor = cursor
        return cursor

    def _read_tail(self, cursor: DBAPICursor, connection: Connection) -> Tail:
        last = max((_last(connection, table) for table in (exchanges, events, anchors)), key=lambda tail: tail.seq)
        named = connection.scalar(select(func.max(checkpoints.c.seq))) or 0
        return Tail(max(self._dialect.newest(cursor), last.seq, int(named)), last.hash, last.seq)

    def _begun(self, connection: Connection) -> bool:
        """Whether this database has a ledger. One whose anchor alone is gone has one: verifying it will say so."""
        return any(
            connection.execute(query.limit(1)).first() is not None
            for query in (
                select(anchors.c.seq),
                select(events.c.seq),
                select(checkpoints.c.seq),
                select(exchanges.c.seq).where(exchanges.c.hash.is_not(None)),
            )
        )

    def _anchor(self, cursor: DBAPICursor, connection: Connection) -> None:
        """Begin the ledger behind the records that are there already, or at 0."""
        self._dialect.begin(cursor, durable=True)
        if not self._begun(connection):
            seq = self._dialect.newest(cursor)
            reason = "records before this one are older than the ledger" if seq else "the ledger begins"
            connection.execute(insert(anchors), {"seq": seq, "hash": GENESIS, "at": self._wall(), "reason": reason})
        self._dialect.commit(cursor, durable=True)


def _last(connection: Connection, table: Table) -> Tail:
    found = connection.execute(select(table.c.seq, table.c.hash).order_by(table.c.seq.desc()).limit(1)).first()
    seq, digest = (0, GENESIS) if found is None else (int(found[0]), bytes(found[1] or GENESIS))
    return Tail(seq, digest, seq)


def _behind(tail: Tail, count: int, digest: bytes) -> Tail:
    """The tail after `count` more records."""
    return Tail(tail.seq + count, digest, tail.seq + count) if count else tail


def dialect_of(engine: Engine) -> Dialect:
    """The dialect that an engine's database speaks."""
    if engine.dialect.name == "sqlite":
        from appliance.records.dialect_sqlite import SqliteDialect

        return SqliteDialect(engine)
    if engine.dialect.name == "postgresql":
        from appliance.records.dialect_postgres import PostgresDialect

        return PostgresDialect(engine)
    raise ValueError(f"there is no writer for {engine.dialect.name}; known are sqlite and postgresql")
