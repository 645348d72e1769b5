"""How the writer speaks to SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.engine.interfaces import DBAPICursor

from appliance.records.dialect import TailMoved, Values
from appliance.records.rows import COLUMNS
from appliance.records.tables import exchanges

_ALONE = 64
"""Rows that one INSERT takes along by itself: each statement more gives the interpreter's lock away twice more."""
_SIZES = (64, 32, 16, 8, 4, 2, 1)
"""Rows of one INSERT among others. A few fixed sizes keep the driver's statements prepared."""

_PROBE = "INSERT INTO counters (name, value) VALUES ('probe', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"
_UNLESS_PASSED = "CASE WHEN EXISTS (SELECT 1 FROM events WHERE seq >= ?1) THEN 'passed' ELSE ?1 END"
"""The first row's number. No column that counts takes a word: the statement fails with a mismatch, at no cost for all
those that do not."""
_NEWEST = (
    "SELECT max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'exchanges'), 0), "
    "coalesce((SELECT max(seq) FROM events), 0))"
)

# A row that cannot be bound or breaks a constraint; anything else of the driver's means that the file is the trouble.
_ROW_ERRORS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    TypeError,
    ValueError,
)
_STATEMENT_ERRORS = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_MISUSE,
        sqlite3.SQLITE_RANGE,
        sqlite3.SQLITE_TOOBIG,
    }
)
"""Primary result codes. After others (a full disk, an I/O error) SQLite may have rolled everything back by itself."""


class SqliteDialect:
    def __init__(self, engine: Engine) -> None:
        self._guarded = {size: _statement(engine, size) for size in range(1, _ALONE + 1)}
        self._plain = {size: _statement(engine, size, guarded=False) for size in _SIZES}

    def opened(self, cursor: DBAPICursor) -> None:
        """Nothing: `database.py` sets every connection of ours up."""

    def begin(self, cursor: DBAPICursor, *, durable: bool) -> None:
        """A commit that need not survive a power cut is one without a sync.

        NORMAL leaves out only the sync of the write-ahead log; the commit is in the file, and so in the kernel's
        memory, when COMMIT returns, whatever becomes of this process. Nor can a power cut do more than cut the newest
        of them off: frames are checksummed in their order, the log is synced before any of it is moved into the main
        file, and the next durable commit syncs all that stands before it.
        """
        if not durable:
            cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute("BEGIN IMMEDIATE")

    def commit(self, cursor: DBAPICursor, *, durable: bool) -> None:
        cursor.execute("COMMIT")
        if not durable:
            cursor.execute("PRAGMA synchronous=FULL")

    def newest(self, cursor: DBAPICursor) -> int:
        cursor.execute(_NEWEST)
        found: Any = cursor.fetchone()
        return int(found[0])

    def insert_alone(self, cursor: DBAPICursor, rows: Sequence[Values]) -> bool:
        statement = self._guarded.get(len(rows))
        if statement is None:
            return False
        values: list[Any] = []
        for row in rows:
            values += row
        try:
            # In autocommit a single statement is begun, committed and synced inside one call of the driver.
            cursor.execute(statement, values)
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_MISMATCH:
                raise TailMoved from error
            raise
        return True

    def insert(self, cursor: DBAPICursor, rows: Sequence[Values]) -> None:
        start = 0
        for size in _SIZES:
            while len(rows) - start >= size:
                values: list[Any] = []
                for row in rows[start : start + size]:
                    values += row
                cursor.execute(self._plain[size], values)
                start += size

    def probe(self, cursor: DBAPICursor) -> None:
        cursor.execute(_PROBE)

    def is_row_error(self, error: BaseException) -> bool:
        return isinstance(error, _ROW_ERRORS)

    def is_statement_error(self, error: BaseException) -> bool:
        if isinstance(error, sqlite3.Error):
            # Errors of the driver's own (a value that it cannot bind) have no code.
            code = getattr(error, "sqlite_errorcode", None)
            return code is None or code & 0xFF in _STATEMENT_ERRORS
        return True


def _statement(engine: Engine, size: int, *, guarded: bool = True) -> str:
    """INSERT of `size` rows. guarded: of none of them if an event has the first one's number or a later one."""
    quote = engine.dialect.identifier_preparer.quote
    columns = ", ".join(quote(name) for name in (*COLUMNS, "hash"))
    others = ", ".join("?" * len(COLUMNS))
    rows = ", ".join([f"({_UNLESS_PASSED if guarded else '?'}, {others})"] + [f"(?, {others})"] * (size - 1))
    return " ".join(("INSERT INTO", quote(exchanges.name), f"({columns})", "VALUES", rows))
