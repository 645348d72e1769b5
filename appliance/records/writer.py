"""The tail of the record: one writer gives each row its number and makes a batch durable.

Synchronous and used by one thread at a time. Everything that has to happen in the order of the
rows (numbering now, a hash chain later) belongs here, between `BEGIN` and `COMMIT`.

Why not the event loop's engine: one commit through SQLAlchemy's asyncio layer and aiosqlite costs
several thread hops. Why one INSERT of many rows, not executemany: the driver releases and retakes
the interpreter's lock at every step, and a busy event loop may keep it for milliseconds each time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, insert
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.pool import PoolProxiedConnection

from appliance.records.rows import COLUMNS, ExchangeRow, flatten, storable
from appliance.records.tables import exchanges

_SIZES = (64, 32, 16, 8, 4, 2, 1)
"""Rows of one INSERT. A few fixed sizes keep the driver's statements prepared."""

_PROBE = "INSERT INTO counters (name, value) VALUES ('probe', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"

# A row that cannot be bound or breaks a constraint; anything else of the driver's means that the file is the trouble.
ROW_ERRORS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    TypeError,
    ValueError,
)


class RowWriter:
    """Owns the last sequence number. After any error the file is closed and the next call opens it anew:
    a descriptor whose fsync failed must not be trusted again."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._statements = {size: _insert(engine, size) for size in _SIZES}
        self._connection: PoolProxiedConnection | None = None
        self._cursor: DBAPICursor | None = None
        self._tail = 0

    def write(self, rows: Sequence[ExchangeRow]) -> int:
        """Make `rows` durable as one transaction; answer the number of the first (the rest follow on).

        Raises the driver's or the binding's error; then nothing is promised about any of the rows.
        """
        try:
            cursor = self._cursor or self._open()
            first = self._tail + 1
            if len(rows) in self._statements:
                # In autocommit a single statement is begun, committed and synced inside one call of the driver.
                self._insert(cursor, first, rows)
            else:
                cursor.execute("BEGIN IMMEDIATE")
                for start, size in _cut(len(rows)):
                    self._insert(cursor, first + start, rows[start : start + size])
                cursor.execute("COMMIT")
        except BaseException:
            self.close()
            raise
        self._tail += len(rows)
        return first

    def write_alone(self, row: ExchangeRow) -> int:
        """Write a row that failed in company, with whatever no database can store replaced."""
        return self.write([storable(row)])

    def probe(self) -> None:
        """Commit something small: raises the driver's error while writing does not work."""
        try:
            cursor = self._cursor or self._open()
            cursor.execute(_PROBE)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; an open transaction is rolled back. May be called again."""
        connection, self._connection, self._cursor = self._connection, None, None
        if connection is not None:
            try:
                connection.invalidate()
            finally:
                self._engine.dispose()

    def _open(self) -> DBAPICursor:
        self._connection = self._engine.raw_connection()
        cursor = self._connection.cursor()
        # The newest number ever given, even where its row has been erased since.
        cursor.execute("SELECT seq FROM sqlite_sequence WHERE name = 'exchanges'")
        found = cursor.fetchone()
        self._tail = 0 if found is None else int(found[0])
        self._cursor = cursor
        return cursor

    def _insert(self, cursor: DBAPICursor, first: int, rows: Sequence[ExchangeRow]) -> None:
        values: list[Any] = []
        for seq, row in enumerate(rows, first):
            values += flatten(seq, row)
        cursor.execute(self._statements[len(rows)], values)


def _cut(count: int) -> list[tuple[int, int]]:
    """`count` rows as (start, size) pieces of `_SIZES`, the largest first."""
    pieces = []
    start = 0
    for size in _SIZES:
        while count - start >= size:
            pieces.append((start, size))
            start += size
    return pieces


def _insert(engine: Engine, size: int) -> str:
    """SQLAlchemy's INSERT of `size` rows, compiled once."""
    blank = dict.fromkeys(COLUMNS)
    statement = insert(exchanges).values([blank] * size)
    return str(statement.compile(engine, column_keys=list(COLUMNS)))
