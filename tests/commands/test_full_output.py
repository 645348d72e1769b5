"""What a command says whose output goes to a full disk: one line, and that what is there is not whole."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.test_ledger import write


@pytest.mark.parametrize(
    "words",
    ["export --data-dir {}", "ledger export --data-dir {}", "requests tail --data-dir {}", "config schema"],
    ids=["export", "ledger export", "requests tail", "config schema"],
)
def test_is_told_of_and_ends_the_command(words: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    asyncio.run(write(folder, 1, 5, lambda number: number == 5))
    command = [sys.executable, "-m", "appliance.cli", *words.format(folder).split()]
    whole = subprocess.run(command, capture_output=True, timeout=60, cwd=tmp_path, check=True)
    assert whole.stdout
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        "outpost: the standard output cannot be written: No space left on device; what is there is not whole"
    ]
