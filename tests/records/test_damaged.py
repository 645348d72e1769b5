"""A file that is no database any more: who runs the box is told which one, and the way back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.commands import requests
from appliance.errors import RecordsUnavailable
from appliance.records.database import Database
from appliance.records.recorder import Recorder
from tests.records.test_recorder import row

PAGE = 4096
DOCS = Path(__file__).resolve().parents[2] / "docs"


def overwritten(file: Path) -> None:
    file.write_bytes(b"This is a text. " * 1024)


def malformed(file: Path) -> None:
    """Everything behind the first page is gone, as after a disk's fault."""
    data = file.read_bytes()
    file.write_bytes(data[:PAGE] + b"\xff" * (len(data) - PAGE))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    async def fill() -> None:
        database = await Database.open(tmp_path / "outpost.db")
        recorder = Recorder(database)
        await recorder.start()
        await recorder.submit(row(1))
        await recorder.close()
        await database.close()

    asyncio.run(fill())
    return tmp_path / "outpost.db"


def check(message: str, file: Path) -> None:
    assert message.startswith(f"{file} is damaged, or no SQLite database at all (")
    (heading,) = re.findall("'(.*)' in docs/records.md", message)
    assert f"## {heading}\n" in (DOCS / "records.md").read_text(encoding="utf-8")
    assert "permissions" not in message


@pytest.mark.parametrize("damage", [overwritten, malformed])
def test_a_start_and_a_command_name_the_file_and_the_cure(file: Path, damage: Callable[[Path], None]) -> None:
    damage(file)
    with pytest.raises(RecordsUnavailable) as failed:
        asyncio.run(Database.open(file))
    check(failed.value.message, file)
    result = CliRunner().invoke(requests.app, ["tail", "--data-dir", str(file.parent)])
    assert result.exit_code == 1
    check(result.stderr.removeprefix("outpost: "), file)


async def test_what_callers_are_told_does_not_say_where_it_is(tmp_path: Path) -> None:
    await (await Database.open(tmp_path / "outpost.db")).close()
    malformed(tmp_path / "outpost.db")
    database = Database(tmp_path / "outpost.db")
    with pytest.raises(RecordsUnavailable, match="^The record database is damaged") as failed:
        async with database.read() as connection:
            await connection.exec_driver_sql("SELECT count(*) FROM exchanges")
    assert str(tmp_path) not in failed.value.message
    await database.close()
