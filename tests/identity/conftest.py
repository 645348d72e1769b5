"""A ring and a directory over a real database, with a recorder of their own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from appliance.identity.directory import Directory
from appliance.identity.key_ring import KeyRing
from appliance.identity.key_store import KeyInfo, NewKey
from appliance.identity.keys import FixedKey
from appliance.identity.principal import Principal, Role
from appliance.records.database import Database, Where
from appliance.records.recorder import Recorder
from appliance.records.tables import events
from tests.postgres import Cluster

OWNER = Principal("key_root", "root", "owner")


@dataclass
class Box:
    """What one process has of identity."""

    database: Database
    recorder: Recorder
    ring: KeyRing
    folder: Path

    @property
    def directory(self) -> Directory:
        return self.ring.directory

    async def key(self, name: str, role: Role | None = None, **wish: Any) -> tuple[KeyInfo, str]:
        return await self.ring.create(OWNER, NewKey(name, role=role, **wish))

    async def events(self, prefix: str = "admin.") -> list[tuple[str, dict[str, Any]]]:
        """Kinds and bodies of the ledger's events, oldest first."""
        async with self.database.read() as connection:
            rows = (await connection.execute(select(events.c.kind, events.c.body).order_by(events.c.seq))).all()
        found = [(kind, json.loads(body)) for kind, body in rows if kind.startswith(prefix)]
        return [(kind, body.get("body", body)) for kind, body in found]

    def as_of(self, now: float) -> None:
        """Set the directory's clock."""
        self.directory.clock = lambda: now


@asynccontextmanager
async def open_box(folder: Path, fixed: list[FixedKey] | None = None, where: Where | None = None) -> AsyncIterator[Box]:
    """`where`: another database than a file in `folder`."""
    database = await Database.open(where or folder / "outpost.db")
    recorder = Recorder(database)
    await recorder.start()
    try:
        yield Box(database, recorder, await KeyRing.open(database, folder, fixed or [], recorder=recorder), folder)
    finally:
        await recorder.close()
        await database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
async def any_box(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Box]:
    """A box on either kind of database."""
    if request.param == "sqlite":
        async with open_box(tmp_path) as opened:
            yield opened
        return
    cluster: Cluster = request.getfixturevalue("postgres")
    name = cluster.new_database(cluster.template)
    async with open_box(tmp_path, where=cluster.server(name, backups=tmp_path / "backups")) as opened:
        yield opened
    cluster.drop(name)


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    async with open_box(tmp_path) as opened:
        yield opened
