"""What the tests of commands share."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from appliance.records.database import Database


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder that a gateway has used."""

    async def use() -> None:
        await (await Database.open(tmp_path / "outpost.db")).close()

    asyncio.run(use())
    return tmp_path
