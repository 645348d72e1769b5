"""How much room the database takes, and how much of it is really in use."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from appliance.records.database import Database


class Usage(msgspec.Struct, frozen=True):
    """Bytes. total: what the database takes on the disk. live: what of it holds records; the rest is written over
    before the database grows. free: what the disk has left for this process, None where it is another machine's."""

    total: int
    live: int
    free: int | None


async def measure(database: Database, interesting: int = 0) -> Usage:
    """interesting: bytes below which `live` need not be told from `total`. Raises RecordsUnavailable."""
    async with database.read() as connection:
        if connection.dialect.name == "sqlite":
            pages, unused, size = [
                int((await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one())
                for name in ("page_count", "freelist_count", "page_size")
            ]
            return await asyncio.to_thread(_with_files, database.path, pages * size, (pages - unused) * size)
        total = int((await connection.exec_driver_sql("SELECT pg_database_size(current_database())")).scalar_one())
        return Usage(total, total if total < interesting else await _live(connection), None)


def _with_files(path: Path, pages: int, live: int) -> Usage:
    beside = 0
    for suffix in ("-wal", "-shm"):
        try:
            beside += path.with_name(path.name + suffix).stat().st_size
        except OSError:
            continue
    # The log is written over from its beginning again and again, so it holds nothing that dropping would free.
    return Usage(pages + beside, live, shutil.disk_usage(path.parent).free)


_LIVE = """
SELECT coalesce((SELECT sum(octet_length(data) + 300) FROM contents), 0)
     + coalesce((SELECT sum(octet_length(input) + octet_length(answer) + 400) FROM responses), 0)
     + coalesce((SELECT sum(pg_column_size(exchanges.*) + 64) FROM exchanges), 0)
     + coalesce((SELECT sum(pg_column_size(events.*) + 64) FROM events), 0)
"""


async def _live(connection: AsyncConnection) -> int:
    """What rows hold. PostgreSQL's files do not shrink when rows are deleted, so their size says nothing about that.
    Every row is visited, but no content is read: lengths are in the rows' heads."""
    return int((await connection.exec_driver_sql(_LIVE)).scalar_one())
