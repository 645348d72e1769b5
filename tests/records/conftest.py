"""Both kinds of database. A test that takes `database` or `where` runs once with each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

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
