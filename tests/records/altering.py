"""Rows past the one writer, as another version or somebody who has the file would leave them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncConnection

from appliance.records.database import Database


@asynccontextmanager
async def altering(database: Database) -> AsyncIterator[AsyncConnection]:
    """A connection in a transaction that may write and is committed at the end."""
    async with database.engine.connect() as connection:
        await connection.execution_options(write=True)
        async with connection.begin():
            yield connection
