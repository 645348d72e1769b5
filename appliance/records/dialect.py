"""What the writer says differently to each kind of database: one class a kind, one file each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from sqlalchemy.engine.interfaces import DBAPICursor

Values = Sequence[Any]
"""The columns of one exchange in the order of `rows.COLUMNS`, and its hash."""


class TailMoved(Exception):
    """Somebody else has written since the tail was read; nothing of ours was."""


class Dialect(Protocol):
    """Driver's errors pass through. The connection is in autocommit, whatever the driver calls that: a statement
    outside `begin` and `commit` is durable when it returns. After an error the connection is not used again."""

    def opened(self, cursor: DBAPICursor) -> None:
        """Prepare a new connection. Raises RecordsUnavailable if somebody else is this database's writer."""
        ...

    def begin(self, cursor: DBAPICursor, *, durable: bool) -> None:
        """Begin a transaction that holds the right to write. durable: its commit survives a power cut; else only the
        end of the process."""
        ...

    def commit(self, cursor: DBAPICursor, *, durable: bool) -> None: ...

    def newest(self, cursor: DBAPICursor) -> int:
        """The highest number that an exchange or event ever had, 0 for none – also where its row is gone, if the
        database remembers that."""
        ...

    def insert_alone(self, cursor: DBAPICursor, rows: Sequence[Values]) -> bool:
        """Make rows durable with one statement. False, and nothing done, where their number needs several.

        Raises TailMoved if an event has a number that is not below theirs.
        """
        ...

    def insert(self, cursor: DBAPICursor, rows: Sequence[Values]) -> None:
        """Insert rows in the transaction that was begun."""
        ...

    def probe(self, cursor: DBAPICursor) -> None:
        """Commit something small."""
        ...

    def is_row_error(self, error: BaseException) -> bool:
        """Whether a row is to blame (it cannot be bound, breaks a constraint), not the database."""
        ...

    def is_statement_error(self, error: BaseException) -> bool:
        """Whether a work's statement is to blame for the driver's error, and the transaction can go on after the
        savepoint was rolled back."""
        ...
