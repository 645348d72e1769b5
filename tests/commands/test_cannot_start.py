"""What `outpost serve` says where it cannot start: the setting, why, and what to do. Nothing is left running."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.test_ledger import run, write


@pytest.fixture
def taken() -> Iterator[str]:
    """An address on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield f"127.0.0.1:{other.getsockname()[1]}"


def serve(folder: Path, **settings: str) -> str:
    values = {"server": "127.0.0.1:0", "console": "127.0.0.1:0", "data_dir": str(folder / "data"), **settings}
    file = folder / "outpost.yaml"
    file.write_text(
        f"server: {{listen: '{values['server']}'}}\nconsole: {{listen: '{values['console']}'}}\n"
        f"data_dir: '{values['data_dir']}'\ndeployments: []\nroutes: []\n"
    )
    words = [sys.executable, "-m", "appliance.cli", "serve", "--config", str(file)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1, ended.stderr
    return ended.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("listener", ["server", "console"])
def test_an_address_that_is_taken(listener: str, taken: str, tmp_path: Path) -> None:
    told = serve(tmp_path, **{listener: taken})
    port = taken.partition(":")[2]
    assert told.startswith(
        f"outpost: {listener}.listen: cannot listen on port {port} of 127.0.0.1: Address already in use"
    )
    assert "choose another port" in told
    assert not (tmp_path / "data" / "run" / "control.sock").exists()
    assert (tmp_path / "data" / "outpost.lock").read_bytes() == b"", "nobody may send a signal to who was here"


@pytest.mark.parametrize(
    ("address", "reason", "cure"),
    [
        ("192.0.2.1:0", "Cannot assign requested address", "`ip address`"),
        ("nobody.invalid:0", "", "choose another address"),
    ],
)
def test_an_address_that_is_none(address: str, reason: str, cure: str, tmp_path: Path) -> None:
    told = serve(tmp_path, server=address)
    assert told.startswith(f"outpost: server.listen: cannot listen on port 0 of {address[:-2]}: {reason}")
    assert cure in told


@pytest.mark.parametrize("folder", ["/proc/nope", "/dev/null", "/dev/null/x"])
def test_a_folder_that_cannot_be_made(folder: str, tmp_path: Path) -> None:
    told = serve(tmp_path, data_dir=folder)
    assert told.startswith(f"outpost: data_dir: {folder} cannot be used (")
    assert "name a folder that this user may make or write to" in told


def test_a_ledger_whose_signing_key_is_missing(tmp_path: Path) -> None:
    """Nothing is made, so that the file can be put back."""
    folder = tmp_path / "data"
    asyncio.run(write(folder, 1, 2, lambda number: number == 2))
    key = folder / "secrets" / "ledger.key"
    kept = key.rename(tmp_path / "kept")
    told = serve(tmp_path)
    assert told.startswith(f"outpost: {key} is missing, though this ledger has checkpoints that were signed with it. ")
    assert "Restore it from the backup" in told
    assert not key.exists()
    kept.rename(key)
    verified = run("verify", "--data-dir", folder)
    assert verified.stdout.startswith("The ledger is sound: 2 records"), verified.output
