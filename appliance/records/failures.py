"""The drivers' errors in the house's words."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from appliance.errors import OutpostError, RecordsUnavailable
from appliance.records.tables import SCHEMA

_LACKING = ("no such table: ", "no such column: ", " has no column named ")
"""What SQLite says; it has no codes for it."""
_UNDEFINED = ("42P01", "42703")
"""PostgreSQL's undefined_table and undefined_column."""
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_POSTGRES = ("pg8000", "asyncpg", "sqlalchemy.dialects.postgresql")


class DatabaseError(OutpostError):
    """The database cannot be used as it is set up; the message says what to change."""

    code = "database_setup"


class DatabaseInUse(RecordsUnavailable):
    """Another process is the one writer of this database."""

    code = "database_in_use"


def unavailable(error: BaseException, file: Path | None = None) -> RecordsUnavailable:
    """The error as one of ours; a lock, a full disk or a lost connection may pass, so a retry may help.

    file: the database's, for those who run the box; who only asks models need not learn where it is.
    """
    if isinstance(error, RecordsUnavailable):
        return error
    if _is_damaged(error):
        return RecordsUnavailable(
            f"{file or 'The record database'} is damaged, or no SQLite database at all ({cause(error)}). Stop the "
            "gateway and put back a backup, as 'Backup and restore' in docs/records.md says; copies from before "
            "updates are in the folder `backups` beside it."
        )
    if _lacks_something(error):
        return RecordsUnavailable(misfit("The record database", cause(error)))
    check = "the database server and the way to it" if is_driver_error(error) else "the disk and the file's permissions"
    return RecordsUnavailable(
        f"The record database cannot be used right now ({cause(error)}). Check {check}.", retry_after_s=1.0
    )


def damaged(error: RecordsUnavailable, file: Path) -> RecordsUnavailable | None:
    """The same with the name of the file, where that is what is damaged."""
    return unavailable(error.__cause__, file) if error.__cause__ and _is_damaged(error.__cause__) else None


def cause(error: BaseException) -> str:
    """What a driver says, in one line and without its wrapping."""
    origin = _origin(error)
    if (fields := _fields(origin)) is not None:
        text = str(fields.get("M", ""))
    elif type(origin).__module__.startswith("pg8000") and isinstance(origin.__cause__, OSError):
        # "network error" and the like; the reason is one level down.
        text = f"{origin}: {origin.__cause__.strerror or origin.__cause__}"
    else:
        text = str(origin)
        # SQLAlchemy's layer over asyncpg puts the name of the class in front.
        if text.startswith("<class ") and ">: " in text:
            text = text.split(">: ", 1)[1]
    return " ".join(text.split()) or type(origin).__name__


def misfit(place: str, lacks: str) -> str:
    """The message for a database that says that it has this version's schema and has not."""
    return (
        f"{place} does not fit this version of Outpost ({lacks}), though it says that its schema is {SCHEMA}: it was "
        "made by a version that was never released, or changed by hand. Put back the copy from before the update (in "
        "the folder `backups`), or start with another `data_dir` or `database.url`."
    )


def _lacks_something(error: BaseException) -> bool:
    """Whether a statement names a table or a column that the database has not."""
    origin = _origin(error)
    if isinstance(origin, sqlite3.Error):
        return any(mark in str(origin) for mark in _LACKING)
    return sqlstate(error) in _UNDEFINED


def _is_damaged(error: BaseException) -> bool:
    """Whether SQLite finds something else in the file than it has written there."""
    code = getattr(_origin(error), "sqlite_errorcode", None)
    # The lowest byte is the kind, the others say more.
    return isinstance(code, int) and code & 0xFF in _DAMAGED


def sqlstate(error: BaseException) -> str | None:
    """PostgreSQL's five characters, None for any other error."""
    origin = _origin(error)
    if (fields := _fields(origin)) is not None:
        return fields.get("C")
    state = getattr(origin, "sqlstate", None)
    return state if isinstance(state, str) else None


def is_driver_error(error: BaseException) -> bool:
    """Whether PostgreSQL's drivers made it, as they do for a connection that is gone."""
    return type(_origin(error)).__module__.startswith(_POSTGRES)


def _origin(error: BaseException) -> BaseException:
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


def _fields(origin: BaseException) -> dict[str, Any] | None:
    """pg8000's errors carry the server's message as a mapping."""
    first = origin.args[0] if origin.args else None
    return first if isinstance(first, dict) else None
