"""The server as the second database: what it promises, who gets in, its one writer, and what becomes of lost ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text

from appliance.records.database import Database
from appliance.records.tables import counters
from tests.postgres import Cluster


@pytest.fixture
def name(postgres: Cluster) -> Iterator[str]:
    """An empty, migrated database."""
    made = postgres.new_database(postgres.template)
    yield made
    postgres.drop(made)


async def test_every_session_is_set_up(postgres: Cluster, name: str, tmp_path: Path) -> None:
    database = await Database.open(postgres.server(name, backups=tmp_path))
    async with database.read() as connection:
        assert await shown(connection, "lock_timeout") == "2s"
        assert await shown(connection, "transaction_isolation") == "repeatable read"
    with database.writer_engine().connect() as writer:
        wanted = {"lock_timeout": "2s", "statement_timeout": "3s", "synchronous_commit": "on"}
        assert {key: writer.execute(text(f"SHOW {key}")).scalar_one() for key in wanted} == wanted
    await database.close()


async def shown(connection: object, name: str) -> str:
    return (await connection.exec_driver_sql(f"SHOW {name}")).scalar_one()  # type: ignore[attr-defined]


async def test_a_read_sees_one_moment(postgres: Cluster, name: str, tmp_path: Path) -> None:
    database = await Database.open(postgres.server(name, backups=tmp_path))
    async with database.read() as connection:
        assert (await connection.execute(select(counters))).all() == []
        async with database.write() as writer:
            await writer.execute(insert(counters).values(name="a", value=1))
        assert (await connection.execute(select(counters))).all() == []
    async with database.read() as connection:
        assert (await connection.execute(select(counters))).all() == [("a", 1)]
    await database.close()
