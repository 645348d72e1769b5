"""Both kinds of database. A test that takes `database`, `where` or `any_box` runs once with each.

`box` and `any_box` are for modules with a context manager `opened(database)`, which gives what their tests work on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.records.database import Database, Where
from tests.postgres import Cluster

KINDS = ("sqlite", "postgresql")


@pytest.fixture(params=KINDS)
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Where]:
    """A place for a database: a file that is not there yet, or a server's database that is migrated already."""
    if request.param == "sqlite":
        yield tmp_path / "outpost.db"
        return
    cluster: Cluster = request.getfixturevalue("postgres")
    name = cluster.new_database(cluster.template)
    yield cluster.server(name, backups=tmp_path / "backups")
    cluster.drop(name)


@pytest.fixture
async def database(where: Where) -> AsyncIterator[Database]:
    opened = await Database.open(where)
    yield opened
    await opened.close()


@pytest.fixture
async def any_box(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[Any]:
    async with request.module.opened(database) as made:
        yield made


@pytest.fixture
async def box(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """The file, where one kind is enough."""
    database = await Database.open(tmp_path / "outpost.db")
    async with request.module.opened(database) as made:
        yield made
    await database.close()
