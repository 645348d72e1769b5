"""How the writer speaks to PostgreSQL.

Nobody else writes while this session lives, since it holds the writer's lock (engine_postgres.py); so nothing needs
guarding against a tail that has moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import msgspec
from sqlalchemy import Engine
from sqlalchemy.engine.interfaces import DBAPICursor

from appliance.records.dialect import Values
from appliance.records.engine_postgres import WriterCursor
from appliance.records.failures import is_driver_error, sqlstate
from appliance.records.rows import COLUMNS

_NAMES = (*COLUMNS, "hash")

# All rows of a batch are one parameter, whatever their number: one statement that is prepared once, one round trip,
# and the driver, which is written in Python, has one value to bind instead of thousands.
_INSERT = "INSERT INTO exchanges ({0}) SELECT {0} FROM json_populate_recordset(NULL::exchanges, CAST(:rows AS json))"
_NEWEST = "SELECT greatest((SELECT max(seq) FROM exchanges), (SELECT max(seq) FROM events), 0)"
_PROBE = (
    "INSERT INTO counters (name, value) VALUES ('probe', 1) "
    "ON CONFLICT (name) DO UPDATE SET value = (counters.value + 1) % 1000000000"
)

_ROW_CLASSES = ("22", "23", "54")
"""Classes of SQLSTATE: data, constraints, limits of what can be stored."""

_TROUBLE_CLASSES = ("08", "25", "53", "57P", "58", "F0", "XX")
"""The connection, a server that takes no writes, its resources, its shutdown, its files: no statement is to blame."""

_encode = msgspec.json.Encoder().encode


class PostgresDialect:
    def __init__(self, engine: Engine) -> None:
        quote = engine.dialect.identifier_preparer.quote
        self._insert = _INSERT.format(", ".join(quote(name) for name in _NAMES))

    def opened(self, cursor: DBAPICursor) -> None:
        """Nothing: connecting has made this session the one writer, or failed."""

    def begin(self, cursor: DBAPICursor, *, durable: bool) -> None:
        """Without `synchronous_commit` a commit is in the server's memory, which outlives this process; a crash of
        the server may cut the newest of them off, never one from the middle, and the next durable commit takes all
        before it along to the disk."""
        cursor.execute("BEGIN" if durable else "BEGIN; SET LOCAL synchronous_commit = off")

    def commit(self, cursor: DBAPICursor, *, durable: bool) -> None:
        cursor.execute("COMMIT")

    def newest(self, cursor: DBAPICursor) -> int:
        cursor.execute(_NEWEST)
        (found,) = cursor.fetchall()
        return int(found[0])

    def insert_alone(self, cursor: DBAPICursor, rows: Sequence[Values]) -> bool:
        self.insert(cursor, rows)
        return True

    def insert(self, cursor: DBAPICursor, rows: Sequence[Values]) -> None:
        named = [dict(zip(_NAMES, row, strict=True)) for row in rows]
        for each in named:
            each["hash"] = "\\x" + each["hash"].hex()
        cast(WriterCursor, cursor).run(self._insert, rows=_encode(named).decode())

    def probe(self, cursor: DBAPICursor) -> None:
        cursor.execute(_PROBE)

    def is_row_error(self, error: BaseException) -> bool:
        state = sqlstate(error)
        if state is not None:
            return state.startswith(_ROW_CLASSES)
        return isinstance(error, (OverflowError, TypeError, ValueError)) and not is_driver_error(error)

    def is_statement_error(self, error: BaseException) -> bool:
        state = sqlstate(error)
        if state is not None:
            # Out of time is the work's own doing.
            return not state.startswith(_TROUBLE_CLASSES)
        return not is_driver_error(error) and not isinstance(error, OSError)
